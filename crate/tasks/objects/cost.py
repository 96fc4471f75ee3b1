"""The cost of MaskCut's features: the network up to the block that is used; cuts do not count."""

from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import KindCost


class BlockCost(KindCost):
    """The cost of an evaluation that uses the projections of one block's attention."""

    FORWARD = ("image_size", "layer")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        recipe, spec = resolved.recipe, resolved.spec
        parameters = super().complexity(resolved)[0]
        size = {"image_size": recipe.image_size}
        macs = flops.backbone_macs(spec, **size, blocks=recipe.layer)
        return parameters, macs + self.projection(resolved)

    def projection(self, resolved: Resolved) -> int:
        """MACs of the projections of the block's attention."""
        size = resolved.recipe.image_size
        return flops.projection_macs(resolved.spec, image_size=size)


class ObjectsCost(BlockCost):
    FORWARD = ("image_size", "layer", "feature", "tau", "masks", "crf", "solver")
    TIMES_ALL = True

    def projection(self, resolved: Resolved) -> int:
        return 0 if resolved.recipe.feature == "tokens" else super().projection(resolved)

    def not_counted(self, resolved: Resolved) -> str:
        whole = resolved.recipe.predictor == "model"
        return "the cuts and CRFs of MaskCut" if whole else ""


COST = ObjectsCost()
