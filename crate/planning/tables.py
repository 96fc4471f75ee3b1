"""The schema of scales and tables: rows, columns, figures and the papers' numbers."""

from typing import Any, Literal

import pydantic

from crate.schema import Strict


class Scale(Strict):
    """What a scale changes about models, steps and data; paper scale changes nothing."""

    title: str  # printed in captions
    datasets: dict[str, str] = {}  # real set → the embedded set that stands in for it
    models: dict[str, dict[str, Any]] = {}  # name pattern → overrides, later ones win
    defaults: dict[str, Any] = {}  # overrides of every step
    steps: dict[str, dict[str, Any]] = {}  # overrides of one step (and of those that extend it)


class PaperValue(Strict):
    """A number as printed, with where it was read and how surely (marks A to C of the sources)."""

    value: float
    source: str
    mark: Literal["A", "B", "C"]
    unexplained: str | None = None  # why our own number cannot agree


class Row(Strict):
    label: str
    model: str
    control: bool = False  # a reference point, not a competitor: no bold, no ranking
    metric: str | None = None  # shown in place of the columns' metrics
    chain: str | None = None  # in place of the columns'
    steps: dict[str, str | None] = {}  # column → chain of this cell; null: an empty cell
    paper: dict[str, PaperValue] = {}  # column → the paper's number

    def chain_of(self, key: str, column: "Column") -> str | None:
        """The chain of this row's cell in a column; None: an empty cell."""
        return self.steps.get(key, self.chain or column.chain)


class Column(Strict):
    label: str
    metric: str
    chain: str
    direction: Literal["up", "down"] | None = "up"  # null: a fact, nothing to win
    unit: str = ""
    factor: pydantic.PositiveFloat = 1.0  # printed value = metric × factor
    decimals: pydantic.NonNegativeInt | None = 1  # null: three digits and an SI prefix
    tolerance: pydantic.NonNegativeFloat | None = None  # |ours − paper| that counts as reproduced


class Figure(Strict):
    """What is drawn of a table.

    bars       a column, the paper's beside ours
    scaling    one column against another, and losses
    layers     compression, sparsity and objective by layer, a column of panels a model
    tokens     tokens of a few pictures as colours, and their norms and non-zeros by layer
    masks      the masks found in a few pictures, models side by side
    attention  attention maps of a few pictures by model and head
    curves     a column's metric while its runs train, against what they have seen
    stages     training losses of a column's runs, and a column beside an earlier one as bars
    reconstruction  a few pictures, whole, masked, and filled in by models; their attention maps
    """

    kind: Literal[
        "bars", "scaling", "masks", "attention", "curves", "stages", "reconstruction",
        "layers", "tokens",
    ]  # fmt: skip
    column: str  # the column that is drawn, or whose runs' pictures are
    title: str
    # the figure's name, where it is not called as its table
    name: str = pydantic.Field("", pattern=r"^[A-Za-z0-9_]*$")
    # scaling: the column along the horizontal axis; stages: the earlier one
    against: str | None = None
    losses: str | None = None  # scaling, stages: the column whose runs' training losses are drawn
    panels: dict[str, list[str]] = {}  # scaling: title of a panel of losses → its rows
    rows: list[str] = []  # reconstruction: the rows that are drawn; none named: all but controls

    @pydantic.model_validator(mode="after")
    def _complete(self) -> "Figure":
        if (self.kind in ("scaling", "stages")) != (self.against is not None):
            raise ValueError("'against' belongs to kinds 'scaling' and 'stages', which need it")
        stages = self.kind == "stages"
        if (bool(self.panels) or stages) != (self.losses is not None):
            raise ValueError("'losses' and 'panels' belong together; kind 'stages' needs losses")
        if stages and self.panels:
            raise ValueError("kind 'stages' has no 'panels'")
        if self.rows and self.kind != "reconstruction":
            raise ValueError("'rows' belongs to kind 'reconstruction'")
        return self

    @property
    def by_layer(self) -> bool:
        """Whether what runs tell of their layers is drawn."""
        return self.kind in ("layers", "tokens")

    @property
    def pictures(self) -> bool:
        return self.kind in ("masks", "attention", "reconstruction", "tokens")

    @property
    def drawn_losses(self) -> str | None:
        """The column whose runs' losses are drawn, if any are."""
        return self.column if self.kind == "curves" else self.losses


class Table(Strict):
    title: str
    source: str  # paper and table
    note: str = ""
    columns: dict[str, Column] = pydantic.Field(min_length=1)
    rows: list[Row] = pydantic.Field(min_length=1)
    figure: Figure | None = None
