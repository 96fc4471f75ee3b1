"""Charts: figures drawn from numbers, one function a kind of figure.

Each takes a table's name and returns a matplotlib figure.
"""

import itertools
import math
import re

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.reporting.cells import cells_of
from crate.reporting.collect import read_losses, read_metrics, read_training
from crate.reporting.style import COLOURS, MARKERS, OURS, PAPER, axis_label, wrap


def draw_bars(name: str, plan: Plan, settings: Settings):
    """Bars for each row in two panels with axes of their own: the paper's numbers, and ours."""
    from matplotlib.figure import Figure

    content = plan.experiments.table(name)
    key = content.figure.column
    column = content.columns[key]
    cells = cells_of(content, read_metrics(name, settings))
    rows = [row for row in content.rows if not row.control]
    scale = plan.experiments.scale(settings.scale)
    stand_in = scale.datasets.get(
        plan.experiments.recipe(column.chain.split("/")[-1], "paper").dataset
    )

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    paper = [[row.paper[key].value] if key in row.paper else [] for row in rows]
    ours = [[v * column.factor for v in cells[row.label, key].values] for row in rows]

    _panel(left, paper, PAPER, column.decimals)
    left.set_title("paper", fontsize=9)
    left.set_ylabel(axis_label(column))
    _panel(right, ours, OURS, column.decimals)
    seeds = max(map(len, ours))
    note = f"ours, {settings.scale} scale, {seeds} seed{'s' if seeds != 1 else ''}"
    if stand_in:
        note += f"\n{get_dataset(stand_in).title}: other data, another axis"
    right.set_title(note, fontsize=9)
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), [wrap(row.label) for row in rows], fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(content.figure.title)
    return figure


