"""The targets of a Snakemake command: checking them, and the files behind them."""

import os
from pathlib import Path

from crate.errors import UsageError, nearest
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.runs import parse_path


def check_target(target: str, plan: Plan, settings: Settings) -> None:
    """Check that a target of the command line exists.

    Raises:
        UsageError: the target is unknown, of another scale, or a tuning trial.
    """
    if "/runs/" in target:
        run, _ = parse_path(target)
        if Path(target).suffix and Path(target).name != "metrics.json":
            raise UsageError(f"{target}: the run's result is {Path(target).parent}/metrics.json")
        plan.resolve(run)
        if run.trial is not None:
            raise UsageError(f"{target}: is a tuning trial; 'crate run' and 'crate tune' run those")
        if run.scale != settings.scale:
            raise UsageError(f"{target}: add --config scale={run.scale}")
        result = run.folder(settings.results) / "metrics.json"
        if Path(os.path.normpath(target)) != Path(os.path.normpath(result)):
            raise UsageError(f"{target}: the run's result is {result}")
    elif "/" not in target:
        plan.check_target(target)
    else:
        files = result_files(plan, settings)
        if os.path.normpath(target) not in map(os.path.normpath, files):
            raise UsageError(f"nothing makes the file '{target}'{nearest(target, files)}")


def run_targets(plan: Plan, targets: list[str]) -> list[str]:
    """Those of a command's targets that name runs; "all" without any."""
    return [t for t in targets if t in plan.targets() or "/runs/" in t] or ["all"]


def stale_results(plan: Plan, settings: Settings, targets: list[str]) -> list[Path]:
    """The metrics.json behind some targets that another recipe or code made.

    Snakemake compares only with what it recorded itself. It has no record of a result that it did
    not see finished (from `crate run`, or from before `.snakemake` was deleted).
    """
    named = run_targets(plan, targets)
    runs = dict.fromkeys(run for target in named for run in plan.runs(target, settings))
    paths = {run: run.folder(settings.results) / "metrics.json" for run in runs}
    return [
        path
        for run, path in paths.items()
        if path.exists() and not plan.is_current(run, settings.results)
    ]


def collected_files(table: str, plan: Plan, settings: Settings) -> list[str]:
    """What `crate collect` writes for a table: its values, and what its figures need."""
    figure = plan.table(table).figure
    suffixes = [".csv"]
    if figure:
        suffixes += [".losses.csv"] * bool(figure.drawn_losses)
        suffixes += [".examples.npz"] * figure.pictures
        suffixes += [".layers.json"] * figure.by_layer
    suffixes += [".training.json"] * plan.has_training(table)
    return [f"{settings.results}/{settings.scale}/metrics/{table}{suffix}" for suffix in suffixes]


def result_files(plan: Plan, settings: Settings) -> list[str]:
    """Every table, figure and metrics file of a scale; no files of runs."""
    base = f"{settings.results}/{settings.scale}"
    tables = plan.tables
    return [
        f"{base}/metrics.csv",
        f"{base}/report.html",
        *(path for name in tables for path in collected_files(name, plan, settings)),
        *(f"{base}/tables/{name}.{suffix}" for name in tables for suffix in ("md", "tex", "csv")),
        *(
            f"{base}/figures/{name}.{suffix}"
            for name in plan.figures()
            for suffix in ("pdf", "svg", "png")
        ),
    ]
