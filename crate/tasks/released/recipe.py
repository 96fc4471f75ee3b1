"""The recipe of starting a chain from an official checkpoint."""

from typing import Literal

import pydantic

from crate.recipes import Recipe


class Released(Recipe):
    """A chain's start from an official checkpoint: converted, strictly, and nothing trained."""

    METRICS = ("parameters",)
    READS_DATA = False
    TORCH = False  # no device, no ranks
    AS_PUBLISHED = True
    MODEL_KINDS = ("vision", "contrastive")

    task: Literal["released"] = "released"
    image_size: pydantic.PositiveInt = 224


RECIPE = Released