def draw_scaling(name: str, plan: Plan, settings: Settings):
    """One column against another, the paper's points and ours; then panels of training losses."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    content = plan.experiments.table(name)
    drawn = content.figure
    metrics = read_metrics(name, settings)
    values = metrics.pivot_table(index=["row", "seed"], columns="column", values="value")
    rows = [row for row in content.rows if not row.control]
    x, y = content.columns[drawn.against], content.columns[drawn.column]
    families = list(dict.fromkeys(_family(row.model) for row in rows))

    paper = {
        row.label: [(row.paper[drawn.against].value, row.paper[drawn.column].value)]
        for row in rows
        if {drawn.against, drawn.column} <= row.paper.keys()
    }
    values = values.reindex(
        columns=[drawn.against, drawn.column]
    ).dropna()  # one pair for each seed
    ours: dict[str, list] = {}
    for (label, _), a, b in values.itertuples():
        ours.setdefault(label, []).append((a * x.factor, b * y.factor))
    scatters = [("paper", paper)] if paper else []
    scatters.append((f"ours, {settings.scale} scale", ours))
    count = len(scatters) + len(drawn.panels)
    figure = Figure(figsize=(3.4 * count, 3.2), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, (title, points) in zip(panels, scatters, strict=False):
        for row in rows:
            family = families.index(_family(row.model))
            for place in points.get(row.label, []):
                axes.plot(*place, MARKERS[family], color=COLOURS[family], markersize=4)
            if points.get(row.label):
                middle = [sum(axis) / len(axis) for axis in zip(*points[row.label], strict=True)]
                axes.annotate(row.label, middle, (4, 3), textcoords="offset points", fontsize=6)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(axis_label(x))
        axes.set_ylabel(axis_label(y))
    losses = read_losses(name, settings) if drawn.panels else None
    for axes, (title, labels) in zip(panels[len(scatters) :], drawn.panels.items(), strict=True):
        _losses(axes, losses, labels)
        axes.set_title(f"training loss {title}", fontsize=9)
        axes.set_xlabel("training images")
        axes.set_ylabel("cross-entropy (nats)")
        axes.legend(fontsize=6, frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(drawn.title)
    return figure


def _losses(axes, losses, labels: list[str]) -> None:
    """One line for each row: its training loss, the mean over seeds."""
    for colour, label in zip(COLOURS, labels, strict=False):
        curve = losses[losses["row"] == label].groupby("seen")["loss"].mean()
        dots = "." if len(curve) < 3 else None  # a line needs several points
        axes.plot(curve.index, curve.values, color=colour, linewidth=1, label=label, marker=dots)


def draw_curves(name: str, plan: Plan, settings: Settings):
    """A metric during training: one line for each row, with a band of one deviation over seeds.

    Rows that train nothing are dotted horizontal lines; one far above the others, such as an
    untrained network, is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    content = plan.experiments.table(name)
    drawn, losses = content.figure, read_losses(name, settings)
    column = content.columns[drawn.column]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = iter(itertools.product(("-", "--", "-."), COLOURS))
    trained = losses[losses["seen"] > 0]["loss"]
    highest = 1.5 * trained.max() if len(trained) else math.inf
    for row in content.rows:
        points = losses[losses["row"] == row.label].groupby("seen")["loss"]
        middle = points.mean() * column.factor
        if middle.empty or middle.min() > highest * column.factor:
            continue
        if middle.index.max() == 0:
            axes.axhline(middle.iloc[0], color="black", linestyle=":", linewidth=1)
            place = axes.get_yaxis_transform()
            axes.text(1.0, middle.iloc[0], row.label, transform=place, fontsize=6, va="center")
            continue
        line, colour = next(styles, (":", "grey"))
        axes.plot(middle.index, middle, line, color=colour, lw=1, marker=".", label=row.label)
        spread = points.std().fillna(0.0) * column.factor
        axes.fill_between(
            middle.index, middle - spread, middle + spread, color=colour, alpha=0.2, linewidth=0
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    dataset = get_dataset(plan.experiments.recipe(column.chain.split("/")[-1], "paper").dataset)
    axes.set_xlabel(f"training {'tokens' if isinstance(dataset, TextSet) else dataset.unit}")
    axes.set_ylabel(axis_label(column))
    if axes.lines and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{drawn.title} ({settings.scale} scale)", fontsize=9)
    return figure


def draw_stages(name: str, plan: Plan, settings: Settings):
    """Training losses of each row; then bars of two columns, the paper's and ours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    content = plan.experiments.table(name)
    drawn, losses = content.figure, read_losses(name, settings)
    keys = (drawn.against, drawn.column)
    cells = cells_of(content, read_metrics(name, settings))
    rows = [row for row in content.rows if not row.control]
    unit = get_dataset(
        plan.experiments.recipe(content.columns[drawn.losses].chain.split("/")[-1], "paper").dataset
    ).unit
    figure = Figure(figsize=(10.2, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _losses(left, losses, [row.label for row in rows])
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_xlabel(f"training {unit}")
    left.set_ylabel("training loss (nats)")
    left.set_title(f"ours, {settings.scale} scale, first stage", fontsize=9)
    left.legend(fontsize=6, frameon=False)

    factor = {key: content.columns[key].factor for key in keys}
    paper = {
        (row.label, key): [row.paper[key].value] if key in row.paper else []
        for row in rows
        for key in keys
    }
    ours = {
        (row.label, key): [value * factor[key] for value in cells[row.label, key].values]
        for row in rows
        for key in keys
    }
    for axes, values, title in (
        (middle, paper, "paper"),
        (right, ours, f"ours, {settings.scale} scale"),
    ):
        for shift, key, colour in zip((-0.2, 0.2), keys, (PAPER, OURS), strict=True):
            drawable = [place for place, row in enumerate(rows) if values[row.label, key]]
            if drawable:
                samples = [values[rows[place].label, key] for place in drawable]
                places = [place + shift for place in drawable]
                means = [sum(each) / len(each) for each in samples]
                axes.bar(places, means, 0.38, color=colour, label=content.columns[key].label)
                for place, each in zip(places, samples, strict=True):
                    if len(each) > 1:
                        spots = [place] * len(each)
                        axes.plot(spots, each, "o", color="black", markersize=2.5, alpha=0.5)
        if not any(values.values()):
            axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center")
        labels = [wrap(row.label) for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=7, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_ylabel(
            f"{content.columns[drawn.column].metric} ({content.columns[drawn.column].unit})"
        )
        axes.set_title(title, fontsize=9)
    controls = [row for row in content.rows if row.control]
    for row, line in zip(
        controls, ("-", ":", "--"), strict=False
    ):  # chance level, an untrained network
        reached = cells[row.label, drawn.column].values
        if reached:
            height = factor[drawn.column] * sum(reached) / len(reached)
            right.axhline(height, color="black", linestyle=line, lw=1, label=row.label)
    for axes in (middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
            axes.legend(fontsize=6, frameon=False, loc="upper left")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{drawn.title} ({settings.scale} scale)", fontsize=9)
    return figure


def draw_training(name: str, plan: Plan, settings: Settings):
    """Training curves of the runs behind a table: recipes down; loss, then metrics, across.

    Each run is a line; those of a row share colour and dash.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = {row.label for row in plan.experiments.table(name).rows}
    runs = [run for run in read_training(name, settings) if run["row"] in rows]
    recipes: dict[str, list[str]] = {}  # recipe → its quantities, the loss first
    for run in runs:
        known = {*recipes.get(run["step"], []), *run["curves"]}
        recipes[run["step"]] = sorted(known, key=lambda key: (key != "training loss", key))
    trained = {run["row"] for run in runs}
    labels = [row.label for row in plan.experiments.table(name).rows if row.label in trained]
    dashes = zip(("-", "--", ":", "-."), MARKERS, strict=True)
    looks = itertools.cycle(itertools.product(dashes, COLOURS))
    styles = dict(zip(labels, looks, strict=False))

    down, across = max(1, len(recipes)), max(map(len, recipes.values()), default=1)
    beside = max(across, 2)  # columns of the legend
    size = (3.4 * beside, 1.9 * down + 0.18 * -(-len(labels) // beside) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()  # until something is drawn there
    for place, (recipe, quantities) in enumerate(recipes.items()):
        for axes, quantity in zip(panels[place], quantities, strict=False):
            axes.set_axis_on()
            for run in runs:
                if run["step"] != recipe or quantity not in run["curves"]:
                    continue
                points = run["curves"][quantity]
                (line, marker), colour = styles[run["row"]]
                options = {"color": colour, "lw": 1, "markersize": 3}
                options["marker"] = (
                    marker if len(points) < 3 else None
                )  # a line needs several points
                axes.plot(*zip(*points, strict=True), line, **options)
                axes.set_xlabel(run["unit"], fontsize=7)
            axes.set_xlim(left=0)
            axes.set_title(f"{recipe}: {quantity}", fontsize=8)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    if not runs:
        panels[0, 0].text(0.5, 0.5, "nothing was trained here", ha="center", fontsize=7)
    handles = [
        panels[0, 0].plot([], [], line, color=colour, lw=1, label=label)[0]
        for label, ((line, _), colour) in styles.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=beside, fontsize=7)
    title = plan.figure_title(f"training_{name}")
    figure.suptitle(f"{title} ({settings.scale} scale)", fontsize=9)
    return figure


def _family(model: str) -> str:
    """The model's name up to its size; points of one family share colour and marker."""
    return re.split(r"_(?:tiny|small|base|large|huge)", model)[0]


def _panel(axes, samples: list[list[float]], colour: str, decimals: int) -> None:
    """Bars at the means of the samples, whiskers of one standard deviation, values as points.

    The axis does not start at zero, so that small differences are visible; numbers are printed.
    """
    from statistics import mean, stdev

    if not any(samples):
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center")
        return
    lows, highs = [], []
    for place, values in enumerate(samples):
        if not values:
            axes.text(place, 0.02, "n/a", transform=axes.get_xaxis_transform(), ha="center")
            continue
        middle = mean(values)
        spread = stdev(values) if len(values) > 1 else 0.0
        axes.bar(place, middle, color=colour, width=0.65)
        if len(values) > 1:
            axes.errorbar(place, middle, spread, color="black", capsize=3, elinewidth=1)
            axes.plot([place] * len(values), values, "o", color="black", markersize=2.5, alpha=0.5)
        lows.append(min(*values, middle - spread))
        highs.append(max(*values, middle + spread))
        axes.annotate(
            f"{middle:.{decimals}f}", (place, highs[-1]), (0, 4), ha="center",
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    room = max(max(highs) - min(lows), 1.0)
    axes.set_ylim(min(lows) - 0.3 * room, max(highs) + 0.15 * room)
