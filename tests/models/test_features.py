"""Patch features against the recorded layers and projections computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from crate.errors import RunError, UsageError
from crate.models.build import create_model
from crate.models.features import (
    class_attention,
    image_features,
    layer_tokens,
    patch_features,
    pretrained,
)
from crate.models.vision import resize_positions
from crate.models.zoo import resolve

SIZES = {"dim": 24, "depth": 3, "heads": 3}
MODELS = ("crate_alpha_base_patch8", "crate_base_patch8", "vit_base_patch8")


@pytest.fixture(params=MODELS)
def model(request):
    return create_model(request.param, image_size=32, num_classes=5, **SIZES).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def test_tokens_are_the_output_of_the_block_before(model, images):
    with torch.inference_mode():
        records = model.layer_records(images)
        for layer in (1, 2):
            tokens = patch_features(model, images, layer, "tokens")
            torch.testing.assert_close(tokens, records[layer - 1]["output"][:, 1:])
        first = patch_features(model, images, 0, "tokens")
        torch.testing.assert_close(
            first, model.patch_embedding(images) + model.positions[:, 1:], rtol=0, atol=0
        )


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_projections_are_those_of_the_normalised_input(model, images, layer):
    block = model.blocks[layer]
    norm = block.norm1
    entering = patch_features(model, images, layer, "tokens")
    x = F.layer_norm(entering, (24,), norm.weight, norm.bias, norm.eps)
    found = [patch_features(model, images, layer, kind) for kind in ("query", "key", "value")]
    if model.spec.attention == "MSSA":
        wanted = [x @ block.attention.subspaces.weight.T] * 3
    else:
        state = block.attention.qkv.state_dict()
        weight, bias = state["weight"], state.get("bias")
        parts = (slice(0, 24), slice(24, 48), slice(48, 72))
        wanted = [x @ weight[p].T + (0 if bias is None else bias[p]) for p in parts]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == (2, 16, 24)
        torch.testing.assert_close(one, other)


def test_class_attention_is_a_row_of_the_recorded_one(model, images):
    with torch.inference_mode():
        records = model.layer_records(images)
        for layer in range(3):
            wanted = records[layer]["attention"][:, :, 0, 1:]  # (B, K, N)
            torch.testing.assert_close(class_attention(model, images, layer), wanted)


def test_layer_tokens_follow_the_blocks_and_keep_the_graph(model, images):
    records = model.layer_records(images)
    found = layer_tokens(model, images, [2, 0, 2])
    for tokens, layer in zip(found, (2, 0, 2), strict=True):
        torch.testing.assert_close(tokens, records[layer]["output"][:, 1:])
    layer_tokens(model, images, [1])[0].square().sum().backward()
    assert model.patch_embedding.projection.weight.grad.abs().sum() > 0
    assert model.blocks[1].norm1.weight.grad.abs().sum() > 0
    assert model.blocks[2].norm1.weight.grad is None
    assert layer_tokens(model, images, []) == []


def test_no_block_runs_that_is_not_needed(model, images):
    ran = []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    patch_features(model, images, 1, "key")
    assert ran == [0]
    class_attention(model, images, 0)
    assert ran == [0]
    layer_tokens(model, images, [1])
    assert ran == [0, 0, 1]


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_is_not_there_is_refused(model, images, layer):
    for call in (
        lambda: patch_features(model, images, layer, "key"),
        lambda: class_attention(model, images, layer),
        lambda: layer_tokens(model, images, [0, layer]),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert str(error.value) == f"no layer {layer}: this model has layers 0 to 2"


def test_other_requests_that_make_no_sense(model, images):
    with pytest.raises(UsageError, match="unknown feature 'keys'; did you mean 'key'"):
        patch_features(model, images, 0, "keys")
    with pytest.raises(UsageError, match=r"takes images \(B, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        patch_features(model, images[..., :16, :16], 0, "key")


def test_pretrained_carries_weights_to_another_size(model):
    spec, weights = model.spec, model.state_dict()
    larger = pretrained(spec, weights, image_size=64)
    assert not larger.training
    assert larger.head.weight.shape == (5, 24)
    torch.testing.assert_close(larger.positions, resize_positions(model.positions, 8))
    torch.testing.assert_close(larger.blocks.state_dict(), model.blocks.state_dict())
    assert patch_features(larger, torch.randn(1, 3, 64, 64), 2, "key").shape == (1, 64, 24)
    same = pretrained(spec, weights, image_size=32)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(same(images), model(images), rtol=0, atol=0)
    del weights["norm.weight"]
    with pytest.raises(RunError, match=r"have no 'norm\.weight'"):
        pretrained(spec, weights, image_size=32)


def test_without_weights_the_seed_decides(model):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(pretrained(model.spec, None, image_size=32))
    assert made[0].head.weight.shape == (1, 24)
    assert not made[0].training
    first, again, other = (m.patch_embedding.projection.weight for m in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_features_of_a_picture_are_what_the_head_sees(images, pool):
    model = create_model(
        "crate_base_patch8", image_size=32, num_classes=5, pool=pool, **SIZES
    ).eval()
    torch.nn.init.normal_(model.norm.weight)
    with torch.inference_mode():
        features = image_features(model, images, pool)
        assert features.shape == (2, 24)
        torch.testing.assert_close(model.head(features), model(images))
    with pytest.raises(UsageError, match="unknown feature 'key'; valid: mean, token"):
        image_features(model, images, "key")


@pytest.mark.parametrize("name", ["crate_mae_base", "vit_mae_base"])
def test_an_autoencoders_encoder_keeps_its_own_norm(name, images):
    sizes = {"dim": 24, "depth": 2, "heads": 3, "patch_size": 8, "norm_eps": 1e-2}
    sizes |= {"decoder_heads": 3} if name == "vit_mae_base" else {}
    autoencoder = create_model(name, image_size=32, **sizes).eval()
    spec = autoencoder.spec
    model = pretrained(spec, autoencoder.state_dict(), image_size=32)
    assert not model.training
    with torch.inference_mode():
        tokens = autoencoder.norm(autoencoder.forward_features(images))
        found = image_features(model, images, "token")
        torch.testing.assert_close(found, tokens[:, 0], rtol=0, atol=0)
    # without weights it starts as the autoencoder does: fixed positions
    torch.manual_seed(3)
    new = pretrained(spec, None, image_size=32)
    torch.manual_seed(3)
    started = create_model(name, image_size=32, **sizes)
    for key in ("positions", "class_token", "patch_embedding.projection.weight"):
        torch.testing.assert_close(new.state_dict()[key], started.state_dict()[key])
    assert new.norm.eps == 1e-6
    # at another size its positions are interpolated; a classifier's weights keep the spec's ε
    larger = pretrained(spec, autoencoder.state_dict(), image_size=64)
    torch.testing.assert_close(larger.positions, resize_positions(autoencoder.positions, 8))
    assert pretrained(spec, model.state_dict(), image_size=32).norm.eps == 1e-2
    assert pretrained(resolve("crate_base_patch8"), None, image_size=32).norm.eps == 1e-5
