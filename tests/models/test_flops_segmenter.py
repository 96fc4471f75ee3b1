"""The closed forms of segmenters and of networks used in part, against torch's own counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crate.models import flops_segmenter as closed
from crate.models.build import build
from crate.models.features import class_attention, patch_features
from crate.models.segmenter import AUXILIARY_CHANNELS, build_segmenter
from crate.models.zoo import resolve
from crate.tasks.segmentation.recipe import Segmentation

MODELS = ("crate_alpha_base_patch16", "vit_base_patch16")


def segmenter(name: str, size: int, **changes):
    recipe = {"dataset": "ade20k", "follows": [], "updates": 1, "batch_size": 2, "lr": 1e-3}
    recipe = Segmentation(image_size=size, **recipe | changes)
    return recipe, build_segmenter(resolve(name), recipe, 150, None)[0]


def macs(function, *arguments) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (80, {"auxiliary": 0.4, "channels": 96}),  # 5 patches a side: the coarsest map rounds up
        (64, {"layers": [0, 2, 5, 8]}),
        (80, {"decoder": "linear", "layers": [0, 0, 0, 6]}),
    ],
)
def test_a_segmenter_is_as_large_as_built(name, size, changes):
    with torch.device("meta"):
        recipe, model = segmenter(name, size, **changes)
        spec, images = resolve(name), torch.empty(2, 3, size, size)
        decoder = {
            "dim": spec.dim,
            "classes": 150,
            "channels": recipe.channels or spec.dim,
            "auxiliary": recipe.auxiliary > 0,
        }
        blocks = max(recipe.layers) + 1
        assert closed.AUXILIARY_CHANNELS == AUXILIARY_CHANNELS
        assert sum(p.numel() for p in model.backbone.parameters()) == (
            closed.backbone_parameter_count(spec, image_size=size, blocks=blocks)
        )
        assert sum(p.numel() for p in model.decoder.parameters()) == (
            closed.decoder_parameter_count(recipe.decoder, **decoder)
        )
        for mode in (True, False):
            model.train(mode)
            counted = (macs(model, images) - macs(backbone_alone(model), images)) // 2
            sizes = decoder | {"auxiliary": decoder["auxiliary"] and mode}
            grid = spec.grid(size)
            assert counted == closed.decoder_macs(recipe.decoder, **sizes, grid=grid)


def backbone_alone(model):
    def forward(images):
        x = model.backbone.embed(images)
        for block in model.backbone.blocks:
            x = block(x)

    return forward


@pytest.mark.parametrize("name", MODELS)
def test_a_network_that_is_used_in_part(name):
    """Features of a layer: torch counts what the blocks below, and the projection, do."""
    spec = resolve(name)
    size = {"image_size": 64}
    with torch.device("meta"):
        model, images = build(spec, **size, num_classes=10), torch.empty(1, 3, 64, 64)
        one = macs(model.blocks[0], model.embed(images))
        below = macs(model.embed, images)
        for layer in (0, 3):
            entering = closed.backbone_macs(spec, **size, blocks=layer)
            assert entering == below + layer * one
            tokens = macs(patch_features, model, images, layer, "tokens")
            assert tokens == entering
            keys = macs(patch_features, model, images, layer, "key") - tokens
            assert keys == closed.projection_macs(spec, **size)
            rows = macs(class_attention, model, images, layer) - tokens
            assert rows == closed.projection_macs(spec, **size) + 17 * spec.dim  # one row
