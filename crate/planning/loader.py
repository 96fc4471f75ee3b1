"""Reads `experiments/` and checks every key, type and name.

    config.yaml    defaults of all commands: scale, seeds, folders
    datasets.yaml  your own data sets
    models.yaml    your own models: a model of `crate models`, and the settings that differ
    steps/*.yaml   recipes at paper scale, one file a stage
    scales/*.yaml  changes of a scale: sizes, epochs, stand-in data sets
    tables/*.yaml  rows, columns and the papers' numbers

This module imports no torch.
"""

import functools
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crate import plugins
from crate.data import own
from crate.data.catalogue import DATASETS, dataset_names
from crate.environment import experiments_folder
from crate.errors import UsageError, unknown
from crate.models.spec import ModelSpec
from crate.models.zoo import list_models, resolve
from crate.planning.settings import Settings
from crate.planning.tables import Column, Row, Scale, Table
from crate.planning.variants import changes_of
from crate.recipes import Recipe
from crate.runs import step_of
from crate.schema import blame, keys_of, parse
from crate.sources import Mapping, merge, read_yaml
from crate.tasks import recipe_types

LARGEST_SETTING = 1_000_000  # of a model: a width, a depth, a step size


def _shared(delta: dict, content: dict) -> Mapping:
    """The part of `delta` whose keys are in `content`, also in nested dictionaries."""
    shared = Mapping()
    for key, value in delta.items():
        if key in content:
            both = isinstance(value, dict) and isinstance(content[key], dict)
            shared.take(key, _shared(value, content[key]) if both else value, delta)
    return shared


def _all_keys() -> set[str]:
    """The keys of recipes of all kinds."""
    return set().union(*map(keys_of, recipe_types().values()))


