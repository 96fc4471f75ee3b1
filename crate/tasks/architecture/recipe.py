"""The recipe of counting the size of a published model."""

from typing import Literal

import pydantic

from crate.models.flops import kept_patches
from crate.models.spec import ModelSpec
from crate.recipes import Recipe


class Architecture(Recipe):
    """The size of a model as published; nothing is trained and no data are read."""

    METRICS = ("depth", "width", "heads", "parameters", "flops")
    READS_DATA = False
    TORCH = False
    AS_PUBLISHED = True
    MODEL_KINDS = ("vision", "language", "autoencoder", "contrastive")
    UNITS = ("images", "documents")

    task: Literal["architecture"] = "architecture"
    image_size: pydantic.PositiveInt = 224
    mask_ratio: float = pydantic.Field(0.75, gt=0, lt=1)  # of a masked autoencoder
    block_size: pydantic.PositiveInt = 1024  # of a language model
    positions: bool = True  # whether a language model's positions count among its parameters

    def check_model(self, spec: ModelSpec) -> None:
        super().check_model(spec)
        if spec.decoder != "none":
            kept_patches(spec.grid(self.image_size) ** 2, self.mask_ratio)


RECIPE = Architecture
