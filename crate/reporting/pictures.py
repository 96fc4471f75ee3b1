"""Figures made of pictures: the examples that runs kept, side by side.

Each function takes a table's name and returns a matplotlib figure.
"""

from crate.data.examples import read_examples
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.planning.tables import Table
from crate.reporting.collect import examples_npz
from crate.reporting.overlay import overlay
from crate.reporting.style import short

HEADS = 6  # shown of each model in `draw_attention`, at most
HEADS_BESIDE = 4  # shown of each model in `draw_reconstruction`, at most


def draw_masks(name: str, plan: Plan, settings: Settings):
    """Pictures down, rows of the table across: the predicted masks drawn over each picture."""
    content, examples = plan.experiments.table(name), examples_by_row(name, settings)
    labels = [row.label for row in content.rows if row.label in examples]
    figure, panels = _grid(max(map(len, examples.values()), default=1), max(1, len(labels)))
    for across, label in enumerate(labels):
        panels[0, across].set_title(short(label), fontsize=6)
        for axes, example in zip(panels[:, across], examples[label], strict=False):
            axes.imshow(overlay(example["image"], list(example["masks"])), interpolation="none")
    return _titled(figure, panels, content, settings)


def draw_attention(name: str, plan: Plan, settings: Settings):
    """Attention heads down; across, the pictures of each model."""
    content, examples = plan.experiments.table(name), examples_by_row(name, settings)
    rows = [row for row in content.rows if not row.control and row.label in examples]
    columns = [(row.label, example) for row in rows for example in examples[row.label]]
    heads = min(max((len(example["attention"]) for _, example in columns), default=0), HEADS)
    figure, panels = _grid(1 + heads, max(1, len(columns)))
    for across, (label, example) in enumerate(columns):
        panels[0, across].imshow(example["image"], interpolation="none")
        panels[0, across].set_title(short(label), fontsize=6)
        for axes, weights in zip(panels[1:, across], example["attention"], strict=False):
            axes.imshow(weights.astype(float), cmap="viridis", interpolation="none")
    for head in range(1, 1 + heads):
        panels[head, 0].set_ylabel(f"head {head}", fontsize=6)
    return _titled(figure, panels, content, settings)


def draw_reconstruction(name: str, plan: Plan, settings: Settings):
    """Pictures down; across: original, masked, reconstructed by each model, and its attention."""
    content, examples = plan.experiments.table(name), examples_by_row(name, settings)
    rows = content.figure.rows or [row.label for row in content.rows if not row.control]
    labels = [label for label in rows if label in examples]
    columns: list[tuple[str, list]] = []  # title, and one panel for each picture
    for label in labels[:1]:  # the same for all models
        columns.append(("original", [example["image"] for example in examples[label]]))
        columns.append(("masked", [example["masked"] for example in examples[label]]))
    for label in labels:
        columns.append((short(label), [example["reconstruction"] for example in examples[label]]))
    for label in labels:
        attention = [example["attention"].astype(float) for example in examples[label]]
        columns.append(("", []))  # a gap
        for head in range(min(HEADS_BESIDE, *map(len, attention))):
            title = f"{short(label)}\nhead {head + 1}"
            columns.append((title, [weights[head] for weights in attention]))
    down = max((len(shown) for _, shown in columns), default=1)
    figure, panels = _grid(down, [1.0 if shown else 0.1 for _, shown in columns] or 1)
    for across, (title, shown) in enumerate(columns):
        panels[0, across].set_title(title, fontsize=6)
        for axes, picture in zip(panels[:, across], shown, strict=False):
            axes.imshow(picture, cmap="viridis", interpolation="none")
    return _titled(figure, panels, content, settings)


def examples_by_row(name: str, settings: Settings) -> dict[str, list[dict]]:
    """Row label → its examples, as `crate.data.examples` describes them."""
    rows: dict[str, list[dict]] = {}
    for example in read_examples(examples_npz(settings.results, settings.scale, name)):
        rows.setdefault(example["row"], []).append(example)
    return rows


def _grid(down: int, across: int | list[float]):
    """A figure and its panels, which have no axes and are an inch high.

    `across` is the number of panels in a row, each an inch wide, or the list of their widths.
    """
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
