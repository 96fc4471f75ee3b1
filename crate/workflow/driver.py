"""What the Snakefile does before and around the DAG, so that nobody types `--unlock`.

A driver that was killed leaves a lock, outputs marked incomplete, and trainers that go on. Ours
holds a lock that dies with it; who holds it may clear what a dead one left. Outputs marked
incomplete are deleted, as Snakemake would with `--rerun-incomplete`; the trainer then finds its
finished work or its checkpoint (`crate/records.py`).
"""

import contextlib
import functools
import itertools
import os
import sys
from base64 import urlsafe_b64decode
from pathlib import Path

from crate.data.catalogue import get_dataset
from crate.data.datasets import require_available
from crate.errors import RunError, UsageError, nearest
from crate.launch import slurm
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import SETTINGS_VARIABLE, Settings
from crate.records import lock
from crate.runs import parse_path
from crate.training import trackers


def open_plan(config: dict) -> tuple[Plan, Settings]:
    """The plan, with `experiments/` and the command's targets checked, and the driver's lock held.

    Prints one line and exits with status 2 where something makes no sense: a Snakefile that
    raises would be answered with a traceback.
    """
    try:
        experiments = Experiments()
        plan = Plan(experiments)
        settings = experiments.settings(dict(config))
        trackers.check_installed(settings.log)
        for name in experiments.scales:
            experiments.scale(name)
        for recipe in experiments.recipes:
            for scale in {settings.scale, "paper"}:  # a scale may hide a mistake in the recipe
                experiments.recipe(recipe, scale)
        for table in experiments.tables:
            plan.table_runs(table, settings)
        targets = command_targets()
        for target in targets:
            _check_target(target, plan, settings)
        stale = stale_results(plan, settings, targets or ["all"])
        if not _passive():
            Driver(settings).start()
            for path in stale:
                path.unlink(missing_ok=True)
        elif stale:
            print(f"{len(stale)} results are of another recipe or code", file=sys.stderr)
        hand_down(settings)
    except UsageError as error:
        _end(2, f"error: {error}")
    except RunError as error:
        _end(1, f"failed: {error}")
    return plan, settings


def _end(status: int, message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)


def check_data(plan: Plan, settings: Settings, names: set[str]) -> None:
    """Check that the data sets a command needs are there, before the first run starts.

    The nodes of a cluster may see what its login node does not: there it is only a warning.
    """
    try:
        require_available(map(get_dataset, sorted(names)), settings.data_root)
    except UsageError as error:
        if settings.launcher == "slurm":
            print(f"warning: seen from here, {error}", file=sys.stderr)
        else:
            _end(2, f"error: {error}")


def check_launcher(settings: Settings) -> None:
    """Check that there is a Slurm where jobs are to be submitted."""
    try:
        if settings.launcher == "slurm":
            slurm.check_slurm()
    except UsageError as error:
        _end(2, f"error: {error}")


