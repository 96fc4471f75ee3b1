"""What the figures share: colours, markers and the wording of labels. Imports no matplotlib."""

from crate.planning.tables import Column

# Okabe & Ito's colours, distinguishable with every kind of colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
OURS, PAPER = COLOURS[:2]
MARKERS = ("o", "s", "^", "D")


def axis_label(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit else column.label


def short(label: str) -> str:
    return wrap(label.replace(", ", "\n"))


def wrap(label: str) -> str:
    return label.replace(" (", "\n(").replace("+ ", "+\n", 1)
