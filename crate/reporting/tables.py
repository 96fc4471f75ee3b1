"""Tables: `metrics/<table>.csv` and the table's YAML → `tables/<table>.{md,tex,csv}`.

`render` turns the cells (cells.py) and their agreement with the paper (agreement.py) into text, and
`markdown`, `latex` and `plain_csv` print that text. A paper's number is never ranked among ours.
Where a stand-in data set was used, ours and the paper's are compared only by the order of their
rows. This module imports no torch.
"""

import dataclasses
import io
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from crate.data.catalogue import get_dataset
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Column, Row, Table
from crate.records import write_text
from crate.reporting.agreement import Agreement, agreement, order_agreement, verdict
from crate.reporting.cells import MARKS, cells_of, number
from crate.reporting.collect import read_metrics
from crate.reporting.latex import table_float


@dataclasses.dataclass
class RenderedTable:
    """A table as text, the same for every format."""

    headers: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]]
    caption: list[str]
    notes: list[str]
    # the parts of each header: the column's key, its label, and "ours (…)", "paper", "Δ", "verdict"
    columns: list[tuple[str, str, str]]
    orders: dict[str, Agreement]  # a column's label → how its order agrees with the paper's


def render(name: str, plan: Plan, settings: Settings) -> RenderedTable:
    """The text of every cell of a table, its caption and its notes."""
    content = plan.table(name)
    metrics = read_metrics(name, settings)
    cells = cells_of(content, metrics)
    facts = plan.caption_facts(name, settings.scale)
    datasets, stand_ins = plan.datasets(content), facts["stand_ins"]

    columns, rows = [("", "Model", "")], [[row.label] for row in content.rows]
    orders: dict[str, Agreement] = {}
    bold: set[tuple[int, int]] = set()
    notes: list[str] = []
    left_out, unprinted = set(), []
    for key, column in content.columns.items():
        statuses = {cells[row.label, key].status for row in content.rows}
        if "unavailable" in statuses <= {"unavailable", "empty"}:
            notes.append(f"{column.label}: not available here; see 'crate weights list'.")
            left_out.add(key)
            continue
        arrow = {"up": " ↑", "down": " ↓", None: ""}[column.direction]
        unit = f" ({column.unit})" if column.unit else ""
        label = f"{column.label}{unit}{arrow}"
        columns.append((key, label, _ours(column, plan, settings)))
        best = _best(content, key, cells)
        for i, row in enumerate(content.rows):
            cell = cells[row.label, key]
            if row.label in best:
                bold.add((i, len(columns) - 1))
            rows[i].append(cell.text(column))
        if not any(key in row.paper for row in content.rows):
            unprinted.append(column.label)
            continue
        real = not datasets[key] & stand_ins.keys()
        parts = ["paper", "Δ", "verdict"] if column.tolerance is not None else ["paper", "Δ"]
        columns.extend((key, label, part) for part in (parts if real else parts[:1]))
        for i, row in enumerate(content.rows):
            value = row.paper.get(key)
            rows[i].append(_paper_text(value, column, row))
            if real:
                delta = ("", "")
                if value is not None:
                    delta = verdict(cells[row.label, key], value.value, column)
                    delta = ("", "see note") if value.unexplained else delta
                rows[i].extend(delta if column.tolerance is not None else delta[:1])
            if value is not None and value.unexplained:
                why = " ".join(value.unexplained.split())
                notes.append(f"{row.label}, {column.label}: {why}")
        if not real and column.direction:
            order = agreement(content.rows, key, cells)
            notes.append(order_agreement(column, order))
            if order is not None:
                orders[column.label] = order
    if unprinted:
        notes.append(f"{'; '.join(unprinted)}: paper value not available.")
    notes += [
        f"{row.label}, {column.label}: its chain has no step that measures this."
        for row in content.rows
        for key, column in content.columns.items()
        if key not in row.steps and plan.experiments.chain_of(row, key, column) is None
    ]
    notes += _remarks(content, metrics)
    used = {cell.status for (_, key), cell in cells.items() if key not in left_out}
    notes += [
        f"{mark} {text}." for status, (mark, text) in MARKS.items() if mark and status in used
    ]
    sources = {(value.source, value.mark) for row in content.rows for value in row.paper.values()}
    if sources:
        cited = "; ".join(f"{source} (mark {mark})" for source, mark in sorted(sources))
        notes.append(f"Paper values: {cited}.")
    seeds = list(dict.fromkeys(metrics["seed"]))
    headers = [
        part if part in ("Δ", "verdict") else f"{label}, {part}" if part else label
        for _, label, part in columns
    ]
    caption = _caption(content, seeds, **facts)
    return RenderedTable(headers, rows, bold, caption, notes, columns, orders)


