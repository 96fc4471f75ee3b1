"""The schema of scales and tables: rows, columns, figures and the papers' numbers."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic

from crate.recipes import Recipe
from crate.runs import step_of
from crate.schema import Strict


def _check_chain(chain: str) -> str:
    if not all(chain.split("/")):
        raise ValueError(f"'{chain}' should be steps joined by '/', such as imagenet21k/imagenet1k")
    return chain


Chain = Annotated[str, pydantic.AfterValidator(_check_chain)]


class Scale(Strict):
    """What a scale changes in models, recipes and data; paper scale changes nothing."""

    title: str  # printed in captions
    datasets: dict[str, str] = {}  # real data set → its embedded stand-in
    models: dict[str, dict[str, Any]] = {}  # name pattern → overrides; later patterns win
    defaults: dict[str, Any] = {}  # overrides of every recipe that has the key
    steps: dict[str, dict[str, Any]] = {}  # overrides of a recipe and of those that extend it


class PaperValue(Strict):
    """A paper's number as printed, its source, and how reliable that is (marks A to C)."""

    LARGEST = {"value": 1e30}  # operations of a training

    value: float
    source: str
    mark: Literal["A", "B", "C"]
    unexplained: str | None = None  # why our number cannot be expected to agree


class Row(Strict):
    label: str
    model: str
    control: bool = False  # a reference point, not a competitor: no bold, no ranking
    metric: str | None = None  # replaces the columns' metrics
    chain: Chain | None = None  # the row's own chain; a cell is of the column's step in it
    steps: dict[str, Chain | None] = {}  # column → chain of this cell; null: an empty cell
    paper: dict[str, PaperValue] = {}  # column → the paper's number
    scales: list[str] = []  # the row is shown at these scales only; empty: at all
    _index: int = pydantic.PrivateAttr(-1)  # of the row in its file; a sweep's rows keep it

    def chain_of(
        self, key: str, column: "Column", recipe_of: Callable[[str], Recipe]
    ) -> str | None:
        """The chain of this row's cell in the column `key`; None: an empty cell.

        Of a row with a chain of its own, it is that chain up to the step that measures what the
        column's last step measures: the step itself, else the last one of the same kind on the same
        data set. A control may be of another kind that has the metric.
        """
        if key in self.steps or self.chain is None:
            return self.steps.get(key, column.chain)
        own, wanted = self.chain.split("/"), column.chain.split("/")[-1]
        same = [place for place, stage in enumerate(own) if step_of(stage) == step_of(wanted)]
        if same:
            return "/".join(own[: same[0] + 1])
        measured, metric = recipe_of(wanted), self.metric or column.metric
        for last in range(len(own), 0, -1):
            if own[last - 1].startswith("from-"):
                continue
            step = recipe_of(own[last - 1])
            alike = step.task == measured.task or (self.control and metric in step.METRICS)
            if alike and step.dataset == measured.dataset:
                return "/".join(own[:last])
        return None


class Column(Strict):
    label: str
    metric: str
    chain: Chain
    direction: Literal["up", "down"] | None = "up"  # which is better; null: neither, no ranking
    unit: str = ""
    factor: pydantic.PositiveFloat = 1.0  # printed value = metric × factor
    decimals: Annotated[int, pydantic.Field(ge=0, le=12)] | None = (
        1  # null: three digits and an SI prefix
    )
    tolerance: pydantic.NonNegativeFloat | None = None  # reproduced if |ours − paper| is within it


class Figure(Strict):
    """The figure of a table.

    bars       a column, the paper's values beside ours
    scaling    one column against another, and training losses
    layers     compression, sparsity and objective by layer, one column of panels a model
    tokens     tokens of a few images as colours, and their norms and non-zeros by layer
    masks      predicted masks of a few images, models side by side
    attention  attention maps of a few images by model and head
    curves     a column's metric during training, against examples or tokens seen
    stages     training losses of a column's runs, and a column beside an earlier one as bars
    reconstruction  a few images, whole, masked and reconstructed by models; their attention maps
    """

    kind: Literal[
        "bars", "scaling", "masks", "attention", "curves", "stages", "reconstruction",
        "layers", "tokens",
    ]  # fmt: skip
    column: str  # the column whose values, or whose runs' images, are drawn
    title: str
    # the figure's name, if it differs from the table's
    name: str = pydantic.Field("", pattern=r"^[A-Za-z0-9_]*$")
    # scaling: the column along the horizontal axis; stages: the earlier one
    against: str | None = None
    losses: str | None = None  # scaling, stages: the column whose training losses are drawn
    panels: dict[str, list[str]] = {}  # scaling: title of a panel of losses → its rows
    rows: list[str] = []  # reconstruction: the rows that are drawn; empty: all but controls

    @pydantic.model_validator(mode="after")
    def _complete(self) -> "Figure":
        if (self.kind in ("scaling", "stages")) != (self.against is not None):
            raise ValueError("give 'against' for the kinds 'scaling' and 'stages', and only there")
        stages = self.kind == "stages"
        if (bool(self.panels) or stages) != (self.losses is not None):
            raise ValueError(
                "give 'losses' with 'panels' and for the kind 'stages', and only there"
            )
        if stages and self.panels:
            raise ValueError("the kind 'stages' takes no 'panels'")
        if self.rows and self.kind != "reconstruction":
            raise ValueError("give 'rows' only for the kind 'reconstruction'")
        return self

    @property
    def by_layer(self) -> bool:
        """Whether values by layer, from run.json, are drawn."""
        return self.kind in ("layers", "tokens")

    @property
    def pictures(self) -> bool:
        return self.kind in ("masks", "attention", "reconstruction", "tokens")

    @property
    def drawn_losses(self) -> str | None:
        """The column whose runs' training losses are drawn; None without losses."""
        return self.column if self.kind == "curves" else self.losses


class Table(Strict):
    title: str
    source: str = ""  # paper and table; none of a table of one's own
    note: str = ""
    columns: dict[str, Column] = pydantic.Field(min_length=1)
    rows: list[Row] = pydantic.Field(min_length=1)
    figure: Figure | None = None
