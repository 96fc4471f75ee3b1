"""The recipe of zero-shot classification."""

from typing import Literal

import pydantic

from crate.recipes import ImageRecipe
from crate.tasks.contrastive.recipe import CONTEXT_LENGTH, CaptionTokens


class ZeroShot(ImageRecipe):
    """Classification by the names of the classes: an image gets the class of its nearest text.

    The embedding of a class is the mean over phrases with its name (Radford et al. 2021).
    """

    METRICS = ("top1", "top5", "cross_entropy", "chance", "images")
    MODEL_KINDS = ("contrastive",)

    task: Literal["zeroshot"] = "zeroshot"
    tokenizer: CaptionTokens = "bert"
    context_length: pydantic.PositiveInt = CONTEXT_LENGTH
    templates: Literal["openai", "simple"] = "openai"  # 80 phrases, or the best 7 of them


RECIPE = ZeroShot
