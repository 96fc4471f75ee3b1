"""The recipe of measuring the speed of training a language model."""

from typing import Literal

import pydantic

from crate.tasks.language.recipe import Language


class LanguageSpeed(Language):
    """Speed and memory of training a language model on this machine's device."""

    METRICS = ("tokens_per_second", "peak_memory")
    READS_DATA = False
    TIMED = METRICS

    task: Literal["language_speed"] = "language_speed"
    seconds: pydantic.PositiveFloat = 60.0  # measure for this long, but at least two updates


RECIPE = LanguageSpeed
