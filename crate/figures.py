"""Figures from `metrics/<table>.csv` and the table's YAML; no torch.

Written as PDF, SVG and PNG, byte for byte the same for the same numbers.
"""

import os
from pathlib import Path

from crate.config import Settings
from crate.plan import Plan
from crate.records import atomic_path
from crate.tables import cells_of, read_metrics

# Okabe & Ito's colours, told apart by all kinds of colour vision
OURS, PAPER, CONTROL = "#0072B2", "#E69F00", "#999999"


def write_figure(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Draw the figure of table `name` into `figures/<name>.{pdf,svg,png}`."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path(settings.results) / ".matplotlib"))
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "crate", "font.size": 9, "pdf.fonttype": 42})
    figure = {"bars": _bars}[plan.experiments.table(name).figure.kind](name, plan, settings)
    paths = []
    for suffix, metadata in (
        ("pdf", {"CreationDate": None}),
        ("svg", {"Date": None}),
        ("png", {"Software": None}),
    ):
        path = Path(settings.results) / settings.scale / "figures" / f"{name}.{suffix}"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata, dpi=200)
        paths.append(path)
    return paths


def _bars(name: str, plan: Plan, settings: Settings):
    """Two panels that share their rows and not their axis: the paper's numbers, and ours."""
    from matplotlib.figure import Figure

    content = plan.experiments.table(name)
    key = content.figure.column
    column = content.columns[key]
    cells = cells_of(content, read_metrics(name, settings))
    rows = [row for row in content.rows if not row.control]
    scale = plan.experiments.scale(settings.scale)
    stand_in = scale.datasets.get(
        plan.experiments.step(column.chain.split("/")[-1], "paper").dataset
    )

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    paper = [row.paper[key].value if key in row.paper else float("nan") for row in rows]
    ours = [cells[row.label, key].mean for row in rows]
    spread = [cells[row.label, key].std if cells[row.label, key].n > 1 else 0 for row in rows]
    unit = f" ({column.unit})" if column.unit else ""

    _panel(left, paper, [0] * len(rows), PAPER, column.decimals)
    left.set_title("paper")
    left.set_ylabel(f"{column.label}{unit}")
    _panel(right, ours, spread, OURS, column.decimals)
    for place, row in zip(places, rows, strict=True):
        for value in cells[row.label, key].values:
            right.plot(place, value, "o", color="black", markersize=2.5, alpha=0.6)
    seeds = max((cells[row.label, key].n for row in rows), default=0)
    note = f"ours, {settings.scale} scale, {seeds} seed{'s' if seeds != 1 else ''}"
    if stand_in:
        from crate.data.registry import get_dataset

        note += f"\n({get_dataset(stand_in).title}: another data set, another axis)"
    right.set_title(note)
    for axes in (left, right):
        axes.set_xticks(list(places), [_wrap(row.label) for row in rows], fontsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(content.figure.title)
    return figure


def _panel(axes, values: list[float], spread: list[float], colour: str, decimals: int) -> None:
    axes.bar(
        range(len(values)), values, yerr=spread if any(spread) else None, color=colour, width=0.65,
        capsize=3, error_kw={"elinewidth": 1},
    )  # fmt: skip
    known = [v for v in values if v == v]
    if not known:
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center")
        return
    # the axis begins above zero, or differences of a point could not be seen; numbers say so
    room = max(max(known) - min(known), 1.0)
    top = max(v + s for v, s in zip(values, spread, strict=True) if v == v)
    axes.set_ylim(min(known) - 0.6 * room - max(spread), top + 0.3 * room)
    for place, (value, over) in enumerate(zip(values, spread, strict=True)):
        if value == value:
            axes.annotate(
                f"{value:.{decimals}f}", (place, value + over), (0, 3), ha="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip


def _wrap(label: str) -> str:
    return label.replace(" (", "\n(")
