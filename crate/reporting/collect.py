"""From runs to `metrics/<table>.csv`: the only module that reads the results of runs.

    results/<scale>/metrics/<table>.csv            one value a line
    results/<scale>/metrics/<table>.losses.csv     training losses, if the table's figure shows them
    results/<scale>/metrics/<table>.examples.npz   example pictures, if the figure shows them
    results/<scale>/metrics/<table>.layers.json    curves by layer, if the figure shows them
    results/<scale>/metrics/<table>.training.json  training curves, if any of its runs trained

This module imports no torch.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from crate.data.catalogue import dataset_names, get_dataset
from crate.data.datasets import TextSet, odd_count
from crate.data.examples import read_examples, write_examples
from crate.errors import RunError
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.published import published_or_packaged, read_history, read_record
from crate.records import DRIVER_VARIABLE, RunFolder, canonical_json, read_json, write_text
from crate.runs import Run


def metrics_csv(results: str | Path, scale: str, table: str) -> Path:
    return Path(results) / scale / "metrics" / f"{table}.csv"


def collect(table: str, plan: Plan, settings: Settings, *, partial: bool = False) -> None:
    """Write `metrics/<table>.csv`, and the files beside it, from the runs of the table.

    With `partial`, failed and missing runs become lines without a value.

    Raises:
        RunError: a run failed or is missing, and `partial` is false.
    """
    content = plan.table(table)
    rows, losses = [], []
    figure = content.figure
    # the columns whose runs have losses, pictures and curves by layer that the figure shows
    loss_column = figure and figure.drawn_losses
    picture_column = figure.column if figure and figure.pictures else None
    layer_column = figure.column if figure and figure.by_layer else None
    examples: dict[str, list[dict]] = {}
    layers: list[dict] = []
    lineages: dict[Run, tuple[str, Result]] = {}  # with the first row that shows the run
    for row, key, run, metric in plan.cells(content, settings.scale, settings.seeds):
        result = look_up(run, metric, plan, settings)
        if result.status in ("failed", "stopped", "missing") and not partial:
            path = result.folder / "metrics.json"
            raise RunError(f"{run}: {path} is not there, or out of date")
        for stage, of_stage in ancestry(run, result):
            lineages.setdefault(stage, (row.label, of_stage))
        if key == picture_column and row.label not in examples:
            path = result.folder / "examples.npz"
            if result.status in ("frozen", "earlier"):
                examples[row.label] = published_examples(table, row.label, settings)
            elif result.value is not None and path.is_file():
                examples[row.label] = read_examples(path)[:EXAMPLES]
        if key == layer_column and result.value is not None:
            layers.append({"row": row.label, "seed": run.seed} | result.record["layers"])
        if key == loss_column and result.value is not None:
            points = measured(result, metric) if figure.kind == "curves" else thinned(result)
            losses += [
                {"row": row.label, "seed": run.seed, "seen": seen, "loss": loss}
                for seen, loss in points
            ]
        rows.append(
            {
                "row": row.label,
                "column": key,
                "model": run.model,
                "chain": "/".join(run.chain),
                "seed": run.seed,
                "metric": metric,
                "value": result.value,
                "status": result.status,
                "note": result.note,
                "run": _within(result.folder, settings.results).as_posix(),
            }
        )
    mark_outdated(table, plan, settings, outdated=partial or DRIVER_VARIABLE not in os.environ)
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    if loss_column:
        frame = pd.DataFrame(losses, columns=["row", "seed", "seen", "loss"])
        path = losses_csv(settings.results, settings.scale, table)
        write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    if picture_column:
        write_examples(
            examples_npz(settings.results, settings.scale, table),
            [example | {"row": row} for row, shown in examples.items() for example in shown],
        )
    if layer_column:
        path = layers_json(settings.results, settings.scale, table)
        write_text(path, canonical_json(layers) + "\n")
    if plan.has_training(table):
        path = training_json(settings.results, settings.scale, table)
        write_text(path, canonical_json(training_curves(lineages, plan)) + "\n")
    write_text(metrics_csv(settings.results, settings.scale, table), text)


def mark_outdated(table: str, plan: Plan, settings: Settings, *, outdated: bool = True) -> None:
    """Leave a note that Snakemake shall make a table's files again, or take it away.

    They have gaps, or were made without it, so that it does not know from what.
    """
    marker = metrics_csv(settings.results, settings.scale, table).with_suffix(".outdated")
    if outdated:
        write_text(marker, " ".join(plan.figures_of(table)) + "\n")
    else:
        marker.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one run for one cell of a table."""

    value: float | None  # None where the run failed, is missing or unavailable
    status: str  # a key of tables.MARKS
    note: str  # why there is no value, on which device a time was measured, or a remark of the run
    folder: Path  # of the run; that of a published record need not exist
    record: dict  # run.json; empty where there is none


