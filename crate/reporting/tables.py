"""Tables: `metrics/<table>.csv` and the table's YAML → `tables/<table>.{md,tex,csv}`.

A cell is its values first and text last. A paper's number never competes with ours, and where a
stand-in data set was used there is no difference to it either, only the agreement of the order.
This module imports no torch.
"""

import dataclasses
import io
import itertools
import math
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Column, Row, Table
from crate.records import write_text
from crate.reporting.collect import read_metrics

# status → printed mark and what its footnote says
MARKS = {
    "ok": ("", ""),
    "partial": ("†", "some seeds are missing or failed"),
    "failed": ("✗", "the run failed"),
    "missing": ("…", "not run yet"),
    "empty": ("", ""),
    "released": ("°", "released weights, evaluated here"),
    "unavailable": ("–", "released weights that cannot be evaluated here"),
    "incomplete": (
        "¶",
        "made with another number of images or documents than the set has: not judged",
    ),
    "frozen": ("‡", "not run here: the record in results/published"),
    "earlier": ("§", "the record in results/published, of an earlier recipe: not compared"),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table: mean and standard deviation over seeds (ddof 1; NaN for one seed)."""

    mean: float
    std: float
    n: int
    status: str
    values: tuple[float, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether it may be ranked and judged."""
        return self.n > 0 and self.status not in ("earlier", "incomplete")

    def text(self, column: Column) -> str:
        """`71.2 ± 0.3`; no ± for one seed, and a spread that rounds to nothing is shown as is."""
        mark = MARKS[self.status][0]
        if not self.n:
            return mark
        shown = number(self.mean, column)
        if self.n > 1 and self.std:
            if column.decimals is None:
                shown += f" ± {number(self.std, column)}"
            else:  # rounded up, so that a spread is never printed as ±0.0
                unit = 10.0**-column.decimals
                steps = max(1, math.ceil(round(self.std * column.factor / unit, 6)))
                shown += f" ± {steps * unit:.{column.decimals}f}"
        return f"{shown} {mark}".strip()


def number(value: float, column: Column, sign: str = "") -> str:
    """A metric's value as the column prints it: decimals, or three digits and an SI prefix."""
    value = float(value) * column.factor  # numpy rounds 81.65 to 81.6
    if column.decimals is not None:
        return f"{round(value, column.decimals) + 0.0:{sign}.{column.decimals}f}"  # never -0.0
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:{sign}.3g} {_PREFIXES[power]}".rstrip()


_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def cells_of(content: Table, metrics: pd.DataFrame) -> dict[tuple[str, str], Cell]:
    """Every cell by (row label, column key)."""
    found = {}
    for row, key in itertools.product(content.rows, content.columns):
        part = metrics[(metrics["row"] == row.label) & (metrics["column"] == key)]
        if len(set(part["status"]) - {"earlier"}):  # two recipes have no mean
            part = part.assign(value=part["value"].where(part["status"] != "earlier"))
        values = tuple(part["value"].dropna())
        if part.empty:
            status = "empty"
        elif len(values) == len(part):
            given = set(part["status"])
            status = given.pop() if len(given) == 1 else "frozen"
        elif values:
            status = "partial"
        else:
            given = ("failed", "missing", "unavailable", "earlier")
            status = next(name for name in given if name in set(part["status"]))
        series = pd.Series(values, dtype=float)
        # equal values have no spread, whatever rounding makes of it
        std = 0.0 if len(values) > 1 and len(set(values)) == 1 else series.std()
        found[row.label, key] = Cell(
            series.mean() if values else math.nan, std, len(values), status, values
        )
    return found


# --- comparing with the paper -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far our rows of a column stand in the paper's order."""

    tau: float  # Kendall's τ-b between the paper's values and our means; NaN for ties only
    steps: int  # pairs of neighbours in the paper's order
    agree: int  # of them, beyond seed noise, those that go the paper's way
    against: int  # and the other way
    seeds: int  # of the row that has the fewest


