"""From runs to `metrics/<table>.csv`: the one place that looks at what runs left behind.

    results/<scale>/metrics/<table>.csv            one value a line
    results/<scale>/metrics/<table>.losses.csv     training losses, where its figure draws them
    results/<scale>/metrics/<table>.examples.npz   pictures with what was found, where it does those
    results/<scale>/metrics/<table>.layers.json    curves by layer, where it draws those
    results/<scale>/metrics/<table>.training.json  curves of the training behind it, where there is

This module imports no torch.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from crate.data.catalogue import DATASETS, get_dataset
from crate.data.datasets import TextSet, odd_count
from crate.data.examples import read_examples, write_examples
from crate.errors import RunError
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.records import canonical_json, read_json, write_text
from crate.runs import Run


def metrics_csv(results: str | Path, scale: str, table: str) -> Path:
    return Path(results) / scale / "metrics" / f"{table}.csv"


def collect(table: str, plan: Plan, settings: Settings, *, partial: bool = False) -> None:
    """Write `metrics/<table>.csv` from the runs of the table.

    Raises:
        RunError: a run is missing and `partial` was not asked for.
    """
    content = plan.experiments.table(table)
    rows, losses = [], []
    figure = content.figure
    drawn = figure and figure.drawn_losses
    pictured = figure.column if figure and figure.pictures else None
    by_layer = figure.column if figure and figure.by_layer else None
    examples: dict[str, list[dict]] = {}
    layers: list[dict] = []
    behind: dict[Run, tuple[str, Found]] = {}
    for row, key, run, metric in plan.cells(content, settings.scale, settings.seeds):
        found = look_up(run, metric, plan, settings)
        if found.status in ("failed", "missing") and not partial:
            path = found.folder / "metrics.json"
            raise RunError(f"{run}: {path} is not there, or out of date")
        for step, of_step in ancestry(run, found):
            behind.setdefault(step, (row.label, of_step))
        if key == pictured and row.label not in examples:
            path = found.folder / "examples.npz"
            if found.status in ("frozen", "earlier"):
                examples[row.label] = published_examples(table, row.label, settings)
            elif found.value is not None and path.is_file():
                examples[row.label] = read_examples(path)[:EXAMPLES]
        if key == by_layer and found.value is not None:
            layers.append({"row": row.label, "seed": run.seed} | found.record["layers"])
        if key == drawn and found.value is not None:
            points = measured(found, metric) if figure.kind == "curves" else thinned(found)
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
                "value": found.value,
                "status": found.status,
                "note": found.note,
                "run": found.folder.relative_to(settings.results).as_posix(),
            }
        )
    marker = metrics_csv(settings.results, settings.scale, table).with_suffix(".partial")
    if partial:
        write_text(marker, " ".join(plan.figures_of(table)) + "\n")  # which have gaps too
    else:
        marker.unlink(missing_ok=True)
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    if drawn:
        frame = pd.DataFrame(losses, columns=["row", "seed", "seen", "loss"])
        path = losses_csv(settings.results, settings.scale, table)
        write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    if pictured:
        write_examples(
            examples_npz(settings.results, settings.scale, table),
            [example | {"row": row} for row, found in examples.items() for example in found],
        )
    if by_layer:
        path = layers_json(settings.results, settings.scale, table)
        write_text(path, canonical_json(layers) + "\n")
    if plan.trains(table):
        path = training_json(settings.results, settings.scale, table)
        write_text(path, canonical_json(training_curves(behind, plan)) + "\n")
    write_text(metrics_csv(settings.results, settings.scale, table), text)


@dataclasses.dataclass(frozen=True)
class Found:
    """What stands behind one seed of a cell."""

    value: float | None
    status: str  # a key of MARKS
    note: str  # what went wrong, whose time it is, or what else must be said
    folder: Path
    record: dict  # run.json


def look_up(run: Run, metric: str, plan: Plan, settings: Settings) -> Found:
    """A run's own result, else its published record if asked for, else why there is none.

    Raises:
        RunError: the result has no such metric.
    """
    folder = run.folder(settings.results)
    resolved = plan.resolve(run)
    dataset = get_dataset(resolved.step.dataset)
    status, note, metrics = "missing", "", {}
    if plan.finished(run, settings.results):
        metrics = read_json(folder / "metrics.json")["metrics"]
        status = "released" if plan.released(run) else "ok"
        published = dataset.splits.get(resolved.step.evaluate)
        exact = not (dataset.embedded or dataset.approximate)
        if exact and metrics.get(dataset.unit, published) != published:
            status = "incomplete"
    elif published_folder := plan.frozen(run, settings):
        folder, status = published_folder, "frozen"
    elif why_not := plan.unavailable(run, settings):
        status, note = "unavailable", why_not
    record = read_json(folder / "run.json") or {}
    if status == "frozen":
        metrics = record["result"]["metrics"]
        if canonical_json(record.get("config")) != resolved.config_json:
            status = "earlier"
    if status in ("ok", "released") and not all(
        whole(step, plan, settings) for step in run.lineage
    ):
        status = "incomplete"
    if status == "missing" and record.get("status") == "failed":
        status, note = "failed", record.get("error", "")
    if metrics and metric not in metrics:
        raise RunError(f"{run}: has no metric '{metric}', only {', '.join(metrics)}")
    if metric in metrics and metric in resolved.step.TIMED:  # whose time is it?
        machine = record.get("environment", {})
        note = f"measured on {machine.get('device')}, {machine.get('autocast')}"
    elif metric in metrics:
        note = record.get("remark", "")
    return Found(metrics.get(metric), status, note, folder, record)


def whole(run: Run, plan: Plan, settings: Settings) -> bool:
    """Whether a finished run was trained on all of its set, as far as its record tells."""
    dataset = get_dataset(plan.resolve(run).step.dataset)
    record = read_json(run.folder(settings.results) / "run.json") or {}
    trained_on = record.get(f"training_{dataset.unit}")
    return trained_on is None or not odd_count(dataset, trained_on)


def losses_csv(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".losses.csv")


def examples_npz(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".examples.npz")


def layers_json(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".layers.json")


def training_json(results: str | Path, scale: str, table: str) -> Path:
    return metrics_csv(results, scale, table).with_suffix(".training.json")


def published_examples(table: str, row: str, settings: Settings) -> list[dict]:
    """A row's pictures of the published figure, if there are any."""
    path = examples_npz(Path(settings.results) / "published", settings.scale, table)
    found = read_examples(path) if path.is_file() else []
    return [example for example in found if example["row"] == row]


