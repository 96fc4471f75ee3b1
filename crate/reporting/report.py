"""`crate report`: one HTML page of everything that was regenerated, with what stands behind it.

It shows what `metrics/`, `figures/` and the runs of a scale hold, gaps included. Styles, scripts,
figures and the provenance of every cell are inside, and the page's own policy forbids it to load
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
from crate.published import published_results, read_record
from crate.records import write_text
from crate.reporting.collect import Found, ancestry, metrics_csv, read_metrics, training_curves
from crate.reporting.explain import account, config_words, wall_seconds
from crate.reporting.style import COLOURS
from crate.reporting.tables import MARKS, Cell, Sheet, cells_of, lay_out, number
from crate.runs import Run

TEMPLATE = Path(__file__).with_suffix(".html")


def write_report(plan: Plan, settings: Settings, *, published: bool = False) -> Path:
    """Write `<results>/<scale>/report.html`, or that of `results/published/<scale>`.

    Raises:
        RunError: no table of the scale is collected yet.
    """
    root = published_results(settings.results) if published else Path(settings.results)
    if published:  # for others, whose data lie elsewhere
        usual = plan.experiments.settings()
        settings = settings.model_copy(update={"data_root": usual.data_root})
    shown = settings.model_copy(update={"results": root.as_posix()})
    made, missing = [], []
    # cells by id; what is known of their runs, once for all cells that show one
    provenance: dict[str, dict] = {"cells": {}, "accounts": {}}
    records: dict[str, dict] = {}
    for name in plan.experiments.tables:
        content = plan.experiments.table(name)
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
    path = root / settings.scale / "report.html"
    write_text(path, page + "\n")
    return path


def _shared(provenance: dict) -> dict:
    """`provenance` for the page: a text that many runs share, as a recipe is, stands once."""
    texts: dict[str, int] = {}
    accounts = [
        [[what, texts.setdefault(text, len(texts))] for what, text in told]
        for _, told in provenance["accounts"].values()
    ]
    return {"cells": provenance["cells"], "accounts": accounts, "texts": list(texts)}


def _script_json(value) -> Markup:
    """JSON that may stand inside a <script>: nothing in it can end the element."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- a table -----------------------------------------------------------


def _section(
    name: str, plan: Plan, settings: Settings, shown: Settings, provenance: dict, records: dict
) -> dict:
    """What the page shows of a table; joins `provenance` and the `records` of the runs behind it.

    `settings` are of what a rerun would write, `shown` of what is looked at.
    """
    content, metrics = plan.experiments.table(name), read_metrics(name, shown)
    sheet, cells = lay_out(name, plan, shown), cells_of(content, metrics)
    runs: dict[Run, tuple[str, Found]] = {}  # each with the first row that shows it
    for line, run, found in _values(metrics, content, shown):
        for step, behind in ancestry(run, found):
            if behind.record:
                records[behind.folder.as_posix()] = behind.record
                runs.setdefault(step, (line.row, behind))
        entry = _entry(name, line, content, cells, provenance)
        accounts = provenance["accounts"]
        key = (found.folder, found.status, found.value is None)
        if key not in accounts:
            accounts[key] = (len(accounts), account(run, found, plan, settings))
        column = content.columns[line.column]
        value = MARKS[found.status][0] if found.value is None else number(found.value, column)
        unit = f" {column.unit}" if found.value is not None and column.unit else ""
        entry["runs"].append([f"seed {run.seed}: {value}{unit}", accounts[key][0]])
    seeds = ",".join(str(seed) for seed in dict.fromkeys(metrics["seed"]))
    words = f"{config_words(plan, settings)} seeds={seeds}"
    filled = [cell for cell in cells.values() if cell.status not in ("empty", "unavailable")]
    return {
        "name": name,
        "title": content.title,
        "source": content.source,
        "caption": sheet.caption[1:],
        "heads": _heads(sheet),
        "parts": sheet.columns[1:],
        "rows": _rows(name, content, sheet, provenance),
        "notes": [note for note in sheet.notes if note],
        "figure": _figure(name, plan, shown),
        "curves": _curves(content, runs, plan),
        "runs": len(runs),
        "command": f"snakemake --cores all table_{name} --config {words}",
        "filled": sum(cell.n > 0 for cell in filled),
        "cells": len(filled),
        "beside_paper": _beside_paper(sheet),
    }


def _values(
    metrics: pd.DataFrame, content: Table, shown: Settings
) -> Iterator[tuple[object, Run, Found]]:
    """Each line of a table's metrics with its run and what that left, as the table shows it."""
    labels = {row.label for row in content.rows}
    for line in metrics.itertuples():
        if line.row not in labels or line.column not in content.columns:
            continue  # of a table that was another then
        run = Run(shown.scale, line.model, line.seed, tuple(line.chain.split("/")))
        folder = Path(shown.results) / line.run
        value = None if pd.isna(line.value) else float(line.value)
        yield (
            line,
            run,
            Found(value, line.status, line.note, folder, read_record(folder)),
        )


