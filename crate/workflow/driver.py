"""What the Snakefile calls: open and check the plan, hand settings down, tables after a failure.

The Snakefile runs in Snakemake's process, which must print one line for a mistake, not a traceback.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from crate.data.datasets import require_available
from crate.environment import EXPERIMENTS, PACKAGE
from crate.errors import RunError, UsageError
from crate.launch import slurm
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import SETTINGS_VARIABLE, Settings
from crate.recipes import Recipe
from crate.tasks.base import splits_read
from crate.training import trackers
from crate.workflow import lock, warm
from crate.workflow.command import (
    check_supported,
    command_settings,
    command_targets,
    is_dry_run,
    is_passive,
)
from crate.workflow.summary import describe_end, describe_plan, list_few_jobs, states_of
from crate.workflow.targets import check_target, run_targets, stale_results


def open_plan(workflow: Any) -> tuple[Plan, Settings]:
    """Check `experiments/` and the command's targets, and become the driver unless it is a dry run.

    Exits with one line: status 2 for a mistake, 1 if the results folder cannot be written.

    Args:
        workflow: Snakemake's.
    """
    try:
        experiments = Experiments(EXPERIMENTS)
        settings = experiments.settings(command_settings(workflow))
        plan = Plan(experiments, settings)
        if not workflow.is_main_process:  # it does one job of the driver that started it
            return plan, settings
        check_supported(workflow)
        trackers.check_installed(settings.log)
        for name in experiments.scales:
            experiments.scale(name)
        for recipe in experiments.recipes:
            for scale in {settings.scale, "paper"}:  # an override may hide a mistake in the recipe
                experiments.recipe(recipe, scale)
        for table in plan.tables:
            plan.table_runs(table, settings)
        targets = [plan.full_target(target) for target in command_targets()]
        for target in targets:
            check_target(target, plan, settings)
        for target in targets:
            for reason in plan.unavailable(target, settings).values():
                print(f"not evaluated: {reason}", file=sys.stderr)
        stale = stale_results(plan, settings, targets or ["all"])
        if is_dry_run():
            states = states_of(plan, settings, run_targets(plan, targets))
            atexit.register(_say, describe_plan(states, plan))
            list_few_jobs(sum(state != "finished" for state in states.values()))
        if not is_passive():
            lock.become_driver(settings)
            for path in stale:
                path.unlink(missing_ok=True)
        hand_down(settings)
    except UsageError as error:
        _end(2, f"error: {error}")
    except RunError as error:
        _end(1, f"failed: {error}")
    return plan, settings


def check_data(settings: Settings, recipes: list[Recipe]) -> None:
    """Exit with one line if a split that a run reads is missing, before the first run starts.

    With Slurm it is only a warning: nodes may see folders that the login node does not.
    """
    try:
        require_available(splits_read(recipes), settings.data_root)
    except UsageError as error:
        if settings.launcher == "slurm":
            print(f"warning: seen from here, {error}", file=sys.stderr)
        else:
            _end(2, f"error: {error}")


def check_launcher(settings: Settings) -> None:
    """Exit with one line if jobs go to Slurm and sbatch is not installed here."""
    try:
        if settings.launcher == "slurm":
            slurm.check_slurm()
    except UsageError as error:
        _end(2, f"error: {error}")


def start_warm(settings: Settings) -> None:
    """Start the process from which local runs are forked, where that is possible."""
    if settings.launcher != "local":
        return  # runs are jobs of their own
    if why := warm.why_cold():
        print(f"note: every run imports torch anew: {why}", file=sys.stderr)
    else:
        warm.start()


def hand_down(settings: Settings) -> None:
    """Give the processes of rules these settings and this Python, through the environment.

    Not through a rule's parameters: those decide on reruns, and neither the data's folder nor the
    number of seeds makes a run stale.
    """
    os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (PACKAGE.parent / "Snakefile").is_file():  # a checkout; an installed package is found anyway
        paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def fresh_if_forced(dag_settings) -> None:
    """With --force, --forceall or --forcerun, train again although results are on disk."""
    if dag_settings.forcetargets or dag_settings.forceall or dag_settings.forcerun:
        os.environ["CRATE_FRESH"] = "1"


def partial_tables(plan: Plan, settings: Settings) -> None:
    """After a failure, write the requested tables, figures and report with their gaps marked.

    The last lines of the process then say which runs did not finish, and how to go on.
    """
    words = ["snakemake", *sys.argv[1:]]
    asked = run_targets(plan, list(map(plan.full_target, command_targets())))
    told = describe_end(plan, settings, asked, words)
    atexit.register(_say, told)
    from crate.reporting.collect import collect
    from crate.reporting.figures import write_figure
    from crate.reporting.report import write_report
    from crate.reporting.tables import write_table

    targets = [
        t for t in map(plan.full_target, command_targets() or ["all"]) if t in plan.targets()
    ]
    for table in dict.fromkeys(name for t in targets for name in plan.target_tables(t)):
        try:
            collect(table, plan, settings, partial=True)
            written = write_table(table, plan, settings)
            for figure in plan.figures_of(table):
                write_figure(figure, plan, settings)
        except RunError as error:
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"table {table} with its gaps marked: {written[0]}", file=sys.stderr)
    if "report" in targets:
        try:
            print(f"report with its gaps: {write_report(plan, settings)}", file=sys.stderr)
        except RunError as error:
            print(f"failed: {error}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(status: int, message: str) -> None:
    _say(message)
    sys.exit(status)
