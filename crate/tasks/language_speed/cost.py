"""The cost of measuring a language model's training speed: the time that its recipe sets."""

from crate.tasks.base import Resolved
from crate.tasks.cost import KindCost
from crate.tasks.language.cost import language_complexity


class LanguageSpeedCost(KindCost):
    FORWARD = ("block_size",)

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        return language_complexity(resolved)


COST = LanguageSpeedCost()
