"""`crate report`: one HTML page with all regenerated tables and figures, and the runs behind them.

It shows the `metrics/`, `figures/` and runs of a scale, gaps included. Styles, scripts, figures
and the provenance of every cell are embedded; the page's content security policy forbids loading
anything. Equal inputs give equal bytes. This module imports no torch.
"""

import base64
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from crate.errors import RunError
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Column, Table
from crate.published import published_or_packaged, published_results, read_record
from crate.records import write_text
from crate.reporting.cells import MARKS, Cell, cells_of, number
from crate.reporting.collect import Result, ancestry, metrics_csv, read_metrics, training_curves
from crate.reporting.explain import config_words, describe_run, wall_seconds
from crate.reporting.style import COLOURS
from crate.reporting.tables import RenderedTable, render
from crate.runs import Run

TEMPLATE = Path(__file__).with_suffix(".html")


def write_report(plan: Plan, settings: Settings, *, published: bool = False) -> Path:
    """Write `<results>/<scale>/report.html`, or `<results>/published/<scale>/report.html`.

    Raises:
        RunError: no table of the scale is collected yet, or the published records are damaged.
    """
    root = target = Path(settings.results)
    if published:
        root = published_or_packaged(settings.results, settings.scale)
        target = published_results(settings.results)
        # for readers who have their data elsewhere
        usual = plan.experiments.settings()
        settings = settings.model_copy(update={"data_root": usual.data_root})
    shown = settings.model_copy(update={"results": root.as_posix()})
    made, missing = [], []
    # cells by id; descriptions of runs, one for all cells that show the run
    provenance: dict[str, dict] = {"cells": {}, "runs": {}}
    records: dict[str, dict] = {}
    for name in plan.tables:
        content = plan.table(name)
        if metrics_csv(root, settings.scale, name).is_file():
            made.append(_section(name, plan, settings, shown, provenance, records))
        else:
            command = f"snakemake --cores all table_{name} --config {config_words(plan, settings)}"
            missing.append({"name": name, "title": content.title, "command": command})
    if not made:
        raise RunError(
            f"no table is collected under {root / settings.scale}; run 'snakemake --cores all "
            f"report --config {config_words(plan, settings)}'"
        )
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(
        scale=settings.scale,
        title=plan.experiments.scale(settings.scale).title,
        published=published,
        tables=made,
        missing=missing,
        figures=sum(section["figure"] is not None for section in made),
        environment=_environment(records),
        provenance=_script_json(_shared(provenance)),
    )
    path = target / settings.scale / "report.html"
    write_text(path, page + "\n")
    return path


def _shared(provenance: dict) -> dict:
    """`provenance` as the page holds it: a text that many runs share is stored once."""
    texts: dict[str, int] = {}
    runs = [
        [[what, texts.setdefault(text, len(texts))] for what, text in facts]
        for _, facts in provenance["runs"].values()
    ]
    return {"cells": provenance["cells"], "runs": runs, "texts": list(texts)}


