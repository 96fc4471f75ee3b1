"""Which job works on a run, and what that job says of it.

<run>/job.json                         which job works on this run
<scale>/.jobs/<token>/                 what submitit writes for the job: its script, its logs
<scale>/.jobs/<token>/outcome.json     per run: "" if it finished, else why it failed
"""

import dataclasses
import math
from pathlib import Path

from crate.launch import local, slurm
from crate.planning.settings import Site
from crate.recipes import Compute
from crate.records import RunFolder, read_json, write_json

STALLS = 3  # starts that ran into the time limit without one more update or picture


@dataclasses.dataclass(frozen=True)
class Job:
    """job.json: the job that works on a run."""

    launcher: str
    token: str  # the job's comment: finds a job whose id could not be noted
    folder: str
    identity: str  # of the run
    id: str | None = None  # None while it is being submitted
    submitted: float = 0.0
    runs: int = 1  # how many the job does
    born: float | None = None  # start time of the controlling process (submitit-local)

    def outcome(self, path: str) -> str | None:
        """ "" if the run finished in this job, why it failed, or None while it is under way."""
        return (read_json(Path(self.folder) / "outcome.json") or {}).get(path)

    def cancel(self) -> bool:
        """Whether the order to end this job could be given."""
        if self.launcher == "slurm":
            return slurm.cancel(self.id)
        local.end_process(int(self.id), self.born)
        return True


def read_job(folder: RunFolder) -> Job | None:
    record = read_json(folder.job)
    try:
        return Job(**record) if record else None
    except TypeError:  # of another version, or not ours
        return None


def tell(folder: Path, path: str, error: str) -> None:
    """Note how a run of the job ended, for the processes that wait."""
    outcomes = read_json(folder / "outcome.json") or {}
    write_json(folder / "outcome.json", outcomes | {path: error})


def state_of(job: Job, queue: slurm.Queue, *, now: bool = False) -> slurm.JobState | bool | None:
    """The job's state; False if it is gone, None if that cannot be told now."""
    if job.launcher == "submitit-local":
        return (
            slurm.JobState("RUNNING", node="this machine")
            if local.find_process(int(job.id), job.born)
            else False
        )
    jobs = queue.get(job.submitted + 1, now=now)
    return None if jobs is None else jobs.get(job.id, False)


def jobs_folder(results: str, scale: str, site: Site) -> Path:
    """Where the launcher keeps its own files; every node must see it."""
    base = Path(site.scratch) if site.scratch else Path(results) / scale
    return base.absolute() / ".jobs"


def time_limit(compute: Compute, site: Site) -> int:
    """Time limit of a job; a run with more hours is requeued at the limit."""
    return max(1, math.ceil(60 * min(compute.hours, site.max_hours)))


def last_changes(folder: RunFolder) -> list[int]:
    """When what an unfinished run goes on from was written: the same again means no progress."""
    return [path.stat().st_mtime_ns for path in folder.unfinished()]
