"""The value of each cell of a table: mean and spread over seeds, and the mark of its status."""

import dataclasses
import itertools
import math

import pandas as pd

from crate.planning.tables import Column, Table

# status → printed mark and its footnote
MARKS = {
    "ok": ("", ""),
    "partial": ("†", "some seeds are missing or failed"),
    "failed": ("✗", "the run failed"),
    "stopped": ("‖", "stopped or killed before its end; the same command goes on there"),
    "missing": ("…", "not run yet"),
    "empty": ("", ""),
    "released": ("°", "released weights, evaluated here"),
    "unavailable": ("–", "released weights that are not available here"),
    "incomplete": (
        "¶",
        "the number of images or documents is not that of the data set; not compared",
    ),
    "frozen": ("‡", "not run here; from the records in results/published"),
    "earlier": ("§", "from the records in results/published, of an earlier recipe; not compared"),
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
        """Whether the cell may be ranked and compared with the paper."""
        return self.n > 0 and self.status not in ("earlier", "incomplete")

    def text(self, column: Column) -> str:
        """`71.2 ± 0.3`; no ± for one seed or where all values are equal."""
        mark = MARKS[self.status][0]
        if not self.n:
            return mark
        shown = number(self.mean, column)
        if self.n > 1 and self.std:
            if column.decimals is None:
                shown += f" ± {number(self.std, column)}"
            else:  # rounded up: a spread is never printed as ±0.0
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
    """All cells by (row label, column key)."""
    cells = {}
    for row, key in itertools.product(content.rows, content.columns):
        part = metrics[(metrics["row"] == row.label) & (metrics["column"] == key)]
        if len(set(part["status"]) - {"earlier"}):  # never a mean over two recipes
            part = part.assign(value=part["value"].where(part["status"] != "earlier"))
        values = tuple(part["value"].dropna())
        if part.empty:
            status = "empty"
        elif len(values) == len(part):
            statuses = set(part["status"])
            status = statuses.pop() if len(statuses) == 1 else "frozen"
        elif values:
            status = "partial"
        else:
            worst_first = ("failed", "stopped", "missing", "unavailable", "earlier")
            status = next(name for name in worst_first if name in set(part["status"]))
        series = pd.Series(values, dtype=float)
        # equal values have no spread, but floating point gives them a small one
        std = 0.0 if len(values) > 1 and len(set(values)) == 1 else series.std()
        cells[row.label, key] = Cell(
            series.mean() if values else math.nan, std, len(values), status, values
        )
    return cells