@functools.cache
def _command_line():
    """The command line of this process, as Snakemake itself reads it."""
    from snakemake.cli import get_argument_parser

    script = Path(sys.argv[0])
    if "snakemake" not in (script.stem, script.parent.name):
        return None  # embedded in another program: its targets are not in sys.argv
    with (
        contextlib.suppress(SystemExit, Exception),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        return get_argument_parser().parse_known_args(sys.argv[1:])[0]
    return None


def command_targets() -> list[str]:
    return list(getattr(_command_line(), "targets", None) or [])


# Modes of Snakemake that start no job and must change nothing
PASSIVE = (
    "dryrun", "lint", "summary", "detailed_summary", "dag", "rulegraph", "filegraph", "d3dag",
    "list_rules", "list_target_rules", "list_changes", "list_input_changes", "touch", "report",
    "print_compilation", "list_untracked", "cleanup_metadata", "unlock", "archive",
)  # fmt: skip


def _passive() -> bool:
    options = _command_line()
    return any(getattr(options, name, None) not in (None, False) for name in PASSIVE)


def stale_results(plan: Plan, settings: Settings, targets: list[str]) -> list[Path]:
    """Results that today's recipes and code did not make, of the runs behind some targets.

    Snakemake compares with what it recorded itself. Of a result it did not see finished (made by
    `crate run`, by an orphaned trainer, or before `.snakemake` was deleted) it knows nothing.
    """
    named = [t for t in targets if t in plan.targets() or "/runs/" in t] or ["all"]
    runs = dict.fromkeys(run for target in named for run in plan.runs(target, settings))
    paths = {run: run.folder(settings.results) / "metrics.json" for run in runs}
    return [
        path
        for run, path in paths.items()
        if path.exists() and not plan.is_current(run, settings.results)
    ]


def _check_target(target: str, plan: Plan, settings: Settings) -> None:
    if "/runs/" in target:
        run, _ = parse_path(target)
        if Path(target).suffix and Path(target).name != "metrics.json":
            raise UsageError(f"{target}: the run's result is {Path(target).parent}/metrics.json")
        plan.resolve(run)
        if run.trial is not None:
            raise UsageError(f"{target}: is a tuning trial; 'crate run' and 'crate tune' run those")
        if run.scale != settings.scale:
            raise UsageError(f"{target}: add --config scale={run.scale}")
        wanted = run.folder(settings.results) / "metrics.json"
        if Path(os.path.normpath(target)) != Path(os.path.normpath(wanted)):
            raise UsageError(f"{target}: the run's result is {wanted}")
    elif "/" not in target:
        plan.check_target(target)
    else:
        files = result_files(plan, settings)
        if os.path.normpath(target) not in map(os.path.normpath, files):
            raise UsageError(f"nothing makes the file '{target}'{nearest(target, files)}")


def collected_files(table: str, plan: Plan, settings: Settings) -> list[str]:
    """What is read off a table's runs: its values, and what its figures draw beside them."""
    figure = plan.experiments.table(table).figure
    suffixes = [".csv"]
    if figure:
        suffixes += [".losses.csv"] * bool(figure.drawn_losses)
        suffixes += [".examples.npz"] * figure.pictures
        suffixes += [".layers.json"] * figure.by_layer
    suffixes += [".training.json"] * plan.trains(table)
    return [f"{settings.results}/{settings.scale}/metrics/{table}{suffix}" for suffix in suffixes]


def result_files(plan: Plan, settings: Settings) -> list[str]:
    """Every file of a scale that is no run: tables, figures and metrics."""
    base = f"{settings.results}/{settings.scale}"
    tables = plan.experiments.tables
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


def hand_down(settings: Settings) -> None:
    """Give the processes that rules start these settings and this Python.

    Through the environment: a rule's parameters decide on reruns, and where the data lie or how
    many seeds are asked for makes no run stale.
    """
    os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def fresh_if_forced(dag_settings) -> None:
    """With --force, --forceall or --forcerun, finished work found on disk is not good enough."""
    if dag_settings.forcetargets or dag_settings.forceall or dag_settings.forcerun:
        os.environ["CRATE_FRESH"] = "1"


def partial_tables(plan: Plan, settings: Settings) -> None:
    """After a failure, write what was asked for all the same, with the gaps marked."""
    from crate.reporting.charts import write_figure
    from crate.reporting.collect import collect
    from crate.reporting.report import write_report
    from crate.reporting.tables import write_table

    targets = [t for t in command_targets() or ["all"] if t in plan.targets()]
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


# The driver's lock, for as long as this process lives
_HELD = contextlib.ExitStack()


class Driver:
    """The one Snakemake process that works on a folder of results."""

    def __init__(self, settings: Settings, workdir: str | Path = "."):
        self.results = Path(settings.results)
        self.folder = self.results / settings.scale
        self.snakemake = Path(workdir) / ".snakemake"

    def start(self) -> None:
        """Become the driver of this results folder and clear what a dead driver left.

        Called before Snakemake looks at its own lock and at incomplete files. Raises
        `UsageError` if another driver is at work, `RunError` if the folder cannot be written.
        """
        path = self.folder / ".driver.lock"
        if not _HELD.enter_context(lock(path)):
            holder = path.read_text().strip()
            raise UsageError(
                f"another snakemake (process {holder}) is at work on {self.folder}; "
                "wait for it, or stop it first"
            )
        os.environ["CRATE_DRIVER"] = str(os.getpid())
        self._clear_locks()
        self._clear_incomplete()
        self._clear_partial()

    def _clear_partial(self) -> None:
        """Remove tables with gaps: Snakemake did not make them and would take them for its own."""
        for marker in (self.folder / "metrics").glob("*.partial"):
            made = [f"{folder}/{marker.stem}.*" for folder in ("tables", "metrics")]
            made += [f"figures/{name}.*" for name in marker.read_text().split()]
            made.append("report.html")
            for path in itertools.chain(*map(self.folder.glob, made)):
                if path.suffix not in (".log", ".partial"):
                    path.unlink()
            marker.unlink()

    def _clear_locks(self) -> None:
        for file in (self.snakemake / "locks").glob("*.lock"):
            with contextlib.suppress(OSError):
                names = file.read_text().split("\n")
                here = [_inside(name, self.folder) for name in names]
                other_scale = [_inside(name, self.results) for name in names]
                if any(here) and here == other_scale:
                    file.unlink()

    def _clear_incomplete(self) -> None:
        folder = self.snakemake / "incomplete"
        for marker in folder.glob("**/*"):
            with contextlib.suppress(OSError, ValueError):
                parts = marker.relative_to(folder).parts  # long names are cut: @part/@part/part
                name = urlsafe_b64decode("".join(part.lstrip("@") for part in parts)).decode()
                if marker.is_file() and _inside(name, self.folder):
                    Path(name).unlink(missing_ok=True)
                    marker.unlink()


def _inside(path: str, folder: Path) -> bool:
    return bool(path) and Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
