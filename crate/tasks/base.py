"""`Resolved`: a run with everything that decides its result, as every task gets it."""

import dataclasses
import functools
from collections.abc import Iterable

from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset
from crate.models.spec import ModelSpec
from crate.recipes import Recipe
from crate.records import canonical_json, short_hash
from crate.runs import Run


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A run with everything that decides its result."""

    run: Run
    spec: ModelSpec
    recipe: Recipe
    config: dict  # all values that differ from the defaults
    code: str  # hash of the code that it runs (planning/identity.py)

    @functools.cached_property
    def config_json(self) -> str:
        return canonical_json(self.config)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of configuration and code; at the start, the parent's weights are added."""
        return short_hash(self.config_json + self.code)


def splits_read(recipes: Iterable[Recipe]) -> list[tuple[Dataset, list[str]]]:
    """The data sets that stages read, by name, each with the splits that are read."""
    read: dict[str, dict[str, None]] = {}
    for recipe in recipes:
        splits = recipe.splits(get_dataset(recipe.dataset))
        if splits:
            read.setdefault(recipe.dataset, {}).update(dict.fromkeys(splits))
    return [
        (get_dataset(name), sorted(read[name], key=lambda split: (split != "train", split)))
        for name in sorted(read)
    ]
