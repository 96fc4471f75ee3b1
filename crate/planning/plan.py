"""Lists the runs that a target needs, and resolves each to everything that decides its result.

This module imports no torch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from crate.checkpoints.manifest import find, locate
from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset, TextSet, data_identity, with_sizes
from crate.errors import RunError, UsageError, nearest, unknown
from crate.layers.operators import known_operators
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.planning.feasible import check_feasible
from crate.planning.identity import task_identity
from crate.planning.loader import Experiments
from crate.planning.rows import Rows
from crate.planning.settings import Settings
from crate.planning.tables import Table
from crate.published import published_or_packaged, read_record
from crate.recipes import Recipe, Training
from crate.records import canonical_json, read_json
from crate.runs import FROM, Run, parse_path, recipe_of, step_of
from crate.tasks.base import Resolved


class Plan:
    """The runs, tables and figures that `experiments/` defines.

    Raises:
        UsageError: a model of models.yaml is mistaken, whether or not anything uses it; of a model
            whose operator is not known, only if it is used: a plugin may bring it.
    """

    def __init__(self, experiments: Experiments, settings: Settings | None = None):
        self.experiments = experiments
        self.rows = Rows(experiments, settings) if settings else None
        for model, entry in experiments.models.items():
            if not isinstance(entry, dict) or known_operators(entry):
                self.experiments.spec(model, None)
        self._resolve = functools.cache(self._resolve_uncached)
        self._has_training = functools.cache(self._has_training_uncached)

    # --- one run -----------------------------------------------------------

    def resolve(self, run: Run, overrides: dict | None = None) -> Resolved:
        """Everything that decides the result of `run`, checked.

        overrides: values that replace the recipe's and, under the key `model`, the model's (tuning
        trials only).

        Raises:
            UsageError: an unknown model, recipe or scale, or a chain whose stages do not fit.
        """
        if not overrides:
            return self._resolve(run)
        return self._resolve_uncached(run, overrides)

    def _resolve_uncached(self, run: Run, overrides: dict | None = None) -> Resolved:
        for place, name in enumerate(run.chain):
            origin = FROM.fullmatch(name) and place == 0 and len(run.chain) > 1
            if name.startswith("from-") and not origin:
                raise UsageError(
                    f"{run}: '{name}' is not of the form from-<model>-<step>, which may only begin "
                    "a chain"
                )
        changes = dict(overrides or {})
        model = changes.pop("model", {})
        if not isinstance(model, dict):
            raise UsageError(f"model: {model!r} should be settings of the model, as model.dim=64")
        recipe = self.experiments.recipe(run.stage, run.scale, changes)
        spec = self.experiments.spec(run.model, None if recipe.AS_PUBLISHED else run.scale, model)
        dataset = get_dataset(recipe.dataset)
        if run.parent is not None:
            self.resolve(run.parent)
        self._check_chain(run, recipe)
        self._check_kinds(run, spec, recipe, dataset)
        config = {
            "model": _non_defaults(spec),
            "step": recipe.identity,
            "seed": run.seed,
            "data": data_identity(dataset),
        } | recipe.inputs(run.model, dataset, self.experiments.folder)
        code = task_identity(recipe, spec, dataset)
        return Resolved(run, spec, recipe, config, code)

    def _check_kinds(self, run: Run, spec: ModelSpec, recipe: Recipe, dataset: Dataset) -> None:
        """Raise `UsageError` unless the recipe accepts the model and the data set."""
        of_texts = isinstance(dataset, TextSet)
        fitting = [kind for kind in recipe.MODEL_KINDS if (kind == "language") == of_texts]
        if spec.kind not in fitting:
            kinds = " or ".join(MODEL_KINDS[kind] for kind in fitting)
            raise UsageError(
                f"{run}: '{run.stage}' needs {kinds}; {run.model} is {MODEL_KINDS[spec.kind]}"
            )
        if dataset.unit not in recipe.UNITS:
            raise UsageError(
                f"{run}: '{run.stage}' needs a data set of {' or '.join(recipe.UNITS)}; "
                f"{dataset.title} has {dataset.unit}"
            )
        try:
            recipe.check_model(spec)
            check_feasible(recipe, spec, dataset)
        except UsageError as error:
            raise UsageError(f"{run}: {error} (scale {run.scale})") from None

    def is_current(self, run: Run, results: str | Path) -> bool:
        """Whether run.json in the run's folder has the current configuration and code."""
        record = read_json(run.folder(results) / "run.json") or {}
        resolved = self.resolve(run)
        return (
            canonical_json(record.get("config")) == resolved.config_json
            and record.get("code") == resolved.code
        )

    def _check_chain(self, run: Run, recipe: Recipe) -> None:
        *before, name = run.chain
        previous = before[-1] if before else "start"
        if FROM.fullmatch(previous) and step_of(previous) == step_of(name):
            return  # a model continues the same stage from another model's weights
        if step_of(previous) not in recipe.follows:
            allowed = ", ".join(recipe.follows)
            after = "begin a chain" if previous == "start" else f"follow '{previous}'"
            raise UsageError(f"{run}: '{name}' cannot {after}; it follows: {allowed}")

    # --- tables -----------------------------------------------------------

    def table(self, name: str) -> Table:
        """A table with the rows that the settings show (rows.py); without settings, as written."""
        return self.rows.table(name) if self.rows else self.experiments.table(name)

    @property
    def tables(self) -> list[str]:
        """The tables that the settings show."""
        return self.rows.tables if self.rows else self.experiments.tables

    def cells(self, table: Table, scale: str, seeds: list[int]) -> Iterator[tuple]:
        """`(row, column key, run, metric)` of every value of a table, in printed order."""
        for row in table.rows:
            for key, column in table.columns.items():
                chain = self.experiments.chain_of(row, key, column)
                for seed in seeds if chain else ():
                    run = Run(scale, row.model, seed, tuple(chain.split("/")))
                    yield row, key, run, row.metric or column.metric

    def table_runs(self, name: str, settings: Settings) -> list[Run]:
        """The runs that a table needs, each once: not those unavailable or published (`frozen`).

        Raises:
            UsageError: a row or column names something unknown; the message names the table's file.
        """
        content = self.table(name)
        runs: dict[Run, None] = {}
        for row, key, run, metric in self.cells(content, settings.scale, settings.seeds):
            try:
                known = self.resolve(run).recipe.METRICS
            except UsageError as error:
                raise self.experiments.blame_cell(name, row, key, error) from None
            if metric not in known:
                told = unknown("metric", metric, known)
                raise self.experiments.blame_cell(name, row, key, told, "metric")
            if not self.why_unavailable(run, settings) and not self.published_folder(run, settings):
                runs[run] = None
        return list(runs)

    def starts_released(self, run: Run) -> bool:
        """Whether a run's chain begins with an official checkpoint (task "released")."""
        return self.resolve(run.lineage[0]).recipe.task == "released"

    def check_released(self, run: Run) -> None:
        """Raise `UsageError` if the scale changes a model whose released weights a run loads."""
        spec = functools.partial(self.experiments.spec, run.model)
        if self.starts_released(run) and spec(run.scale) != spec(None):
            raise UsageError(
                f"{run}: released weights do not fit, as scale {run.scale} changes the model; "
                "add --config scale=paper"
            )

    def why_unavailable(self, run: Run, settings: Settings) -> str:
        """Why a run from released weights cannot start here; "" if it can, or is finished."""
        if not self.starts_released(run) or self.finished(run, settings.results):
            return ""
        first = self.resolve(run.lineage[0])
        classes = get_dataset(first.recipe.dataset).classes
        try:
            self.check_released(run)
            locate(
                first.run.model, classes, self.experiments.folder, settings.data_root, hashed=False
            )
        except (UsageError, RunError) as error:
            return str(error)
        return ""

    def unavailable(self, target: str, settings: Settings) -> dict[str, str]:
        """Why official weights that a target shows are not evaluated: model → reason.

        Of models whose files are not here, only if the settings ask for them (`rows=released`).
        """
        reasons: dict[str, str] = {}
        for name in [] if "/" in target else self.target_tables(target):
            for _, _, run, _ in self.cells(self.table(name), settings.scale, settings.seeds[:1]):
                reason = self.why_unavailable(run, settings)
                if reason and (settings.rows == "released" or self._other_file(run, settings)):
                    reasons[run.model] = reason
        return reasons

    def _other_file(self, run: Run, settings: Settings) -> bool:
        """Whether the official file of a run is here, and is not as expected."""
        try:
            self.check_released(run)
            find(run.model, None, self.experiments.folder, settings.data_root)
        except UsageError:
            return False
        except RunError:
            return True
        return False

    def finished(self, run: Run, results: str | Path) -> bool:
        """Whether a run has metrics.json, and it and its ancestors are current."""
        whole = all(self.is_current(stage, results) for stage in run.lineage)
        return whole and (run.folder(results) / "metrics.json").is_file()

    def published_folder(self, run: Run, settings: Settings) -> Path | None:
        """The folder that names a run's published record, for `frozen: true`; None without one.

        A finished run of one's own comes before the published one.

        Raises:
            RunError: the file of published records is damaged.
        """
        if not settings.frozen or self.finished(run, settings.results):
            return None
        folder = run.folder(published_or_packaged(settings.results, run.scale))
        return folder if read_record(folder).get("status") == "complete" else None

    def recipes_by_task(self, scale: str) -> dict[str, list[str]]:
        """Task → the names of its recipes."""
        tasks: dict[str, list[str]] = {}
        for name in self.experiments.recipes:
            tasks.setdefault(self.experiments.recipe(name, scale).task, []).append(name)
        return tasks

    def figure_of(self, table: str) -> str | None:
        """The name of a table's figure; None without one."""
        figure = self.table(table).figure
        return (figure.name or table) if figure else None

    def has_training(self, table: str) -> bool:
        """Whether any run behind a table is trained, so that the table has a training figure."""
        return self._has_training(table)

    def _has_training_uncached(self, table: str) -> bool:
        cells = self.cells(self.table(table), "paper", [0])
        behind = {each.stage for run in {run for _, _, run, _ in cells} for each in run.lineage}
        steps = [self.experiments.recipe(name, "paper") for name in behind]
        return any(isinstance(recipe, Training) and recipe.trains for recipe in steps)

    def figures_of(self, table: str) -> list[str]:
        """The names of a table's figures: its own, and its training figure."""
        own = self.figure_of(table)
        return [own] * (own is not None) + [f"training_{table}"] * self.has_training(table)

    def figures(self) -> dict[str, str]:
        """Figure → the table that it belongs to."""
        table_of: dict[str, str] = {"training": ""}  # reserved: the target of all training figures
        for table in self.tables:
            for name in self.figures_of(table):
                if name in table_of:
                    path = self.experiments.folder / "tables" / f"{table}.yaml"
                    owner = table_of[name]
                    use = f"belongs to table {owner}" if owner else "stands for all of training"
                    raise UsageError(f"{path}: figure: the name '{name}' {use}; choose another")
                table_of[name] = table
        del table_of["training"]
        return table_of

    def shows_training(self, figure: str) -> bool:
        """Whether a figure of `figures` is the training figure of its table."""
        return figure != self.figure_of(self.figures()[figure])

    def figure_title(self, figure: str) -> str:
        """The title of a figure of `figures`."""
        content = self.table(self.figures()[figure])
        if self.shows_training(figure):
            return f"Training behind: {content.title}"
        return content.figure.title

    def targets(self) -> list[str]:
        """Every name that commands accept as a target; paths of runs are targets too."""
        tables = [f"table_{name}" for name in self.tables]
        figures = [f"figure_{name}" for name in self.figures()]
        return ["all", "report", *tables, *figures, "figure_training"]

    def target_figures(self, target: str) -> list[str]:
        """The names of the figures of a target."""
        kind, _, name = target.partition("_")
        if target in ("all", "report"):
            return list(self.figures())
        if target == "figure_training":
            return [figure for figure in self.figures() if self.shows_training(figure)]
        return [name] if kind == "figure" else []

    def check_target(self, target: str) -> None:
        """Raise `UsageError` with the nearest target for an unknown name."""
        if target not in self.targets():
            kind, _, name = target.partition("_")
            if kind == "table" and name in self.experiments.tables:
                self.table(name)  # says why the settings show nothing of it
            of_table = kind == "figure" and name in self.tables
            drawn = self.figure_of(name) if of_table else None
            hint = f"; did you mean 'figure_{drawn}'?" if drawn else None
            raise UsageError(f"unknown target '{target}'{hint or nearest(target, self.targets())}")

    def target_tables(self, target: str) -> list[str]:
        """The names of the tables of a target, also of a table's name without `table_`.

        Raises:
            UsageError: an unknown target.
        """
        tables = self._target_tables(target)
        if self.rows:
            self.rows.check_used(tables)
        return tables

    def full_target(self, target: str) -> str:
        """`table_ablation` for `ablation`; any other target as it is."""
        is_short = target in self.experiments.tables and target not in self.targets()
        return f"table_{target}" if is_short else target

    def _target_tables(self, target: str) -> list[str]:
        target = self.full_target(target)
        if target in ("all", "report"):
            return self.tables
        self.check_target(target)
        kind, name = target.split("_", 1)
        if kind == "table":
            return [name]
        return list(dict.fromkeys(map(self.figures().get, self.target_figures(target))))

    def runs(self, target: str, settings: Settings) -> list[Run]:
        """Every run that a target (a name or the path of a run) needs, ancestors first, once."""
        if "/" in target:
            wanted = [parse_path(target)[0]]
            self.resolve(wanted[0])
            self.check_released(wanted[0])
        else:
            tables = self.target_tables(target)
            wanted = [run for name in tables for run in self.table_runs(name, settings)]
        ordered: dict[Run, None] = {}
        for run in wanted:
            ordered |= dict.fromkeys(run.lineage)
        return list(ordered)

    def datasets(self, table: Table) -> dict[str, set[str]]:
        """Column → the data sets of its cells' chains at paper scale."""
        names: dict[str, set[str]] = {key: set() for key in table.columns}
        for row, (key, column) in itertools.product(table.rows, table.columns.items()):
            chain = self.experiments.chain_of(row, key, column)
            for name in chain.split("/") if chain else ():
                recipe = self.experiments.recipe(recipe_of(name), "paper")
                if not recipe.AS_PUBLISHED:
                    names[key].add(recipe.dataset)
        return names

    def caption_facts(self, name: str, scale: str) -> dict:
        """Facts of the scale in a table's caption; the table is rendered again when they change."""
        sets = set().union(*self.datasets(self.table(name)).values())
        return {
            "title": self.experiments.scale(scale).title,
            "stand_ins": self.stand_ins(scale, sorted(sets)),
        }

    def stand_ins(self, scale: str, datasets: list[str]) -> dict[str, str]:
        """Real data set → its stand-in in words, for those of `datasets` that have one."""
        used = self.experiments.scale(scale).datasets
        return {name: with_sizes(get_dataset(used[name])) for name in datasets if name in used}


def _non_defaults(spec: ModelSpec) -> dict:
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    return {k: value for k, default in defaults.items() if (value := getattr(spec, k)) != default}


def parent_weights(run: Run, results: str | Path) -> str | None:
    """sha256 of the parent's weights, from its metrics.json; None without a parent or weights."""
    if run.parent is None:
        return None
    metrics = read_json(run.parent.folder(results) / "metrics.json") or {}
    return metrics.get("weights_sha256")