def _script_json(value) -> Markup:
    """JSON for a <script> element: escaped, so that nothing in it ends the element."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- a table -----------------------------------------------------------


def _section(
    name: str, plan: Plan, settings: Settings, shown: Settings, provenance: dict, records: dict
) -> dict:
    """What the page shows of a table; adds to `provenance`, and to `records` those of its runs.

    `settings` are those of a rerun, `shown` those of the results that the page shows.
    """
    content, metrics = plan.table(name), read_metrics(name, shown)
    rendered, cells = render(name, plan, shown), cells_of(content, metrics)
    runs: dict[Run, tuple[str, Result]] = {}  # with the first row that shows the run
    for line, run, result in _values(metrics, content, shown):
        for stage, of_stage in ancestry(run, result):
            if of_stage.record:
                records[of_stage.folder.as_posix()] = of_stage.record
                runs.setdefault(stage, (line.row, of_stage))
        entry = _entry(name, line, content, cells, provenance)
        described = provenance["runs"]
        key = (result.folder, result.status, result.value is None)
        if key not in described:
            described[key] = (len(described), describe_run(run, result, plan, settings))
        column = content.columns[line.column]
        value = MARKS[result.status][0] if result.value is None else number(result.value, column)
        unit = f" {column.unit}" if result.value is not None and column.unit else ""
        entry["runs"].append([f"seed {run.seed}: {value}{unit}", described[key][0]])
    seeds = ",".join(str(seed) for seed in dict.fromkeys(metrics["seed"]))
    words = f"{config_words(plan, settings)} seeds={seeds}"
    filled = [cell for cell in cells.values() if cell.status not in ("empty", "unavailable")]
    return {
        "name": name,
        "title": content.title,
        "source": content.source,
        "caption": rendered.caption[1:],
        "heads": _heads(rendered),
        "parts": rendered.columns[1:],
        "rows": _rows(name, content, rendered, provenance),
        "notes": [note for note in rendered.notes if note],
        "figure": _figure(name, plan, shown),
        "curves": _curves(content, runs, plan),
        "runs": len(runs),
        "command": f"snakemake --cores all table_{name} --config {words}",
        "filled": sum(cell.n > 0 for cell in filled),
        "cells": len(filled),
        "comparison": _comparison(rendered),
    }


def _values(
    metrics: pd.DataFrame, content: Table, shown: Settings
) -> Iterator[tuple[object, Run, Result]]:
    """Each line of a table's metrics with its run and the run's result."""
    labels = {row.label for row in content.rows}
    for line in metrics.itertuples():
        if line.row not in labels or line.column not in content.columns:
            continue  # of an earlier version of the table
        run = Run(shown.scale, line.model, line.seed, tuple(line.chain.split("/")))
        folder = Path(shown.results) / line.run
        value = None if pd.isna(line.value) else float(line.value)
        yield (
            line,
            run,
            Result(value, line.status, line.note, folder, read_record(folder)),
        )


def _entry(name: str, line, content: Table, cells: dict, provenance: dict) -> dict:
    """What a click on a cell shows; `_section` adds its runs one by one."""
    column, row = content.columns[line.column], _row(content, line.row)
    paper = row.paper.get(line.column)
    cell: Cell = cells[line.row, line.column]
    unit = f" {column.unit}" if cell.n and column.unit else ""
    shown = (
        dataclasses.replace(cell, status="ok") if cell.n else cell
    )  # its mark is explained below
    facts = [("ours", f"{shown.text(column)}{unit}")]
    if MARKS[cell.status][1]:
        facts.append(("", " ".join(MARKS[cell.status])))
    if paper is not None:
        value = number(paper.value / column.factor, column)
        of_paper = f" {column.unit}" if column.unit else ""
        facts.append(("paper", f"{value}{of_paper} ({paper.source}, mark {paper.mark})"))
        if paper.unexplained:
            facts.append(("", " ".join(paper.unexplained.split())))
    return provenance["cells"].setdefault(
        _cell_id(name, content, line.row, line.column),
        {"title": f"{line.row}, {column.label}", "facts": facts, "runs": []},
    )


def _row(content: Table, label: str):
    return next(row for row in content.rows if row.label == label)


def _cell_id(name: str, content: Table, label: str, key: str) -> str:
    return f"{name}/{[row.label for row in content.rows].index(label)}/{key}"


def _heads(rendered: RenderedTable) -> list[tuple[str, int]]:
    """The upper row of headers: a column's label and how many columns it spans."""
    spans = Counter((key, label) for key, label, _ in rendered.columns[1:])
    return [(label, span) for (_, label), span in spans.items()]


def _rows(name: str, content: Table, rendered: RenderedTable, provenance: dict) -> list[dict]:
    rows = []
    for i, (row, texts) in enumerate(zip(content.rows, rendered.rows, strict=True)):
        fields = []
        for j, text in enumerate(texts[1:], start=1):
            key, _, part = rendered.columns[j]
            place = _cell_id(name, content, row.label, key)
            ours = part.startswith("ours") and place in provenance["cells"]
            fields.append(
                {"text": text, "bold": (i, j) in rendered.bold, "place": place if ours else None}
                | {"kind": part.split(" ")[0]}
            )
        rows.append({"label": row.label, "control": row.control, "fields": fields})
    return rows


def _comparison(rendered: RenderedTable) -> list[str]:
    """How a table compares with the paper, in a few words: verdicts, or orders with stand-ins."""
    parts = []
    for j, (_, label, part) in enumerate(rendered.columns):
        if part == "verdict":
            verdicts = Counter(row[j] for row in rendered.rows if row[j])
            counts = ", ".join(f"{count} {word}" for word, count in sorted(verdicts.items()))
            parts += [f"{label}: {counts}"] if counts else []
    for label, order in rendered.orders.items():
        tau = "undefined" if math.isnan(order.tau) else f"{order.tau:+.2f}"
        parts.append(f"{label}: τ {tau}")
    return parts


def _figure(name: str, plan: Plan, shown: Settings) -> dict | None:
    """A table's figure as a data URI: SVG, or PNG where that is smaller (photographs)."""
    figure = plan.figure_of(name)
    if figure is None:
        return None
    base = Path(shown.results) / shown.scale / "figures" / figure
    files = [(base.with_suffix(f".{kind}"), kind) for kind in ("svg", "png")]
    files = [(path.stat().st_size, path, kind) for path, kind in files if path.is_file()]
    title = plan.table(name).figure.title
    drawn = {"name": figure, "title": f"{title} ({shown.scale} scale)", "uri": None}
    if files:
        _, path, kind = min(files)
        media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
        drawn["uri"] = f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return drawn


