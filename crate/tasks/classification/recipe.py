"""The recipe of image classification."""

from typing import Literal

import pydantic

from crate.recipes import ImageTraining


class Classification(ImageTraining):
    """Supervised image classification: pre-training, fine-tuning, or evaluation (epochs: 0)."""

    METRICS = (
        "top1",
        "top5",
        "cross_entropy",
        "chance",
        "images",
        "flops",
        "train_flops",
        "best_epoch_top1",
        "best_epoch",
    )
    # uses the encoder of an autoencoder, and the vision tower of a contrastive model
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["classification"] = "classification"
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    mixup: pydantic.NonNegativeFloat = 0.0  # Beta(a, a); 0: off
    cutmix: pydantic.NonNegativeFloat = 0.0
    mix_switch: float = pydantic.Field(0.5, ge=0, le=1)  # share of CutMix if both are on
    # images of a batch that share kind, weight and box of the mixing; None: the whole batch
    mix_group: pydantic.PositiveInt | None = None
    zero_head: bool = False  # initialise the head with zeros

    @property
    def evaluation_keys(self) -> set[str]:
        return super().evaluation_keys | {"zero_head"}

    @pydantic.model_validator(mode="after")
    def _pairs_mix(self) -> "Classification":
        if not (self.mixup or self.cutmix):
            return self
        if self.mix_group and (self.mix_group % 2 or self.batch_size % self.mix_group):
            raise ValueError(
                f"mix_group {self.mix_group}: needs an even number that divides batch_size "
                f"{self.batch_size}"
            )
        if self.last_batch == "keep":
            raise ValueError("last_batch 'keep' leaves images without a partner for mixup, cutmix")
        return self


RECIPE = Classification