class Experiments:
    """All files of `experiments/`, read once; each method checks what it returns.

    Methods raise `UsageError` for unknown names and wrong values, in one line that names the file
    and line.
    """

    def __init__(self, folder: Path | None = None):
        """folder: None for the working folder's, or where it has none, the package's."""
        folder = folder or experiments_folder()
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}/ here; 'crate init' makes a project with one")
        self.folder = folder
        self.models = read_yaml(folder / "models.yaml")
        self._recipes = self._read_all("steps")
        self._scales = self._read_all("scales")
        self._tables = self._read_all("tables")
        self._cache: dict[tuple, Any] = {}
        self._declare_datasets(folder / "datasets.yaml")

    def _declare_datasets(self, path: Path) -> None:
        """Make the data sets of one's own known by name."""
        content = read_yaml(path) if path.is_file() else Mapping()
        for name in content:
            if name in DATASETS:
                told = f"{name}: the suite has a data set of this name; choose another"
                raise blame(content, [name], path, told)
        own.declare(content, path)

    def _read_all(self, kind: str) -> dict[str, Mapping]:
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

    def usual_settings(self) -> Settings:
        """`config.yaml` alone; no plugin becomes known."""
        path = self.folder / "config.yaml"
        content = self._once(("settings",), lambda: read_yaml(path))
        return parse(Settings, content, path)

    def settings(self, overrides: dict | None = None) -> Settings:
        """`config.yaml`, updated by `overrides` (of a site's file and the command line)."""
        settings = self.usual_settings()
        content = self._once(("settings",), lambda: read_yaml(self.folder / "config.yaml"))
        if overrides:
            content = merge(content, overrides)
            settings = parse(Settings, content, "--config")
        if settings.scale not in self._scales:
            told = unknown("scale", settings.scale, self._scales)
            raise blame(content, ["scale"], "--config", str(told))
        self.scale(settings.scale)
        try:
            plugins.load(settings.plugins)
            for name in own.ENTRIES:
                if name in DATASETS:
                    raise UsageError(f"the suite has a data set '{name}'; choose another name")
        except UsageError as error:
            raise blame(content, ["plugins"], "--config", f"plugins: {error}") from None
        return settings

    def scale(self, name: str) -> Scale:
        return self._once(("scale", name), lambda: self._scale(name))

    def _scale(self, name: str) -> Scale:
        if name not in self._scales:
            raise unknown("scale", name, self._scales)
        path = self.folder / "scales" / f"{name}.yaml"
        content = self._scales[name]
        scale = parse(Scale, content, path)

        def refuse(kind: str, word: str, valid: Iterable[str], *keys: str) -> UsageError:
            told = f"{keys[0]}: {unknown(kind, word, valid)}"
            return blame(content, keys, path, told)

        for recipe in scale.steps:
            if recipe not in self._recipes:
                raise refuse("step", recipe, self._recipes, "steps", recipe)
        fields = _all_keys()
        for key in scale.defaults:
            if key not in fields:
                raise refuse("key", key, fields, "defaults", key)
        for real, stand_in in scale.datasets.items():
            for dataset in (real, stand_in):
                if dataset not in dataset_names():
                    raise refuse("data set", dataset, dataset_names(), "datasets", real)
        return scale

    def table(self, name: str) -> Table:
        return self._once(("table", name), lambda: self._table(name))

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise unknown("table", name, self._tables)
        path = self.folder / "tables" / f"{name}.yaml"
        content = self._tables[name]
        table = parse(Table, content, path)
        for index, row in enumerate(table.rows):
            row._index = index

        def refuse(kind: str, word: str, valid: Iterable[str], *keys: str | int) -> UsageError:
            in_row = keys[0] == "rows"
            where = f"row '{table.rows[keys[1]].label}'" if in_row else f"figure: {keys[1]}"
            return blame(content, keys, path, f"{where}: {unknown(kind, word, valid)}")

        for index, row in enumerate(table.rows):
            for place, scale in enumerate(row.scales):
                if scale not in self._scales:
                    raise refuse("scale", scale, self._scales, "rows", index, "scales", place)
            for key in ("paper", "steps"):
                for column in getattr(row, key):
                    if column not in table.columns:
                        raise refuse("column", column, table.columns, "rows", index, key, column)
        columns = table.columns.values()
        for kind, labels, keys in (
            ("rows", [row.label for row in table.rows], range(len(table.rows))),
            ("columns", [column.label for column in columns], list(table.columns)),
        ):
            for place, label in enumerate(labels):
                if label in labels[:place]:
                    told = f"two {kind} have the label '{label}'; rename one"
                    raise blame(content, [kind, keys[place], "label"], path, told)
        if table.figure:
            figure, labels = table.figure, [row.label for row in table.rows]
            for key in ("column", "against", "losses"):
                column = getattr(figure, key)
                if column and column not in table.columns:
                    raise refuse("column", column, table.columns, "figure", key)
            for key, named in (("panels", figure.panels.values()), ("rows", [figure.rows])):
                for label in itertools.chain(*named):
                    if label not in labels:
                        raise refuse("row", label, labels, "figure", key)
        return table

    def chain_of(self, row: Row, key: str, column: Column) -> str | None:
        """The chain of a row's cell in the column `key`; None: an empty cell."""
        return row.chain_of(key, column, lambda step: self.recipe(step, "paper"))

    def blame_cell(
        self, name: str, row: Row, column: str, error: UsageError, part: str = "chain"
    ) -> UsageError:
        """What is wrong with a table's cell, with the line of its model, or of `part`."""
        if str(error).startswith(f"{self.folder}/"):
            return error  # the mistake is in the file that it names
        index = row._index
        if part == "chain" and f"'{row.model}'" in str(error):
            keys = ["rows", index, "model"]
        elif part == "chain" and column in row.steps:
            keys = ["rows", index, "steps", column]
        else:
            keys = ["rows", index, part] if getattr(row, part) else ["columns", column, part]
        path = self.folder / "tables" / f"{name}.yaml"
        return blame(self._tables[name], keys, path, f"row '{row.label}', {column}: {error}")

    def _blame_model(
        self, model: str, scale: str | None, pattern: str, key: str, error: str
    ) -> UsageError:
        """What is wrong with a model of models.yaml, or with a pattern of a scale."""
        if pattern:
            content, path = self._scales[scale], self.folder / "scales" / f"{scale}.yaml"
            told = f"models: '{pattern}'{':' if key else ''} {error}"
            return blame(content, ["models", pattern, key], path, told)
        path = self.folder / "models.yaml"
        return blame(self.models, [model, key], path, f"{model}: {error}")

    def spec(self, model: str, scale: str | None, changes: dict | None = None) -> ModelSpec:
        """The specification of a model of `crate models` or `models.yaml`, at a scale's size.

        scale: None for the published size. changes: further settings that replace the model's.

        Raises:
            UsageError: an unknown model or setting, or a wrong value; names the file.
        """
        own = self.models
        blame = functools.partial(self._blame_model, model, scale)
        overrides: dict = {}
        base = model
        if model in own:
            if not isinstance(own[model], dict) or "base" not in own[model]:
                raise blame("", "", "the key 'base' is missing")
            overrides = {key: value for key, value in own[model].items() if key != "base"}
            base = own[model]["base"]
        if base not in list_models():
            told = unknown("model", base, [*list_models(), *own])
            raise blame("", "base", str(told)) if model in own else told
        layers: list[tuple[str, dict]] = []  # a scale's patterns that match, then models.yaml
        patterns = {} if scale is None else self.scale(scale).models
        for pattern, delta in patterns.items():
            matching = list_models(pattern)
            if not matching:
                raise blame(pattern, "", "matches no model; 'crate models' lists them")
            if base in matching:
                layers.append((pattern, delta))
        layers += [("", overrides)] if overrides else []
        try:
            settings = {key: value for _, part in layers for key, value in part.items()}
            settings |= changes or {}
            for key, value in settings.items():
                if isinstance(value, int | float) and abs(value) > LARGEST_SETTING:
                    raise UsageError(f"{key} must be at most {LARGEST_SETTING:,}")
            return resolve(base, **settings)
        except UsageError as error:
            # the last that sets a key which the error names
            for pattern, part in reversed(layers):
                for key in part:
                    if re.search(rf"\b{re.escape(key)}\b", str(error)):
                        raise blame(pattern, key, str(error)) from None
            raise

    def recipe(self, name: str, scale: str, overrides: dict | None = None) -> Recipe:
        """The recipe `name` at `scale`, with the scale's stand-in for its data set.

        name: of a step, perhaps with values of its own: `imagenet1k@lr=0.008` (variants.py).

        overrides: values that replace the recipe's, for tuning trials.
        """
        if overrides:
            return self._step(name, scale, overrides)
        return self._once(("recipe", name, scale), lambda: self._step(name, scale, {}))

    def _step(self, name: str, scale: str, overrides: dict) -> Recipe:
        step = step_of(name)
        content = merge(self._step_content(step, scale, ()), changes_of(name))
        content = merge(content, overrides)
        where = f"{self.folder / 'steps' / step}.yaml (scale {scale})"
        base = self._recipes[step].get("extends")
        if base is not None:
            self.recipe(base, scale)  # so that errors name the file that holds them

        def refuse(kind: str, word: Any, valid: Iterable[str], key: str) -> UsageError:
            before = f"{key}: " if key == "follows" else ""
            return blame(content, [key], where, f"{before}{unknown(kind, word, valid)}")

        known = _all_keys()
        for key in content:
            if key not in known:
                raise refuse("key", key, {*known, "extends"}, key)
        task = content.get("task")
        if task is None:
            raise blame(content, ["task"], where, "the key 'task' is missing")
        if not isinstance(task, str) or task not in recipe_types():
            raise refuse("task", task, recipe_types(), "task")
        recipe = parse(recipe_types()[task], content, where)
        if recipe.dataset not in dataset_names():
            raise refuse("data set", recipe.dataset, dataset_names(), "dataset")
        for before in recipe.follows:
            if before not in ("start", *self._recipes):
                raise refuse("step", before, ("start", *self._recipes), "follows")
        if recipe.AS_PUBLISHED:
            return recipe
        stand_in = self.scale(scale).datasets.get(recipe.dataset, recipe.dataset)
        return recipe.model_copy(update={"dataset": stand_in})

    def _step_content(self, name: str, scale: str, seen: tuple[str, ...]) -> Mapping:
        """The content of a recipe at a scale, with that of the recipe it extends.

        Scale overrides of a recipe also apply to recipes that extend it, unless they set the key
        (as an untrained control sets `epochs: 0`). The scale's `defaults` apply to every recipe
        that has the key. Of recipes that use published models, they change only `compute`.

        seen: recipes that led here, to detect circles.
        """
        extending = self._recipes[seen[-1]] if seen else {}
        if name not in self._recipes:
            told = str(unknown("step", name, self._recipes))
            raise blame(extending, ["extends"], "", told) if seen else UsageError(told)
        if name in seen:
            circle = " → ".join((*seen, name))
            told = f"extends: recipes extend each other in a circle: {circle}"
            raise blame(extending, ["extends"], "", told)
        content = self._recipes[name].without("extends")
        base = self._recipes[name].get("extends")
        if not isinstance(base, str | None):
            told = f"extends: {base!r} should be the name of a recipe"
            raise blame(self._recipes[name], ["extends"], "", told)
        schema = recipe_types().get(str(self._task(name)), Recipe)
        known = {"compute": None} if schema.AS_PUBLISHED else keys_of(schema)
        self.scale(scale)  # checks what follows
        at_scale = self._scales[scale]
        defaults = _shared(at_scale.get("defaults", {}), known)
        if base is None:
            content = merge(content, defaults)
        else:
            content = merge(content, _shared(defaults, content))
            content = merge(self._step_content(base, scale, (*seen, name)), content)
        return merge(content, at_scale.get("steps", {}).get(name, {}))

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
