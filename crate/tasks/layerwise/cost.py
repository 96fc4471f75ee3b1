"""The cost of measuring a few images layer by layer; the coding rates are not counted."""

from crate.data.catalogue import get_dataset
from crate.tasks.base import Resolved
from crate.tasks.cost import KindCost


class LayerwiseCost(KindCost):
    TIMES_ALL = True

    def evaluated(self, resolved: Resolved) -> int:
        """Of each split, the recipe's number of images, or all if there are fewer."""
        recipe, sizes = resolved.recipe, self.sizes(resolved)
        scenes = get_dataset(recipe.dataset).scenes
        splits = (recipe.evaluate,) if scenes else (recipe.evaluate, "train")
        return sum(min(recipe.pictures, sizes.get(split, 0)) for split in splits)

    def not_counted(self, resolved: Resolved) -> str:
        return "the coding rates of layers"


COST = LayerwiseCost()
