"""`crate jobs` and `crate cancel`: look at the jobs under way without waiting for them."""

import json
import time
from pathlib import Path

from tabulate import tabulate

from crate.errors import RunError
from crate.launch import slurm
from crate.launch.job import Job, read_job, state_of
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import RunFolder, read_json
from crate.runs import parse_path


def find_jobs(settings: Settings) -> list[tuple[str, RunFolder, Job]]:
    """Every run of this results folder that a job is noted for, by its path."""
    found = []
    for path in sorted(Path(settings.results).glob("*/**/runs/**/job.json")):
        folder = RunFolder(path.parent)
        job = read_job(folder)
        if job is not None:
            found.append((str(path.parent), folder, job))
    return found


def list_jobs(settings: Settings) -> str:
    """Table of runs with a job: state, node, elapsed time, progress, restarts."""
    rows = []
    for path, folder, job in find_jobs(settings):
        run, _ = parse_path(path)
        state = _state(job, settings)
        record = read_json(folder.record) or {}
        told = record.get("job", {}) if record.get("job", {}).get("id") == job.id else {}
        known = isinstance(state, slurm.JobState)
        word = str(state) if known else {False: "gone", None: "unknown"}[state]
        rows.append(
            [
                f"{run.scale} {run}",
                job.id or "being submitted",
                word,
                state.elapsed if known and state.elapsed else _since(job.submitted),
                _progress(folder) if told else "",
                told.get("restarts", ""),
            ]
        )
    if not rows:
        return f"no jobs are under way in {settings.results}/"
    headers = ["run", "job", "state", "elapsed", "progress", "restarts"]
    return tabulate(rows, headers, disable_numparse=True)


def cancel_jobs(target: str, plan: Plan, settings: Settings) -> list[str]:
    """Cancel the jobs of a run, a table or all; returns what was done.

    Raises:
        RunError: Slurm did not take an order.
    """
    done, ended = [], set()
    wanted = None if target == "all" else set(plan.runs(target, settings))
    results = parse_path(target)[1] if "/" in target else settings.results
    for path, folder, job in find_jobs(settings.model_copy(update={"results": results})):
        run, _ = parse_path(path)
        if (wanted is not None and run not in wanted) or job.id is None:
            continue
        if job.token not in ended:
            if not job.cancel():
                raise RunError(f"{run}: Slurm did not take the order to cancel job {job.id}")
            ended.add(job.token)
        folder.job.unlink(missing_ok=True)
        done.append(f"{run}: job {job.id} cancelled")
    return done or ["no jobs to cancel"]


def _state(job: Job, settings: Settings) -> slurm.JobState | bool | None:
    if job.id is None:
        return None
    folder = Path(job.folder).parent
    return state_of(job, slurm.Queue(folder, settings.poll_seconds), now=True)


def _since(seconds: float) -> str:
    minutes, seconds = divmod(int(time.time() - seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _progress(folder: RunFolder) -> str:
    try:
        *_, last = folder.history.read_text(encoding="utf-8").splitlines()
        line = json.loads(last)
    except (OSError, ValueError):
        return ""
    return f"epoch {line['epoch']:.2f}, loss {line['loss']:.3f}"
