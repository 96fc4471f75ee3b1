"""Masked autoencoders: the papers' equations on the official keys, masks, and what they must hide.

`official` is the published forward pass, written token by token from the equations; it knows the
official names of the weights only, and ours must give its numbers and its gradients.
"""

import dataclasses
import json
import math
import statistics

import pytest
import safetensors
import torch
from torch.utils.flop_counter import FlopCounterMode

from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.checkpoints.export import import_official
from crate.errors import UsageError
from crate.layers import reference
from crate.models.autoencoder import InverseBlock, sincos_positions
from crate.models.build import build, build_autoencoder, create_model
from crate.models.features import class_attention
from crate.models.flops import (
    autoencoder_macs,
    autoencoder_parameter_count,
    kept_patches,
)
from crate.models.transfer import transfer_weights, vision_weights
from crate.models.zoo import list_models, resolve

CRATE, VIT, SMALL_VIT = "crate_mae_base", "vit_mae_base", "vit_mae_small"
HE = "vit_mae_base_asymmetric"
SIZES = {"dim": 24, "heads": 3, "depth": 2, "patch_size": 4}
DECODERS = {  # name → its decoder at this size
    CRATE: {},
    VIT: {"decoder_depth": 1, "decoder_heads": 2},
    SMALL_VIT: {"decoder_depth": 1, "decoder_heads": 2, "decoder_dim": 16},
    HE: {"decoder_depth": 1, "decoder_heads": 2, "decoder_dim": 16},
}
NAMES = list(DECODERS)
PUBLISHED = [CRATE, VIT, HE]  # small's code was not
SIDE, PATCHES, PIXELS = 16, 16, 48


def small(name):
    return resolve(name, **SIZES, **DECODERS[name])


