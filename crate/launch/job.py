"""The job that works on a run, and how each of its runs ended.

<run>/job.json                       the job that works on this run
<scale>/.jobs/<token>/               submitit's files of the job: its script and its logs
<scale>/.jobs/<token>/outcome.json   run path → "" if it finished, else its error
"""

import dataclasses
import math
from pathlib import Path

from crate.launch import local, slurm
from crate.planning.settings import Site
from crate.recipes import Compute
from crate.records import RunFolder, read_json, write_json

MAX_STALLS = 3  # starts that reach the time limit without one more update or image


@dataclasses.dataclass(frozen=True)
class Job:
    """The content of job.json."""

    launcher: str
    token: str  # also the job's comment, which finds a job whose id is not in job.json
    folder: str  # <scale>/.jobs/<token>
    identity: str  # the run's
    id: str | None = None  # None while it is being submitted
    submitted: float = 0.0  # seconds since the epoch
    runs: int = 1  # number of runs in the job
    born: float | None = None  # start time of the controller process (submitit-local)

    def outcome(self, path: str) -> str | None:
        """ "" if the run finished in this job, its error if it failed, None while it is open."""
        return (read_json(Path(self.folder) / "outcome.json") or {}).get(path)

    def cancel(self) -> bool:
        """End the job; False if Slurm did not accept the order."""
        if self.launcher == "slurm":
            return slurm.cancel(self.id)
        local.end_process(int(self.id), self.born)
        return True


def read_job(folder: RunFolder) -> Job | None:
    """The job in a run's job.json; None if there is none that this version can read."""
    record = read_json(folder.job)
    try:
        return Job(**record) if record else None
    except TypeError:  # written by another version or program
        return None


def record_outcome(folder: Path, path: str, error: str) -> None:
    """Write to outcome.json how a run of the job ended: "", or its error."""
    outcomes = read_json(folder / "outcome.json") or {}
    write_json(folder / "outcome.json", outcomes | {path: error})


def job_state(job: Job, queue: slurm.Queue, *, now: bool = False) -> slurm.JobState | bool | None:
    """The job's state; False if it has left the queue, None if the state is not known now.

    With `now`, ask Slurm itself instead of the answer that all waiting processes share.
    """
    if job.launcher == "submitit-local":
        alive = local.find_process(int(job.id), job.born)
        return slurm.JobState("RUNNING", node="this machine") if alive else False
    jobs = queue.jobs(job.submitted + 1, now=now)
    return None if jobs is None else jobs.get(job.id, False)


def jobs_folder(results: str, scale: str, site: Site) -> Path:
    """The folder of all jobs of a scale; every node must see it."""
    base = Path(site.scratch) if site.scratch else Path(results) / scale
    return base.absolute() / ".jobs"


def time_limit(compute: Compute, site: Site) -> int:
    """Time limit of one run's job, in minutes; a longer run is requeued at the limit."""
    return max(1, math.ceil(60 * min(compute.hours, site.max_hours)))


def saved_times(folder: RunFolder) -> list[int]:
    """Modification times (ns) of a run's checkpoints; equal times mean no progress."""
    return [path.stat().st_mtime_ns for path in folder.unfinished()]
