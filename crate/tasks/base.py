"""`Resolved`: a run with everything that decides its result, as every task gets it."""

import dataclasses

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

    @property
    def config_json(self) -> str:
        return canonical_json(self.config)

    @property
    def identity(self) -> str:
        """Hash of configuration and code; at the start, the parent's weights are added."""
        return short_hash(self.config_json + self.code)
