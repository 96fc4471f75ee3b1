"""The cost of probes: one forward pass an image, as if no features were cached yet."""

import dataclasses

from crate.data.catalogue import get_dataset
from crate.tasks.base import Resolved
from crate.tasks.cost import Cost, KindCost


class ProbeCost(KindCost):
    FORWARD = ("image_size", "features")

    def evaluated(self, resolved: Resolved) -> int:
        """The images of all splits whose features are needed."""
        recipe, sizes = resolved.recipe, self.sizes(resolved)
        dataset = get_dataset(recipe.dataset)
        if dataset.held_out("validation"):  # held out of the training split
            sizes["train"] -= dataset.holdout
        return sum(sizes.get(split, 0) for split in recipe.splits(dataset))

    def cost(self, resolved: Resolved) -> Cost:
        whole, recipe, dim = super().cost(resolved), resolved.recipe, resolved.spec.dim
        judged = self.sizes(resolved).get(recipe.evaluate, 0)
        cosines = 0
        if recipe.method == "knn":
            cosines = 2 * judged * (whole.evaluated - judged) * dim
        return dataclasses.replace(
            whole,
            eval_flops=whole.eval_flops + cosines,
            disk_bytes=4 * dim * whole.evaluated if resolved.run.parent else 0,
        )

    def not_counted(self, resolved: Resolved) -> str:
        return "the fits of linear probes" if resolved.recipe.method == "linear" else ""


COST = ProbeCost()
