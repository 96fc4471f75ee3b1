"""`crate publish`: regenerated tables, and the records behind them, into `results/published/`.

results/published/<scale>/tables/<table>.{md,tex,csv}, figures/<figure>.png, metrics/<table>.*
results/published/<scale>/metrics.csv, tuning.csv
results/published/<scale>/runs.jsonl, training.jsonl      see crate/published.py
results/published/<scale>/report.html         crate report --published; git ignores it
"""

import shutil
from pathlib import Path

from crate.errors import RunError
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.published import (
    published_results,
    published_runs,
    published_training,
    read_history,
    read_record,
    write_runs,
    write_training,
)
from crate.records import atomic_path
from crate.reporting.collect import metrics_csv, read_csv, read_metrics, write_joined_metrics
from crate.reporting.report import write_report
from crate.reporting.tuning import add_outcomes, read_outcomes
from crate.runs import parse_path


def publish(plan: Plan, settings: Settings) -> list[Path]:
    """Copy regenerated tables, with the record of every run behind a value, to results/published.

    Tables that were not regenerated stay, with their records. Figures of training are left out:
    the report draws their curves. Returns the files written.

    Raises:
        RunError: a table has failed, missing, incomplete or frozen values, or a file of published
            records is damaged.
    """
    source = Path(settings.results) / settings.scale
    target = published_results(settings.results) / settings.scale
    names = [
        name
        for name in plan.experiments.tables
        if metrics_csv(settings.results, settings.scale, name).is_file()
    ]
    if not names:
        raise RunError(f"there are no tables under {source} to publish")
    runs: set[str] = set()
    for name in names:
        runs |= _runs_behind(name, settings)
    folders = {_name(run): Path(settings.results) / run for run in sorted(runs)}
    own = {run: record for run, folder in folders.items() if (record := read_record(folder))}
    records = published_runs(target) | own
    histories = {run: lines for run, lines in published_training(target).items() if run not in own}
    histories |= {run: lines for run in own if (lines := read_history(folders[run]))}

    drawn = [figure for figure in map(plan.figure_of, names) if figure]
    files = [
        path
        for folder, stems, pattern in (
            ("tables", names, "{}.*"),
            ("figures", drawn, "{}.png"),
            ("metrics", names, "{}.*"),
        )
        for stem in stems
        for path in sorted((source / folder).glob(pattern.format(stem)))
        if path.suffix not in (".log", ".outdated") and not path.name.endswith(".training.json")
    ]
    other = set(plan.experiments.tables) - set(names)  # they stay as they are
    stay = {"figures": set(map(plan.figure_of, other))}
    for folder in ("tables", "figures", "metrics"):
        for path in (target / folder).glob("*.*"):
            if path.name.split(".")[0] not in stay.get(folder, other):
                path.unlink()
    written = [_copy(path, target / path.relative_to(source)) for path in files]
    used = _used(target)
    written.append(write_runs(target, {run: records[run] for run in used & records.keys()}))
    written.append(write_training(target, {run: histories[run] for run in used & histories.keys()}))
    written.append(write_joined_metrics(plan, target.parent, settings.scale))
    if outcomes := read_outcomes(source / "tuning.csv"):
        add_outcomes(target / "tuning.csv", outcomes)  # beside those of the tables that stay
        written.append(target / "tuning.csv")
    written.append(write_report(plan, settings, published=True))
    return written


def _runs_behind(table: str, settings: Settings) -> set[str]:
    """The folders, within results, of the runs that a table shows and of their ancestors.

    Raises:
        RunError: the table may not be published.
    """
    metrics = read_metrics(table, settings)
    if metrics["status"].isin(("frozen", "earlier")).any():
        raise RunError(
            f"table {table} has frozen cells, which are published already; make it without "
            "frozen=true first"
        )
    if not metrics["status"].isin(("ok", "released", "unavailable")).all():
        raise RunError(
            f"table {table} is not complete; run 'snakemake --cores all table_{table}' first"
        )
    return _lineages(metrics[metrics["status"] != "unavailable"]["run"])


def _lineages(runs) -> set[str]:
    """Folders within results, those of ancestors added."""
    return {
        stage.folder("").as_posix() for name in set(runs) for stage in parse_path(name)[0].lineage
    }


def _name(run: str) -> str:
    """A run's folder within results as its folder within the scale: mini/runs/… → runs/…"""
    return run.split("/", 1)[1]


def _used(target: Path) -> set[str]:
    """The runs that published tables show or start from; the records of others are dropped."""
    tables = [
        path for path in (target / "metrics").glob("*.csv") if not path.stem.endswith(".losses")
    ]
    return {_name(run) for path in tables for run in _lineages(read_csv(path)["run"])}


def _copy(source: Path, target: Path) -> Path:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
