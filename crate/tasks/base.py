"""What every task is given."""

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
    config: dict  # canonical: what differs from the defaults
    code: str  # fingerprint of the code it runs

    @property
    def config_json(self) -> str:
        return canonical_json(self.config)

    @property
    def identity(self) -> str:
        """Configuration and code; the parent's weights join when the run starts."""
        return short_hash(self.config_json + self.code)
