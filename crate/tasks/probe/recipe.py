"""The recipe of probes of frozen features."""

from typing import Literal

import pydantic

from crate.data.datasets import Dataset
from crate.recipes import ImageRecipe


class Probe(ImageRecipe):
    """Classification from the features of a frozen network; no network is trained.

    "linear": logistic regression on standardised features. Of several penalties, the one with the
    best top-1 on the validation split is chosen, by probes fitted to the training split without it;
    the scored probe is fitted to training and validation split.
    "knn": votes of the nearest training features, weighted by cosine (Wu et al. 2018, arXiv
    1805.01978), as in DINO's evaluation (arXiv 2104.14294).
    """

    METRICS = ("top1", "top5", "cross_entropy", "chance", "images", "penalty")
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["probe"] = "probe"
    features: Literal["token", "mean"] = "token"  # mean: of the patch tokens
    method: Literal["linear", "knn"] = "linear"
    # of the squared weights: the mean cross-entropy in nats + penalty / 2 × their sum
    penalties: list[pydantic.PositiveFloat] = pydantic.Field(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0], min_length=1
    )
    neighbours: pydantic.PositiveInt = 20
    temperature: pydantic.PositiveFloat = 0.07

    @pydantic.model_validator(mode="after")
    def _one_process(self) -> "Probe":
        if self.compute.nodes * self.compute.processes_per_node > 1:
            raise ValueError("compute: a probe runs in one process, on at most one GPU")
        if len(set(self.penalties)) < len(self.penalties):
            raise ValueError(f"penalties: duplicate value in {self.penalties}")
        return self

    @property
    def identity(self) -> dict:
        """As `Recipe.identity`, without the settings of the other method."""
        others = {"linear": {"neighbours", "temperature"}, "knn": {"penalties"}}[self.method]
        return {key: value for key, value in super().identity.items() if key not in others}

    def splits(self, dataset: Dataset) -> list[str]:
        """The splits whose features are needed; the evaluated split comes last."""
        chooses = self.method == "linear" and len(self.penalties) > 1
        needed = ["train", *(["validation"] if chooses or dataset.held_out("validation") else [])]
        return [*(split for split in needed if split != self.evaluate), self.evaluate]


RECIPE = Probe
