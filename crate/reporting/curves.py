"""Charts of training: a loss or a metric against the examples seen.

`draw_…` take a table's name and return a matplotlib figure.
"""

import math

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.reporting.collect import read_losses, read_training
from crate.reporting.style import (
    CHART,
    Look,
    axis_label,
    figure_width,
    legend_below,
    looks,
    new_figure,
    wrap,
)


def draw_curves(name: str, plan: Plan, settings: Settings):
    """A metric during training: one line for each row, with a band of one deviation over seeds.

    Rows that train nothing are black horizontal lines; one far above the others, such as an
    untrained network, is left out.
    """
    content = plan.table(name)
    drawn, losses = content.figure, read_losses(name, settings)
    column = content.columns[drawn.column]
    seeds = "; bands: ± 1 s.d. over seeds" if losses["seed"].nunique() > 1 else ""
    title = f"{drawn.title} ({settings.scale} scale{seeds})"
    figure = new_figure(figure_width(1, CHART), 2.5, title)
    axes = figure.subplots()
    trained = losses[losses["seen"] > 0]["loss"]
    highest = 1.5 * trained.max() if len(trained) else math.inf
    flat = iter(("--", ":", "-.", "-"))
    handles, styles = {}, looks(content.rows)
    for place, (label, look) in enumerate(styles.items()):
        points = losses[losses["row"] == label].groupby("seen")["loss"]
        middle = points.mean() * column.factor
        if middle.empty or middle.min() > highest * column.factor:
            continue
        if middle.index.max() == 0:
            dash = next(flat, "-")
            handles[label] = axes.axhline(middle.iloc[0], color="black", linestyle=dash)
            continue
        handles[label] = _curve(axes, middle.index, middle, look, place / len(styles))
        spread = points.std().fillna(0.0) * column.factor
        low, high = middle - spread, middle + spread
        axes.fill_between(middle.index, low, high, color=look.colour, alpha=0.2, linewidth=0)
    dataset = get_dataset(plan.experiments.recipe(column.chain.split("/")[-1], "paper").dataset)
    axes.set_xlabel(f"training {'tokens' if isinstance(dataset, TextSet) else dataset.unit}")
    axes.set_ylabel(wrap(axis_label(column), 2.0))
    _seen_axis(axes)
    legend_below(figure, handles)
    return figure


# metrics that are watched during training, as axes name them
METRICS = {"top1": "top-1", "miou": "mIoU", "image_to_text": "image to text"}
UNITS = {
    "top1": "%", "miou": "%", "image_to_text": "%", "contrastive_loss": "nats",
    "cross_entropy": "nats", "reconstruction": "squared error",
}  # fmt: skip


def draw_training(name: str, plan: Plan, settings: Settings):
    """Training curves of the runs behind a table: a recipe's loss and metrics stand side by side.

    Each run is a line; those of a row share colour, marker and dash.
    """
    content = plan.table(name)
    known = {row.label for row in content.rows}
    runs = [run for run in read_training(name, settings) if run["row"] in known]
    recipes: dict[str, list[str]] = {}  # recipe → its quantities, the loss first
    for run in runs:
        found = {*recipes.get(run["step"], []), *run["curves"]}
        recipes[run["step"]] = sorted(found, key=lambda key: (key != "training loss", key))
    trained = {run["row"] for run in runs}
    styles = looks([row for row in content.rows if row.label in trained])

    most = max(map(len, recipes.values()), default=1)
    slots = min(most, ACROSS)  # panels of a recipe on one line
    beside = max(1, ACROSS // slots) if len(recipes) > 3 else 1  # recipes on one line
    lines = -(-most // slots)  # of a recipe
    down = max(1, -(-len(recipes) // beside)) * lines
    width = figure_width(slots * beside, CHART)
    height = 1.6 if down < 4 else 1.3 if down < 7 else 1.15
    title = f"{plan.figure_title(f'training_{name}')} ({settings.scale} scale)"
    figure = new_figure(width, height * down, title)
    panels = figure.subplots(down, slots * beside, squeeze=False)
    room = width / (slots * beside) - 0.75  # inches that a panel has for words across
    handles, empty = {}, list(panels.flat)
    for nth, (recipe, quantities) in enumerate(recipes.items()):
        for of_it, quantity in enumerate(quantities):
            line = nth // beside * lines + of_it // slots
            axes = panels[line, nth % beside * slots + of_it % slots]
            empty.remove(axes)
            shown = [run for run in runs if run["step"] == recipe and quantity in run["curves"]]
            ends = all(len(run["curves"][quantity]) == 1 for run in shown)
            for run in shown:
                look, place = styles[run["row"]], list(styles).index(run["row"])
                seen, values = zip(*run["curves"][quantity], strict=True)
                handles[run["row"]] = _curve(
                    axes, [place] if ends else seen, values, look, place / len(styles), lw=0.8
                )
            if ends:  # at one place, they could not be told apart
                axes.set_xlabel(wrap("model, in the legend's order", room))
                axes.set_xlim(-0.5, len(styles) - 0.5)
                axes.set_xticks([])
            else:
                axes.set_xlabel(f"training {shown[0]['unit']}".strip())
                _seen_axis(axes)
            loss = plan.experiments.recipe(recipe, settings.scale).METRICS[0]
            unit = UNITS.get(quantity, "")
            if quantity == "training loss":
                unit = UNITS[loss] if loss == "reconstruction" else "nats"
            label = METRICS.get(quantity, quantity.replace("_", " "))
            axes.set_ylabel(wrap(f"{label} ({unit})" if unit else label, max(height - 0.5, 0.8)))
            axes.set_title(wrap(recipe, room))
    for axes in empty[1:] if not runs else empty:
        axes.remove()
    if not runs:
        empty[0].set_axis_off()
        empty[0].text(0.5, 0.5, "nothing was trained here", ha="center")
    legend_below(figure, {label: handles[label] for label in styles if label in handles})
    return figure


ACROSS = 4  # panels on a line of `draw_training`


def draw_losses(axes, losses, styles: dict[str, Look]) -> dict:
    """One line for each row, its training loss, the mean over seeds; returns the legend's lines."""
    handles = {}
    for place, (label, look) in enumerate(styles.items()):
        curve = losses[losses["row"] == label].groupby("seen")["loss"].mean()
        if len(curve):
            handles[label] = _curve(axes, curve.index, curve.values, look, place / len(styles))
    _seen_axis(axes)
    return handles


def _curve(axes, seen, values, look: Look, turn: float, **options):
    """A line with a few markers, which tell it from others in grey too.

    `turn`, from 0 to 1, moves them, so that those of close lines are not at one place.
    """
    every = max(1, len(seen) // 6)
    return axes.plot(
        seen, values, color=look.colour, linestyle=look.dash, marker=look.marker,
        markevery=(int(turn * every), every), **options,
    )[0]  # fmt: skip


def _seen_axis(axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    if not axes.lines:
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center", va="center")