def _entry(name: str, line, content: Table, cells: dict, provenance: dict) -> dict:
    """What a click on a cell shows; its runs are added to it one by one."""
    column, row = content.columns[line.column], _row(content, line.row)
    paper = row.paper.get(line.column)
    cell: Cell = cells[line.row, line.column]
    unit = f" {column.unit}" if cell.n and column.unit else ""
    shown = dataclasses.replace(cell, status="ok") if cell.n else cell  # its mark comes with words
    told = [("ours", f"{shown.text(column)}{unit}")]
    if MARKS[cell.status][1]:
        told.append(("", " ".join(MARKS[cell.status])))
    if paper is not None:
        value = number(paper.value / column.factor, column)
        of_paper = f" {column.unit}" if column.unit else ""
        told.append(("paper", f"{value}{of_paper} ({paper.source}, mark {paper.mark})"))
        if paper.unexplained:
            told.append(("", " ".join(paper.unexplained.split())))
    return provenance["cells"].setdefault(
        _cell_id(name, content, line.row, line.column),
        {"title": f"{line.row}, {column.label}", "told": told, "runs": []},
    )


def _row(content: Table, label: str):
    return next(row for row in content.rows if row.label == label)


def _cell_id(name: str, content: Table, label: str, key: str) -> str:
    return f"{name}/{[row.label for row in content.rows].index(label)}/{key}"


def _heads(sheet: Sheet) -> list[tuple[str, int]]:
    """The upper line of headers: a column's label and how many columns it spans."""
    spans = Counter((key, label) for key, label, _ in sheet.columns[1:])
    return [(label, span) for (_, label), span in spans.items()]


def _rows(name: str, content: Table, sheet: Sheet, provenance: dict) -> list[dict]:
    rows = []
    for i, (row, texts) in enumerate(zip(content.rows, sheet.rows, strict=True)):
        fields = []
        for j, text in enumerate(texts[1:], start=1):
            key, _, part = sheet.columns[j]
            place = _cell_id(name, content, row.label, key)
            ours = part.startswith("ours") and place in provenance["cells"]
            fields.append(
                {"text": text, "bold": (i, j) in sheet.bold, "place": place if ours else None}
                | {"kind": part.split(" ")[0]}
            )
        rows.append({"label": row.label, "control": row.control, "fields": fields})
    return rows


def _beside_paper(sheet: Sheet) -> list[str]:
    """In a few words, how a table compares: verdicts where it may be judged, else orders."""
    told = []
    for j, (_, label, part) in enumerate(sheet.columns):
        if part == "verdict":
            found = Counter(row[j] for row in sheet.rows if row[j])
            counts = ", ".join(f"{count} {word}" for word, count in sorted(found.items()))
            told += [f"{label}: {counts}"] if counts else []
    for label, order in sheet.orders.items():
        tau = "undefined" if math.isnan(order.tau) else f"{order.tau:+.2f}"
        told.append(f"{label}: τ {tau}")
    return told


def _figure(name: str, plan: Plan, shown: Settings) -> dict | None:
    """A table's figure as a data URI: SVG, or PNG where that is smaller (photographs)."""
    figure = plan.figure_of(name)
    if figure is None:
        return None
    base = Path(shown.results) / shown.scale / "figures" / figure
    files = [(base.with_suffix(f".{kind}"), kind) for kind in ("svg", "png")]
    files = [(path.stat().st_size, path, kind) for path, kind in files if path.is_file()]
    title = plan.experiments.table(name).figure.title
    found = {"name": figure, "title": f"{title} ({shown.scale} scale)", "uri": None}
    if files:
        _, path, kind = min(files)
        media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
        found["uri"] = f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return found


# --- training curves -----------------------------------------------------------

DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2")
WIDTH, HEIGHT = 340, 200
MARGINS = {"left": 42, "right": 8, "top": 8, "bottom": 28}


def _curves(content: Table, runs: dict[Run, tuple[str, Found]], plan: Plan) -> dict | None:
    """Loss and metrics while the runs behind a table train: a panel a step and quantity.

    A row is a colour and a dash, a run a line of its own.
    """
    panels: dict[tuple[str, str, str], list] = {}
    for run in training_curves(runs, plan):
        for quantity, points in run["curves"].items():
            whose = f"{run['row']}, {run['model']}, seed {run['seed']}"
            told = f"{whose}: {points[-1][1]:.4g} at the end"
            panel = (run["step"], quantity, run["unit"])
            panels.setdefault(panel, []).append((run["row"], told, points))
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
            {"step": step, "quantity": quantity, "svg": _panel(step, quantity, unit, lines, styles)}
            for (step, quantity, unit), lines in panels.items()
        ],
    }


def _panel(step: str, quantity: str, unit: str, lines: list, styles: dict) -> Markup:
    """One panel as SVG, whose text and axes take the colours of the page."""
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
    parts = [Markup(head).format(WIDTH, HEIGHT, step, quantity)]
    for tick in ticks:
        y = place(0, tick)[1]
        parts.append(Markup(grid).format(left, y, right, left - 6, y + 3.5, tick))
    counted = Column(label="", metric="", chain="", decimals=None)
    below = HEIGHT - 8
    parts.append(Markup(axis).format(left, below, right, below, number(x_end, counted), unit))
    for label, told, points in lines:
        if len(points) == 1:
            parts.append(Markup(dot).format(*place(*points[0]), styles[label][0], told))
            continue
        path = " ".join("{:.1f} {:.1f}".format(*place(*point)) for point in points)
        parts.append(Markup(line).format(path, *styles[label], told))
    return Markup("").join([*parts, Markup("</svg>")])


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from at most `low` to at most `high`."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    unit *= next(factor for factor in (1, 2, 5, 10) if span / 4 <= factor * unit * (1 + 1e-9))
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [round(step * unit, 12) for step in range(first, last + 1)] or [low]


# --- the machines -----------------------------------------------------------


def _environment(records: dict[str, dict]) -> dict:
    """On what the runs ran, as their own records say."""
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
