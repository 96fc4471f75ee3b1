"""What the figures share: their size and type, the looks of models, and the wording of labels.

Figures are drawn at the size at which they are printed: every text has 8 pt there. matplotlib is
imported only to draw.
"""

import functools
import re
from typing import NamedTuple

from crate.planning.tables import Column, Row

COLUMN, TEXT = 3.3, 6.8  # inches: a column, and the text, of a page with two columns
CHART, PICTURE = 2.0, 0.9  # inches that a panel needs
LINE = 0.15  # inches, of a line of text

RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,  # an axis reads 79.2, not 0.2 + 79
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "crate",
    "pdf.fonttype": 42,  # text in a PDF is text of a font, not shapes
}

# Okabe & Ito's colours, distinguishable with every kind of colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

# A model's architecture gives colour and marker, the first pattern that its name has
ARCHITECTURES = (
    ("crate_alpha", "#0072B2", "o"),
    ("decoupled|mhsa", "#CC79A7", "v"),  # between CRATE and another architecture
    ("overcomplete|mlp", "#E69F00", "D"),
    ("crate", "#D55E00", "s"),
    ("vit|gpt2", "#009E73", "^"),
    ("", "#56B4E9", "P"),
)
# its size the shade: so much towards white, or, negative, towards black
SHADES = {"tiny": 0.4, "small": 0.25, "base": 0.0, "large": -0.35, "huge": -0.5}
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))


class Look(NamedTuple):
    """How a row is drawn; colour, marker and dash differ in grey too."""

    colour: str
    marker: str
    dash: str | tuple


def looks(rows: list[Row]) -> dict[str, Look]:
    """Row label → its look: colour and marker are those of the model in every figure.

    Rows of one architecture differ by their dashes.
    """
    found: dict[str, Look] = {}
    for row in rows:
        _, hue, marker = next(each for each in ARCHITECTURES if re.search(each[0], row.model))
        size = re.search(r"_(tiny|small|base|large|huge)", row.model)
        before = sum(look.marker == marker for look in found.values())
        colour = _shaded(hue, SHADES[size[1]] if size else 0.0)
        found[row.label] = Look(colour, marker, DASHES[before % len(DASHES)])
    return found


def _shaded(colour: str, shade: float) -> str:
    end = 255 if shade > 0 else 0
    parts = bytes.fromhex(colour[1:])
    return "#" + "".join(f"{round(part + abs(shade) * (end - part)):02X}" for part in parts)


def figure_width(panels: int, each: float) -> float:
    """A column's width if `panels` of `each` inches stand side by side in it, else the text's."""
    return COLUMN if panels * each <= COLUMN else TEXT


def new_figure(width: float, height: float, title: str):
    """A figure with a title; `height` is what the panels take."""
    from matplotlib.figure import Figure

    title = wrap(title, width - 0.1)
    height += LINE * (title.count("\n") + 1) + 0.1
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def legend_below(figure, handles: dict) -> None:
    """A legend of label → handle below the panels; the figure grows by it."""
    if not handles:
        return
    width = figure.get_figwidth() - 0.2
    labels = [wrap(label, width - 0.6) for label in handles]
    widest = max(text_width(line) for label in labels for line in label.split("\n"))
    beside = max(1, min(len(labels), int(width / (widest + 0.6))))
    down = [max(label.count("\n") + 1 for label in labels)] * -(-len(labels) // beside)
    figure.set_figheight(figure.get_figheight() + LINE * sum(down) + 0.1)
    figure.legend(
        list(handles.values()), labels, loc="outside lower center", ncols=beside,
        handlelength=3, columnspacing=1, labelspacing=0.3,
    )  # fmt: skip


def axis_label(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit else column.label


@functools.cache
def text_width(text: str) -> float:
    """Inches that one line takes in the figures' type."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=RC["font.size"])
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def wrap(text: str, inches: float) -> str:
    """`text` in lines of at most `inches`, for matplotlib, to which a bare dollar means a formula.

    Lines end at spaces, if possible outside of parentheses; a word that is longer than a line ends
    it after a hyphen, or anywhere.
    """
    lines = [""]
    words = re.findall(r"\([^()]*\)\S*|\S+", text)
    while words:
        word = words.pop(0)
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined) <= inches:
            lines[-1] = joined
        elif " " in word and text_width(word) > inches:
            words = word.split() + words
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:
            for part in re.findall(r"[^-_]*[-_]|[^-_]+", word):
                for piece in [part] if text_width(part) <= inches else part:
                    if lines[-1] and text_width(lines[-1] + piece) > inches:
                        lines.append("")
                    lines[-1] += piece
    return "\n".join(lines).replace("$", r"\$")
