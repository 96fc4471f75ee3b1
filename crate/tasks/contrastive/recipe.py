"""The recipe of contrastive training on images and captions."""

from typing import Literal

import pydantic

from crate.recipes import ImageTraining

# What captions are cut with (crate/data/captions.py); and into how many tokens.
CaptionTokens = Literal["bert", "clip"]
CONTEXT_LENGTH = 32


class Contrastive(ImageTraining):
    """Images and captions embedded in one space, those of a pair near each other (CLIP, CLIPA).

    Evaluated on pairs that are held out, each image against the captions of its batch.
    """

    METRICS = ("contrastive_loss", "image_to_text", "pairs", "flops", "train_flops")
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("contrastive",)
    UNITS = ("pairs",)

    task: Literal["contrastive"] = "contrastive"
    tokenizer: CaptionTokens = "bert"
    context_length: pydantic.PositiveInt = CONTEXT_LENGTH
    text_tower: str | None = None  # the official file that the text tower and the scale start from
    freeze_text: bool = False  # the text tower and the scale of the logits stay as they start
    bad_pairs: float = pydantic.Field(0.1, ge=0, le=1)  # share of them that a run bears
    evaluation_batch: pydantic.PositiveInt = 500

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {
            "tokenizer", "context_length", "text_tower", "evaluation_batch",
        }  # fmt: skip


RECIPE = Contrastive
