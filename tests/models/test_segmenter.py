"""The segmenter: what each decoder reads, for any grid, and what of a parent it starts from."""

import pytest
import torch
import torch.nn.functional as F

from crate.errors import RunError, UsageError
from crate.models.build import build
from crate.models.features import layer_tokens
from crate.models.segmenter import build_segmenter
from crate.models.spec import ModelSpec
from crate.tasks.segmentation.recipe import Segmentation
from crate.training.optim import parameter_groups

SPEC = ModelSpec(dim=8, depth=3, heads=2, patch_size=2)


def make_recipe(**changes) -> Segmentation:
    values = {"dataset": "composites", "follows": ["start"], "updates": 1, "batch_size": 2}
    values |= {"lr": 1e-3, "layers": [0, 1, 2, 2], "image_size": 8} | changes
    values.setdefault("auxiliary", 0.4 if values.get("decoder") != "linear" else 0.0)
    return Segmentation(**values)


@pytest.mark.parametrize("grid", [1, 3, 4, 16])
@pytest.mark.parametrize("decoder", ["upernet", "linear"])
def test_every_grid_works_and_every_parameter_learns(decoder, grid):
    size = 2 * grid
    recipe = make_recipe(decoder=decoder, image_size=size, drop_path=0.1)
    model, transferred = build_segmenter(SPEC, recipe, 5, None)
    images = torch.randn(4, 3, size, size)
    scores = model(images)
    assert [s.shape for s in scores] == [(4, 5, size, size)] * (2 if decoder == "upernet" else 1)
    sum(s.square().sum() for s in scores).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert (without, transferred) == ([], {})
    model.eval()
    with torch.inference_mode():
        answer = model(images)
    assert answer.shape == (4, 5, size, size)
    assert answer.dtype == torch.float32


def test_upernet_sees_four_layers_at_four_scales():
    model, _ = build_segmenter(SPEC, make_recipe(image_size=6, channels=12), 5, None)
    seen = {}
    decoder = model.decoder
    for name in ("head", "auxiliary"):
        getattr(decoder, name).register_forward_pre_hook(
            lambda _, levels, name=name: seen.update({name: levels[0]})
        )
    images = torch.randn(2, 3, 6, 6)
    model(images)
    assert [tuple(level.shape[2:]) for level in seen["head"]] == [(12, 12), (6, 6), (3, 3), (2, 2)]
    assert seen["auxiliary"] is seen["head"]
    assert decoder.auxiliary.convs[0].conv.out_channels == 256
    assert decoder.head.bottleneck.conv.out_channels == 12
    # the third level is the third layer's tokens as they are, the fourth their local maxima
    last = layer_tokens(model.backbone, images, [2])[0].transpose(1, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(seen["head"][2], last)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        block = last[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(seen["head"][3][:, :, row, column], block.amax((2, 3)))


def test_without_weight_the_auxiliary_head_is_not_there():
    model, _ = build_segmenter(SPEC, make_recipe(auxiliary=0.0), 5, None)
    assert len(model(torch.randn(2, 3, 8, 8))) == 1
    assert not [name for name, _ in model.named_parameters() if "auxiliary" in name]


def test_the_linear_decoder_is_a_linear_map_of_one_layers_tokens():
    model, _ = build_segmenter(SPEC, make_recipe(decoder="linear", layers=[2, 2, 2, 1]), 5, None)
    assert len(model.backbone.blocks) == 2  # nothing above layer 1 is there to stay untrained
    model.eval()
    norm, classifier = model.decoder.norm, model.decoder.classifier
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 8, 8)
    tokens = layer_tokens(model.backbone, images, [1])[0]  # (2, 16, 8)
    normed = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    logits = normed @ classifier.weight[:, :, 0, 0].T + classifier.bias
    logits = logits.transpose(1, 2).reshape(2, 5, 4, 4)
    torch.testing.assert_close(
        model(images), F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    )


def test_the_backbone_starts_from_the_parent():
    parent = build(SPEC, num_classes=7, image_size=4)
    weights = parent.state_dict()
    model, transferred = build_segmenter(SPEC, make_recipe(decoder="linear"), 5, weights)
    assert transferred == {"new": [], "resized": ["positions"]}
    backbone = model.backbone.state_dict()
    assert backbone["positions"].shape == (1, 17, 8)
    same = [name for name in backbone if name != "positions"]
    assert {name.split(".")[0] for name in same} == {"class_token", "patch_embedding", "blocks"}
    for name in same:
        assert torch.equal(backbone[name], weights[name]), name
    model, transferred = build_segmenter(SPEC, make_recipe(dont_load=["class_token"]), 5, weights)
    assert transferred["new"] == ["class_token"]

    wider = ModelSpec(dim=16, depth=3, heads=2, patch_size=2)
    with pytest.raises(RunError, match="has shape"):
        build_segmenter(wider, make_recipe(), 5, weights)
    with pytest.raises(UsageError, match="layers: 11: this model has layers 0 to 2"):
        build_segmenter(SPEC, make_recipe(layers=[0, 1, 2, 11]), 5, None)


def test_rates_fall_from_the_decoder_downwards():
    recipe = make_recipe(layer_decay=0.5, decay="matrices")
    model, _ = build_segmenter(SPEC, recipe, 5, None)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {
        names[id(p)]: group["scale"]
        for group in parameter_groups(model, recipe)
        for p in group["params"]
    }
    assert {s for name, s in scales.items() if name.startswith("decoder")} == {1.0}
    assert scales["backbone.positions"] == 0.5**4
    assert {scales[n] for n in scales if n.startswith("backbone.blocks.2")} == {0.5}
