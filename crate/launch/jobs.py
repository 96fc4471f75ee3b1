"""`crate jobs` and `crate cancel`: list and cancel the jobs of a results folder."""

import time
from pathlib import Path

from tabulate import tabulate

from crate.errors import RunError
from crate.launch import slurm
from crate.launch.job import Job, job_state, read_job
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import RunFolder, read_json
from crate.runs import parse_path


def find_jobs(settings: Settings) -> list[tuple[str, RunFolder, Job]]:
    """Every run of the results folder that has a job.json, with its path and its job."""
    jobs = []
    for path in sorted(Path(settings.results).glob("*/**/runs/**/job.json")):
        folder = RunFolder(path.parent)
        job = read_job(folder)
        if job is not None:
            jobs.append((str(path.parent), folder, job))
    return jobs


def list_jobs(settings: Settings) -> str:
    """Table of the runs with a job: state, node, elapsed time, progress, restarts."""
    rows = []
    for path, folder, job in find_jobs(settings):
        run, _ = parse_path(path)
        state = _state(job, settings)
        record = read_json(folder.record) or {}
        recorded = record.get("job", {})
        started = recorded and recorded["id"] == job.id  # else run.json is of an earlier job
        known = isinstance(state, slurm.JobState)
        shown = str(state) if known else {False: "gone", None: "unknown"}[state]
        rows.append(
            [
                f"{run.scale} {run}",
                job.id or "being submitted",
                shown,
                state.elapsed if known and state.elapsed else _since(job.submitted),
                folder.latest() if started else "",
                recorded.get("restarts", "") if started else "",
            ]
        )
    if not rows:
        return f"no jobs are under way in {settings.results}/"
    headers = ["run", "job", "state", "elapsed", "progress", "restarts"]
    return tabulate(rows, headers, disable_numparse=True)


def cancel_jobs(target: str, plan: Plan, settings: Settings) -> list[str]:
    """Cancel the jobs of a run, a table or all; returns a line for each run.

    Raises:
        UsageError: the target does not exist.
        RunError: Slurm did not accept a cancellation.
    """
    lines, cancelled = [], set()
    wanted = None if target == "all" else set(plan.runs(target, settings))
    results = parse_path(target)[1] if "/" in target else settings.results
    for path, folder, job in find_jobs(settings.model_copy(update={"results": results})):
        run, _ = parse_path(path)
        if (wanted is not None and run not in wanted) or job.id is None:
            continue
        if job.token not in cancelled:
            if not job.cancel():
                raise RunError(f"{run}: Slurm did not accept the cancellation of job {job.id}")
            cancelled.add(job.token)
        folder.job.unlink(missing_ok=True)
        lines.append(f"{run}: job {job.id} cancelled")
    return lines or ["no jobs to cancel"]


def _state(job: Job, settings: Settings) -> slurm.JobState | bool | None:
    """As `job_state`; None for a job that is being submitted."""
    if job.id is None:
        return None
    folder = Path(job.folder).parent
    return job_state(job, slurm.Queue(folder, settings.poll_seconds), now=True)


def _since(seconds: float) -> str:
    """Time since a moment (seconds since the epoch), as h:mm:ss."""
    minutes, seconds = divmod(int(time.time() - seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