EXAMPLES = 3  # pictures of a run that a figure shows


def history(found: Found) -> list[dict]:
    """The lines of a run's train.jsonl, each with how many examples were "seen" until then."""
    path = found.folder / "train.jsonl"
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last one, of a run that was killed
            break
    batch = found.record["config"]["step"].get("batch_size")
    # records that are older than this key are of images
    return [line if "seen" in line else line | {"seen": line["step"] * batch} for line in lines]


POINTS = 200


def thinned(found: Found, points: int = POINTS) -> list[tuple[int, float]]:
    """Examples seen and the mean training loss since the point before, at most `points` of them."""
    lines = history(found)
    every = max(1, math.ceil(len(lines) / points))
    groups = [lines[start : start + every] for start in range(0, len(lines), every)]
    return [
        (group[-1]["seen"], round(sum(line["loss"] for line in group) / len(group), 6))
        for group in groups
    ]


def measured(found: Found, metric: str) -> list[tuple[int, float]]:
    """Examples seen and the metric each time it was measured while training, the last one too.

    Of a run that trained nothing: its value at 0.
    """
    lines = history(found)
    last = lines[-1]["seen"] if lines else 0
    return [
        *((line["seen"], line[metric]) for line in lines if metric in line),
        (last, found.value),
    ]


def ancestry(run: Run, found: Found) -> Iterator[tuple[Run, Found]]:
    """The runs from the first of a run's chain to itself, each with what is there of it.

    In the folder of results where the run was found; the record of one that left none is empty.
    """
    root = _root(run, found)
    for step in run.lineage:
        folder = step.folder(root)
        record = found.record if step == run else read_json(folder / "run.json") or {}
        yield step, dataclasses.replace(found, folder=folder, record=record)


