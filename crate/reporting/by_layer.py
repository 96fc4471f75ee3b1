"""Figures of what the layers of a network do: terms of the objective, and tokens as colours.

Each function takes a table's name and returns a matplotlib figure.
"""

from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.reporting.collect import read_layers
from crate.reporting.pictures import examples_by_row
from crate.reporting.style import COLOURS, short

LAYER_PANELS = (  # term of crate/models/objective.py, label of the axis, factor
    ("compression", "$R^c(Z^{\\ell+1/2}\\,|\\,U_{[K]})$ (nats)", 1),
    ("official", "the official helper's $R^c$ (nats)", 1),
    ("sparsity", "non-zeros (%)", 100),
    ("objective", "$R - R^c - \\lambda\\|Z\\|_0$ (nats)", 1),
)


def draw_layers(name: str, plan: Plan, settings: Settings):
    """Terms of the objective (down) of each model (across), by layer.

    Lines are means over seeds: on evaluated and training pictures, and of the untrained network of
    the same model. The band is one standard deviation over the evaluated pictures.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    content, layers = plan.experiments.table(name), read_layers(name, settings)
    trained = [row for row in content.rows if not row.control]
    untrained = {row.model: row.label for row in content.rows if row.control}
    figure = Figure(figsize=(2.9 * len(trained) + 0.4, 8.2), layout="constrained")
    panels = figure.subplots(len(LAYER_PANELS), len(trained), squeeze=False, sharex="col")
    for across, row in enumerate(trained):
        control, grey = untrained.get(row.model), {"color": "grey", "ls": ":"}
        lines = [  # legend, row, split, term of the non-zeros, style
            ("evaluated", row.label, "evaluated", "sparsity", {"color": COLOURS[0]}),
            ("training", row.label, "train", "sparsity", {"color": COLOURS[1], "ls": "--"}),
            ("untrained", control, "evaluated", "sparsity", grey),
            ("codes, evaluated", row.label, "evaluated", "codes", {"color": COLOURS[2]}),
            ("codes, untrained", control, "evaluated", "codes", grey),
        ]
        for down, (term, label, factor) in enumerate(LAYER_PANELS):
            axes = panels[down, across]
            for legend, wanted, split, zeros, style in lines:
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
                marker = "s" if zeros == "codes" else "o"
                axes.plot(places, mean, marker=marker, markersize=3, lw=1, label=legend, **style)
                if legend == "evaluated":
                    low, high = zip(
                        *((m - s, m + s) for m, s in zip(mean, std, strict=True)), strict=True
                    )
                    axes.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)
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
        panels[0, across].set_title(short(row.label), fontsize=9)
        panels[-1, across].set_xlabel("layer $\\ell$")
    figure.suptitle(f"{content.figure.title} ({settings.scale} scale)", fontsize=9)
    return figure


def _alike(runs: list[dict], split: str) -> bool:
    """Whether the sparse codes have as many non-zeros as the tokens in every layer: as of ISTA."""
    splits = [each.get(split, {}) for each in runs]
    return all("codes" not in each or each["codes"] == each["sparsity"] for each in splits)


def draw_tokens(name: str, plan: Plan, settings: Settings):
    """Models down; across: keys as colours, picture by picture; norms and non-zeros by layer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    content, pictures = plan.experiments.table(name), examples_by_row(name, settings)
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
        panels[down, 0].set_ylabel(short(label), fontsize=7)
        for axes, kind, log in zip(
            panels[down, shown:], ("norm", "nonzero"), (True, False), strict=True
        ):
            histogram = layers[label]["histograms"][kind]
            depth = len(histogram["counts"])
            shares = [
                [count / max(1, max(layer)) for count in layer] for layer in histogram["counts"]
            ]
            edges = [index + 0.5 for index in range(depth + 1)]
            axes.pcolormesh(histogram["edges"], edges, shares, cmap="Blues", vmin=0, vmax=1)
            if log:
                axes.set_xscale("log")
                ends = histogram["edges"][
                    :: len(histogram["edges"]) // 2
                ]  # and the geometric middle
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
