"""`crate jobs`, `crate cancel` and `crate launch --preflight`: looking at jobs without waiting."""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from crate.data.catalogue import get_dataset
from crate.data.datasets import check_available
from crate.errors import RunError, UsageError
from crate.launch import slurm
from crate.launch.job import (
    Job,
    job_parameters,
    jobs_folder,
    make_executor,
    probe,
    read_job,
    state_of,
)
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.recipes import Compute, Recipe
from crate.records import RunFolder, canonical_json, read_json
from crate.runs import Run, parse_path


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


# --- preflight -----------------------------------------------------------


def preflight(target: str, plan: Plan, settings: Settings, *, submit_probe: bool) -> bool:
    """Print the script of each kind of job a target needs, and check what they name.

    Returns whether everything is there.
    """
    if settings.launcher == "local":
        raise UsageError("launcher is local: nothing is submitted; see slurm/site.yaml")
    steps = {run: plan.resolve(run).recipe for run in plan.runs(target, settings)}
    kinds: dict[str, list[Run]] = {}
    for run, recipe in steps.items():
        kinds.setdefault(canonical_json(recipe.compute.model_dump()), []).append(run)
    checks: list[tuple[bool, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for runs in kinds.values():
            run = runs[0]
            compute = steps[run].compute
            parameters = job_parameters(compute, settings, "crate:preflight", "preflight")
            executor = make_executor(Path(folder), parameters, settings)
            names = sorted({run.stage for run in runs})
            print(f"# {len(runs)} jobs ({', '.join(names)}), at most {settings.max_jobs} at once")
            if settings.launcher == "slurm":
                script = Path(folder) / "job.sh"
                inner = executor._executor
                text = inner._make_submission_file_text(inner._submitit_command_str, "")
                text = text.replace(folder, str(jobs_folder(settings.results, run.scale, settings)))
                script.write_text(text)
                print(text)
                problem = slurm.test_script(script)
                said = problem or "Slurm accepts it"
                checks.append((not problem, f"job for {', '.join(names)}: {said}"))
            else:
                print(f"{parameters}\n")
    scratch = jobs_folder(settings.results, settings.scale, settings)
    checks += _site_checks(settings)
    checks += _folder_checks(list(steps.values()), settings, scratch)
    if submit_probe:
        checks.append(_probe(list(steps.values()), settings, scratch))
    for good, text in checks:
        print(f"{'ok  ' if good else 'NO  '}{text}")
    return all(good for good, _ in checks)


def _site_checks(settings: Settings) -> list[tuple[bool, str]]:
    if settings.launcher != "slurm":
        return []
    checks = []
    partitions = slurm.partitions()
    if partitions is None:
        return [(False, "Slurm does not answer (sinfo)")]
    name = settings.partition
    if name and name not in partitions:
        checks.append((False, f"partition {name} is not there; there are {', '.join(partitions)}"))
    else:
        for each in [name] if name else partitions:
            part = partitions[each]
            gpus = ", ".join(sorted(part["gres"])) or "no GPUs"
            checks.append(
                (True, f"partition {each}: {part['nodes']} nodes, {gpus}, limit {part['limit']}")
            )
    accounts = slurm.accounts()
    if accounts is None:
        checks.append((True, "no accounting here (sacctmgr); the account cannot be checked"))
    elif settings.account and settings.account not in accounts:
        told = ", ".join(accounts) or "none"
        checks.append((False, f"account {settings.account} is not yours; yours: {told}"))
    else:
        checks.append((True, f"account {settings.account or 'by default'}"))
    return checks


def _folder_checks(
    steps: list[Recipe], settings: Settings, scratch: Path
) -> list[tuple[bool, str]]:
    checks = []
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch):
            checks.append((True, f"scratch {scratch} can be written (it must be a shared folder)"))
    except OSError as error:
        checks.append((False, f"scratch {scratch} cannot be written ({error.strerror})"))
    for name in sorted({recipe.dataset for recipe in steps if recipe.READS_DATA}):
        try:
            check_available(get_dataset(name), settings.data_root)
            checks.append((True, f"data set {name} is there, seen from here"))
        except RunError as error:
            checks.append((False, str(error)))
    python = Path(settings.python or sys.executable)
    known = not python.is_absolute() or python.is_file()
    checks.append((known, f"Python {python}" + ("" if known else " is not there")))
    return checks


def _probe(steps: list[Recipe], settings: Settings, scratch: Path) -> tuple[bool, str]:
    """Run a short job that reports what a node sees.

    It asks for five minutes: Slurm may send the signal a minute earlier than it was told to.
    """
    gpus = int(any(recipe.compute.gpus for recipe in steps))
    compute = Compute(hours=5 / 60, memory_gb=2, gpus=gpus)
    parameters = job_parameters(compute, settings, "crate:probe", "probe")
    executor = make_executor(scratch / "probe", parameters, settings)
    print("# probe job: waiting for it (Ctrl-C leaves it)", file=sys.stderr)
    try:
        real = any(
            recipe.READS_DATA and not get_dataset(recipe.dataset).embedded for recipe in steps
        )
        data_root = str(Path(settings.data_root).absolute()) if real else ""
        job = executor.submit(probe, data_root, str(scratch))
        while not job.paths.result_pickle.exists():
            known = slurm.final_state(job.job_id) if settings.launcher == "slurm" else None
            ended = known in slurm.ENDED if known else job.done()
            if ended and not job.paths.result_pickle.exists():
                time.sleep(3)
                if not job.paths.result_pickle.exists():
                    return False, f"probe job {job.job_id} ended ({known}); logs in {scratch}/probe"
            time.sleep(0.5)
        seen = job.result()
    except Exception as error:  # whatever the far side raised
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return False, f"probe job: {(causes or lines)[-1]}"
    good = not any("is not there" in str(value) for value in seen.values())
    good = good and seen["GPUs"] >= gpus
    return good, "probe job: " + ", ".join(f"{key} {value}" for key, value in seen.items())
