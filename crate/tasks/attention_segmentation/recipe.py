"""The recipe of segmentation by self-attention."""

from typing import Literal

import pydantic

from crate.recipes import Predictor, Recipe


class AttentionSegmentation(Recipe):
    """Self-attention of the class token as a mask; for each object, the best head is scored."""

    METRICS = ("miou", "objects", "images")

    task: Literal["attention_segmentation"] = "attention_segmentation"
    image_size: pydantic.PositiveInt = 480
    layer: pydantic.NonNegativeInt  # the block whose attention is used, from 0
    mass: float = pydantic.Field(0.6, gt=0, le=1)  # share of the attention that the mask keeps
    void: Literal["ignored", "background"] = "ignored"  # pixels that belong to no class
    predictor: Predictor = pydantic.Field("model", alias="answer")


RECIPE = AttentionSegmentation
