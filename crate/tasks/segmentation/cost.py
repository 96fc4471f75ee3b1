"""The cost of semantic segmentation: the backbone up to the last layer used, and the decoder."""

import math

from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset
from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost, square
from crate.tasks.segmentation.recipe import Segmentation


class SegmentationCost(TrainingCost):
    FORWARD = ("image_size", "layers", "decoder", "channels")
    TRAINING = (*TrainingCost.TRAINING, "auxiliary")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        recipe, spec = resolved.recipe, resolved.spec
        blocks, size = max(recipe.layers) + 1, {"image_size": recipe.image_size}
        sizes = decoder_sizes(resolved)
        parameters = flops.backbone_parameter_count(spec, **size, blocks=blocks)
        macs = flops.backbone_macs(spec, **size, blocks=blocks)
        return (
            parameters + flops.decoder_parameter_count(recipe.decoder, **sizes),
            macs + _decoder_macs(resolved, auxiliary=False),
        )

    def evaluated(self, resolved: Resolved) -> int:
        recipe = resolved.recipe
        return super().evaluated(resolved) * windows_of(recipe, get_dataset(recipe.dataset))

    def training_flops(self, resolved: Resolved) -> int:
        whole = super().training_flops(resolved)
        if resolved.recipe.auxiliary:
            second = _decoder_macs(resolved, auxiliary=True)
            whole += 3 * 2 * (second - _decoder_macs(resolved, auxiliary=False))
        return whole


def windows_of(recipe: Segmentation, dataset: Dataset) -> int:
    """Windows that cover an image in a test; images of real data sets are assumed 640 x 480."""
    shape = square(dataset)
    longest, shortest = recipe.resize
    factor = min(longest / max(shape), shortest / min(shape))
    count = 1
    for side in shape:
        side = max(1, int(side * factor + 0.5))
        count *= max(0, math.ceil((side - recipe.image_size) / recipe.stride)) + 1
    return count


def decoder_sizes(resolved: Resolved) -> dict:
    """Arguments of a segmentation decoder's closed forms."""
    recipe = resolved.recipe
    return {
        "dim": resolved.spec.dim,
        "classes": get_dataset(recipe.dataset).classes,
        "channels": recipe.channels or resolved.spec.dim,
        "auxiliary": recipe.auxiliary > 0,
    }


def _decoder_macs(resolved: Resolved, *, auxiliary: bool) -> int:
    recipe = resolved.recipe
    sizes = decoder_sizes(resolved) | {"auxiliary": auxiliary}
    grid = resolved.spec.grid(recipe.image_size)
    return flops.decoder_macs(recipe.decoder, **sizes, grid=grid)


COST = SegmentationCost()
