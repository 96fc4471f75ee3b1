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
    # of an autoencoder, the encoder is the classifier; of a contrastive model, the vision tower
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["classification"] = "classification"
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    mixup: pydantic.NonNegativeFloat = 0.0  # Beta(a, a); 0: off
    cutmix: pydantic.NonNegativeFloat = 0.0
    mix_switch: float = pydantic.Field(0.5, ge=0, le=1)  # share of CutMix where both are on
    zero_head: bool = False  # the classifier starts from zeros

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {"zero_head"}


RECIPE = Classification
