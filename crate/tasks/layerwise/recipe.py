"""The recipe of measuring the objective layer by layer."""

from typing import Literal

import pydantic

from crate.data.datasets import ImageSet
from crate.recipes import ImageRecipe


class Layerwise(ImageRecipe):
    """The terms of sparse rate reduction by layer (crate/models/objective.py).

    Measured on evenly spaced images of the evaluated split, and on as many training images; of data
    sets of scenes, on the evaluated split only.
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
    pictures: pydantic.PositiveInt = 1000  # images of each split, at most
    epsilon: pydantic.PositiveFloat = 0.1  # ε of the coding rates
    weight: pydantic.NonNegativeFloat = 0.1  # λ of ‖Z‖₀ in the objective

    def splits(self, dataset: ImageSet) -> list[str]:
        return [*([] if dataset.scenes else ["train"]), self.evaluate]

    @pydantic.model_validator(mode="after")
    def _one_process(self) -> "Layerwise":
        if self.compute.nodes * self.compute.processes_per_node > 1:
            raise ValueError("compute: this stage runs in one process, on at most one GPU")
        return self


RECIPE = Layerwise