def look_up(run: Run, metric: str, plan: Plan, settings: Settings) -> Result:
    """A run's result; with frozen=true its published one if it has none; else why there is none.

    Raises:
        RunError: the result has no metric of this name, or the published records are damaged.
    """
    folder = run.folder(settings.results)
    resolved = plan.resolve(run)
    dataset = get_dataset(resolved.recipe.dataset)
    status, note, metrics = "missing", "", {}
    if plan.finished(run, settings.results):
        metrics = read_json(folder / "metrics.json")["metrics"]
        status = "released" if plan.starts_released(run) else "ok"
        published = dataset.splits.get(resolved.recipe.evaluate)
        exact = not (dataset.embedded or dataset.approximate)
        if exact and metrics.get(dataset.unit, published) != published:
            status = "incomplete"
    elif published_folder := plan.published_folder(run, settings):
        folder, status = published_folder, "frozen"
    elif why_not := plan.why_unavailable(run, settings):
        status, note = "unavailable", why_not
    record = read_record(folder)
    if status == "frozen":
        metrics = record["result"]["metrics"]
        if canonical_json(record.get("config")) != resolved.config_json:
            status = "earlier"
    if status in ("ok", "released") and not all(
        trained_on_all(stage, plan, settings) for stage in run.lineage
    ):
        status = "incomplete"
    if status == "missing" and record.get("status") == "failed":
        status, note = "failed", record.get("error", "")
    elif status == "missing" and RunFolder(folder).stopped():
        status, note = "stopped", record.get("error", "it was killed")
    if metrics and metric not in metrics:
        raise RunError(f"{run}: no metric '{metric}' in metrics.json; it has {', '.join(metrics)}")
    if metric in metrics and metric in resolved.recipe.TIMED:  # it depends on the device
        machine = record.get("environment", {})
        note = f"measured on {machine.get('device')}, {machine.get('autocast')}"
    elif metric in metrics:
        note = record.get("remark", "")
    return Result(metrics.get(metric), status, note, folder, record)


def trained_on_all(run: Run, plan: Plan, settings: Settings) -> bool:
    """Whether a finished run was trained on its whole data set; true if its record has no count."""
    dataset = get_dataset(plan.resolve(run).recipe.dataset)
    record = read_json(run.folder(settings.results) / "run.json") or {}
    count = record.get(f"training_{dataset.unit}")
    return count is None or not odd_count(dataset, count)


def losses_csv(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".losses.csv")


def examples_npz(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".examples.npz")


def layers_json(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".layers.json")


def training_json(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".training.json")


def _within(folder: Path, results: str | Path) -> Path:
    """A run's folder from `results` on; that of a record of the package as it is."""
    return folder.relative_to(results) if folder.is_relative_to(results) else folder


def published_examples(table: str, row: str, settings: Settings) -> list[dict]:
    """The published example pictures of a row; [] without any."""
    root = published_or_packaged(settings.results, settings.scale)
    path = examples_npz(root, settings.scale, table)
    result = read_examples(path) if path.is_file() else []
    return [example for example in result if example["row"] == row]


EXAMPLES = 3  # pictures of a run shown in a figure


def history(result: Result) -> list[dict]:
    """The lines of a run's train.jsonl, each with "seen", the number of examples until then."""
    lines = read_history(result.folder)
    if not lines:
        return []
    batch = result.record["config"]["step"].get("batch_size")
    # records without the key "seen" are older, and of images
    return [line if "seen" in line else line | {"seen": line["step"] * batch} for line in lines]


POINTS = 200


def thinned(result: Result, points: int = POINTS) -> list[tuple[int, float]]:
    """At most `points` pairs: examples seen, and the mean training loss since the pair before."""
    lines = history(result)
    every = max(1, math.ceil(len(lines) / points))
    groups = [lines[start : start + every] for start in range(0, len(lines), every)]
    return [
        (group[-1]["seen"], round(sum(line["loss"] for line in group) / len(group), 6))
        for group in groups
    ]


def measured(result: Result, metric: str) -> list[tuple[int, float]]:
    """Pairs of examples seen and the metric: as measured during training, then the final value.

    A run that trained nothing has one pair, at 0.
    """
    lines = history(result)
    last = lines[-1]["seen"] if lines else 0
    return [
        *((line["seen"], line[metric]) for line in lines if metric in line),
        (last, result.value),
    ]


