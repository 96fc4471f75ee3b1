"""The recipe of semantic segmentation."""

from typing import Literal

import pydantic

from crate.data.datasets import ImageSet
from crate.recipes import Predictor, Training


class Segmentation(Training):
    """Semantic segmentation: a backbone and a decoder trained together, tested on sliding windows.

    The network sees squares of `image_size`: random crops of randomly scaled images in training,
    and in a test the windows that cover an image, `stride` pixels apart.
    """

    METRICS = ("miou", "macc", "aacc", "images")

    task: Literal["segmentation"] = "segmentation"
    image_size: pydantic.PositiveInt = 512
    stride: pydantic.PositiveInt = 341
    resize: list[pydantic.PositiveInt] = pydantic.Field([2048, 512], min_length=2, max_length=2)
    ratio: list[pydantic.PositiveFloat] = pydantic.Field([0.5, 2.0], min_length=2, max_length=2)
    category_max: float = pydantic.Field(0.75, gt=0, le=1)  # most of a crop that a class may fill
    flip: bool = True
    photometric: bool = True  # random brightness, contrast, saturation, hue
    layers: list[pydantic.NonNegativeInt] = pydantic.Field(
        [3, 5, 7, 11], min_length=4, max_length=4
    )
    decoder: Literal["upernet", "linear"] = "upernet"
    channels: pydantic.PositiveInt | None = None  # of the decoder; None: the backbone's width
    auxiliary: pydantic.NonNegativeFloat = 0.0  # loss weight of UPerNet's auxiliary head; 0: none
    # whole_image: the most frequent class everywhere
    predictor: Predictor = pydantic.Field("model", alias="answer")

    def splits(self, dataset: ImageSet) -> list[str]:
        if self.predictor != "model":
            most_frequent = self.predictor == "whole_image"  # counted on the training maps
            return [*(["train"] if most_frequent else []), self.evaluate]
        return super().splits(dataset)

    @property
    def evaluation_keys(self) -> set[str]:
        if self.predictor != "model":  # a control without a network
            return {"task", "dataset", "evaluate", "answer"}
        return super().evaluation_keys | {"stride", "resize", "layers", "decoder", "channels"}

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "Segmentation":
        if self.resize[0] < self.resize[1]:
            raise ValueError(f"resize {self.resize}: put the limit of the longer side first")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: put the smaller first")
        if self.auxiliary and self.decoder != "upernet":
            raise ValueError("auxiliary: only the decoder 'upernet' has an auxiliary head")
        return self


RECIPE = Segmentation