def _root(run: Run, found: Found) -> Path:
    """The folder of results where a run was found."""
    return found.folder.parents[len(run.chain) + 3]  # of <scale>/runs/<model>/seed<k>/<step>/…


CURVE_POINTS = 60
NO_METRIC = {"step", "epoch", "loss", "lr", "seen", "seconds"}


def training_curves(runs: dict[Run, tuple[str, Found]], plan: Plan) -> list[dict]:
    """How runs were trained, a dictionary each: what was measured against the examples seen.

    `runs` are each with the label of a row that shows it, and what is there of it.
    "row", "model", "seed" and "step" say whose it is; "unit" what the examples are; "curves" is
    {"training loss": [[seen, value], …], and every metric that was measured while training, or, of
    the first one of its kind of step, at the end}. What is not finite is left out, as a run that
    diverged has its curve until then; so are runs that trained nothing, or by another recipe.
    """
    trained = []
    for run, (row, found) in runs.items():
        if "config" not in found.record or not (lines := history(found)):
            continue
        if found.value is None:  # not finished
            root = _root(run, found)
            if not all(plan.is_current(step, root) for step in run.lineage):
                continue
        curves = {"training loss": thinned(found, CURVE_POINTS)}
        for line in lines:
            for key, value in line.items():
                measured = isinstance(value, (int, float)) and not key.endswith("_per_second")
                if measured and key not in NO_METRIC:
                    curves.setdefault(key, []).append((line["seen"], value))
        first = plan.experiments.step(run.step, run.scale).METRICS[0]
        for key, value in (found.record.get("result") or {}).get("metrics", {}).items():
            points = curves.setdefault(key, []) if key == first else curves.get(key, [])
            if not points or points[-1][0] < lines[-1]["seen"]:
                points.append((lines[-1]["seen"], value))
        curves = {
            key: [point for point in points if math.isfinite(point[1])]
            for key, points in curves.items()
        }
        dataset = DATASETS.get(found.record["config"]["step"].get("dataset"))
        unit = "tokens" if isinstance(dataset, TextSet) else dataset.unit if dataset else ""
        told = {"row": row, "model": run.model, "seed": run.seed, "step": run.step, "unit": unit}
        trained.append(told | {"curves": {key: points for key, points in curves.items() if points}})
    return trained


def read_metrics(table: str, settings: Settings) -> pd.DataFrame:
    path = metrics_csv(settings.results, settings.scale, table)
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return read_csv(path)


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file of this module; a row may be called "None" or "NA"."""
    numbers = {"value": [""], "loss": [""]}
    texts = {"row": str, "column": str, "note": str}
    return pd.read_csv(path, dtype=texts, na_values=numbers, keep_default_na=False)


def read_losses(table: str, settings: Settings) -> pd.DataFrame:
    path = losses_csv(settings.results, settings.scale, table)
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return read_csv(path)


def read_layers(table: str, settings: Settings) -> list[dict]:
    """What the drawn column's runs tell of their layers, each with its "row" and "seed"."""
    return _read_list(layers_json(settings.results, settings.scale, table), table)


def read_training(table: str, settings: Settings) -> list[dict]:
    """The `training_curves` behind a table."""
    return _read_list(training_json(settings.results, settings.scale, table), table)


def _read_list(path: Path, table: str) -> list[dict]:
    if not path.is_file():
        raise RunError(f"{path} is not there; run 'crate collect {table}' first")
    return json.loads(path.read_text(encoding="utf-8"))


def write_joined_metrics(plan: Plan, results: str | Path, scale: str) -> Path:
    """Join all `metrics/<table>.csv` that are there into metrics.csv, the table's name first."""
    frames = []
    for name in plan.experiments.tables:
        if metrics_csv(results, scale, name).is_file():
            frame = read_csv(metrics_csv(results, scale, name))
            frame.insert(0, "table", name)
            frames.append(frame)
    if not frames:
        raise RunError("no table is collected yet; run 'crate collect <table>' first")
    path = Path(results) / scale / "metrics.csv"
    write_text(path, pd.concat(frames).to_csv(index=False, lineterminator="\n"))
    return path
