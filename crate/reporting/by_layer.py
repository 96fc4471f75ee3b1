"""Figures of what the layers of a network do: terms of the objective, and tokens as colours.

Each function takes a table's name and returns a matplotlib figure.
"""

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.reporting.collect import read_layers
from crate.reporting.pictures import examples_by_row
from crate.reporting.style import (
    CHART,
    COLUMN,
    TEXT,
    figure_width,
    legend_below,
    looks,
    new_figure,
    wrap,
)

LAYER_PANELS = (  # term of crate/models/objective.py, label of the axis, factor
    ("compression", "compression (nats)", 1),
    ("official", "helper's\ncompression (nats)", 1),  # as the official code computes it
    ("sparsity", "non-zeros (%)", 100),
    ("objective", "objective (nats)", 1),
)


def draw_layers(name: str, plan: Plan, settings: Settings):
    """Terms of the objective (down) of each model (across), by layer.

    Lines are means over seeds: on evaluated and training pictures, and of the untrained network of
    the same model. The band is one standard deviation over the evaluated pictures.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    content, layers = plan.table(name), read_layers(name, settings)
    trained = [row for row in content.rows if not row.control]
    untrained = {row.model: row.label for row in content.rows if row.control}
    across = max(1, min(len(trained), ACROSS))
    bands = max(1, -(-len(trained) // across))  # of models, one below another
    down = len(LAYER_PANELS) * bands
    width = figure_width(across, CHART)
    title = f"{content.figure.title} ({settings.scale} scale; bands: ± 1 s.d. over pictures)"
    figure = new_figure(width, 1.45 * down + 0.3 * bands, title)
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels[-len(LAYER_PANELS) :, len(trained) - across * (bands - 1) :].flat:
        axes.remove()
    hollow = {"marker": "s", "markerfacecolor": "white"}
    styles = {  # legend → style; colours are the model's where none is given
        "evaluated": {"marker": "o"},
        "training": {"color": "black", "ls": "--"},
        "untrained": {"color": "grey", "ls": ":", "marker": "o"},
        "codes, evaluated": {"ls": "-."} | hollow,
        "codes, untrained": {"color": "grey", "ls": ":"} | hollow,
    }
    colours = {label: look.colour for label, look in looks(trained).items()}
    seen = set()
    for place, row in enumerate(trained):
        control = untrained.get(row.model)
        lines = [  # legend, row, split, term of the non-zeros
            ("evaluated", row.label, "evaluated", "sparsity"),
            ("training", row.label, "train", "sparsity"),
            ("untrained", control, "evaluated", "sparsity"),
            ("codes, evaluated", row.label, "evaluated", "codes"),
            ("codes, untrained", control, "evaluated", "codes"),
        ]
        column = panels[place // across * len(LAYER_PANELS) :, place % across]
        for axes, (term, label, factor) in zip(column, LAYER_PANELS, strict=False):
            for legend, wanted, split, zeros in lines:
                kind = zeros if term == "sparsity" else term
                runs = [each for each in layers if each["row"] == wanted]
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
                style = {"color": colours[row.label]} | styles[legend]
                axes.plot(places, mean, label=legend, **style)
                seen.add(legend)
                if legend == "evaluated":
                    low, high = zip(
                        *((m - s, m + s) for m, s in zip(mean, std, strict=True)), strict=True
                    )
                    axes.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if not axes.lines:
                axes.text(0.5, 0.5, "not available", transform=axes.transAxes, ha="center")
            if place % across == 0:
                axes.set_ylabel(label)
            if term == "sparsity":
                axes.set_ylim(-4, 104)
            axes.tick_params(labelbottom=term == LAYER_PANELS[-1][0])
        column[len(LAYER_PANELS) - 1].set_xlabel("layer")
        column[0].set_title(wrap(row.label, width / across - 0.4))
    handles = {
        legend: Line2D([], [], **{"color": "black"} | style)
        for legend, style in styles.items()
        if legend in seen
    }
    legend_below(figure, handles)
    return figure


ACROSS = 4  # models side by side in `draw_layers`


def _alike(runs: list[dict], split: str) -> bool:
    """Whether the sparse codes have as many non-zeros as the tokens in every layer: as of ISTA."""
    splits = [each.get(split, {}) for each in runs]
    return all("codes" not in each or each["codes"] == each["sparsity"] for each in splits)


def draw_tokens(name: str, plan: Plan, settings: Settings):
    """Models down; across: keys as colours, picture by picture; norms and non-zeros by layer."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    content, pictures = plan.table(name), examples_by_row(name, settings)
    layers = {}
    for each in read_layers(name, settings):
        layers.setdefault(each["row"], each)  # of the first seed, as the pictures
    labels = [row.label for row in content.rows if row.label in layers]
    shown = max((len(pictures.get(label, [])) for label in labels), default=0)
    title = f"{content.figure.title} ({settings.scale} scale; dark: many tokens)"
    if not labels:
        figure = new_figure(COLUMN, 1.0, title)
        figure.text(0.5, 0.5, "no runs here", ha="center", va="center")
        return figure
    figure = new_figure(TEXT, 1.3 * len(labels) + 1.0 * bool(shown), title)
    widths = [1.0] * shown + [1.5, 1.5]
    heights = [0.8] * bool(shown) + [1.0] * len(labels)
    panels = figure.subplots(
        len(heights), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights
    )
    for axes in panels[:, :shown].flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    if shown:
        for axes in panels[0, shown:]:
            axes.remove()
    for label, line in zip(labels, panels[bool(shown) :], strict=True):
        for across, example in enumerate(pictures.get(label, [])):
            if not panels[0, across].images:  # the same for all models
                panels[0, across].imshow(example["image"], interpolation="none")
            line[across].imshow(example["colours"], interpolation="none")
        named = wrap(label, 0.9)
        if shown:
            line[0].set_ylabel(named)
        for axes, (kind, words, factor) in zip(line[shown:], HISTOGRAMS, strict=True):
            histogram = layers[label]["histograms"][kind]
            depth = len(histogram["counts"])
            shares = [
                [count / max(1, max(layer)) for count in layer] for layer in histogram["counts"]
            ]
            bins = [factor * edge for edge in histogram["edges"]]
            edges = [index + 0.5 for index in range(depth + 1)]
            axes.pcolormesh(bins, edges, shares, cmap="Blues", vmin=0, vmax=1)
            if kind == "norm":
                axes.set_xscale("log")
                ends = bins[:: len(bins) // 2]  # and the geometric middle
                axes.set_xticks(ends, [f"{norm:.3g}" for norm in ends])
                axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.set_ylabel("layer" if shown else f"{named}\nlayer")
            axes.set_xlabel(words)
    return figure


HISTOGRAMS = (  # of tokens: key, what it counts, factor
    ("norm", "norm of a token", 1),
    ("nonzero", "non-zeros of a token,\nor of its code (%)", 100),
)
