"""The recipe of starting a chain at an official checkpoint."""

from pathlib import Path
from typing import Literal

import pydantic

from crate.checkpoints.manifest import manifest_entries
from crate.data.datasets import ImageSet
from crate.recipes import Recipe


class Released(Recipe):
    """The start of a chain at an official checkpoint, converted strictly; nothing is trained."""

    METRICS = ("parameters",)
    READS_DATA = False
    TORCH = False  # no device, no ranks
    AS_PUBLISHED = True
    MODEL_KINDS = ("vision", "contrastive")

    task: Literal["released"] = "released"
    image_size: pydantic.PositiveInt = 224

    def inputs(self, model: str, dataset: ImageSet, experiments: Path) -> dict:
        """The official files that the manifest lists, with their bytes and sha256."""
        known = manifest_entries(model, dataset.classes, experiments)
        return {"files": {name: [entry.bytes, entry.sha256] for name, entry in known}}


RECIPE = Released