# --- training curves -----------------------------------------------------------

DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2")
WIDTH, HEIGHT = 340, 200
MARGINS = {"left": 42, "right": 8, "top": 8, "bottom": 28}


def _curves(content: Table, runs: dict[Run, tuple[str, Result]], plan: Plan) -> dict | None:
    """Training curves of the runs behind a table: one panel for each recipe and quantity.

    Each run is a line; those of a row share colour and dash.
    """
    panels: dict[tuple[str, str, str], list] = {}
    for run in training_curves(runs, plan):
        for quantity, points in run["curves"].items():
            whose = f"{run['row']}, {run['model']}, seed {run['seed']}"
            hint = f"{whose}: {points[-1][1]:.4g} at the end"
            panel = (run["step"], quantity, run["unit"])
            panels.setdefault(panel, []).append((run["row"], hint, points))
    if not panels:
        return None
    drawn = {label for lines in panels.values() for label, _, _ in lines}
    styles = {
        row.label: (COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)])
        for place, row in enumerate(row for row in content.rows if row.label in drawn)
    }
    return {
        "legend": list(styles.items()),
        "panels": [
            {
                "recipe": recipe,
                "quantity": quantity,
                "svg": _panel(recipe, quantity, unit, lines, styles),
            }
            for (recipe, quantity, unit), lines in panels.items()
        ],
    }


def _panel(recipe: str, quantity: str, unit: str, lines: list, styles: dict) -> Markup:
    """One panel as SVG; text and axes have the colours of the page."""
    x_end = max(seen for _, _, points in lines for seen, _ in points) or 1
    values = [value for _, _, points in lines for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = min(min(values), ticks[0]), max(max(values), ticks[-1])
    right, bottom = WIDTH - MARGINS["right"], HEIGHT - MARGINS["bottom"]
    left, top = MARGINS["left"], MARGINS["top"]

    def place(seen: float, value: float) -> tuple[float, float]:
        down = (high - value) / ((high - low) or 1)
        return left + (right - left) * seen / x_end, top + (bottom - top) * down

    head = '<svg viewBox="0 0 {} {}" role="img" aria-label="{}, {}">'
    grid = '<path class="grid" d="M{} {:.1f}H{}"/><text class="y" x="{}" y="{:.1f}">{:.4g}</text>'
    axis = '<text x="{}" y="{}">0</text><text class="end" x="{}" y="{}">{} {}</text>'
    line = '<path class="line" d="M{}" stroke="{}" stroke-dasharray="{}"><title>{}</title></path>'
    dot = '<circle cx="{:.1f}" cy="{:.1f}" r="2" fill="{}"><title>{}</title></circle>'
    parts = [Markup(head).format(WIDTH, HEIGHT, recipe, quantity)]
    for tick in ticks:
        y = place(0, tick)[1]
        parts.append(Markup(grid).format(left, y, right, left - 6, y + 3.5, tick))
    counted = Column(label="", metric="", chain="any", decimals=None)
    below = HEIGHT - 8
    parts.append(Markup(axis).format(left, below, right, below, number(x_end, counted), unit))
    for label, hint, points in lines:
        if len(points) == 1:
            parts.append(Markup(dot).format(*place(*points[0]), styles[label][0], hint))
            continue
        path = " ".join("{:.1f} {:.1f}".format(*place(*point)) for point in points)
        parts.append(Markup(line).format(path, *styles[label], hint))
    return Markup("").join([*parts, Markup("</svg>")])


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from at most `low` to at most `high`."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    unit *= next(factor for factor in (1, 2, 5, 10) if span / 4 <= factor * unit * (1 + 1e-9))
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [round(count * unit, 12) for count in range(first, last + 1)] or [low]


# --- the machines -----------------------------------------------------------


def _environment(records: dict[str, dict]) -> dict:
    """The machines, commits and times of the runs, from their records."""
    machines: Counter = Counter()
    commits: Counter = Counter()
    for record in records.values():
        environment = record.get("environment", {})
        keys = ("device", "autocast", "torch", "python")
        machines[tuple(str(environment.get(key, "")) for key in keys)] += 1
        commits[record.get("commit") or "unknown"] += 1
    lasted = [wall_seconds(record) or 0.0 for record in records.values()]
    trained = [record.get("train_seconds") or 0.0 for record in records.values()]
    return {
        "runs": len(records),
        "wall_hours": sum(lasted) / 3600,
        "training_hours": sum(trained) / 3600,
        "machines": sorted(machines.items(), key=lambda entry: (-entry[1], entry[0])),
        "commits": sorted(commits.items(), key=lambda entry: (-entry[1], entry[0])),
    }