def agreement(rows: list[Row], key: str, cells: dict[tuple[str, str], Cell]) -> Agreement | None:
    """The order of our rows beside the paper's; None for fewer than three.

    A pair of neighbours is beyond seed noise where Welch's t interval (95 %) of our difference
    leaves out zero.
    """
    from scipy import stats

    pairs = [
        (row.paper[key].value, cells[row.label, key])
        for row in rows
        if not row.control and key in row.paper and cells[row.label, key].comparable
    ]
    if len(pairs) < 3:
        return None
    pairs.sort(key=lambda pair: pair[0])
    tau = stats.kendalltau([p for p, _ in pairs], [c.mean for _, c in pairs]).statistic
    agree = against = 0
    neighbours = list(itertools.pairwise(pairs))
    for (lower, a), (higher, b) in neighbours:
        if min(a.n, b.n) < 2 or lower == higher:
            continue
        if not (a.std or b.std):
            low = high = b.mean - a.mean
        else:
            interval = stats.ttest_ind(b.values, a.values, equal_var=False).confidence_interval()
            low, high = interval.low, interval.high
        agree += low > 0
        against += high < 0
    return Agreement(tau, len(neighbours), agree, against, min(cell.n for _, cell in pairs))


def order_agreement(column: Column, found: Agreement | None) -> str:
    """One sentence on whether our rows stand in the paper's order, and beyond seed noise."""
    if found is None:
        return ""
    told = "undefined (ties only)" if math.isnan(found.tau) else f"{found.tau:+.2f}"
    text = f"{column.label}: Kendall τ between our order and the paper's is {told}"
    if found.seeds < 2:
        return f"{text}; one seed, so the seed noise is unknown."
    noise = found.steps - found.agree - found.against
    return (
        f"{text}; of {found.steps} steps in the paper's order, beyond seed noise (95 % Welch "
        f"interval) {found.agree} go the paper's way and {found.against} the other way, {noise} "
        "are within it."
    )


def verdict(cell: Cell, paper: float, column: Column) -> tuple[str, str]:
    """Difference to the paper and whether it is within the declared tolerance."""
    if not cell.comparable:
        return "", ""
    delta = cell.mean * column.factor - paper
    shown = number(delta / column.factor, column, "+")
    if column.tolerance is None:
        return shown, ""
    # 64.4 − 63.9 is a little more than 0.5 in floating point
    return shown, "reproduced" if round(abs(delta), 9) <= column.tolerance else "differs"


# --- printing -----------------------------------------------------------


@dataclasses.dataclass
class Sheet:
    """A table as text: what is printed in every format."""

    headers: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]]
    caption: list[str]
    notes: list[str]
    # what a header is made of: the column's key, its label, and what of it stands there
    columns: list[tuple[str, str, str]]
    orders: dict[str, Agreement]  # a column's label → its order beside the paper's


def lay_out(name: str, plan: Plan, settings: Settings) -> Sheet:
    """Decide every printed word of a table."""
    content = plan.experiments.table(name)
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
            notes.append(f"{column.label}: none here ('crate weights list' says why).")
            left_out.add(key)
            continue
        arrow = {"up": " ↑", "down": " ↓", None: ""}[column.direction]
        unit = f" ({column.unit})" if column.unit else ""
        label = f"{column.label}{unit}{arrow}"
        columns.append((key, label, f"ours ({settings.scale})"))
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
            found = agreement(content.rows, key, cells)
            notes.append(order_agreement(column, found))
            if found is not None:
                orders[column.label] = found
    if unprinted:
        notes.append(f"{'; '.join(unprinted)}: paper value not available.")
    notes += _remarks(content, metrics)
    used = {cell.status for (_, key), cell in cells.items() if key not in left_out}
    notes += [
        f"{mark} {text}." for status, (mark, text) in MARKS.items() if mark and status in used
    ]
    sources = {(value.source, value.mark) for row in content.rows for value in row.paper.values()}
    if sources:
        told = "; ".join(f"{source} (mark {mark})" for source, mark in sorted(sources))
        notes.append(f"Paper values: {told}.")
    seeds = list(dict.fromkeys(metrics["seed"]))
    headers = [
        part if part in ("Δ", "verdict") else f"{label}, {part}" if part else label
        for _, label, part in columns
    ]
    caption = _caption(content, seeds, **facts)
    return Sheet(headers, rows, bold, caption, notes, columns, orders)


