"""The recipe of language modelling."""

from typing import Literal

import pydantic

from crate.data.datasets import TextSet
from crate.recipes import Training


class Language(Training):
    """A language model: trained on random windows of a text, evaluated on a whole text.

    Two controls need no network: counts of tokens ("unigram"), and of pairs of tokens ("bigram").
    A stage that follows a control in a chain evaluates the control's counts.
    """

    METRICS = (
        "cross_entropy", "bits_per_byte", "tokens", "documents", "flops", "train_flops",
    )  # fmt: skip
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("language",)
    UNITS = ("documents",)

    task: Literal["language"] = "language"
    block_size: pydantic.PositiveInt = 1024  # tokens that the network sees at once
    predictor: Literal["model", "unigram", "bigram"] = pydantic.Field("model", alias="answer")

    @property
    def trains(self) -> bool:
        return super().trains and self.predictor == "model"

    def splits(self, dataset: TextSet) -> list[str]:
        counts = self.predictor != "model"  # a control counts the training text
        return [*(["train"] if counts else []), *super().splits(dataset)]

    @property
    def evaluation_keys(self) -> set[str]:
        if self.predictor != "model":  # a control without a network
            return {"task", "dataset", "evaluate", "answer"}
        return super().evaluation_keys | {"block_size"}


RECIPE = Language