def _ours(column: Column, plan: Plan, settings: Settings) -> str:
    """The header of our values: the scale, and the stand-in that they were measured on."""
    last = plan.experiments.recipe(column.chain.split("/")[-1], settings.scale)
    if last.AS_PUBLISHED:  # counted of the published model, at every scale
        return "ours"
    published = plan.experiments.recipe(column.chain.split("/")[-1], "paper")
    if not last.READS_DATA or last.dataset == published.dataset:
        return f"ours ({settings.scale})"
    return f"ours ({settings.scale}: {get_dataset(last.dataset).title})"


def _remarks(content: Table, metrics: pd.DataFrame) -> list[str]:
    """The remarks of runs on their values, each on whole columns or on some rows."""
    shown = ("ok", "released", "incomplete", "frozen", "earlier")
    valued = metrics[metrics["status"].isin(shown)]
    lines = []
    for note, part in valued[valued["note"] != ""].groupby("note"):
        same_columns = valued[valued["column"].isin(part["column"])]
        if set(same_columns["row"]) == set(part["row"]):
            subject = [c.label for key, c in content.columns.items() if key in set(part["column"])]
        else:
            subject = [row.label for row in content.rows if row.label in set(part["row"])]
        lines.append(f"{', '.join(subject)}: {note}.")
    return lines


def _best(content: Table, key: str, cells: dict) -> set[str]:
    """Labels of the best rows as printed, ties included; controls are not ranked."""
    column = content.columns[key]
    shown = {
        row.label: _as_printed(cells[row.label, key].mean * column.factor, column)
        for row in content.rows
        if not row.control and cells[row.label, key].comparable
    }
    if len(shown) < 2 or column.direction is None:
        return set()
    top = (max if column.direction == "up" else min)(shown.values())
    return {label for label, value in shown.items() if value == top}


def _as_printed(value: float, column: Column) -> float:
    return (
        float(f"{value:.3g}") if column.decimals is None else round(float(value), column.decimals)
    )


def _paper_text(value, column: Column, row: Row) -> str:
    if value is None:
        return "" if row.control else "n/a"
    shown = number(value.value / column.factor, column)
    return shown + ("*" if value.unexplained else "")


def _caption(content: Table, seeds: list[int], title: str, stand_ins: dict) -> list[str]:
    head = [content.title, content.source] if content.source else [content.title]
    lines = [f"{'. '.join(head)}.", content.note]
    named = ", ".join(map(str, seeds))
    several = len(seeds) > 1
    over = f"mean ± standard deviation over seeds {named}" if several else f"seed {named}"
    lines.append(f"Ours: {title}; {over}.")
    if stand_ins:
        pairs = "; ".join(f"{title} stands in for {name}" for name, title in stand_ins.items())
        lines.append(f"Stand-ins: {pairs}. Our numbers are not comparable with the paper's.")
    return [" ".join(line.split()) for line in lines if line.strip()]


def write_table(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Write `tables/<name>.{md,tex,csv}`; returns their paths."""
    table = render(name, plan, settings)
    base = Path(settings.results) / settings.scale / "tables" / name
    texts = {"md": markdown(table), "tex": latex(name, table), "csv": plain_csv(table)}
    for suffix, text in texts.items():
        write_text(base.with_suffix(f".{suffix}"), text)
    return [base.with_suffix(f".{suffix}") for suffix in texts]


def markdown(table: RenderedTable) -> str:
    rows = [
        [f"**{text}**" if (i, j) in table.bold else text for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    headers, *rows = [[text.replace("|", "\\|") for text in row] for row in [table.headers, *rows]]
    aligned = ["left", *["right"] * (len(table.headers) - 1)]
    body = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
    notes = "\n".join(f"- {note}" for note in table.notes if note)
    return "\n\n".join([" ".join(table.caption), body, notes]) + "\n"


def latex(name: str, table: RenderedTable) -> str:
    """A LaTeX float; what is not title and source of the caption stands below as text."""
    columns = [(label, part) if part else ("", label) for _, label, part in table.columns]
    caption, *rest = table.caption
    notes = [" ".join(line.split()) for line in [*rest, *table.notes] if line]
    return table_float(name, caption, columns, table.rows, table.bold, notes)


def plain_csv(table: RenderedTable) -> str:
    buffer = io.StringIO()
    pd.DataFrame(table.rows, columns=_unique(table.headers)).to_csv(
        buffer, index=False, lineterminator="\n"
    )
    return buffer.getvalue()


def _unique(headers: list[str]) -> list[str]:
    """Headers without duplicates: each Δ and verdict is prefixed by its column's header."""
    named, before = [], ""
    for header in headers:
        if header in ("Δ", "verdict"):
            header = f"{before} {header}"
        else:
            before = header
        named.append(header)
    return named
