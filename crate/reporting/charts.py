"""Charts: figures drawn from numbers, one function a kind of figure.

Each takes a table's name and returns a matplotlib figure.
"""

from statistics import mean, stdev

from crate.data.catalogue import get_dataset
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Column
from crate.reporting.cells import cells_of, number
from crate.reporting.collect import read_losses, read_metrics
from crate.reporting.curves import METRICS, draw_losses
from crate.reporting.labels import name_points
from crate.reporting.style import (
    CHART,
    LINE,
    Look,
    axis_label,
    figure_width,
    legend_below,
    looks,
    new_figure,
    wrap,
)


def draw_bars(name: str, plan: Plan, settings: Settings):
    """For each row a mean with its spread, in two panels with axes of their own: paper, and ours.

    The axes do not begin at zero, so that small differences are visible: hence points, not bars.
    """
    content = plan.table(name)
    key = content.figure.column
    column = content.columns[key]
    cells = cells_of(content, read_metrics(name, settings))
    rows = [row for row in content.rows if not row.control]
    scale = plan.experiments.scale(settings.scale)
    stand_in = scale.datasets.get(
        plan.experiments.recipe(column.chain.split("/")[-1], "paper").dataset
    )
    printed = {row.label: row.paper[key].value for row in rows if key in row.paper}
    ours = {row.label: cells[row.label, key] for row in rows}
    seeds = max((cell.n for cell in ours.values()), default=0)
    note = f"ours, {settings.scale} scale, {seeds} seed{'s' if seeds != 1 else ''}"
    if seeds > 1:
        note += " (± 1 s.d.)"
    if stand_in:
        note += f"\n{get_dataset(stand_in).title}: other data, another axis"
    panels = [  # title; samples, and what is printed beside them, by row
        (
            note,
            {label: [v * column.factor for v in cell.values] for label, cell in ours.items()},
            {label: cell.text(column) for label, cell in ours.items() if cell.n},
        )
    ]
    if printed:
        texts = {label: number(v / column.factor, column) for label, v in printed.items()}
        panels.insert(0, ("paper", {label: [v] for label, v in printed.items()}, texts))

    width = figure_width(len(panels), CHART)
    labels = [wrap(row.label, 0.8 + width / 10) for row in rows]
    lines = sum(1.3 * (label.count("\n") + 1) for label in labels)
    figure = new_figure(width, 1.0 + LINE * max(lines, 6), content.figure.title)
    for axes, (title, samples, texts) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for place, (label, look) in enumerate(looks(rows).items()):
            if samples.get(label):
                _interval(axes, place, samples[label], look)
            spot = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.02, place, texts.get(label, "n/a"), **spot)
        axes.set_title("\n".join(wrap(line, width / 3 + 0.9) for line in title.split("\n")))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        _number_axis(axes, [v for values in samples.values() for v in values], column)
        axes.set_xlabel(wrap(axis_label(column), CHART))
        axes.label_outer()
    axes.set_yticks(range(len(rows)), labels)
    figure.axes[0].set_ylabel("model")
    return figure


def _interval(axes, place: float, values: list[float], look: Look) -> None:
    """A mean, whiskers of one standard deviation, and the values as small points."""
    if len(values) > 1:
        axes.errorbar(
            mean(values), place, xerr=stdev(values), color=look.colour, capsize=2, elinewidth=1
        )
        axes.plot(values, [place + 0.2] * len(values), ".", color="black", markersize=2.5)
    axes.plot(mean(values), place, look.marker, color=look.colour, markersize=5)


