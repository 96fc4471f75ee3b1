"""Reads `experiments/` and checks every key, type and name.

    config.yaml    defaults of all commands: scale, seeds, folders
    models.yaml    your own models: a model of `crate models`, and the settings that differ
    steps/*.yaml   recipes at paper scale, one file a stage
    scales/*.yaml  changes of a scale: sizes, epochs, stand-in data sets
    tables/*.yaml  rows, columns and the papers' numbers

This module imports no torch.
"""

import itertools
from pathlib import Path
from typing import Any

from crate.data.catalogue import DATASETS
from crate.environment import EXPERIMENTS
from crate.errors import UsageError, unknown
from crate.planning.settings import Settings
from crate.planning.tables import Scale, Table
from crate.recipes import Recipe
from crate.schema import keys_of, merge, parse, read_yaml
from crate.tasks import recipe_types


def _shared(delta: dict, content: dict) -> dict:
    """The part of `delta` whose keys are in `content`, also in nested dictionaries."""
    return {
        key: _shared(value, content[key])
        if isinstance(value, dict) and isinstance(content[key], dict)
        else value
        for key, value in delta.items()
        if key in content
    }


class Experiments:
    """All files of `experiments/`, read once; each method checks what it returns.

    Methods raise `UsageError`, in one line that names the file, for unknown names and wrong values.
    """

    def __init__(self, folder: Path = EXPERIMENTS):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}/ here; run this in the root of the suite")
        self.folder = folder
        self.models = read_yaml(folder / "models.yaml")
        self._recipes = self._read_all("steps")
        self._scales = self._read_all("scales")
        self._tables = self._read_all("tables")
        self._cache: dict[tuple, Any] = {}

    def _read_all(self, kind: str) -> dict[str, dict]:
        return {p.stem: read_yaml(p) for p in sorted((self.folder / kind).glob("*.yaml"))}

    @property
    def recipes(self) -> list[str]:
        return list(self._recipes)

    @property
    def scales(self) -> list[str]:
        return list(self._scales)

    @property
    def tables(self) -> list[str]:
        return list(self._tables)

    def settings(self, overrides: dict | None = None) -> Settings:
        """`config.yaml`, updated by `overrides` (of the command line)."""
        path = self.folder / "config.yaml"
        own = self._once(("settings",), lambda: read_yaml(path))
        settings = parse(Settings, own, path)
        if overrides:
            settings = parse(Settings, own | overrides, "--config")
        self.scale(settings.scale)
        return settings

    def scale(self, name: str) -> Scale:
        return self._once(("scale", name), lambda: self._scale(name))

    def _scale(self, name: str) -> Scale:
        if name not in self._scales:
            raise unknown("scale", name, self._scales)
        path = self.folder / "scales" / f"{name}.yaml"
        scale = parse(Scale, self._scales[name], path)
        for recipe in scale.steps:
            if recipe not in self._recipes:
                raise unknown("step", recipe, self._recipes, str(path))
        fields = set().union(*map(keys_of, recipe_types().values()))
        for key in scale.defaults:
            if key not in fields:
                raise unknown("key", key, fields, f"{path}: defaults")
        for dataset in (*scale.datasets, *scale.datasets.values()):
            if dataset not in DATASETS:
                raise unknown("data set", dataset, DATASETS, f"{path}: datasets")
        return scale

    def table(self, name: str) -> Table:
        return self._once(("table", name), lambda: self._table(name))

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise unknown("table", name, self._tables)
        path = self.folder / "tables" / f"{name}.yaml"
        table = parse(Table, self._tables[name], path)
        for row in table.rows:
            for column in (*row.paper, *row.steps):
                if column not in table.columns:
                    raise unknown("column", column, table.columns, f"{path}: row '{row.label}'")
        for kind, parts in (("rows", table.rows), ("columns", table.columns.values())):
            labels = [part.label for part in parts]
            for label in labels:
                if labels.count(label) > 1:
                    raise UsageError(f"{path}: two {kind} have the label '{label}'; rename one")
        if table.figure:
            figure, labels = table.figure, [row.label for row in table.rows]
            for column in filter(None, (figure.column, figure.against, figure.losses)):
                if column not in table.columns:
                    raise unknown("column", column, table.columns, f"{path}: figure")
            for key, named in (("panels", figure.panels.values()), ("rows", [figure.rows])):
                for label in itertools.chain(*named):
                    if label not in labels:
                        raise unknown("row", label, labels, f"{path}: figure: {key}")
        return table

    def recipe(self, name: str, scale: str, overrides: dict | None = None) -> Recipe:
        """The recipe `name` at `scale`, with the scale's stand-in for its data set.

        overrides: values that replace the recipe's, for tuning trials.
        """
        if overrides:
            return self._step(name, scale, overrides)
        return self._once(("recipe", name, scale), lambda: self._step(name, scale, {}))

    def _step(self, name: str, scale: str, overrides: dict) -> Recipe:
        content = merge(self._step_content(name, scale, ()), overrides)
        where = f"{self.folder / 'steps' / name}.yaml (scale {scale})"
        base = self._recipes[name].get("extends")
        if base is not None:
            self.recipe(base, scale)  # so that errors name the file that holds them
        task = content.get("task")
        if task is None:
            raise UsageError(f"{where}: the key 'task' is missing")
        if not isinstance(task, str) or task not in recipe_types():
            raise unknown("task", task, recipe_types(), where)
        recipe = parse(recipe_types()[task], content, where)
        if recipe.dataset not in DATASETS:
            raise unknown("data set", recipe.dataset, DATASETS, where)
        for before in recipe.follows:
            if before not in ("start", *self._recipes):
                raise unknown("step", before, ("start", *self._recipes), f"{where}: follows")
        if recipe.AS_PUBLISHED:
            return recipe
        stand_in = self.scale(scale).datasets.get(recipe.dataset, recipe.dataset)
        return recipe.model_copy(update={"dataset": stand_in})

    def _step_content(self, name: str, scale: str, seen: tuple[str, ...]) -> dict:
        """The content of a recipe at a scale, with that of the recipe it extends.

        Scale overrides of a recipe also apply to recipes that extend it, unless they set the key
        (as an untrained control sets `epochs: 0`). The scale's `defaults` apply to every recipe
        that has the key. Of recipes that use published models, they change only `compute`.

        seen: recipes that led here, to detect circles.
        """
        if name not in self._recipes:
            where = str(self.folder / "steps" / f"{seen[-1]}.yaml") if seen else ""
            raise unknown("step", name, self._recipes, where)
        path = self.folder / "steps" / f"{name}.yaml"
        if name in seen:
            circle = " → ".join((*seen, name))
            raise UsageError(f"{path}: extends: recipes extend each other in a circle: {circle}")
        content = dict(self._recipes[name])
        base = content.pop("extends", None)
        if not isinstance(base, str | None):
            raise UsageError(f"{path}: extends: {base!r} should be the name of a recipe")
        schema = recipe_types().get(str(self._task(name)), Recipe)
        known = {"compute"} if schema.AS_PUBLISHED else keys_of(schema)
        defaults = {k: v for k, v in self.scale(scale).defaults.items() if k in known}
        if base is None:
            content = merge(content, defaults)
        else:
            content = merge(content, _shared(defaults, content))
            content = merge(self._step_content(base, scale, (*seen, name)), content)
        return merge(content, self.scale(scale).steps.get(name, {}))

    def _task(self, name: str) -> Any:
        """The recipe's `task`, its own or that of the recipe it extends; None without one."""
        seen = set()
        while isinstance(name, str) and name in self._recipes and name not in seen:
            seen.add(name)
            if "task" in self._recipes[name]:
                return self._recipes[name]["task"]
            name = self._recipes[name].get("extends")
        return None

    def _once(self, key: tuple, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
