"""The recipe of masked autoencoding."""

from typing import Literal

import pydantic

from crate.data.datasets import ImageSet
from crate.models.flops import kept_patches
from crate.models.spec import ModelSpec
from crate.recipes import ImageTraining


class Autoencoding(ImageTraining):
    """A masked autoencoder: most patches of an image are masked, and predicted from the others."""

    METRICS = ("reconstruction", "train_reconstruction", "images", "flops", "train_flops")
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("autoencoder",)

    task: Literal["autoencoding"] = "autoencoding"
    mask_ratio: float = pydantic.Field(0.75, gt=0, lt=1)  # share of the patches that is masked
    normalise_patches: bool = False  # target patches have mean 0 and standard deviation 1

    def splits(self, dataset: ImageSet) -> list[str]:
        return ["train", self.evaluate]  # the reconstruction of training images is measured too

    @property
    def evaluation_keys(self) -> set[str]:
        return super().evaluation_keys | {"mask_ratio", "normalise_patches"}

    @pydantic.model_validator(mode="after")
    def _whole_batches(self) -> "Autoencoding":
        if self.last_batch == "keep":
            raise ValueError("last_batch 'keep': masks are drawn for whole batches only")
        return self

    def check_model(self, spec: ModelSpec) -> None:
        super().check_model(spec)
        kept_patches(spec.grid(self.image_size) ** 2, self.mask_ratio)


RECIPE = Autoencoding
