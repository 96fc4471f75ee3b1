"""The rows of a table that the settings show: all, those of official weights, those of a sweep.

    scales: [mini]        a row of a table that is shown at this scale only
    rows=released         the cells that official weights fill without any training
    set={step: {key: …}}  further rows, in which a step has other values

This module imports no torch.
"""

import functools
from typing import Any

from crate.checkpoints.manifest import manifest_entries
from crate.data.catalogue import get_dataset
from crate.errors import UsageError, unknown
from crate.planning.loader import Experiments
from crate.planning.settings import Settings
from crate.planning.tables import Row, Table
from crate.planning.variants import Changes, combinations, flat, stage_name, swept
from crate.recipes import Training
from crate.runs import recipe_of, step_of


class Rows:
    """The tables of `experiments/`, with the rows that the settings show.

    Raises:
        UsageError: `set` names an unknown step, or a key or value that its recipe does not take.
    """

    def __init__(self, experiments: Experiments, settings: Settings):
        self.experiments, self.settings = experiments, settings
        self._tables: dict[str, Table | None] = {}
        for step in settings.set:
            if step not in experiments.recipes:
                raise unknown("step", step, experiments.recipes, "set")
        self.sweep = self._changes(settings.set)

    @functools.cached_property
    def tables(self) -> list[str]:
        """The names of the tables that have a row. Raises `UsageError` if none has one."""
        names = [name for name in self.experiments.tables if self._shown(name)]
        if not names:
            raise UsageError(
                f"no table shows a row with {self._asked()}; official weights have the sizes of "
                "scale=paper"
            )
        return names

    def _asked(self) -> str:
        return f"rows={self.settings.rows} at scale {self.settings.scale}"

    def table(self, name: str) -> Table:
        """Raises `UsageError` for an unknown table, and for one of which no row is shown."""
        table = self._shown(name)
        if table is None:
            has = ", ".join(self.tables)
            raise UsageError(
                f"table {name} shows no row with {self._asked()}; tables that do: {has}"
            )
        return table

    def check_used(self, tables: list[str]) -> None:
        """Raise `UsageError` if `set` names a step that no row of these tables goes through."""
        used: set[str] = set()
        for name in tables if self.settings.set else ():
            content = self.experiments.table(name)
            used |= {
                step_of(stage)
                for row in content.rows
                for key in content.columns
                for stage in (self._chain(content, row, key) or "").split("/")
                if not row.control and stage
            }
        for step in self.settings.set if tables else ():
            if step not in used:
                through = ", ".join(sorted(used)) or "none that could have another value"
                raise UsageError(
                    f"set: no row of {', '.join(tables)} goes through '{step}'; they go through: "
                    f"{through}"
                )

    def _shown(self, name: str) -> Table | None:
        if name not in self._tables:
            self._tables[name] = self._make(self.experiments.table(name))
        return self._tables[name]

    def _make(self, table: Table) -> Table | None:
        scale = self.settings.scale
        table = _with_rows(table, [row for row in table.rows if scale in (row.scales or [scale])])
        if self.settings.rows == "released":
            table = self._released(table)
        if table is None or not table.rows:
            return None
        if not self.sweep:
            return table
        return swept(table, self.sweep, lambda row, key: self._chain(table, row, key)).model_copy(
            update={"note": " ".join([table.note, self._note()]).strip()}
        )

    def _released(self, table: Table) -> Table | None:
        """The cells that official weights fill: no training, no column or row without such."""
        chains = {
            (row.label, key): self._chain(table, row, key)
            for row in table.rows
            for key in table.columns
        }
        models = {row.label: row.model for row in table.rows}
        of_released = {
            (label, key): chain
            for (label, key), chain in chains.items()
            if chain and self._is_released(models[label], chain)
        }
        columns = {k: c for k, c in table.columns.items() if k in {key for _, key in of_released}}
        rows = [
            row.model_copy(
                update={
                    "chain": None,
                    "steps": {key: of_released.get((row.label, key)) for key in columns},
                    "paper": {key: value for key, value in row.paper.items() if key in columns},
                }
            )
            for row in table.rows
            if any((row.label, key) in of_released for key in columns)
        ]
        return table.model_copy(update={"columns": columns, "rows": rows, "figure": None})

    def _is_released(self, model: str, chain: str) -> bool:
        """Whether a chain only evaluates official weights that exist, of this scale's size."""
        first, *later = [self.experiments.recipe(recipe_of(s), "paper") for s in chain.split("/")]
        if first.task != "released" or any(isinstance(r, Training) and r.trains for r in later):
            return False
        spec, folder = self.experiments.spec, self.experiments.folder
        published = spec(model, self.settings.scale) == spec(model, None)
        classes = get_dataset(first.dataset).classes
        return published and bool(manifest_entries(model, classes, folder))

    def _chain(self, table: Table, row: Row, key: str) -> str | None:
        return self.experiments.chain_of(row, key, table.columns[key])

    def _changes(self, wanted: Changes) -> list[Changes]:
        """The combinations of a sweep, without values that are the recipe's own.

        So a value that is tried has one run, whichever sweep it stands in.
        """
        kept = []
        for combination in combinations(wanted, self._is_value):
            changes = {}
            for step, values in combination.items():
                self._recipe(step, values)
                usual = self.experiments.recipe(step, self.settings.scale)
                other = {k: v for k, v in values.items() if self._recipe(step, {k: v}) != usual}
                if other:
                    changes[step] = other
            if changes and changes not in kept:
                kept.append(changes)
        return kept

    def _recipe(self, step: str, values: dict[str, Any]):
        return self.experiments.recipe(stage_name(step, values), self.settings.scale)

    def _is_value(self, step: str, key: str, value: list) -> bool:
        """A list is a value of a key that takes lists; a list of lists is several of them."""
        recipe = self.experiments.recipe(step, self.settings.scale)
        field = type(recipe).model_fields.get(key)
        takes_list = field is not None and "list" in str(field.annotation)
        return takes_list and not all(isinstance(item, list) for item in value)

    def _note(self) -> str:
        """What the sweep's values replace, for the table's caption."""
        usual = []
        for step, values in self.settings.set.items():
            recipe = self.experiments.recipe(step, self.settings.scale)
            own = flat(recipe.model_dump(mode="json"))
            usual += [f"{step}: {key} {own.get(key)}" for key in flat(values)]
        return f"Rows with a value have it in place of the recipe's ({'; '.join(usual)})."


def _with_rows(table: Table, rows: list[Row]) -> Table:
    """The table with some of its rows; its figure names no others."""
    labels = {row.label for row in rows}
    figure = table.figure and table.figure.model_copy(
        update={
            "rows": [label for label in table.figure.rows if label in labels],
            "panels": {
                title: [label for label in panel if label in labels]
                for title, panel in table.figure.panels.items()
            },
        }
    )
    return table.model_copy(update={"rows": rows, "figure": figure})