def _remarks(content: Table, metrics: pd.DataFrame) -> list[str]:
    """What runs have to say of their values: of whole columns, or of some rows."""
    shown = ("ok", "released", "incomplete", "frozen", "earlier")
    valued = metrics[metrics["status"].isin(shown)]
    lines = []
    for note, part in valued[valued["note"] != ""].groupby("note"):
        about = valued[valued["column"].isin(part["column"])]
        if set(about["row"]) == set(part["row"]):
            subject = [c.label for key, c in content.columns.items() if key in set(part["column"])]
        else:
            subject = [row.label for row in content.rows if row.label in set(part["row"])]
        lines.append(f"{', '.join(subject)}: {note}.")
    return lines


def _best(content: Table, key: str, cells: dict) -> set[str]:
    """Labels of the best rows as printed, ties included; controls do not compete."""
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
    lines = [f"{content.title}. {content.source}.", content.note]
    named = ", ".join(map(str, seeds))
    several = len(seeds) > 1
    over = f"mean ± standard deviation over seeds {named}" if several else f"seed {named}"
    lines.append(f"Ours: {title}; {over}.")
    if stand_ins:
        told = "; ".join(f"{title} stands in for {name}" for name, title in stand_ins.items())
        lines.append(f"Stand-ins: {told}. Ours and the paper's numbers are not comparable.")
    return [" ".join(line.split()) for line in lines if line.strip()]


def write_table(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Write `tables/<name>.{md,tex,csv}`; returns their paths."""
    sheet = lay_out(name, plan, settings)
    base = Path(settings.results) / settings.scale / "tables" / name
    texts = {"md": markdown(sheet), "tex": latex(sheet), "csv": plain_csv(sheet)}
    for suffix, text in texts.items():
        write_text(base.with_suffix(f".{suffix}"), text)
    return [base.with_suffix(f".{suffix}") for suffix in texts]


def markdown(sheet: Sheet) -> str:
    rows = [
        [f"**{text}**" if (i, j) in sheet.bold else text for j, text in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]
    headers, *rows = [[text.replace("|", "\\|") for text in row] for row in [sheet.headers, *rows]]
    aligned = ["left", *["right"] * (len(sheet.headers) - 1)]
    body = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
    notes = "\n".join(f"- {note}" for note in sheet.notes if note)
    return "\n\n".join([" ".join(sheet.caption), body, notes]) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs tabular, the caption and notes as comments above it."""
    frame = pd.DataFrame([[_tex(text) for text in row] for row in sheet.rows])
    marks = pd.DataFrame("", index=frame.index, columns=frame.columns)
    for i, j in sheet.bold:
        marks.iloc[i, j] = "textbf:--rwrap;"
    styler = frame.style.hide(axis="index").apply(lambda _: marks, axis=None)
    styler.format_index(lambda column: _tex(sheet.headers[column]), axis="columns")
    body = styler.to_latex(hrules=True, column_format="l" + "r" * (len(sheet.headers) - 1))
    comments = [f"% {line}" for line in [*sheet.caption, *sheet.notes] if line]
    return "\n".join(comments) + "\n" + body


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$", "α": r"$\alpha$",
    "<": "$<$", ">": "$>$", "|": "$|$", "×": r"$\times$", "λ": r"$\lambda$", "η": r"$\eta$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "°": r"$^\circ$", "¶": r"\P{}", "–": "--",
    "✗": r"$\times$", "…": r"\ldots{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def plain_csv(sheet: Sheet) -> str:
    buffer = io.StringIO()
    pd.DataFrame(sheet.rows, columns=_unique(sheet.headers)).to_csv(
        buffer, index=False, lineterminator="\n"
    )
    return buffer.getvalue()


def _unique(headers: list[str]) -> list[str]:
    """Two Δ columns must not share a name in a data file: each takes its column's before it."""
    named, before = [], ""
    for header in headers:
        if header in ("Δ", "verdict"):
            header = f"{before} {header}"
        else:
            before = header
        named.append(header)
    return named
