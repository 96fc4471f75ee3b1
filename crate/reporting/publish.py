"""`crate publish`: what was regenerated, with the records behind it, into `results/published/`."""

import shutil
from pathlib import Path

from crate.errors import RunError
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import atomic_path
from crate.reporting.collect import metrics_csv, read_csv, read_metrics, write_joined_metrics
from crate.reporting.report import write_report
from crate.reporting.tuning import add_outcomes, read_outcomes
from crate.runs import parse_path


def publish(plan: Plan, settings: Settings) -> list[Path]:
    """Copy what was regenerated, with the run.json behind every value, to `results/published/`.

    Not the figures of training: the report has their curves, and train.jsonl the numbers.

    Raises:
        RunError: a table has values that are failed, missing or partial.
    """
    source = Path(settings.results) / settings.scale
    target = Path(settings.results) / "published" / settings.scale
    names = [
        name
        for name in plan.experiments.tables
        if metrics_csv(settings.results, settings.scale, name).is_file()
    ]
    if not names:
        raise RunError(f"there are no tables under {source} to publish")
    runs: dict[str, None] = {}
    for name in names:
        metrics = read_metrics(name, settings)
        if metrics["status"].isin(("frozen", "earlier")).any():
            raise RunError(
                f"table {name} has frozen cells, which are published already; make it without "
                "frozen=true first"
            )
        if not metrics["status"].isin(("ok", "released", "unavailable")).all():
            raise RunError(
                f"table {name} is not complete; run 'snakemake --cores all table_{name}' first"
            )
        runs |= dict.fromkeys(metrics[metrics["status"] != "unavailable"]["run"])
    for name in list(runs):  # the parents are behind the values too
        for run in parse_path(name)[0].ancestors:
            runs.setdefault(run.folder("").as_posix())
    drawn = [figure for figure in map(plan.figure_of, names) if figure]
    files = [
        path
        for folder, stems in (("tables", names), ("figures", drawn), ("metrics", names))
        for stem in stems
        for path in sorted((source / folder).glob(f"{stem}.*"))
        if path.suffix not in (".log", ".partial") and not path.name.endswith(".training.json")
    ]
    other = set(plan.experiments.tables) - set(names)  # they stay as they are
    stay = {"figures": set(map(plan.figure_of, other))}
    for folder in ("tables", "figures", "metrics"):
        for path in (target / folder).glob("*.*"):
            if path.name.split(".")[0] not in stay.get(folder, other):
                path.unlink()
    written = [_copy(path, target / path.relative_to(source)) for path in files]
    for name in runs:
        folder = Path(settings.results) / name
        for file in ("run.json", "train.jsonl"):
            if (folder / file).exists():
                written.append(_copy(folder / file, target.parent / name / file))
    _drop_unused(target)
    written.append(write_joined_metrics(plan, target.parent, settings.scale))
    if outcomes := read_outcomes(source / "tuning.csv"):
        add_outcomes(target / "tuning.csv", outcomes)  # beside those of the tables that stay
        written.append(target / "tuning.csv")
    written.append(write_report(plan, settings, published=True))
    return written


def _drop_unused(target: Path) -> None:
    """Delete the published records that no published table shows, nor starts from."""
    used = set()
    for path in (target / "metrics").glob("*.csv"):
        if not path.stem.endswith(".losses"):
            for name in read_csv(path)["run"].unique():
                run = parse_path(name)[0]
                used |= {stage.folder(target.parent) for stage in run.lineage}
    for path in list((target / "runs").rglob("run.json")):
        if path.parent not in used:
            path.unlink()
            path.with_name("train.jsonl").unlink(missing_ok=True)
    for folder in sorted((target / "runs").rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _copy(source: Path, target: Path) -> Path:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return target