def ancestry(run: Run, result: Result) -> Iterator[tuple[Run, Result]]:
    """The runs from the first of a run's chain to itself, each with its record.

    All are looked up where `result` was: in results or among the published records. Value, status
    and note are those of `result`; a record is empty where there is none.
    """
    root = _root(run, result)
    for stage in run.lineage:
        folder = stage.folder(root)
        record = result.record if stage == run else read_record(folder)
        yield stage, dataclasses.replace(result, folder=folder, record=record)


def _root(run: Run, result: Result) -> Path:
    """The folder of results that a result is from."""
    return result.folder.parents[len(run.chain) + 3]  # of <scale>/runs/<model>/seed<k>/<stage>/…


CURVE_POINTS = 60
NOT_METRICS = {"step", "epoch", "loss", "lr", "seen", "seconds"}


def training_curves(runs: dict[Run, tuple[str, Result]], plan: Plan) -> list[dict]:
    """The training curves of runs, a dictionary a run.

    `runs` maps each run to the label of a row that shows it, and its result. A dictionary has
    "row", "model", "seed", "step" (the name of the stage's recipe), "unit" (of the examples) and
    "curves": {"training loss": [[examples seen, value], …], and the same of every metric measured
    during training and of the first metric of the recipe's kind at the end}. Values that are not
    finite are left out. Runs that trained nothing, or by another recipe than today's, have no
    dictionary.
    """
    trained = []
    for run, (row, result) in runs.items():
        if "config" not in result.record or not (lines := history(result)):
            continue
        if result.value is None:  # not finished
            root = _root(run, result)
            if not all(plan.is_current(stage, root) for stage in run.lineage):
                continue
        curves = {"training loss": thinned(result, CURVE_POINTS)}
        for line in lines:
            for key, value in line.items():
                is_metric = isinstance(value, (int, float)) and not key.endswith("_per_second")
                if is_metric and key not in NOT_METRICS:
                    curves.setdefault(key, []).append((line["seen"], value))
        first = plan.experiments.recipe(run.stage, run.scale).METRICS[0]
        for key, value in (result.record.get("result") or {}).get("metrics", {}).items():
            points = curves.setdefault(key, []) if key == first else curves.get(key, [])
            if not points or points[-1][0] < lines[-1]["seen"]:
                points.append((lines[-1]["seen"], value))
        curves = {
            key: [point for point in points if math.isfinite(point[1])]
            for key, points in curves.items()
        }
        name = result.record["config"]["step"].get("dataset")
        dataset = get_dataset(name) if name in dataset_names() else None
        unit = "tokens" if isinstance(dataset, TextSet) else dataset.unit if dataset else ""
        whose = {"row": row, "model": run.model, "seed": run.seed, "step": run.stage}
        trained.append(
            whose
            | {"unit": unit, "curves": {key: points for key, points in curves.items() if points}}
        )
    return trained


def read_metrics(table: str, settings: Settings) -> pd.DataFrame:
    path = metrics_csv(settings.results, settings.scale, table)
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return read_csv(path)


def read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file of this module, in which a row may be called "None" or "NA"."""
    numbers = {"value": [""], "loss": [""]}
    texts = {"row": str, "column": str, "note": str}
    return pd.read_csv(path, dtype=texts, na_values=numbers, keep_default_na=False)


def read_losses(table: str, settings: Settings) -> pd.DataFrame:
    path = losses_csv(settings.results, settings.scale, table)
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return read_csv(path)


def read_layers(table: str, settings: Settings) -> list[dict]:
    """The measurements by layer of the drawn column's runs, each with its "row" and "seed"."""
    return _read_list(layers_json(settings.results, settings.scale, table), table)


def read_training(table: str, settings: Settings) -> list[dict]:
    """The `training_curves` behind a table."""
    return _read_list(training_json(settings.results, settings.scale, table), table)


def _read_list(path: Path, table: str) -> list[dict]:
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return json.loads(path.read_text(encoding="utf-8"))


def write_joined_metrics(plan: Plan, results: str | Path, scale: str) -> Path:
    """Join every existing `metrics/<table>.csv` into metrics.csv, with the table's name first."""
    frames = []
    for name in plan.tables:
        if metrics_csv(results, scale, name).is_file():
            frame = read_csv(metrics_csv(results, scale, name))
            frame.insert(0, "table", name)
            frames.append(frame)
    if not frames:
        raise RunError("no table is collected yet; run 'crate collect <table>' first")
    path = Path(results) / scale / "metrics.csv"
    write_text(path, pd.concat(frames).to_csv(index=False, lineterminator="\n"))
    return path
