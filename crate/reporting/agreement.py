"""Our numbers and the paper's: Kendall's τ between the orders of rows, verdicts on values."""

import dataclasses
import itertools
import math

from crate.planning.tables import Column, Row
from crate.reporting.cells import Cell, number


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far the order of our rows in a column agrees with the paper's."""

    tau: float  # Kendall's τ-b between the paper's values and our means; NaN for ties only
    pairs: int  # of neighbours in the paper's order
    agree: int  # of them, those ordered as in the paper, beyond seed noise
    against: int  # of them, those ordered the other way, beyond seed noise
    seeds: int  # of the row with the fewest


def agreement(rows: list[Row], key: str, cells: dict[tuple[str, str], Cell]) -> Agreement | None:
    """How our order of rows agrees with the paper's; None for fewer than three rows.

    A pair of neighbours is ordered beyond seed noise if Welch's t interval (95 %) of our
    difference excludes zero.
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


def order_agreement(column: Column, order: Agreement | None) -> str:
    """One sentence on how our order of rows agrees with the paper's, beyond seed noise."""
    if order is None:
        return ""
    tau = "undefined (ties only)" if math.isnan(order.tau) else f"{order.tau:+.2f}"
    text = f"{column.label}: Kendall τ between our order and the paper's is {tau}"
    if order.seeds < 2:
        return f"{text}; one seed, so the seed noise is unknown."
    within = order.pairs - order.agree - order.against
    return (
        f"{text}; of {order.pairs} pairs of neighbours in the paper's order, {order.agree} have "
        f"the same order here, {order.against} the reverse, and {within} differ by less than the "
        "seed noise (95 % Welch interval)."
    )


def verdict(cell: Cell, paper: float, column: Column) -> tuple[str, str]:
    """The difference to the paper, and "reproduced" or "differs" by the column's tolerance."""
    if not cell.comparable:
        return "", ""
    delta = cell.mean * column.factor - paper
    shown = number(delta / column.factor, column, "+")
    if column.tolerance is None:
        return shown, ""
    # 64.4 − 63.9 is a little more than 0.5 in floating point
    return shown, "reproduced" if round(abs(delta), 9) <= column.tolerance else "differs"
