"""The cost of zero-shot classification: images, and the phrases of each class once."""

import dataclasses

from crate.data.catalogue import get_dataset
from crate.tasks.base import Resolved
from crate.tasks.contrastive.cost import text_macs, towers
from crate.tasks.cost import Cost, KindCost

PHRASES = {"openai": 80, "simple": 7}  # of a class


class ZeroShotCost(KindCost):
    FORWARD = ("image_size", "context_length", "tokenizer")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        return towers(resolved)

    def cost(self, resolved: Resolved) -> Cost:
        whole, recipe = super().cost(resolved), resolved.recipe
        phrases = get_dataset(recipe.dataset).classes * PHRASES[recipe.templates]
        texts = 2 * text_macs(resolved) * phrases
        return dataclasses.replace(whole, eval_flops=whole.eval_flops + texts)


COST = ZeroShotCost()
