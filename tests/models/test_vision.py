"""The model around the operators: blocks, records, initialisation, positions, drop path."""

import pytest
import torch
from torch import nn

from crate.errors import UsageError
from crate.layers.block import Block, DropPath
from crate.models.blocks import make_blocks
from crate.models.build import create_model
from crate.models.vision import resize_positions
from crate.models.zoo import resolve

SMALL = {"dim": 24, "heads": 3, "depth": 3, "patch_size": 8, "image_size": 32, "num_classes": 7}
ALPHA = "crate_alpha_base_patch16"


@pytest.mark.parametrize(
    "name",
    [ALPHA, "crate_base_patch16", "crate_base_patch16_overcomplete", "vit_base_patch16"],
)
def test_layer_records_hold_the_tokens_and_maps_of_every_layer(name):
    model = create_model(name, **SMALL)
    images = torch.randn(2, 3, 32, 32)
    records = model.layer_records(images)
    assert len(records) == 3
    tokens = None
    for block, record in zip(model.blocks, records, strict=True):
        assert record["attention"].shape == (2, 3, 17, 17)
        if tokens is not None:  # each layer starts from the one before
            after = tokens + block.attention(block.norm1(tokens))
            torch.testing.assert_close(record["attention_output"], after)
        output = block.feedforward(block.norm2(record["attention_output"]))
        if model.spec.residual:
            output = output + record["attention_output"]
        torch.testing.assert_close(record["output"], output)
        atoms = {"ISTA": 24, "ODL": 96}.get(model.spec.feedforward)
        if atoms:
            assert record["codes"].shape == (2, 17, atoms)
            assert (record["codes"] >= 0).all()
        else:
            assert "codes" not in record
        tokens = record["output"]
    torch.testing.assert_close(model.forward_features(images), tokens)
    logits = model.head(model.norm(tokens)[:, 0])
    assert logits.shape == (2, 7)
    torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (2, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_size_are_refused(shape):
    model = create_model(ALPHA, **SMALL)
    with pytest.raises(UsageError) as error:
        model(torch.zeros(shape))
    assert str(error.value) == f"this model takes images (B, 3, 32, 32), got {shape}"


@pytest.mark.parametrize("only", [slice(1), slice(2, 4), slice(-1, None)])
@pytest.mark.parametrize("name", [ALPHA, "crate_base_patch16", "vit_base_patch16"])
def test_a_block_computes_a_part_of_its_tokens(name, only):
    """The same values and gradients as of all tokens; operators that cannot compute all."""
    block = create_model(name, **SMALL).blocks[-1].double()
    x = torch.randn(2, 6, 24, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    whole, part = block(x)[:, only], block(x, only=only)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(whole)
    for ours, expected in zip(
        torch.autograd.grad(part, inputs, cotangent),
        torch.autograd.grad(whole, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    block.partial = False
    assert torch.equal(block(x, only=only), whole)


def test_a_block_takes_any_operators():
    block = Block(nn.Identity(), nn.Identity(), residual=False, dim=8)
    block.attention.forward = lambda x, record, cache: torch.zeros_like(x)
    block.feedforward.forward = lambda x, record: 2 * x
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(block(x), 2 * nn.functional.layer_norm(x, (8,), eps=1e-6))


@pytest.mark.parametrize("name", [ALPHA, "crate_base_patch16", "vit_base_patch16"])
def test_causal_blocks_see_no_later_token(name):
    blocks = make_blocks(resolve(name, dim=24, heads=3, depth=2, causal=True))
    x = torch.randn(1, 6, 24)
    changed = x.clone()
    changed[:, 4] += torch.randn(24)
    before, after = (nn.Sequential(*blocks)(tokens) for tokens in (x, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before - after)[:, 4:].abs().amax() > 1e-4


def spread(tensor):
    return tensor.detach().double().std().item()


def test_alpha_initialisation():
    model = create_model(
        ALPHA, dim=192, heads=3, depth=2, patch_size=8, image_size=64, num_classes=200
    )
    fan_in = 3 * 8 * 8
    assert spread(model.patch_embedding.projection.weight) == pytest.approx(
        (2 / fan_in) ** 0.5, rel=0.02
    )
    assert model.patch_embedding.projection.weight.abs().max() <= (6 / fan_in) ** 0.5
    assert model.class_token.abs().max() < 1e-5
    assert model.class_token.abs().max() > 0
    for block in model.blocks:
        for dictionary in (block.feedforward.dictionary, block.feedforward.decoder):
            assert spread(dictionary) == pytest.approx((2 / 192) ** 0.5, rel=0.01)
            assert dictionary.abs().max() <= (6 / 192) ** 0.5
        assert not torch.equal(block.feedforward.dictionary, block.feedforward.decoder)
        assert block.attention.projection.bias is None
        assert spread(block.attention.subspaces.weight) == pytest.approx(0.02, rel=0.02)
        assert spread(block.attention.projection.weight) == pytest.approx(0.02, rel=0.02)
    assert spread(model.positions) == pytest.approx(0.02, rel=0.03)
    assert spread(model.head.weight) == pytest.approx(0.02, rel=0.02)
    for bias in (model.patch_embedding.projection.bias, model.head.bias):
        assert not bias.any()
    assert model.norm.eps == model.blocks[0].norm1.eps == model.blocks[0].norm2.eps == 1e-6


def test_crate_and_vit_initialisation():
    sizes = {"dim": 192, "heads": 3, "depth": 1, "image_size": 128, "num_classes": 200}
    crate = create_model("crate_tiny_patch16", **sizes)
    assert spread(crate.positions) == pytest.approx(1, rel=0.03)
    assert spread(crate.class_token) == pytest.approx(1, rel=0.2)
    assert spread(crate.blocks[0].feedforward.dictionary) == pytest.approx(
        (2 / 192) ** 0.5, rel=0.01
    )
    # torch's Linear: uniform within 1/√fan-in, so variance 1/(3 fan-in), biases too.
    assert spread(crate.head.weight) == pytest.approx((1 / 3 / 192) ** 0.5, rel=0.02)
    assert crate.blocks[0].attention.projection.bias.any()
    assert crate.norm.eps == crate.patch_embedding.norm1.eps == 1e-5
    plain = create_model("crate_tiny_patch16_plain", **sizes)
    assert spread(plain.blocks[0].feedforward.dictionary) == pytest.approx(
        (2 / 192) ** 0.5, rel=0.01
    )

    vit = create_model("vit_tiny_patch16", **sizes)
    for weight in (vit.head.weight, vit.blocks[0].attention.qkv.weight, vit.positions):
        assert spread(weight) == pytest.approx(0.02, rel=0.03)
    assert 0 < vit.class_token.abs().max() < 1e-5
    biases = [value for key, value in vit.named_parameters() if key.endswith("bias")]
    assert len(biases) == 9
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("name", [ALPHA, "crate_base_patch16", "vit_base_patch16"])
def test_same_seed_same_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return create_model(name, **SMALL).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["positions"], other["positions"])


def test_resize_positions():
    positions = torch.randn(1, 1 + 16, 5)
    assert torch.equal(resize_positions(positions, 4), positions)

    # Positions that are their own coordinates stay so, but for the kernel's ripple and the border.
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([row, column], dim=-1).flatten(0, 1)[None]
    resized = resize_positions(torch.cat([torch.full((1, 1, 2), 9.0), grid], dim=1), 16)
    assert resized.shape == (1, 257, 2)
    assert torch.equal(resized[:, 0], torch.full((1, 2), 9.0))
    inner = resized[0, 1:].unflatten(0, (16, 16))[6:10, 6:10]
    expected = (torch.arange(6, 10) + 0.5) / 2 - 0.5
    torch.testing.assert_close(inner[..., 0], expected[:, None].expand(4, 4), rtol=0, atol=0.05)
    torch.testing.assert_close(inner[..., 1], expected[None, :].expand(4, 4), rtol=0, atol=0.05)

    with pytest.raises(UsageError, match="square grid"):
        resize_positions(torch.zeros(1, 1 + 15, 5), 4)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.25)
    x = torch.ones(8000, 2, 3)
    y = drop.train()(x)
    samples = y.flatten(1)
    assert (samples == samples[:, :1]).all()
    torch.testing.assert_close(samples[samples > 0].unique(), torch.tensor([1 / 0.75]))
    assert (samples[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.025)
    assert drop.eval()(x) is x


def test_drop_path_grows_with_depth_and_is_off_in_evaluation():
    model = create_model(ALPHA, drop_path=0.4, **SMALL)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.2, 0.4])
    plain = create_model(ALPHA, **SMALL)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model.train()(images), plain(images))
    assert torch.equal(model.eval()(images), plain(images))


@pytest.mark.parametrize("residual", [False, True])
def test_drop_path_touches_residual_branches_only(residual):
    spec = resolve(ALPHA, dim=24, heads=3, depth=2, residual=residual)
    block = make_blocks(spec, 0.999999)[1].train()
    x = torch.randn(4, 5, 24)
    fed = block.feedforward(block.norm2(x))
    torch.testing.assert_close(block(x), x if residual else fed)
