"""The recipe of measuring the speed of training a language model."""

from typing import Literal

import pydantic

from crate.tasks.language.recipe import Language


class LanguageSpeed(Language):
    """Speed and memory of training a language model by a recipe, on the device at hand."""

    METRICS = ("tokens_per_second", "peak_memory")
    READS_DATA = False
    TIMED = METRICS

    task: Literal["language_speed"] = "language_speed"
    seconds: pydantic.PositiveFloat = 60.0  # at most this long, but two updates at least


RECIPE = LanguageSpeed
