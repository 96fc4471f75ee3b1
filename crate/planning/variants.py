"""Steps with other values than their recipe's, and the rows that a sweep of such values makes.

A stage of a chain may be `<step>@<key>=<value>@…`: the step's recipe with these values. Its folder
has the same name, so that `imagenet1k@lr=0.008` is a run like any other: a target of Snakemake, a
parent of further stages, a chain of a table's row. `--config set=…` makes such rows.

This module imports no torch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from crate.errors import UsageError
from crate.planning.tables import Row, Table
from crate.runs import parse_path, step_of
from crate.sources import Mapping, nested, read_words

# Step → key of its recipe → value; nested keys are joined by dots
Changes = dict[str, dict[str, Any]]


def changes_of(stage: str) -> Mapping:
    """The values in a stage's name, as a recipe's file would hold them; {} without any.

    Raises:
        UsageError: a part is not KEY=VALUE, or a value could be written more plainly, which would
            be another folder.
    """
    step, *words = stage.split("@")
    flat = read_words(words, stage)
    plain = stage_name(step, flat)
    if plain != stage:
        raise UsageError(f"{stage}: write it as {plain}")
    for key in ("task", "extends"):
        if key in flat:
            raise UsageError(f"{stage}: '{key}' cannot be another; write a recipe of its own")
    return nested(flat)


def stage_name(step: str, flat: dict[str, Any]) -> str:
    """The name of a step with other values: keys sorted, each value in one spelling."""
    return "@".join([step, *(f"{key}={_word(flat[key])}" for key in sorted(flat))])


def _word(value: Any) -> str:
    """The one spelling of a value of YAML, without spaces."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return str(value)


def with_values(path: str, values: dict) -> tuple[str, dict]:
    """The path of a run's last step with other values, and the values that have no place in it.

    These are those of a trial, which has a folder of its own, and those of a changed model.
    """
    run, results = parse_path(path)
    if not values or run.trial is not None or "model" in values:
        return path, values
    stage = stage_name(step_of(run.stage), flat(changes_of(run.stage)) | flat(values))
    changed = dataclasses.replace(run, chain=(*run.chain[:-1], stage))
    return str(changed.folder(results)), {}


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"compute": {"threads": 2}}` → `{"compute.threads": 2}`."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        joined |= (
            flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
        )
    return joined


def combinations(changes: Changes, is_value: Callable[[str, str, list], bool]) -> list[Changes]:
    """Every combination of the values of a sweep, in the order in which they are written.

    Args:
        changes: a list under a key is one value each.
        is_value: whether a step's key takes this list itself as its value.
    """
    keys, options = [], []
    for step, values in changes.items():
        for key, value in flat(values).items():
            swept = isinstance(value, list) and not is_value(step, key, value)
            keys.append((step, key))
            options.append(value if swept else [value])
    result = []
    for chosen in itertools.product(*options):
        one: Changes = {}
        for (step, key), value in zip(keys, chosen, strict=True):
            one.setdefault(step, {})[key] = value
        result.append(one)
    return result


def changed_chain(chain: str, changes: Changes) -> str:
    """A chain in which the named steps have other values."""
    stages = chain.split("/")
    return "/".join(
        stage_name(stage, changes[stage]) if changes.get(stage) else stage for stage in stages
    )


def swept(
    table: Table, sweep: Iterable[Changes], chain_of: Callable[[Row, str], str | None]
) -> Table:
    """The table with a row for each combination of a sweep below every row that it changes.

    Args:
        sweep: combinations of values that differ from the recipes'.
        chain_of: the chain of a row's cell in a column.
    """
    sweep = list(sweep)
    several = len({step for changes in sweep for step in changes}) > 1
    rows = []
    for row in table.rows:
        rows.append(row)
        chains = {key: chain_of(row, key) for key in table.columns}
        steps = {step_of(stage) for chain in chains.values() if chain for stage in chain.split("/")}
        for changes in () if row.control else sweep:
            if steps & changes.keys():
                words = [
                    f"{step} {key} {_word(value)}" if several else f"{key} {_word(value)}"
                    for step, values in changes.items()
                    for key, value in values.items()
                ]
                changed = {
                    key: chain and changed_chain(chain, changes) for key, chain in chains.items()
                }
                label = ", ".join([row.label, *words])
                update = {"label": label, "chain": None, "steps": changed, "paper": {}}
                rows.append(row.model_copy(update=update))
    return table.model_copy(update={"rows": rows})
