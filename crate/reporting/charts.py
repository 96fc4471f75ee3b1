"""Figures from what was collected in `metrics/<table>.*`, and the table's YAML.

Written as PDF, SVG and PNG, byte for byte the same for the same numbers. No torch.
"""

import itertools
import math
import os
import re
from pathlib import Path

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet
from crate.data.examples import overlay, read_examples
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Column, Table
from crate.records import atomic_path
from crate.reporting.collect import (
    examples_npz,
    read_layers,
    read_losses,
    read_metrics,
    read_training,
)
from crate.reporting.tables import cells_of

# Okabe & Ito's colours, told apart by all kinds of colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
OURS, PAPER = COLOURS[:2]
MARKERS = ("o", "s", "^", "D")


def write_figure(name: str, plan: Plan, settings: Settings) -> list[Path]:
    """Draw a figure of `plan.figures()` into `figures/<name>.{pdf,svg,png}`."""
    os.environ.setdefault("MPLCONFIGDIR", str(Path(settings.results) / ".matplotlib"))
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "crate", "font.size": 9, "pdf.fonttype": 42})
    table = plan.figures()[name]
    kinds = {
        "bars": _bars,
        "layers": _layers,
        "tokens": _tokens,
        "scaling": _scaling,
        "masks": _masks,
        "attention": _attention,
        "curves": _curves,
        "stages": _stages,
        "reconstruction": _reconstruction,
    }
    if plan.shows_training(name):
        figure = _training(table, plan, settings)
    else:
        figure = kinds[plan.experiments.table(table).figure.kind](table, plan, settings)
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
        plan.experiments.recipe(column.chain.split("/")[-1], "paper").dataset
    )

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    paper = [[row.paper[key].value] if key in row.paper else [] for row in rows]
    ours = [[v * column.factor for v in cells[row.label, key].values] for row in rows]

    _panel(left, paper, PAPER, column.decimals)
    left.set_title("paper", fontsize=9)
    left.set_ylabel(_axis_label(column))
    _panel(right, ours, OURS, column.decimals)
    seeds = max(map(len, ours))
    note = f"ours, {settings.scale} scale, {seeds} seed{'s' if seeds != 1 else ''}"
    if stand_in:
        note += f"\n{get_dataset(stand_in).title}: other data, another axis"
    right.set_title(note, fontsize=9)
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), [_wrap(row.label) for row in rows], fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(content.figure.title)
    return figure


def _scaling(name: str, plan: Plan, settings: Settings):
    """A column against another, the paper's points and ours; then panels of training losses."""
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
    values = values.reindex(columns=[drawn.against, drawn.column]).dropna()  # a pair a seed
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
        axes.set_xlabel(_axis_label(x))
        axes.set_ylabel(_axis_label(y))
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
    """Training losses, the mean over seeds: a line a row."""
    for colour, label in zip(COLOURS, labels, strict=False):
        curve = losses[losses["row"] == label].groupby("seen")["loss"].mean()
        dots = "." if len(curve) < 3 else None  # one point is no line
        axes.plot(curve.index, curve.values, color=colour, linewidth=1, label=label, marker=dots)


