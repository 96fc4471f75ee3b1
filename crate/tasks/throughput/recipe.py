"""The recipe of measuring the speed of a published model."""

from typing import Literal

import pydantic

from crate.recipes import Recipe


class Throughput(Recipe):
    """Speed of a published model's forward pass on this machine's device, and its FLOPs."""

    METRICS = ("images_per_second", "flops", "parameters")
    READS_DATA = False
    AS_PUBLISHED = True
    TIMED = ("images_per_second",)

    task: Literal["throughput"] = "throughput"
    image_size: pydantic.PositiveInt = 224
    batch_size: pydantic.PositiveInt = 64  # on a GPU; a CPU takes one image at a time
    seconds: pydantic.PositiveFloat = 10.0  # measure for this long, but at least one batch


RECIPE = Throughput
