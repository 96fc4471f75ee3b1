"""The recipe of contrastive training on images and captions."""

from typing import Literal

import pydantic

from crate.recipes import ImageTraining

# The tokenizer of captions (crate/data/captions.py), and the number of tokens of a caption.
CaptionTokens = Literal["bert", "bert_full", "clip"]
CONTEXT_LENGTH = 32


class Contrastive(ImageTraining):
    """Contrastive training on images and captions (CLIP, CLIPA).

    Evaluated on held-out pairs: each image against the captions of its batch.
    """

    METRICS = ("contrastive_loss", "image_to_text", "pairs", "flops", "train_flops")
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("contrastive",)
    UNITS = ("pairs",)

    task: Literal["contrastive"] = "contrastive"
    tokenizer: CaptionTokens = "bert"
    context_length: pydantic.PositiveInt = CONTEXT_LENGTH
    text_tower: str | None = None  # official file that initialises the text tower and the scale
    freeze_text: bool = False  # freeze the text tower and the scale of the logits
    bad_pairs: float = pydantic.Field(0.1, ge=0, le=1)  # share of invalid pairs that is tolerated
    evaluation_batch: pydantic.PositiveInt = 500

    @pydantic.model_validator(mode="after")
    def _whole_batches(self) -> "Contrastive":
        if self.last_batch != "drop":
            raise ValueError(f"last_batch '{self.last_batch}': pairs come in whole batches only")
        return self

    @property
    def evaluation_keys(self) -> set[str]:
        return super().evaluation_keys | {
            "tokenizer", "context_length", "text_tower", "evaluation_batch",
        }  # fmt: skip


RECIPE = Contrastive
