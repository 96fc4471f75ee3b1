"""Figures made of pictures: the examples that runs kept, side by side.

Each function takes a table's name and returns a matplotlib figure.
"""

from collections.abc import Iterable
from typing import NamedTuple

from crate.data.examples import read_examples
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.reporting.collect import examples_npz
from crate.reporting.overlay import overlay
from crate.reporting.style import COLUMN, LINE, PICTURE, figure_width, new_figure, wrap

HEADS = 6  # shown of each model in `draw_attention`, at most
HEADS_BESIDE = 4  # shown of each model in `draw_reconstruction`, at most
MASKS, MAPS = 6, 12  # pictures on a line of `draw_masks`, and of the two others, at most
GAP = 0.06  # inches between pictures


class Group(NamedTuple):
    """Columns of pictures that stand together, under a title of their own."""

    title: str
    columns: list[tuple[str, list]]  # title and pictures, downwards; None: no picture


def draw_masks(name: str, plan: Plan, settings: Settings):
    """Pictures down, rows of the table across: the predicted masks drawn over each picture."""
    content, examples = plan.table(name), examples_by_row(name, settings)
    groups = []
    for row in content.rows:
        if shown := examples.get(row.label):
            pictures = [overlay(example["image"], list(example["masks"])) for example in shown]
            groups.append(Group("", [(row.label, pictures)]))
    return _draw(groups, MASKS, f"{content.figure.title} ({settings.scale} scale)")


def draw_attention(name: str, plan: Plan, settings: Settings):
    """Attention heads down; across, the pictures of each model."""
    content, examples = plan.table(name), examples_by_row(name, settings)
    rows = [row for row in content.rows if not row.control and row.label in examples]
    groups, heads = [], 0
    for row in rows:
        columns = []
        for example in examples[row.label]:
            maps = [weights.astype(float) for weights in example["attention"][:HEADS]]
            columns.append(("", [example["image"], *maps]))
            heads = max(heads, len(maps))
        groups.append(Group(row.label, columns))
    sides = ["", *(f"head {head + 1}" for head in range(heads))]
    title = f"{content.figure.title} ({settings.scale} scale; bright: much attention)"
    return _draw(groups, MAPS, title, sides)


def draw_reconstruction(name: str, plan: Plan, settings: Settings):
    """Pictures down; across: original, masked, reconstructed by each model, and its attention."""
    content, examples = plan.table(name), examples_by_row(name, settings)
    rows = content.figure.rows or [row.label for row in content.rows if not row.control]
    labels = [label for label in rows if label in examples]
    columns: list[tuple[str, list]] = []
    for label in labels[:1]:  # the same for all models
        columns.append(("original", [example["image"] for example in examples[label]]))
        columns.append(("masked", [example["masked"] for example in examples[label]]))
    for label in labels:
        columns.append((label, [example["reconstruction"] for example in examples[label]]))
    groups = [Group("", columns[start : start + MAPS]) for start in range(0, len(columns), MAPS)]
    for label in labels:
        attention = [example["attention"].astype(float) for example in examples[label]]
        heads = range(min(HEADS_BESIDE, *map(len, attention)))
        maps = [(f"head {head + 1}", [each[head] for each in attention]) for head in heads]
        groups.append(Group(f"{label}, attention", maps))
    return _draw(groups, MAPS, f"{content.figure.title} ({settings.scale} scale)")


def examples_by_row(name: str, settings: Settings) -> dict[str, list[dict]]:
    """Row label → its examples, as `crate.data.examples` describes them."""
    rows: dict[str, list[dict]] = {}
    for example in read_examples(examples_npz(settings.results, settings.scale, name)):
        rows.setdefault(example["row"], []).append(example)
    return rows


def _draw(groups: list[Group], most: int, title: str, sides: list[str] = ()):
    """The groups in bands of at most `most` columns; `sides` are the names of the lines."""
    if not groups:
        figure = new_figure(COLUMN, 1.0, title)
        figure.text(0.5, 0.5, "no pictures here", ha="center", va="center")
        return figure
    bands = _bands(groups, most)
    columns = max(sum(len(group.columns) for group in band) for band in bands)
    width = figure_width(columns, PICTURE)
    left = 0.55 if any(sides) else GAP
    gaps = columns + 2 * (max(map(len, bands)) - 1)
    side = min((width - left - gaps * GAP) / columns, 1.3)
    tall = side * max(_tallness(groups), 0.5)
    figure = new_figure(width, 0, title)
    figure.set_layout_engine("none")  # every picture has its place, in inches from the upper left
    top = figure.get_figheight()
    shown: list[tuple] = []  # x, y, picture
    words: list[tuple] = []  # x, y, text, alignments
    for band in bands:
        heads = [wrap(group.title, len(group.columns) * (side + GAP)) for group in band]
        names = [[wrap(name, side) for name, _ in group.columns] for group in band]
        below = _high(name for of_group in names for name in of_group)
        top += _high(heads) + below
        x = left
        for group, head, of_group in zip(band, heads, names, strict=True):
            words.append((x, top - below - 0.03, head, "left", "bottom"))
            for name, (_, pictures) in zip(of_group, group.columns, strict=True):
                words.append((x + side / 2, top - 0.03, name, "center", "bottom"))
                shown += [(x, top + i * (tall + GAP), each) for i, each in enumerate(pictures)]
                x += side + GAP
            x += 2 * GAP
        for line, text in enumerate(sides):
            y = top + line * (tall + GAP) + tall / 2
            words.append((left - 0.08, y, text, "right", "center"))
        down = max(len(pictures) for group in band for _, pictures in group.columns)
        top += down * (tall + GAP) + GAP
    figure.set_figheight(top)
    figure.texts[0].set_y(1 - 0.05 / top)  # the title
    for x, y, text, *alignments in words:
        if text:
            ha, va = alignments
            figure.text(x / width, 1 - y / top, text, ha=ha, va=va)
    for x, y, picture in shown:
        axes = figure.add_axes((x / width, 1 - (y + tall) / top, side / width, tall / top))
        axes.imshow(picture, cmap="viridis", interpolation="none")
        axes.set_axis_off()
    return figure


def _bands(groups: list[Group], most: int) -> list[list[Group]]:
    """The groups line by line, as many of them on each as fit, and lines about equally long."""
    total = sum(len(group.columns) for group in groups)
    even = -(-total // -(-total // most))
    bands: list[list[Group]] = [[]]
    for group in groups:
        used = sum(len(each.columns) for each in bands[-1])
        if (bands[-1] and used + len(group.columns) > most) or used >= even:
            bands.append([])
        bands[-1].append(group)
    return bands


def _tallness(groups: list[Group]) -> float:
    """Height to width of the tallest picture."""
    pictures = [each for group in groups for _, column in group.columns for each in column]
    return max(each.shape[0] / each.shape[1] for each in pictures)


def _high(texts: Iterable[str]) -> float:
    """Inches that the tallest of the texts takes; 0 if all are empty."""
    return LINE * max((text.count("\n") + 1 for text in texts if text), default=0)
