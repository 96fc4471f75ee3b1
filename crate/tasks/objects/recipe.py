"""The recipe of object discovery by MaskCut."""

from typing import Annotated, Literal

import pydantic

from crate.recipes import Predictor, Recipe


class Objects(Recipe):
    """MaskCut (Wang et al. 2023, CutLER) on a network's patch features, scored as COCO does."""

    METRICS = (
        "box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75", "objects", "images",
    )  # fmt: skip

    task: Literal["objects"] = "objects"
    image_size: pydantic.PositiveInt = 480  # side of the square that an image is scaled to
    layer: pydantic.NonNegativeInt  # the block whose features are used, from 0
    feature: Literal["key", "query", "value", "tokens"] = "key"  # tokens: the block's input
    tau: Annotated[float, pydantic.Field(ge=-1, le=1)] = (
        0.15  # patches are similar above this cosine
    )
    masks: pydantic.PositiveInt = 3  # of an image, at most
    crf: bool = False
    solver: Literal["iterative", "dense"] = "iterative"
    predictor: Predictor = pydantic.Field("model", alias="answer")


RECIPE = Objects
