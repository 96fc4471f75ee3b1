"""The cost of measuring the speed of training a language model: the time its recipe gives it."""

from crate.tasks.base import Resolved
from crate.tasks.cost import KindCost
from crate.tasks.language.cost import language_complexity


class LanguageSpeedCost(KindCost):
    FORWARD = ("block_size",)

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        return language_complexity(resolved)


COST = LanguageSpeedCost()