def shaken(model):
    """Weights, biases and norms that are not at their start; positions stay."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def some_model(name, **options):
    return shaken(build_autoencoder(small(name), image_size=SIDE, **options)).double()


def some_images(b=2, side=SIDE):
    return torch.randn(b, 3, side, side, dtype=torch.float64)


def some_noise(b=2):
    return torch.rand(b, PATCHES, dtype=torch.float64)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("25.41", "crate_mae_small"),
        ("44.64", "crate_mae_base"),
        ("47.55", "vit_mae_small"),  # printed 47.6
        ("143.8", "vit_mae_base"),
        ("111.907840", "vit_mae_base_asymmetric"),  # He et al.'s code
    ],
)
def test_parameters_agree_with_the_papers(printed, name):
    count = autoencoder_parameter_count(resolve(name), image_size=224)
    assert f"{count / 1e6:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize("name", list_models("*mae*"))
def test_closed_forms_agree_with_torch(name):
    spec = resolve(name)
    with torch.device("meta"):
        model = create_model(name, image_size=224)
        images = torch.empty(1, 3, 224, 224)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert autoencoder_parameter_count(spec, image_size=224) == counted
    with FlopCounterMode(display=False) as counter:
        model(images, 0.6)
    counted = counter.get_total_flops() // 2
    if spec.feedforward == "ISTA":  # published: three products per token; ours: one, and DᵀD once
        counted += spec.depth * (2 * 197 * spec.dim**2 - spec.dim**3)
    assert counted == autoencoder_macs(spec, image_size=224, mask_ratio=0.6)
    assert model.mask(model.draw_kept(images, 0.6)).shape == (1, 196)


def test_names_are_the_published_sizes():
    shapes = {}
    for name in list_models("*mae*"):
        spec, decoder = resolve(name), resolve(name).decoder_spec
        shapes[name] = [(s.dim, s.depth, s.heads) for s in (spec, decoder)]
        assert (spec.patch_size, spec.stem, spec.projection_bias) == (16, "conv", True)
    assert shapes == {
        "crate_mae_base": [(768, 12, 12)] * 2,
        "crate_mae_small": [(576, 12, 12)] * 2,
        "vit_mae_base": [(768, 12, 12), (768, 8, 16)],
        "vit_mae_base_asymmetric": [(768, 12, 12), (512, 8, 16)],
        "vit_mae_small": [(384, 12, 6), (512, 8, 16)],
        "vit_mae_small_asymmetric": [(384, 12, 6), (512, 8, 16)],
    }
    crate = resolve(CRATE)
    assert (crate.step_size, crate.sparsity, crate.norm_eps) == (0.1, 0.5, 1e-5)
    # a wider model's decoder is as wide, unless its width is named
    wide = resolve(CRATE, dim=1024, depth=24, heads=16).decoder_spec
    assert (wide.dim, wide.depth, wide.heads) == (1024, 24, 16)


# --- the published forward passes -----------------------------------------------------------------


def official_checkpoint(name, side=SIDE):
    """Random weights under the published names: CRATE's model/crate_ae, or timm's blocks."""
    spec, decoder = small(name), small(name).decoder_spec
    d, e, p, grid = spec.dim, decoder.dim, spec.patch_size, side // spec.patch_size
    state = {
        "cls_token": torch.randn(1, 1, d),
        "pos_embed": official_positions(d, grid),
        "mask_token": torch.randn(1, 1, e),
        "decoder_pos_embed": official_positions(e, grid),
        "patch_embed.proj.weight": 0.2 * torch.randn(d, 3, p, p),
        "patch_embed.proj.bias": 0.2 * torch.randn(d),
        "decoder_embed.weight": 0.3 * torch.randn(e, d),
        "decoder_embed.bias": 0.2 * torch.randn(e),
        "decoder_pred.weight": 0.3 * torch.randn(3 * p * p, e),
        "decoder_pred.bias": 0.2 * torch.randn(3 * p * p),
    }

    def norm(there, width):
        state[f"{there}.weight"] = 1 + 0.2 * torch.randn(width)
        state[f"{there}.bias"] = 0.2 * torch.randn(width)

    def linear(there, out, into, bias=True):
        state[f"{there}.weight"] = 0.3 * torch.randn(out, into)
        if bias:
            state[f"{there}.bias"] = 0.2 * torch.randn(out)

    norm("norm", d)
    norm("decoder_norm", e)
    for part, width, depth, attention in (
        ("blocks", d, spec.depth, 0),
        ("decoder_blocks", e, decoder.depth, 1),
    ):
        for layer in range(depth):
            block = f"{part}.{layer}"
            if name == CRATE:
                norm(f"{block}.layers.0.0.norm", width)
                norm(f"{block}.layers.0.1.norm", width)
                linear(f"{block}.layers.0.{attention}.fn.qkv", width, width, bias=False)
                linear(f"{block}.layers.0.{attention}.fn.to_out.0", width, width)
                linear(f"{block}.layers.0.{1 - attention}.fn", width, width, bias=False)
            else:
                norm(f"{block}.norm1", width)
                norm(f"{block}.norm2", width)
                linear(f"{block}.attn.qkv", 3 * width, width, bias=name == HE)
                linear(f"{block}.attn.proj", width, width)
                linear(f"{block}.mlp.fc1", 4 * width, width)
                linear(f"{block}.mlp.fc2", width, 4 * width)
    return state


def official_positions(dim, grid):
    """sin and cos of column, then of row, at dim/4 frequencies from 1 towards 1/10,000."""
    rows = [[0.0] * dim]
    for y in range(grid):
        for x in range(grid):
            row = []
            for place in (x, y):
                angles = [place / 10_000 ** (4 * i / dim) for i in range(dim // 4)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(row)
    return torch.tensor([rows], dtype=torch.float64).float()


def official(name, s, images, noise, ratio, normalise=False):
    """Loss, prediction and mask of the published code from its own weights (float64)."""
    spec = small(name)
    p, side = spec.patch_size, images.shape[-1] // spec.patch_size
    predictions, masks, errors = [], [], []

    def normed(x, there, eps):
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * s[f"{there}.weight"] + s[f"{there}.bias"]

    def mssa(x, there, heads):
        weights = s[f"{there}.fn.qkv.weight"], s[f"{there}.fn.to_out.0.weight"]
        return reference.mssa(x, *weights, s[f"{there}.fn.to_out.0.bias"], heads)[0]

    def white_encoder(x, block):
        first, second = f"{block}.layers.0.0", f"{block}.layers.0.1"
        x = x + mssa(normed(x, f"{first}.norm", 1e-5), first, spec.heads)
        x = normed(x, f"{second}.norm", 1e-5)
        atoms = s[f"{second}.fn.weight"]
        return torch.stack([reference.ista(token, atoms, 0.1, 0.5) for token in x])

    def white_decoder(x, block):
        first, second = f"{block}.layers.0.0", f"{block}.layers.0.1"
        x = normed(x, f"{first}.norm", 1e-5)
        y = torch.stack([s[f"{first}.fn.weight"] @ token for token in x])
        return y - mssa(normed(y, f"{second}.norm", 1e-5), second, spec.heads)

    def timm(x, block, heads):
        eps = 1e-6 if name == HE else 1e-5
        qkv = s[f"{block}.attn.qkv.weight"], s.get(f"{block}.attn.qkv.bias")
        out = s[f"{block}.attn.proj.weight"], s[f"{block}.attn.proj.bias"]
        x = x + reference.mhsa(normed(x, f"{block}.norm1", eps), *qkv, *out, heads)[0]
        mlp = [s[f"{block}.mlp.{part}"] for part in ("fc1.weight", "fc1.bias", "fc2.weight")]
        mlp.append(s[f"{block}.mlp.fc2.bias"])
        y = normed(x, f"{block}.norm2", eps)
        return x + torch.stack([reference.mlp(token, *mlp) for token in y])

    for image, values in zip(images, noise, strict=True):
        vectors, targets = [], []
        for i in range(side):
            for j in range(side):
                patch = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
                weight = s["patch_embed.proj.weight"]
                vectors.append((weight * patch).sum((1, 2, 3)) + s["patch_embed.proj.bias"])
                pixels = [patch[c, u, v] for u in range(p) for v in range(p) for c in range(3)]
                targets.append(torch.stack(pixels))
        shuffled = sorted(range(side * side), key=lambda n: values[n])
        kept = shuffled[: int(side * side * (1 - ratio))]
        if name == HE:
            z = [s["cls_token"][0, 0] + s["pos_embed"][0, 0]]
            z += [vectors[n] + s["pos_embed"][0, 1 + n] for n in kept]
        else:
            z = [s["cls_token"][0, 0]]
            z += [v if n in kept else s["mask_token"][0, 0] for n, v in enumerate(vectors)]
            z = [token + s["decoder_pos_embed"][0, n] for n, token in enumerate(z)]
        z = torch.stack(z)
        for layer in range(spec.depth):
            block = f"blocks.{layer}"
            z = white_encoder(z, block) if name == CRATE else timm(z, block, spec.heads)
        z = normed(z, "norm", 1e-6)
        if name == HE:
            z = z @ s["decoder_embed.weight"].T + s["decoder_embed.bias"]
            placed = [s["mask_token"][0, 0]] * (side * side)
            for token, n in zip(z[1:], kept, strict=True):
                placed[n] = token
            z = torch.stack([z[0], *placed]) + s["decoder_pos_embed"][0]
        for layer in range(spec.decoder_spec.depth):
            block, heads = f"decoder_blocks.{layer}", spec.decoder_spec.heads
            z = white_decoder(z, block) if name == CRATE else timm(z, block, heads)
        z = normed(z, "decoder_norm", 1e-6) @ s["decoder_pred.weight"].T + s["decoder_pred.bias"]
        predictions.append(z[1:])
        masks.append([0.0 if n in kept else 1.0 for n in range(side * side)])
        for n in set(range(side * side)) - set(kept):
            target = targets[n]
            if normalise:
                numbers = target.tolist()
                deviation = math.sqrt(statistics.variance(numbers) + 1e-6)
                target = (target - statistics.fmean(numbers)) / deviation
            errors.append((z[1 + n] - target).square().sum() / len(target))
    return sum(errors) / len(errors), torch.stack(predictions), torch.tensor(masks)


@pytest.mark.parametrize(
    ("name", "ratio", "normalise"), [(CRATE, 0.75, True), (VIT, 0.5, False), (HE, 0.7, False)]
)
def test_converted_weights_compute_the_official_loss_and_gradients(name, ratio, normalise):
    checkpoint, images, noise = official_checkpoint(name), some_images(), some_noise()
    fixed = ("pos_embed", "decoder_pos_embed")
    leaves = {k: v.double().requires_grad_(k not in fixed) for k, v in checkpoint.items()}
    loss, prediction, mask = official(name, leaves, images, noise, ratio, normalise)
    loss.backward()

    state = convert(checkpoint, small(name))
    assert infer_sizes(state, small(name)) == {"image_size": SIDE}
    model = build_autoencoder(small(name), image_size=SIDE, normalise_patches=normalise)
    torch.testing.assert_close(model.positions, state["positions"], rtol=0, atol=1e-7)
    model.load_state_dict(state, strict=True)
    model.double()
    ours = model(images, ratio, noise)
    assert prediction.std() > 0.1
    torch.testing.assert_close(ours[0], loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[1], prediction, rtol=1e-10, atol=1e-10)
    assert torch.equal(ours[2], mask)

    ours[0].backward()
    zero = {key: torch.zeros_like(value) for key, value in checkpoint.items()}
    found = {k: v.grad.float() for k, v in leaves.items() if v.grad is not None}
    expected = convert(zero | found, small(name))
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = expected[key].abs().max().item()
            grad = parameter.grad.float()
            torch.testing.assert_close(grad, expected[key], rtol=1e-5, atol=1e-6 * scale)
        else:
            assert not expected[key].any(), key


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_and_back_is_bit_exact(name):
    checkpoint = official_checkpoint(name)
    again = to_official(convert({"model": checkpoint, "epoch": 3}, small(name)), small(name))
    assert set(again) == set(checkpoint)
    assert all(torch.equal(again[key], checkpoint[key]) for key in checkpoint)
    mine = build_autoencoder(small(name), image_size=SIDE).state_dict()
    returned = convert(to_official(mine, small(name)), small(name))
    assert set(returned) == set(mine)
    assert all(torch.equal(returned[key], mine[key]) for key in mine)


def test_official_names_at_full_size():
    with torch.device("meta"):
        states = {name: create_model(name).state_dict() for name in list_models("*_mae_*")}
    with pytest.raises(UsageError, match="vit_mae_small: no official CRATE code has this arch"):
        to_official(states["vit_mae_small"], "vit_mae_small")
    official = to_official(
        {key: torch.zeros(1).expand(value.shape) for key, value in states[CRATE].items()}, CRATE
    )
    shapes = {key: tuple(value.shape) for key, value in official.items()}
    assert sum(map(math.prod, shapes.values())) == 44_638_464
    assert len(shapes) == 24 * 8 + 14
    assert shapes["decoder_blocks.11.layers.0.1.fn.to_out.0.bias"] == (768,)
    assert shapes["decoder_embed.weight"] == (768, 768)
    assert shapes["decoder_pos_embed"] == shapes["pos_embed"] == (1, 197, 768)


def test_weights_that_do_not_fit_are_told():
    checkpoint = official_checkpoint(CRATE)
    for damage, told in (
        ({"decoder_pos_embed": torch.zeros(1, 17, 24)}, "'pos_embed' is not 'decoder_pos_embed'"),
        (
            {"mask_token": torch.zeros(1, 1, 25)},
            "'mask_token' has shape (1, 1, 25), expected (1, 1",
        ),
        ({"head.weight": torch.zeros(3, 24)}, "unexpected 'head.weight'"),
    ):
        with pytest.raises(UsageError) as caught:
            convert(checkpoint | damage, small(CRATE))
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    for spec in (small(VIT), resolve("crate_base_patch16")):
        with pytest.raises(
            UsageError, match=r"crate-mae layout \(a masked autoencoder\), which this"
        ):
            convert(checkpoint, spec)
    classifier = build(small(CRATE), num_classes=5, image_size=SIDE).state_dict()
    assert infer_sizes(classifier, small(CRATE)) == {"num_classes": 5, "image_size": SIDE}
    with pytest.raises(UsageError, match="'mask_token' is missing"):
        to_official(classifier, small(CRATE))


def test_an_official_file_is_imported(tmp_path):
    torch.save({"model": official_checkpoint(CRATE)}, tmp_path / "checkpoint-799.pth")
    out = tmp_path / "mae.safetensors"
    line = import_official(tmp_path / "checkpoint-799.pth", "mine", small(CRATE), out)
    with safetensors.safe_open(out, framework="pt") as file:
        facts = json.loads(file.metadata()["crate"])
        count = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert f"mine, {count:,} parameters, {SIDE} px" in line
    assert facts["spec"] == dataclasses.asdict(small(CRATE))
    assert "num_classes" not in facts


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CRATE, HE])
def test_noise_fixes_the_mask(name):
    model, images, noise = some_model(name), some_images(), some_noise()
    loss, prediction, mask = model(images, 0.75, noise)
    for row, values in zip(mask, noise, strict=True):
        smallest = sorted(range(PATCHES), key=lambda n: values[n])[:4]
        assert [n for n in range(PATCHES) if row[n] == 0] == sorted(smallest)
        assert set(row.tolist()) == {0.0, 1.0}
    torch.manual_seed(5)
    again = model(images, noise=noise)  # three quarters are masked by default
    assert torch.equal(loss, again[0])
    assert torch.equal(prediction, again[1])
    # only the order counts, and of equal values the first patches are kept
    assert torch.equal(model(images, 0.75, noise.exp() * 9)[2], mask)
    assert model(images, 0.75, torch.zeros(2, PATCHES))[2].tolist() == [[0.0] * 4 + [1.0] * 12] * 2


def test_without_noise_masks_are_uniform_and_of_the_seed():
    model = some_model(CRATE)
    images = some_images(b=1).expand(2000, -1, -1, -1)

    def masks(seed):
        torch.manual_seed(seed)
        return model.mask(model.draw_kept(images, 0.75))

    first = masks(1)
    assert torch.equal(first, masks(1))
    assert not torch.equal(first, masks(2))
    assert (first.sum(dim=1) == 12).all()
    shares = first.mean(dim=0)  # of each patch; four standard errors are 0.039
    assert (shares - 0.75).abs().max() < 0.04


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 49), (0.6, 78), (0.999, None), (0.9, 19)])
def test_how_many_patches_are_kept(ratio, kept):
    if kept is None:
        with pytest.raises(UsageError, match="masks all of 196 patches"):
            kept_patches(196, ratio)
    else:
        assert kept_patches(196, ratio) == kept


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (0, "mask_ratio must be a number in (0, 1), got 0"),
        (1, "mask_ratio must be a number in (0, 1), got 1"),
        (1.5, "mask_ratio must be a number in (0, 1), got 1.5"),
        (-0.5, "mask_ratio must be a number in (0, 1), got -0.5"),
        (float("nan"), "mask_ratio must be a number in (0, 1), got nan"),
        (float("inf"), "mask_ratio must be a number in (0, 1), got inf"),
        ("0.75", "mask_ratio must be a number in (0, 1), got '0.75'"),
        (True, "mask_ratio must be a number in (0, 1), got True"),
        (0.95, "mask_ratio 0.95 masks all of 16 patches"),
        (1e-17, "mask_ratio 1e-17 masks none of 16 patches"),
    ],
)
def test_senseless_ratios_are_refused(ratio, told):
    with pytest.raises(UsageError) as caught:
        some_model(CRATE)(some_images(), ratio)
    assert str(caught.value) == told


def of_patch(model, index):
    """The pixels (S, S) of a patch, as a mask of images."""
    patches = torch.zeros(1, PATCHES, PIXELS)
    patches[0, index] = 1
    return model.unpatchify(patches)[0, 0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_masked_pixels_reach_their_own_target_and_nothing_else(name):
    model, images, noise = some_model(name), some_images(), some_noise()
    loss, prediction, mask = model(images, 0.5, noise)
    errors = (prediction - model.patchify(images)).square().mean(-1)
    torch.testing.assert_close(loss, errors[mask > 0].mean())
    for index in range(PATCHES):
        changed = images.clone()
        changed[0, :, of_patch(model, index)] += 3
        after, seen, _ = model(changed, 0.5, noise)
        assert torch.equal(seen[1], prediction[1])  # another image
        if mask[0, index]:
            assert torch.equal(seen, prediction)
            own = (prediction[0, index] - model.patchify(changed)[0, index]).square().mean()
            expected = loss + (own - errors[0, index]) / mask.sum()
            torch.testing.assert_close(after, expected)
        else:
            assert (seen[0] - prediction[0]).abs().amax(dim=-1).min() > 1e-6
            # but its pixels are no target
            assert torch.equal(model.loss(changed, prediction, mask), loss)
    # not even what is no number
    hidden = torch.stack([of_patch(model, n) for n in mask[0].nonzero()[:, 0]]).any(dim=0)
    images[0, :, hidden] = float("nan")
    assert torch.equal(model(images, 0.5, noise)[1], prediction)


def test_he_et_als_encoder_sees_no_mask_token():
    model, images = some_model(HE), some_images()
    lengths = []
    for block in [*model.blocks, *model.decoder_blocks]:
        block.register_forward_hook(lambda block, taken, _: lengths.append(taken[0].shape[1]))
    kept = model.draw_kept(images, 0.75)
    tokens = model.forward_features(images, kept=kept)
    model.decode(tokens, kept)
    assert lengths == [1 + 4, 1 + 4, 1 + 16]
    with torch.no_grad():
        model.mask_token += 1
    assert torch.equal(model.forward_features(images, kept=kept), tokens)
    # and the other kind does see it
    model = some_model(VIT)
    tokens = model.forward_features(images, kept=kept)
    assert tokens.shape == (2, 1 + 16, 24)
    with torch.no_grad():
        model.mask_token += torch.randn(24)
    assert not torch.equal(model.forward_features(images, kept=kept), tokens)


# --- patches and loss -----------------------------------------------------------------------------


def test_patches_are_row_by_row_and_their_pixels_channel_last():
    model, images = some_model(CRATE), some_images()
    patches = model.patchify(images)
    assert patches.shape == (2, PATCHES, PIXELS)
    assert torch.equal(patches[1, 6, 5], images[1, 2, 4 + 0, 8 + 1])  # row 1, column 2; pixel 1
    assert torch.equal(patches[0, 15, 3 * 7], images[0, 0, 12 + 1, 12 + 3])
    assert torch.equal(model.unpatchify(patches), images)
    for shape in ((2, 15, PIXELS), (2, PATCHES, 47), (PATCHES, PIXELS)):
        with pytest.raises(UsageError, match="this model's patches are"):
            model.unpatchify(torch.zeros(shape))


def test_normalised_patches_by_hand():
    model = some_model(CRATE, normalise_patches=True)
    pixels = torch.zeros(1, PATCHES, PIXELS, dtype=torch.float64)
    pixels[0, 3] = torch.tensor([1.0, 3.0]).repeat(24)  # mean 2, variance 48/47
    pixels[0, 5] = 7.0  # a patch of one colour becomes 0
    mask = torch.zeros(1, PATCHES)
    mask[0, [3, 5]] = 1
    prediction = torch.full_like(pixels, 0.5)
    value = 1 / math.sqrt(48 / 47 + 1e-6)
    expected = (((0.5 - value) ** 2 + (0.5 + value) ** 2) / 2 + 0.5**2) / 2
    loss = model.loss(model.unpatchify(pixels), prediction, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    # brightness and contrast of each patch are no part of the task
    images, other = some_images(), some_images()
    rescaled = model.unpatchify(model.patchify(images) * 1000 + 50)
    mask = torch.ones(2, PATCHES)
    losses = [model.loss(x, model.patchify(other), mask) for x in (images, rescaled)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [CRATE, HE])
def test_another_image_size(name):
    spec = small(name)
    model = shaken(build_autoencoder(spec, image_size=24)).double()
    loss, prediction, mask = model(some_images(side=24))
    assert prediction.shape == (2, 36, PIXELS)
    assert mask.sum(dim=1).tolist() == [27, 27]
    assert loss.isfinite()
    assert autoencoder_parameter_count(spec, image_size=24) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    torch.testing.assert_close(
        sincos_positions(24, 6), official_positions(24, 6), atol=1e-7, rtol=0
    )
    with pytest.raises(UsageError) as caught:
        model(some_images())
    assert str(caught.value) == "this model takes images (B, 3, 24, 24), got (2, 3, 16, 16)"


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_learns_and_nothing_else(name):
    model = some_model(name)
    model(some_images())[0].backward()
    frozen = {"positions", "decoder_positions"}
    if name in (CRATE, VIT):
        frozen |= {"decoder_embedding.weight", "decoder_embedding.bias"}
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (key not in frozen), key
        if key in frozen:
            assert parameter.grad is None, key
        else:
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_tokens_and_loss_in_float32(name):
    model, images, noise = some_model(name).float(), some_images().float(), some_noise()
    tokens = []
    for block in [*model.blocks, *model.decoder_blocks]:
        block.register_forward_hook(lambda block, _, out: tokens.append(out.dtype))
    exact = model(images, noise=noise)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images, noise=noise)[0]
    assert set(tokens) == {torch.float32}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0)


def spread(tensor):
    return tensor.detach().double().std().item()


@pytest.mark.parametrize("name", [CRATE, HE])
def test_initialisation(name):
    torch.manual_seed(1)
    spec = resolve(name, dim=192, heads=3, depth=1, decoder_depth=1, decoder_heads=4)
    model, again = (build_autoencoder(spec, image_size=32) for _ in range(2))
    assert not torch.equal(model.mask_token, again.mask_token)
    torch.manual_seed(1)
    again = build_autoencoder(spec, image_size=32).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[key])
        if "positions" in key:
            continue
        if key == "patch_embedding.projection.bias":
            assert tensor.any()
        elif key.endswith("bias"):
            assert not tensor.any()
        elif "norm" in key:
            assert (tensor == 1).all()
        elif "token" in key:
            assert spread(tensor) == pytest.approx(0.02, rel=0.2), key
        elif key.endswith("dictionary"):
            assert spread(tensor) == pytest.approx(math.sqrt(2 / 192), rel=0.03)
        else:  # xavier-uniform
            out, into = tensor.flatten(1).shape
            assert spread(tensor) == pytest.approx(math.sqrt(2 / (out + into)), rel=0.03), key
            assert tensor.abs().max() <= math.sqrt(6 / (out + into))


def test_norms_have_the_published_epsilons():
    for name, expected in ((CRATE, 1e-5), (VIT, 1e-5), (HE, 1e-6)):
        model = some_model(name)
        assert model.norm.eps == model.decoder_norm.eps == 1e-6
        for block in [*model.blocks, *model.decoder_blocks]:
            assert block.norm1.eps == block.norm2.eps == expected


def test_the_inverse_block_subtracts_attention():
    attention = torch.nn.Identity()
    block = InverseBlock(attention, dim=8, norm_eps=1e-5)
    with torch.no_grad():
        block.dictionary.copy_(2 * torch.eye(8))
    x = torch.randn(1, 3, 8)
    y = 2 * torch.nn.functional.layer_norm(x, (8,))
    torch.testing.assert_close(block(x), y - torch.nn.functional.layer_norm(y, (8,)))


# --- the encoder as a classifier's ----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_becomes_a_classifier(name):
    model, images = some_model(name), some_images()
    weights = vision_weights(model.state_dict())
    classifier = build(small(name), num_classes=5, image_size=SIDE).double()
    outcome = classifier.load_state_dict(weights, strict=False)
    assert outcome.missing_keys == ["head.weight", "head.bias"]
    assert outcome.unexpected_keys == []
    assert torch.equal(classifier.forward_features(images), model.forward_features(images))
    records = zip(classifier.layer_records(images), model.layer_records(images), strict=True)
    for theirs, ours in records:
        assert set(theirs) == set(ours)
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
        assert ours["attention"].shape == (2, 3, 17, 17)
    maps = [class_attention(each, images, 1) for each in (classifier, model)]
    assert torch.equal(*maps)
    # larger images, as in every chain
    larger = build(small(name), num_classes=5, image_size=32)
    assert transfer_weights(larger, weights, ["head"])["resized"] == ["positions"]
    assert vision_weights(classifier.state_dict()).keys() == classifier.state_dict().keys()


def test_hiding_nothing_is_the_encoders_usual_pass():
    model, images = some_model(CRATE), some_images()
    kept = torch.arange(PATCHES).expand(2, -1)
    assert torch.equal(model.forward_features(images, kept=kept), model.forward_features(images))


def test_drop_path_acts_on_the_encoder_in_training():
    model = build_autoencoder(small(VIT), image_size=SIDE, drop_path=0.5).double()
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.5]
    assert [block.drop_path.rate for block in model.decoder_blocks] == [0.0]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (CRATE, {"num_classes": 9}, f"{CRATE} is a masked autoencoder and has no num_classes; it"),
        (CRATE, {"block_size": 9}, "has no block_size; it has image_size and normalise_patches"),
        (CRATE, {"vocab_size": 9}, "has no vocab_size"),
        (CRATE, {"image_size": 100}, "image_size 100 is not divisible by patch_size 16"),
        (CRATE, {"normalise_patches": 1}, "normalise_patches must be true or false, got 1"),
        (CRATE, {"drop_path": 1}, "drop_path must be a number in [0, 1), got 1"),
        (CRATE, {"causal": True}, "cannot be causal"),
        (CRATE, {"stem": "linear"}, "an autoencoder's stem is 'conv', not 'linear'"),
        (CRATE, {"dim": 18, "heads": 3}, "fixed positions need a dim that is a multiple of 4, got"),
        (CRATE, {"decoder": "inverted"}, "unknown decoder 'inverted'; did you mean 'inverse'?"),
        (CRATE, {"mask_tokens": "both"}, "unknown mask_tokens 'both'"),
        (CRATE, {"decoder_heads": 7}, "the decoder's dim 768 is not divisible by its heads 7"),
        (VIT, {"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        (VIT, {"decoder_dim": 512.0}, "decoder_dim must be an integer, got 512.0 (float)"),
        ("vit_base_patch16", {"normalise_patches": True}, "a vision model and has no normalise_p"),
        ("gpt2_base", {"normalise_patches": True}, "a language model and has no normalise_patch"),
    ],
)
def test_bad_requests_are_one_line(name, options, told):
    with pytest.raises(UsageError) as caught, torch.device("meta"):
        create_model(name, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_makes_no_autoencoder_is_refused():
    with pytest.raises(UsageError, match="an autoencoder needs a decoder"):
        build_autoencoder(resolve("vit_base_patch16"), image_size=32)
    model, images = some_model(CRATE), some_images()
    for noise in (torch.rand(2, 15), torch.rand(1, PATCHES), torch.rand(PATCHES)):
        with pytest.raises(UsageError, match="noise must be \\(2, 16\\), one value a patch"):
            model(images, 0.75, noise)
    for shape in ((2, 3, 20, 20), (2, 1, SIDE, SIDE), (3, SIDE, SIDE)):
        with pytest.raises(UsageError, match="this model takes images"):
            model(torch.zeros(shape))