def _curves(name: str, plan: Plan, settings: Settings):
    """A metric while the runs of a column train: a line a row, a band of one deviation over seeds.

    Rows that train nothing are dotted lines across, unless far above: an untrained network is.
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
    axes.set_ylabel(_axis_label(column))
    if axes.lines and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{drawn.title} ({settings.scale} scale)", fontsize=9)
    return figure


def _stages(name: str, plan: Plan, settings: Settings):
    """Training losses, a line a row; then two columns side by side, the paper's bars and ours."""
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
        labels = [_wrap(row.label) for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=7, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_ylabel(
            f"{content.columns[drawn.column].metric} ({content.columns[drawn.column].unit})"
        )
        axes.set_title(title, fontsize=9)
    controls = [row for row in content.rows if row.control]
    for row, line in zip(controls, ("-", ":", "--"), strict=False):  # chance, an untrained network
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


def _masks(name: str, plan: Plan, settings: Settings):
    """Pictures down, rows of the table across: the masks found, laid over each picture."""
    content, found = plan.experiments.table(name), _examples(name, settings)
    labels = [row.label for row in content.rows if row.label in found]
    figure, panels = _grid(max(map(len, found.values()), default=1), max(1, len(labels)))
    for across, label in enumerate(labels):
        panels[0, across].set_title(_short(label), fontsize=6)
        for axes, example in zip(panels[:, across], found[label], strict=False):
            axes.imshow(overlay(example["image"], list(example["masks"])), interpolation="none")
    return _titled(figure, panels, content, settings)


def _attention(name: str, plan: Plan, settings: Settings):
    """A line a head and a block of columns a model: each head over several pictures."""
    content, found = plan.experiments.table(name), _examples(name, settings)
    rows = [row for row in content.rows if not row.control and row.label in found]
    columns = [(row.label, example) for row in rows for example in found[row.label]]
    heads = min(max((len(example["attention"]) for _, example in columns), default=0), HEADS)
    figure, panels = _grid(1 + heads, max(1, len(columns)))
    for across, (label, example) in enumerate(columns):
        panels[0, across].imshow(example["image"], interpolation="none")
        panels[0, across].set_title(_short(label), fontsize=6)
        for axes, weights in zip(panels[1:, across], example["attention"], strict=False):
            axes.imshow(weights.astype(float), cmap="viridis", interpolation="none")
    for head in range(1, 1 + heads):
        panels[head, 0].set_ylabel(f"head {head}", fontsize=6)
    return _titled(figure, panels, content, settings)


HEADS = 6  # that are shown of a model, at most


def _reconstruction(name: str, plan: Plan, settings: Settings):
    """Pictures down; across: whole, masked, filled in by each model, and its attention by head."""
    content, found = plan.experiments.table(name), _examples(name, settings)
    rows = content.figure.rows or [row.label for row in content.rows if not row.control]
    labels = [label for label in rows if label in found]
    columns: list[tuple[str, list]] = []  # title, and what is shown of each picture
    for label in labels[:1]:  # pictures and masks are those of all models
        columns.append(("original", [example["image"] for example in found[label]]))
        columns.append(("masked", [example["masked"] for example in found[label]]))
    for label in labels:
        columns.append((_short(label), [example["reconstruction"] for example in found[label]]))
    for label in labels:
        attention = [example["attention"].astype(float) for example in found[label]]
        columns.append(("", []))  # a gap
        for head in range(min(HEADS_BESIDE, *map(len, attention))):
            title = f"{_short(label)}\nhead {head + 1}"
            columns.append((title, [weights[head] for weights in attention]))
    down = max((len(shown) for _, shown in columns), default=1)
    figure, panels = _grid(down, [1.0 if shown else 0.1 for _, shown in columns] or 1)
    for across, (title, shown) in enumerate(columns):
        panels[0, across].set_title(title, fontsize=6)
        for axes, picture in zip(panels[:, across], shown, strict=False):
            axes.imshow(picture, cmap="viridis", interpolation="none")
    return _titled(figure, panels, content, settings)


HEADS_BESIDE = 4  # that are shown of each of several models side by side, at most


def _examples(name: str, settings: Settings) -> dict[str, list[dict]]:
    """Row → its pictures."""
    found: dict[str, list[dict]] = {}
    for example in read_examples(examples_npz(settings.results, settings.scale, name)):
        found.setdefault(example["row"], []).append(example)
    return found


def _short(label: str) -> str:
    return _wrap(label.replace(", ", "\n"))


def _grid(down: int, across: int | list[float]):
    """A figure of panels without axes: square, an inch each, or of these widths in inches."""
    from matplotlib.figure import Figure

    widths = [1.0] * across if isinstance(across, int) else across
    figure = Figure(figsize=(sum(widths) + 0.3, down + 0.8), layout="constrained")
    panels = figure.subplots(down, len(widths), squeeze=False, width_ratios=widths)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure, panels


def _titled(figure, panels, content: Table, settings: Settings):
    if not any(axes.images for axes in panels.flat):
        panels[0, 0].text(0.5, 0.5, "no pictures\nhere", ha="center", fontsize=7)
    figure.suptitle(f"{content.figure.title} ({settings.scale} scale)", fontsize=9)
    return figure


LAYER_PANELS = (  # what is drawn of a layer: terms of crate/models/objective.py
    ("compression", "$R^c(Z^{\\ell+1/2}\\,|\\,U_{[K]})$ (nats)", 1),
    ("official", "the official helper's $R^c$ (nats)", 1),
    ("sparsity", "non-zeros (%)", 100),
    ("objective", "$R - R^c - \\lambda\\|Z\\|_0$ (nats)", 1),
)


def _layers(name: str, plan: Plan, settings: Settings):
    """Terms of the objective down, models across: evaluated and training pictures, untrained.

    A line is the mean over seeds; the band is one deviation over the evaluated pictures. An
    untrained network is drawn with the trained one of its model.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    content, found = plan.experiments.table(name), read_layers(name, settings)
    trained = [row for row in content.rows if not row.control]
    untrained = {row.model: row.label for row in content.rows if row.control}
    figure = Figure(figsize=(2.9 * len(trained) + 0.4, 8.2), layout="constrained")
    panels = figure.subplots(len(LAYER_PANELS), len(trained), squeeze=False, sharex="col")
    for across, row in enumerate(trained):
        control, grey = untrained.get(row.model), {"color": "grey", "ls": ":"}
        lines = [  # label, row, split, term of the non-zeros, look
            ("evaluated", row.label, "evaluated", "sparsity", {"color": COLOURS[0]}),
            ("training", row.label, "train", "sparsity", {"color": COLOURS[1], "ls": "--"}),
            ("untrained", control, "evaluated", "sparsity", grey),
            ("codes, evaluated", row.label, "evaluated", "codes", {"color": COLOURS[2]}),
            ("codes, untrained", control, "evaluated", "codes", grey),
        ]
        for down, (term, label, factor) in enumerate(LAYER_PANELS):
            axes = panels[down, across]
            for told, wanted, split, zeros, look in lines:
                kind = zeros if term == "sparsity" else term
                runs = [each for each in found if each["row"] == wanted]
                # ISTA's codes are the tokens themselves: one line for both
                again = zeros == "codes" and (term != "sparsity" or _alike(runs, split))
                drawn = [each[split][kind] for each in runs if kind in each.get(split, {})]
                if again or not drawn:
                    continue
                mean, std = (
                    [factor * sum(each) / len(each) for each in zip(*values, strict=True)]
                    for values in ([d["mean"] for d in drawn], [d["std"] for d in drawn])
                )
                places = range(1, 1 + len(mean))
                marker = "s" if zeros == "codes" else "o"
                axes.plot(places, mean, marker=marker, markersize=3, lw=1, label=told, **look)
                if told == "evaluated":
                    low, high = zip(
                        *((m - s, m + s) for m, s in zip(mean, std, strict=True)), strict=True
                    )
                    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, lw=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
            if not axes.lines:
                axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center")
            if across == 0:
                axes.set_ylabel(label)
            if term == "sparsity":
                axes.set_ylim(-4, 104)
                if axes.lines:
                    axes.legend(fontsize=6, frameon=False)
        panels[0, across].set_title(_short(row.label), fontsize=9)
        panels[-1, across].set_xlabel("layer $\\ell$")
    figure.suptitle(f"{content.figure.title} ({settings.scale} scale)", fontsize=9)
    return figure


def _alike(runs: list[dict], split: str) -> bool:
    """Whether the sparse codes of runs are the tokens: as many non-zeros in every layer."""
    splits = [each.get(split, {}) for each in runs]
    return all("codes" not in each or each["codes"] == each["sparsity"] for each in splits)


def _tokens(name: str, plan: Plan, settings: Settings):
    """Pictures across; models down: their tokens as colours, norms and non-zeros by layer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    content, pictures = plan.experiments.table(name), _examples(name, settings)
    layers = {}
    for each in read_layers(name, settings):
        layers.setdefault(each["row"], each)  # of the first seed, as the pictures
    labels = [row.label for row in content.rows if row.label in layers]
    shown = max((len(pictures.get(label, [])) for label in labels), default=0)
    figure = Figure(figsize=(shown + 5.2, 1.25 * (1 + len(labels)) + 0.7), layout="constrained")
    widths = [1.0] * shown + [1.8, 1.8]
    panels = figure.subplots(1 + len(labels), len(widths), squeeze=False, width_ratios=widths)
    for axes in panels[:, :shown].flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes in panels[0, shown:]:
        axes.set_axis_off()
    for down, label in enumerate(labels, start=1):
        for across, example in enumerate(pictures.get(label, [])):
            if not panels[0, across].images:  # the same for all models
                panels[0, across].imshow(example["image"], interpolation="none")
            panels[down, across].imshow(example["colours"], interpolation="none")
        panels[down, 0].set_ylabel(_short(label), fontsize=7)
        for axes, kind, log in zip(
            panels[down, shown:], ("norm", "nonzero"), (True, False), strict=True
        ):
            told = layers[label]["histograms"][kind]
            depth = len(told["counts"])
            shares = [[count / max(1, max(layer)) for count in layer] for layer in told["counts"]]
            edges = [index + 0.5 for index in range(depth + 1)]
            axes.pcolormesh(told["edges"], edges, shares, cmap="Blues", vmin=0, vmax=1)
            if log:
                axes.set_xscale("log")
                ends = told["edges"][:: len(told["edges"]) // 2]  # and the geometric middle
                axes.set_xticks(ends, [f"{norm:.3g}" for norm in ends])
                axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel("layer", fontsize=7)
            axes.tick_params(labelsize=6, which="both")
    if labels:
        panels[1, shown].set_title("norm of a token", fontsize=7)
        panels[1, shown + 1].set_title("non-zeros of a token,\nor of its sparse code", fontsize=7)
    else:
        panels[0, 0].text(0, 0, "no runs here", fontsize=7)
    figure.suptitle(f"{content.figure.title} ({settings.scale} scale)", fontsize=9)
    return figure


def _training(name: str, plan: Plan, settings: Settings):
    """While the runs behind a table train: steps down; their loss, then what was measured, across.

    A row of the table is a colour and a dash, a run a line of its own.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = {row.label for row in plan.experiments.table(name).rows}
    runs = [run for run in read_training(name, settings) if run["row"] in rows]
    steps: dict[str, list[str]] = {}  # each with its quantities, the loss first
    for run in runs:
        known = {*steps.get(run["step"], []), *run["curves"]}
        steps[run["step"]] = sorted(known, key=lambda key: (key != "training loss", key))
    trained = {run["row"] for run in runs}
    labels = [row.label for row in plan.experiments.table(name).rows if row.label in trained]
    dashes = zip(("-", "--", ":", "-."), MARKERS, strict=True)
    looks = itertools.cycle(itertools.product(dashes, COLOURS))
    styles = dict(zip(labels, looks, strict=False))

    down, across = max(1, len(steps)), max(map(len, steps.values()), default=1)
    beside = max(across, 2)  # names in a line of the legend
    size = (3.4 * beside, 1.9 * down + 0.18 * -(-len(labels) // beside) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()  # until something is drawn there
    for place, (recipe, quantities) in enumerate(steps.items()):
        for axes, quantity in zip(panels[place], quantities, strict=False):
            axes.set_axis_on()
            for run in runs:
                if run["step"] != recipe or quantity not in run["curves"]:
                    continue
                points = run["curves"][quantity]
                (line, marker), colour = styles[run["row"]]
                look = {"color": colour, "lw": 1, "markersize": 3}
                look["marker"] = marker if len(points) < 3 else None  # one point is no line
                axes.plot(*zip(*points, strict=True), line, **look)
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


def _axis_label(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit else column.label


def _family(model: str) -> str:
    """The model's name up to its size: points of one family look alike."""
    return re.split(r"_(?:tiny|small|base|large|huge)", model)[0]


def _panel(axes, samples: list[list[float]], colour: str, decimals: int) -> None:
    """Bars at the means of the samples, whiskers of one standard deviation, the values as points.

    The axis begins above zero, or differences of a point could not be seen; numbers say so.
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


def _wrap(label: str) -> str:
    return label.replace(" (", "\n(").replace("+ ", "+\n", 1)
