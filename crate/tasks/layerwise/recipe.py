"""The recipe of measuring the objective layer by layer."""

from typing import Literal

import pydantic

from crate.recipes import Recipe


class Layerwise(Recipe):
    """What each layer does to the objective that CRATE is derived from (crate/models/objective.py).

    Looks at a few pictures of a split, and at as many that were trained on, all evenly spaced; of
    a set of scenes, which has no split to compare with, at the evaluated ones alone.
    """

    METRICS = (
        "compression_first", "compression_last", "compression_falls",
        "official_first", "official_last", "rate_first", "rate_last",
        "sparsity_first", "sparsity_last", "sparsity_falls", "codes_first", "codes_last",
        "objective_first", "objective_last", "objective_rises", "norm_first", "norm_last",
        "train_compression_last", "train_sparsity_last", "train_objective_last", "pictures",
    )  # fmt: skip
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["layerwise"] = "layerwise"
    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    pictures: pydantic.PositiveInt = 1000  # of each split, at most
    epsilon: pydantic.PositiveFloat = 0.1  # ε of the coding rates
    weight: pydantic.NonNegativeFloat = 0.1  # λ of ‖Z‖₀ in the objective

    @pydantic.model_validator(mode="after")
    def _one_process(self) -> "Layerwise":
        if self.compute.nodes * self.compute.tasks > 1:
            raise ValueError("compute: this is the work of one process, on one GPU at most")
        return self


RECIPE = Layerwise
