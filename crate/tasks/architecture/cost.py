"""The size of a published model of any kind."""

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet
from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import KindCost
from crate.tasks.language.cost import language_complexity


class ArchitectureCost(KindCost):
    FORWARD = ("image_size", "mask_ratio", "block_size")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        recipe, spec = resolved.recipe, resolved.spec
        if isinstance(get_dataset(recipe.dataset), TextSet):
            return language_complexity(resolved, positions=recipe.positions)
        if spec.decoder == "none":
            return super().complexity(resolved)
        size = {"image_size": recipe.image_size}
        return (
            flops.autoencoder_parameter_count(spec, **size),
            flops.autoencoder_macs(spec, **size, mask_ratio=recipe.mask_ratio),
        )


COST = ArchitectureCost()
