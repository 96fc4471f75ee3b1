"""The cost of masked autoencoding: encoder and decoder."""

from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost


class AutoencodingCost(TrainingCost):
    FORWARD = ("image_size", "mask_ratio", "normalise_patches")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        recipe, spec = resolved.recipe, resolved.spec
        size = {"image_size": recipe.image_size}
        return (
            flops.autoencoder_parameter_count(spec, **size),
            flops.autoencoder_macs(spec, **size, mask_ratio=recipe.mask_ratio),
        )

    def looked_at(self, resolved: Resolved, looks: int) -> int:
        """The evaluated split `looks` times, and once as many training images."""
        evaluated, trained_on = self.evaluated(resolved), self.sizes(resolved)["train"]
        return looks * evaluated + min(evaluated, trained_on)


COST = AutoencodingCost()