def _number_axis(axes, values: list[float], column: Column) -> None:
    """Few round ticks, and a range of at least a hundredth of the values: noise is not a cliff."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if not values:
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        return
    low, high = axes.dataLim.intervalx
    room = max(1.2 * (high - low), 0.01 * abs(high), 1e-9)
    axes.set_xlim((low + high - room) / 2, (low + high + room) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if column.decimals is None:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def draw_scaling(name: str, plan: Plan, settings: Settings):
    """One column against another, the paper's points and ours; then panels of training losses."""
    content = plan.table(name)
    drawn = content.figure
    metrics = read_metrics(name, settings)
    values = metrics.pivot_table(index=["row", "seed"], columns="column", values="value")
    rows = [row for row in content.rows if not row.control]
    x, y = content.columns[drawn.against], content.columns[drawn.column]
    styles = looks(rows)

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
        if label in styles:
            ours.setdefault(label, []).append((a * x.factor, b * y.factor))
    scatters = [("paper", paper)] if paper else []
    scatters.append((f"ours, {settings.scale} scale", ours))
    count = len(scatters) + len(drawn.panels)
    width = figure_width(count, CHART)
    across = min(count, 2)
    down = -(-count // across)
    spread = metrics["seed"].nunique() > 1
    title = f"{drawn.title} (whiskers: ± 1 s.d. over seeds)" if spread else drawn.title
    figure = new_figure(width, 2.2 * down, title)
    grid = figure.add_gridspec(down, across)
    panels = [figure.add_subplot(grid[0, : 1 + count % across])]  # an odd one takes a line
    for place in range(across * down - count + 1, across * down):
        panels.append(figure.add_subplot(grid[place // across, place % across]))
    named = {}
    for axes, (title, points) in zip(panels, scatters, strict=False):
        named[axes] = _scatter(axes, points, styles)
        axes.set_title(title)
        axes.set_xlabel(axis_label(x))
        axes.set_ylabel(wrap(axis_label(y), 1.5))
    losses = read_losses(name, settings) if drawn.panels else None
    handles = {}
    for axes, (title, labels) in zip(panels[len(scatters) :], drawn.panels.items(), strict=True):
        handles |= draw_losses(axes, losses, {label: styles[label] for label in labels})
        axes.set_title(f"training loss {title}")
        axes.set_xlabel("training images")
        axes.set_ylabel("cross-entropy (nats)")
    name_points(figure, named, handles)
    return figure


def _scatter(axes, points: dict[str, list], styles: dict[str, Look]) -> dict[str, tuple]:
    """Means over seeds with whiskers of one standard deviation; returns label → mean."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    means = {}
    for label, pairs in points.items():
        across, up = zip(*pairs, strict=True)
        means[label] = (mean(across), mean(up))
        spread = stdev(up) if len(up) > 1 else 0.0
        look = styles[label]
        axes.errorbar(
            *means[label], spread, fmt=look.marker, color=look.colour, capsize=2, elinewidth=0.8
        )
    if not means:
        axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        return means
    places = [place for place, _ in means.values()]
    span = max(places) / min(places) if min(places) > 0 else 0
    if span > 4:  # else a logarithmic axis might have no round tick
        axes.set_xscale("log")
        subs = (1, 2, 5) if span < 30 else (1, 3) if span < 1000 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.15, y=0.15)
    return means


def draw_stages(name: str, plan: Plan, settings: Settings):
    """Training losses of each row; then bars of two columns, the paper's and ours."""
    from matplotlib.patches import Patch

    content = plan.table(name)
    drawn, losses = content.figure, read_losses(name, settings)
    keys = (drawn.against, drawn.column)
    cells = cells_of(content, read_metrics(name, settings))
    rows = [row for row in content.rows if not row.control]
    styles = looks(rows)
    unit = get_dataset(
        plan.experiments.recipe(content.columns[drawn.losses].chain.split("/")[-1], "paper").dataset
    ).unit
    labels = [wrap(row.label, 1.2) for row in rows]
    lines = sum(max(2.2, 1.2 * (label.count("\n") + 1)) for label in labels)
    title = f"{drawn.title} ({settings.scale} scale)"
    figure = new_figure(figure_width(3, CHART), 0.9 + LINE * max(lines, 8), title)
    left, *bars = figure.subplots(1, 3)
    bars[1].sharey(bars[0])
    handles = draw_losses(left, losses, styles)
    left.set_xlabel(f"training {unit}")
    left.set_ylabel("training loss (nats)")
    left.set_title(f"ours, {settings.scale} scale,\nfirst stage")

    column = content.columns[drawn.column]
    for axes, title in zip(bars, ("paper", f"ours, {settings.scale} scale"), strict=True):
        for place, row in enumerate(rows):
            drawn_here = False
            for shift, key in zip((-0.2, 0.2), keys, strict=True):
                if axes is bars[0]:
                    values = [row.paper[key].value] if key in row.paper else []
                else:
                    factor = content.columns[key].factor
                    values = [factor * value for value in cells[row.label, key].values]
                drawn_here |= bool(values)
                if values:
                    _bar(axes, place + shift, values, styles[row.label], key == keys[0])
            if not drawn_here:
                axes.text(0.02, place, "n/a", transform=axes.get_yaxis_transform(), va="center")
        axes.set_title(title)
        axes.set_xlabel(f"{METRICS.get(column.metric, column.metric)} ({column.unit})")
        axes.set_xlim(left=0)
    bars[0].set_yticks(range(len(rows)), labels)
    bars[0].set_ylim(len(rows) - 0.5, -0.5)
    bars[0].set_ylabel("model")
    bars[1].tick_params(labelleft=False)
    for key, hatch in zip(keys, (HATCH, None), strict=True):
        face = "white" if hatch else "0.4"
        handles[content.columns[key].label] = Patch(facecolor=face, edgecolor="0.4", hatch=hatch)
    controls = [row for row in content.rows if row.control]
    for row, line in zip(controls, ("--", ":", "-."), strict=False):  # chance, an untrained network
        reached = cells[row.label, drawn.column].values
        if reached:
            value = column.factor * mean(reached)
            handles[row.label] = bars[1].axvline(value, color="black", linestyle=line)
    legend_below(figure, handles)
    return figure


HATCH = "//////"  # of the earlier of two stages


def _bar(axes, place: float, values: list[float], look: Look, earlier: bool) -> None:
    """A bar from zero to the mean, its seeds as points."""
    face = "white" if earlier else look.colour
    hatch = HATCH if earlier else None
    axes.barh(place, mean(values), 0.36, facecolor=face, edgecolor=look.colour, hatch=hatch)
    if len(values) > 1:
        axes.plot(values, [place] * len(values), ".", color="black", markersize=2.5)
