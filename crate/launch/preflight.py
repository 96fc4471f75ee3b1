"""`crate launch --preflight`: show what would be submitted, and check the site without a run."""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

from crate.data.catalogue import get_dataset
from crate.data.datasets import check_available
from crate.errors import RunError, UsageError
from crate.launch import slurm
from crate.launch.job import jobs_folder
from crate.launch.sbatch import (
    job_parameters,
    make_executor,
    script_text,
    submission_environment,
)
from crate.launch.work import describe_node
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.recipes import Compute, Recipe
from crate.records import canonical_json
from crate.runs import Run
from crate.tasks.base import splits_read

MOST_LISTED = 20  # runs of one script


def preflight(target: str, plan: Plan, settings: Settings, *, check_node: bool) -> bool:
    """Print the script of each kind of job of a target, check the site, and print the checks.

    Args:
        check_node: also run a short job that describes its node.

    Returns:
        Whether every check passed.

    Raises:
        UsageError: the launcher is local, or the target does not exist.
    """
    if settings.launcher == "local":
        raise UsageError("launcher is local: nothing is submitted; see slurm/site.yaml")
    recipes = {run: plan.resolve(run).recipe for run in plan.runs(target, settings)}
    kinds: dict[str, list[Run]] = {}
    for run, recipe in recipes.items():
        kinds.setdefault(canonical_json(recipe.compute.model_dump()), []).append(run)
    checks: list[tuple[bool, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for runs in kinds.values():
            run = runs[0]
            compute = recipes[run].compute
            parameters = job_parameters(compute, settings, "crate:preflight", "preflight")
            root = jobs_folder(settings.results, run.scale, settings)
            executor = make_executor(root / "crate-preflight", parameters, settings)
            names = sorted({run.stage for run in runs})
            print(f"# {len(runs)} jobs ({', '.join(names)}), at most {settings.max_jobs} at once,")
            print("# each by this script, with a name of its own:")
            for each in runs[:MOST_LISTED]:
                print(f"#   {each}")
            if len(runs) > MOST_LISTED:
                print(
                    f"#   and {len(runs) - MOST_LISTED} more; 'crate plan TARGET --runs' lists them"
                )
            if settings.launcher == "slurm":
                script = Path(folder) / "job.sh"
                script.write_text(script_text(executor))
                print(script.read_text())
                with submission_environment():
                    problem = slurm.test_script(script)
                passes = bool(problem) and slurm.refusal(problem) != "final"
                verdict = problem or "Slurm accepts it"
                verdict += "; a run waits until this passes" if passes else ""
                checks.append((passes or not problem, f"job for {', '.join(names)}: {verdict}"))
            else:
                print(f"{parameters}\n")
    scratch = jobs_folder(settings.results, settings.scale, settings)
    checks += _site_checks(settings)
    checks += _folder_checks(list(recipes.values()), settings, scratch)
    if check_node:
        checks.append(_check_node(list(recipes.values()), settings, scratch))
    for good, text in checks:
        print(f"{'ok  ' if good else 'NO  '}{text}")
    return all(good for good, _ in checks)


def _site_checks(settings: Settings) -> list[tuple[bool, str]]:
    """Partition and account, as (whether it is usable, one line)."""
    if settings.launcher != "slurm":
        return []
    checks = []
    partitions = slurm.partitions()
    if partitions is None:
        return [(False, "Slurm does not answer (sinfo)")]
    names = [name for name in settings.partition.split(",") if name]  # the first that is free
    missing = [name for name in names if name not in partitions]
    if missing:
        there = ", ".join(partitions)
        checks.append((False, f"partition {', '.join(missing)} is not there; there are {there}"))
    for each in [name for name in names or partitions if name in partitions]:
        part = partitions[each]
        gpus = ", ".join(sorted(part["gres"])) or "no GPUs"
        checks.append(
            (True, f"partition {each}: {part['nodes']} nodes, {gpus}, limit {part['limit']}")
        )
    hidden = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if hidden:
        told = f"{', '.join(hidden)} of the shell: not used; the site's file names what is"
        checks.append((True, told))
    accounts = slurm.accounts()
    if accounts is None:
        checks.append((True, "no accounting here (sacctmgr); the account cannot be checked"))
    elif settings.account and settings.account.lower() not in accounts:
        yours = ", ".join(accounts) or "none"
        checks.append((False, f"account {settings.account} is not yours; yours: {yours}"))
    else:
        checks.append((True, f"account {settings.account or 'by default'}"))
    return checks


def _folder_checks(
    recipes: list[Recipe], settings: Settings, scratch: Path
) -> list[tuple[bool, str]]:
    """Scratch folder, data sets and Python, as (whether it is usable, one line)."""
    checks = []
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch):
            checks.append((True, f"scratch {scratch} can be written (it must be a shared folder)"))
    except OSError as error:
        checks.append((False, f"scratch {scratch} cannot be written ({error.strerror})"))
    for dataset, splits in splits_read(recipes):
        try:
            check_available(dataset, settings.data_root, splits)
            checks.append((True, f"data set {dataset.name} is there, seen from here"))
        except RunError as error:
            checks.append((False, str(error)))
    python = Path(settings.python or sys.executable)
    exists = not python.is_absolute() or python.is_file()
    checks.append((exists, f"Python {python}" + ("" if exists else " is not there")))
    return checks


def _check_node(recipes: list[Recipe], settings: Settings, scratch: Path) -> tuple[bool, str]:
    """Run a short job that describes its node, as (whether the node is usable, one line).

    Its limit is five minutes, because Slurm may send the signal a minute earlier than requested.
    """
    gpus = int(any(recipe.compute.gpus for recipe in recipes))
    compute = Compute(hours=5 / 60, memory_gb=2, gpus=gpus)
    parameters = job_parameters(compute, settings, "crate:probe", "probe")
    executor = make_executor(scratch / "probe", parameters, settings)
    print("# probe job: waiting for it (Ctrl-C leaves it)", file=sys.stderr)
    try:
        real = any(
            recipe.READS_DATA and not get_dataset(recipe.dataset).embedded for recipe in recipes
        )
        data_root = str(Path(settings.data_root).absolute()) if real else ""
        with submission_environment():
            job = executor.submit(describe_node, data_root, str(scratch))
        while not job.paths.result_pickle.exists():
            state = slurm.final_state(job.job_id) if settings.launcher == "slurm" else None
            ended = state in slurm.ENDED if state else job.done()
            if ended and not job.paths.result_pickle.exists():
                time.sleep(3)
                if not job.paths.result_pickle.exists():
                    return False, f"probe job {job.job_id} ended ({state}); logs in {scratch}/probe"
            time.sleep(0.5)
        node = job.result()
    except Exception as error:  # anything the job raised
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return False, f"probe job: {(causes or lines)[-1]}"
    good = not any("is not there" in str(value) for value in node.values())
    good = good and node["GPUs"] >= gpus
    return good, "probe job: " + ", ".join(f"{key} {value}" for key, value in node.items())
