"""Contrastive models: what the official CLIPA code computes, its files both ways, and training.

The official model is written here anew from its names and equations, on the official tensors
themselves: nn.MultiheadAttention with one projection three times, einsums, the last token.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crate.checkpoints.convert import convert, convert_text, infer_sizes, to_official
from crate.checkpoints.export import import_official
from crate.checkpoints.read import read_checkpoint
from crate.errors import RunError, UsageError
from crate.models.build import build, build_contrastive, create_model
from crate.models.flops import (
    contrastive_parameter_count,
    image_macs,
    parameter_count,
    text_macs,
    text_parameter_count,
)
from crate.models.transfer import transfer_weights, vision_weights
from crate.models.zoo import resolve

CRATE, VIT = "crate_alpha_clipa_base_patch16", "vit_clipa_base_patch16"
TOWERS = {"dim": 24, "heads": 3, "depth": 2, "patch_size": 8, "embed_dim": 20}
TOWERS |= {"text_dim": 16, "text_depth": 3, "text_heads": 2}
SIZES = {"image_size": 32, "vocab_size": 50, "context_length": 9}


def small(name=CRATE, **changes):
    return resolve(name, **TOWERS | changes)


def some_model(name=CRATE, seed=0, sizes=SIZES, **options):
    torch.manual_seed(seed)
    return build_contrastive(small(name), **sizes, **options)


def some_pairs(b=5, sizes=SIZES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(b, 3, *[sizes["image_size"]] * 2, generator=generator, dtype=dtype)
    shape = (b, sizes["context_length"])
    return images, torch.randint(sizes["vocab_size"], shape, generator=generator)


# --- official checkpoints with random weights: names and shapes as published ----------------------


def official_checkpoint(d=24, depth=2, p=8, grid=4, e=20, w=16, text_depth=3, vocab=50, context=9):
    """torch_inference/model/clipa_model.py's names."""
    state = {
        "visual.class_embedding": torch.randn(d),
        "visual.positional_embedding": torch.randn(grid**2 + 1, d),
        "visual.conv1.weight": 0.1 * torch.randn(d, 3, p, p),
        "visual.proj": torch.randn(d, e),
        "token_embedding.weight": torch.randn(vocab, w),
        "positional_embedding": torch.randn(context, w),
        "text_projection": torch.randn(e, w),
        "logit_scale": torch.randn(()),
    }

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width)
        state[f"{name}.bias"] = 0.2 * torch.randn(width)

    def linear(name, out, into):
        state[f"{name}.weight"] = 0.3 * torch.randn(out, into)
        state[f"{name}.bias"] = 0.3 * torch.randn(out)

    for layer in range(depth):
        block = f"visual.transformer.resblocks.{layer}"
        norm(f"{block}.ln_1", d)
        norm(f"{block}.ln_2", d)
        state[f"{block}.attn.in_proj_weight"] = (0.3 * torch.randn(d, d)).repeat(3, 1)
        state[f"{block}.attn.out_proj.weight"] = 0.3 * torch.randn(d, d)
        state[f"{block}.mlp.c_fc"] = 0.3 * torch.randn(d, 4 * d)
        state[f"{block}.mlp.c_proj"] = 0.3 * torch.randn(d, 4 * d)
    norm("visual.ln_post", d)
    for layer in range(text_depth):
        block = f"transformer.resblocks.{layer}"
        norm(f"{block}.ln_1", w)
        norm(f"{block}.ln_2", w)
        state[f"{block}.attn.in_proj_weight"] = 0.3 * torch.randn(3 * w, w)
        state[f"{block}.attn.in_proj_bias"] = 0.3 * torch.randn(3 * w)
        linear(f"{block}.attn.out_proj", w, w)
        linear(f"{block}.mlp.c_fc", 4 * w, w)
        linear(f"{block}.mlp.c_proj", w, 4 * w)
    norm("ln_final", w)
    return state


def in_layers(state):
    """The same weights as the authors' conversion of their JAX code names them."""
    renamed = {}
    for key, value in state.items():
        if ".attn.in_proj_weight" in key and key.startswith("visual."):
            value = value[: len(value) // 3]
        for old, new in (
            ("visual.class_embedding", "visual.cls_token"),
            ("visual.positional_embedding", "visual.pos_embedding"),
            ("visual.ln_post.", "visual.mlp_head.0."),
            ("visual.proj", "visual.mlp_head.1.weight"),
        ):
            key = key.replace(old, new)
        if key.startswith("visual.transformer."):
            key = key.replace("resblocks", "layers").replace(".ln_1.", ".0.norm.")
            key = key.replace(".ln_2.", ".1.norm.").replace(
                ".attn.in_proj_weight", ".0.fn.qkv.weight"
            )
            key = key.replace(".attn.out_proj.", ".0.fn.to_out.0.")
            key = key.replace(".mlp.c_fc", ".1.fn.D").replace(".mlp.c_proj", ".1.fn.D1")
        renamed[key] = value
    renamed["visual.cls_token"] = state["visual.class_embedding"][None, None]
    renamed["visual.mlp_head.1.weight"] = state["visual.proj"].T
    return renamed


def jax_checkpoint(d=24, heads=3, depth=2, p=8, e=20, w=16, text_heads=2, text_depth=3, place="/"):
    """The JAX code's names and shapes; `place`: where the last norms are."""
    state = {
        "params/t": torch.randn(1),
        "params/img/cls": torch.randn(1, 1, d),
        "params/img/pos_embedding": torch.randn(1, 17, d),
        "params/img/embedding/kernel": 0.1 * torch.randn(p, p, 3, d),
        "params/img/head/kernel": torch.randn(d, e),
        "params/txt/Embed_0/embedding": torch.randn(50, w),
        "params/txt/pos_embedding": torch.randn(1, 9, w),
        "params/txt/head/kernel": torch.randn(w, e),
    }

    def norm(name, width):
        state[f"{name}/scale"] = 1 + 0.2 * torch.randn(width)
        state[f"{name}/bias"] = 0.2 * torch.randn(width)

    for layer in range(depth):
        block = f"params/img/Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        norm(f"{block}/LayerNorm_0", d)
        norm(f"{block}/LayerNorm_1", d)
        state[f"{attention}/proj/kernel"] = 0.3 * torch.randn(d, heads, d // heads)
        state[f"{attention}/out/kernel"] = 0.3 * torch.randn(heads, d // heads, d)
        state[f"{block}/OvercompleteISTABlock_0/D"] = 0.3 * torch.randn(d, 4 * d)
        state[f"{block}/OvercompleteISTABlock_0/D1"] = 0.3 * torch.randn(d, 4 * d)
    for layer in range(text_depth):
        block, k = f"params/txt/Transformer/encoderblock_{layer}", text_heads
        attention = f"{block}/MultiHeadDotProductAttention_0"
        norm(f"{block}/LayerNorm_0", w)
        norm(f"{block}/LayerNorm_1", w)
        for name in ("key", "out", "query", "value"):  # a file's order is not ours
            shape = (k, w // k, w) if name == "out" else (w, k, w // k)
            state[f"{attention}/{name}/kernel"] = 0.3 * torch.randn(shape)
            state[f"{attention}/{name}/bias"] = 0.3 * torch.randn(w if name == "out" else shape[1:])
        for name, shape in (("Dense_0", (w, 4 * w)), ("Dense_1", (4 * w, w))):
            state[f"{block}/MlpBlock_0/{name}/kernel"] = 0.3 * torch.randn(shape)
            state[f"{block}/MlpBlock_0/{name}/bias"] = 0.3 * torch.randn(shape[1])
    norm(f"params/img{place}encoder_norm", d)
    norm(f"params/txt{place}encoder_norm", w)
    return {key: value.numpy() for key, value in state.items()}


# --- the official forward passes, in float64 ------------------------------------------------------


def normed(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def odl(y, encode, decode):
    z = F.relu(0.1 * torch.einsum("pm,bnp->bnm", encode, y) - 0.1 * 0.1)
    error = torch.einsum("pm,bnm->bnp", encode, z) - y
    z = F.relu(z - 0.1 * torch.einsum("pm,bnp->bnm", encode, error) - 0.1 * 0.1)
    return torch.einsum("pm,bnm->bnp", decode, z)


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def unit(x):
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


def official_features(state, images, ids, heads=3, text_heads=2):
    """Image and text features (B, e) of a checkpoint with the published names."""
    s = {key: value.double() for key, value in state.items()}

    def norm(x, name):
        return normed(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def attention(x, block, k):
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        own = {name: s[f"{block}.attn.{name}"] for name in names if f"{block}.attn.{name}" in s}
        biased = "in_proj_bias" in own
        mha = nn.MultiheadAttention(x.shape[-1], k, bias=biased, batch_first=True).double()
        mha.load_state_dict(own, strict=True)
        return mha(x, x, x, need_weights=False)[0]

    def depth(of):
        return 1 + max(int(key.removeprefix(of).split(".")[1]) for key in s if key.startswith(of))

    x = F.conv2d(images, s["visual.conv1.weight"], stride=s["visual.conv1.weight"].shape[-1])
    x = x.flatten(2).permute(0, 2, 1)
    x = torch.cat([s["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + s["visual.positional_embedding"]
    for layer in range(depth("visual.transformer.resblocks")):
        block = f"visual.transformer.resblocks.{layer}"
        x = x + attention(norm(x, f"{block}.ln_1"), block, heads)
        x = x + odl(norm(x, f"{block}.ln_2"), s[f"{block}.mlp.c_fc"], s[f"{block}.mlp.c_proj"])
    image_features = norm(x[:, 0], "visual.ln_post") @ s["visual.proj"]

    x = s["token_embedding.weight"][ids] + s["positional_embedding"]
    for layer in range(depth("transformer.resblocks")):
        block = f"transformer.resblocks.{layer}"
        x = x + attention(norm(x, f"{block}.ln_1"), block, text_heads)
        y = norm(x, f"{block}.ln_2") @ s[f"{block}.mlp.c_fc.weight"].T
        y = tanh_gelu(y + s[f"{block}.mlp.c_fc.bias"])
        x = x + y @ s[f"{block}.mlp.c_proj.weight"].T + s[f"{block}.mlp.c_proj.bias"]
    text_features = norm(x, "ln_final")[:, -1] @ s["text_projection"].T
    return unit(image_features), unit(text_features)


def official_jax(state, images, ids, place="/"):
    """The same of the JAX code's checkpoint, by its einsums."""
    s = {key.removeprefix("params/"): torch.tensor(v).double() for key, v in state.items()}

    def norm(x, name):
        return normed(x, s[f"{name}/scale"], s[f"{name}/bias"])

    def attend(q, k, v, out):
        logits = torch.einsum("bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k)
        mixed = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
        return torch.einsum("bqhd,hdw->bqw", mixed, out)

    kernel = s["img/embedding/kernel"]
    p = len(kernel)
    cut = images.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, 3, h, p, w, p)
    x = torch.einsum("bchiwj,ijcd->bhwd", cut, kernel).flatten(1, 2)
    x = torch.cat([s["img/cls"].expand(len(x), 1, -1), x], dim=1) + s["img/pos_embedding"]
    for layer in range(sum(key.endswith("proj/kernel") for key in s)):
        block = f"img/Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        u = torch.einsum(
            "bnd,dhc->bnhc", norm(x, f"{block}/LayerNorm_0"), s[f"{attention}/proj/kernel"]
        )
        x = x + attend(u, u, u, s[f"{attention}/out/kernel"])
        atoms = [s[f"{block}/OvercompleteISTABlock_0/{name}"] for name in ("D", "D1")]
        x = x + odl(norm(x, f"{block}/LayerNorm_1"), *atoms)
    image_features = norm(x, f"img{place}encoder_norm")[:, 0] @ s["img/head/kernel"]

    x = s["txt/Embed_0/embedding"][ids] + s["txt/pos_embedding"]
    for layer in range(sum(key.endswith("query/kernel") for key in s)):
        block = f"txt/Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            torch.einsum("bnw,whd->bnhd", y, s[f"{attention}/{name}/kernel"])
            + s[f"{attention}/{name}/bias"]
            for name in ("query", "key", "value")
        )
        x = x + attend(q, k, v, s[f"{attention}/out/kernel"]) + s[f"{attention}/out/bias"]
        y = norm(x, f"{block}/LayerNorm_1")
        first, second = (f"{block}/MlpBlock_0/Dense_{place}" for place in (0, 1))
        y = tanh_gelu(y @ s[f"{first}/kernel"] + s[f"{first}/bias"])
        x = x + y @ s[f"{second}/kernel"] + s[f"{second}/bias"]
    text_features = norm(x[:, -1], f"txt{place}encoder_norm") @ s["txt/head/kernel"]
    return unit(image_features), unit(text_features)


def assert_computes(state, expected, images, ids):
    """Our model of converted weights gives the expected features."""
    assert infer_sizes(state, small()) == SIZES
    model = some_model(seed=1)
    model.load_state_dict(state, strict=True)
    features = model.double().eval()(images, ids)[:2]
    for got, wanted in zip(features, expected, strict=True):
        assert (wanted[0] - wanted[1]).abs().max() > 0.02  # examples differ
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_converted_weights_compute_the_official_features():
    official, (images, ids) = official_checkpoint(), some_pairs()
    state = convert({"state_dict": {f"module.{k}": v for k, v in official.items()}}, small())
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert_computes(state, official_features(official, images, ids), images, ids)
    assert torch.equal(state["logit_scale"], official["logit_scale"])
    layers = convert(in_layers(official), small())
    assert set(layers) == set(state)
    assert all(torch.equal(layers[key], state[key]) for key in state)


@pytest.mark.parametrize("place", ["/", "/Transformer/"])
def test_the_jax_codes_weights_compute_its_features(tmp_path, place):
    official, (images, ids) = jax_checkpoint(place=place), some_pairs()
    np.savez(tmp_path / "clipa.npz", **official, **{"opt/params/t": np.zeros(3)})
    state = convert(read_checkpoint(tmp_path / "clipa.npz"), small())
    assert_computes(state, official_jax(official, images, ids, place), images, ids)
    assert state["logit_scale"].shape == ()
    assert state["logit_scale"].item() == official["params/t"].item()
    text = convert_text(official, small(VIT))
    assert set(text) == {key for key in state if not key.startswith("vision.")}
    assert all(torch.equal(text[key], state[key]) for key in text)


def test_there_and_back_is_bit_exact():
    official = official_checkpoint()
    again = to_official(convert(official, small()), small())
    assert set(again) == set(official)
    assert all(torch.equal(again[key], official[key]) for key in official)
    mine = some_model().state_dict()
    returned = convert(to_official(mine, small()), small())
    assert set(returned) == set(mine)
    assert all(torch.equal(returned[key], mine[key]) for key in mine)
    storage = returned["vision.blocks.0.attention.subspaces.weight"].untyped_storage()
    assert storage.nbytes() == 4 * 24 * 24  # the other two thirds are not kept


def test_open_clips_text_tower_is_read_the_right_way_round():
    """Against the library's own class, and with a projection that is square, as the published."""
    import open_clip

    torch.manual_seed(3)
    vision = {"image_size": 32, "layers": 1, "width": 24, "head_width": 8, "patch_size": 8}
    text = {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 2, "layers": 3}
    theirs = open_clip.CLIP(
        16,
        vision | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        text
        | {"pool_type": "last", "no_causal_mask": True}
        | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    spec = small(embed_dim=16)
    converted = convert_text(theirs.state_dict(), spec)
    model = build_contrastive(spec, **SIZES)
    assert set(converted) == {key for key in model.state_dict() if not key.startswith("vision.")}
    model.load_state_dict(converted, strict=False)
    _, ids = some_pairs()
    expected = theirs.double().eval().encode_text(ids, normalize=True)  # without the 1e-8
    torch.testing.assert_close(model.double().encode_text(ids), expected, rtol=1e-7, atol=1e-7)


# --- weights that do not fit ----------------------------------------------------------------------


BLOCK = "visual.transformer.resblocks.1"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {f"{BLOCK}.attn.in_proj_weight": torch.arange(72.0)[:, None].expand(72, 24)},
            f"'{BLOCK}.attn.in_proj_weight': its thirds differ",
        ),
        (
            {f"{BLOCK}.attn.in_proj_weight": torch.zeros(24, 24)},
            f"'{BLOCK}.attn.in_proj_weight' has shape (24, 24), expected (72, 24)",
        ),
        ({f"{BLOCK}.mlp.c_proj": None}, f"'{BLOCK}.mlp.c_proj' is missing, expected with sh"),
        ({"visual.conv1.bias": torch.zeros(24)}, "unexpected 'visual.conv1.bias' with shape ("),
        ({"visual.proj": torch.zeros(20, 24)}, "has shape (20, 24), expected (24, 20)"),
        ({"text_projection": torch.zeros(16, 20)}, "has shape (16, 20), expected (20, 16)"),
        ({"logit_scale": torch.zeros(1)}, "'logit_scale' has shape (1,), expected ()"),
        ({"visual.positional_embedding": torch.zeros(18, 24)}, "has shape (18, 24), expected (7"),
        ({"token_embedding.weight": torch.zeros(50)}, "'token_embedding.weight' has shape (50,), "),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(changes, told):
    official = official_checkpoint() | changes
    with pytest.raises(UsageError) as caught:
        convert({k: v for k, v in official.items() if v is not None}, small(), where="a.pth")
    assert str(caught.value).startswith("a.pth: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_told_with_those_that_fit():
    with torch.device("meta"):  # the published sizes, without their gigabytes
        large = official_checkpoint(1024, 24, 14, 6, 1024, 1024, 24, 32_000, 32)
    fits = "; the weights fit crate_alpha_clipa_large_patch14"
    foreign = f"layout (a contrastive model), which this model does not have{fits}"
    for weights in (large, in_layers(large)):
        for name, told in (
            ("crate_alpha_large_patch14", foreign),
            ("gpt2_base", foreign),
            ("crate_mae_base", foreign),
            ("vit_clipa_large_patch14", foreign),
            ("crate_alpha_clipa_huge_patch14", fits),
        ):
            with pytest.raises(UsageError) as caught:
                convert(weights, name, where="x.pth")
            assert str(caught.value).startswith("x.pth: ")
            assert str(caught.value).endswith(told)
            assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"'params/img/emb.* is of the clipa-jax layout \(a con"):
        convert(jax_checkpoint(), small(VIT))
    classifier = build(small(), num_classes=3, image_size=32).state_dict()
    assert infer_sizes(classifier, small()) == {"num_classes": 3, "image_size": 32}
    with pytest.raises(UsageError, match=r"'vision\.class_token' is missing"):
        to_official(classifier, small())
    with pytest.raises(UsageError, match="own layout already"):
        convert(some_model().state_dict(), small())
    with pytest.raises(UsageError, match=f"{VIT}: no official CRATE code has this architecture"):
        to_official(some_model(VIT).state_dict(), VIT)
    for changes in (
        {"outer_bias": True},
        {"decoupled": False},
        {"feedforward": "ISTA"},
        {"attention": "MHSA"},
        {"stem": "linear"},
    ):
        mixed = small(**changes)
        with pytest.raises(UsageError, match="no official CRATE code has this architecture"):
            to_official(build_contrastive(mixed, **SIZES).state_dict(), mixed)
    with pytest.raises(
        UsageError, match=r"contrastive model of a layout not read here \('visual.t"
    ):
        convert({"visual.trunk.cls_token": torch.zeros(1)}, small())


@pytest.mark.parametrize(
    ("weights", "error", "told"),
    [
        ({"conv1.weight": torch.zeros(1)}, UsageError, "no CLIP or CLIPA text tower; its first "),
        ({"visual.conv1.weight": torch.zeros(1)}, UsageError, "no CLIP or CLIPA text tower"),
        (
            {k: v for k, v in official_checkpoint().items() if not k.startswith("visual.")},
            UsageError,
            "holds a text tower alone",
        ),
        (
            official_checkpoint(w=8),
            UsageError,
            "its text tower is not that of a MSSA-ODL model of width 24: 'token_embedding.weight' "
            "has shape (50, 8), expected (50, 16)",
        ),
        (
            official_checkpoint() | {"logit_bias": torch.zeros(())},
            UsageError,
            "unexpected 'logit_b",
        ),
        (
            official_checkpoint() | {"logit_scale": 3.0},
            RunError,
            "'logit_scale' is not a tensor but",
        ),
        (
            official_checkpoint() | {"ln_final.bias": torch.full((16,), math.nan)},
            RunError,
            "'ln_final.bias' holds values that are not finite",
        ),
    ],
)
def test_a_text_tower_that_cannot_be_read_is_told(weights, error, told):
    with pytest.raises(error) as caught:
        convert_text(weights, small(), where="x.pth")
    assert str(caught.value).startswith("x.pth: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_tower_comes_from_either_pytorch_layout():
    official = official_checkpoint()
    expected = convert(official, small())
    damaged = official | {f"{BLOCK}.attn.in_proj_weight": torch.zeros(3)}  # not looked at
    for weights in (official, in_layers(official), damaged):
        text = convert_text(weights, small(VIT, dim=48))
        assert len(text) == 2 + 12 * 3 + 3 + 1
        assert all(torch.equal(text[key], expected[key]) for key in text)


def test_an_official_file_is_imported(tmp_path):
    torch.save(official_checkpoint(), tmp_path / "clipa.pth")
    out = tmp_path / "clipa.safetensors"
    line = import_official(tmp_path / "clipa.pth", "mine", small(), out)
    with safetensors.safe_open(out, framework="pt") as file:
        facts = json.loads(file.metadata()["crate"])
        count = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert f"mine, {count:,} parameters, vocabulary 50, texts of 9 tokens, 32 px; sha256" in line
    assert facts["spec"] == dataclasses.asdict(small())
    assert {key: facts[key] for key in SIZES} == SIZES


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CRATE, VIT])
def test_closed_forms_agree_with_torch(name):
    spec = small(name)
    with torch.device("meta"):
        model = build_contrastive(spec, **SIZES)
        images, ids = torch.empty(1, 3, 32, 32), torch.empty(1, 9, dtype=torch.int64)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert contrastive_parameter_count(spec, **SIZES) == counted
    assert text_parameter_count(spec, 50, 9) == sum(p.numel() for p in model.text.parameters())
    assert parameter_count(spec, image_size=32, num_classes=20) == sum(
        p.numel() for p in model.vision.parameters()
    )
    if name == CRATE:  # the file keeps MSSA's projection three times
        official = sum(value.numel() for value in official_checkpoint().values())
        assert official == counted + spec.depth * 2 * spec.dim**2
    for tower in (model.vision, model.text):
        tower.blocks[-1].partial = False  # compute the tokens too that nothing reads
    for macs, encode, x in (
        (image_macs(spec, image_size=32), model.encode_image, images),
        (text_macs(spec, context_length=9), model.encode_text, ids),
    ):
        with FlopCounterMode(display=False) as counter:
            encode(x)
        assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    ("size", "vision", "size_in_bytes", "file"),
    [
        ("large", "253.7", 2_560_663_556, 2_560_901_931),
        ("huge", "526.8", 3_871_465_476, 3_871_721_133),
    ],
)
def test_published_sizes(size, vision, size_in_bytes, file):
    spec = resolve(f"crate_alpha_clipa_{size}_patch14")
    tower = parameter_count(spec, image_size=224, num_classes=spec.embed_dim)
    assert f"{tower / 1e6:.1f}" == vision
    assert f"{text_parameter_count(spec, 32_000, 32) / 1e6:.1f}" == "336.2"
    whole = {"image_size": 224, "vocab_size": 32_000, "context_length": 32}
    tripled = contrastive_parameter_count(spec, **whole) + 2 * spec.depth * spec.dim**2
    assert 4 * tripled == size_in_bytes
    assert 0 < file - size_in_bytes < 300_000


# --- training -------------------------------------------------------------------------------------


def matching_loss(images, texts, scale):
    logits = scale * images @ texts.T
    labels = torch.arange(len(logits))
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)


def gradients(model, micro, pairs):
    model.zero_grad()
    loss = matching_loss(*model(*pairs, micro))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("micro", [1, 2, 5, 9])
@pytest.mark.parametrize("name", [CRATE, VIT])
def test_the_loss_of_a_whole_batch_has_the_same_gradients_in_parts(name, micro):
    model, pairs = some_model(name).double().train(), some_pairs()
    loss, expected = gradients(model, None, pairs)
    assert all(gradient is not None and gradient.any() for gradient in expected.values())
    again, found = gradients(model, micro, pairs)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_what_is_dropped_in_a_part_is_dropped_when_it_is_computed_again():
    model, (images, ids) = some_model(drop_path=0.5).double().train(), some_pairs(8)
    model.freeze_text()
    _, texts, scale = model(images, ids)

    def backward(encode):
        model.zero_grad()
        torch.manual_seed(4)
        matching_loss(encode(), texts, scale).backward()
        return {k: p.grad for k, p in model.vision.named_parameters()}

    expected = backward(lambda: torch.cat([model.encode_image(x) for x in images.split(3)]))
    found = backward(lambda: model.encode_image(images, 3))
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_parts_keep_nothing_but_their_inputs_and_results():
    model, pairs = some_model().train(), some_pairs(16, dtype=torch.float32)

    def kept(micro) -> int:
        pointers = {}
        own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *pairs]}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                pointers[storage.data_ptr()] = tensor  # alive, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = model(*pairs, micro)  # noqa: F841  (its graph is what is looked at)
            return sum(tensor.untyped_storage().nbytes() for tensor in pointers.values())

    whole = kept(None)
    assert whole > 16 * 4 * 17 * 24 * 20  # activations of every layer
    assert kept(4) < whole / 50


def test_a_frozen_text_tower_learns_nothing_and_builds_no_graph():
    model, (images, ids) = some_model().double().train(), some_pairs()
    expected = model.encode_text(ids).detach()
    model.freeze_text()
    for micro in (None, 2):
        texts = model.encode_text(ids, micro)
        assert texts.grad_fn is None
        assert not texts.requires_grad
        torch.testing.assert_close(texts, expected, rtol=1e-12, atol=1e-12)
        _, found = gradients(model, micro, (images, ids))
        for key, gradient in found.items():
            assert (gradient is not None) == key.startswith("vision."), key
    before = model.logit_scale.clone()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model(images, ids)[2] == 100  # used as at most 100, and left as it came
    assert (before, model.logit_scale) == (pytest.approx(math.log(1 / 0.07)), 9.0)


def test_the_scale_is_at_most_100_and_can_fall_again():
    model, (images, ids) = some_model(), some_pairs(dtype=torch.float32)
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    assert model.eval()(images, ids)[2].item() == 100.0
    assert model.logit_scale.item() == 6.0  # looking changes nothing
    scale = model.train()(images, ids)[2]
    assert 99.99 < scale.item() <= 100
    scale.backward()
    assert model.logit_scale.grad.item() == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("micro", [None, 2])
def test_features_are_unit_vectors_in_float32_whatever_the_precision(micro):
    model, (images, ids) = some_model(), some_pairs(dtype=torch.float32)
    expected = [x.detach() for x in model(images, ids)[:2]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(images, ids, micro)[:2]
        sum(x.sum() for x in features).backward()
    for got, wanted in zip(features, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.norm(dim=1), torch.ones(5), rtol=0, atol=1e-6)
        assert 0 < (got - wanted).abs().max() < 0.05
    model.bfloat16()
    assert model.encode_image(images.bfloat16()).dtype == torch.float32


def test_every_weight_starts_as_published():
    torch.manual_seed(0)
    wide = {"dim": 64, "heads": 4, "text_dim": 128, "text_heads": 4, "embed_dim": 96}
    model = build_contrastive(small(**wide), **SIZES | {"vocab_size": 500})
    state = model.state_dict()
    expected = {
        "vision.head.weight": 0.02,
        "vision.positions": 0.02,
        "vision.blocks.1.attention.subspaces.weight": 0.02,
        "vision.blocks.1.feedforward.dictionary": math.sqrt(2 / 64),
        "text.token_embedding.weight": 0.02,
        "text.positions": 0.01,
        "text.blocks.2.attention.qkv.weight": 128**-0.5,
        "text.blocks.2.attention.projection.weight": (2 * 3 * 128) ** -0.5,
        "text.blocks.2.feedforward.hidden.weight": (2 * 128) ** -0.5,
        "text.blocks.2.feedforward.output.weight": (2 * 3 * 128) ** -0.5,
        "text.head.weight": 128**-0.5,
    }
    for key, deviation in expected.items():
        tensor = state[key]
        assert tensor.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(tensor.numel()))
        assert abs(tensor.mean().item()) < 4 * deviation / math.sqrt(tensor.numel())
    for key, tensor in state.items():
        if key.endswith(".bias"):
            assert not tensor.any(), key
    assert "vision.head.bias" not in state
    assert "text.head.bias" not in state
    same, other = some_model(seed=5).state_dict(), some_model(seed=6).state_dict()
    again = some_model(seed=5).state_dict()
    assert all(torch.equal(again[key], same[key]) for key in same)
    assert not torch.equal(other["text.positions"], same["text.positions"])


def test_the_next_stage_takes_everything_and_interpolates_positions():
    parent, child = some_model(seed=1), some_model(seed=2, sizes=SIZES | {"image_size": 64})
    told = transfer_weights(child, parent.state_dict(), [])
    assert told == {"new": [], "resized": ["vision.positions"]}
    _, ids = some_pairs(dtype=torch.float32)
    assert torch.equal(child.encode_text(ids), parent.encode_text(ids))
    tower = build(small(), num_classes=20, image_size=32)
    tower.load_state_dict(vision_weights(parent.state_dict()), strict=True)
    images = some_pairs(dtype=torch.float32)[0]
    expected = unit(tower.eval()(images))
    torch.testing.assert_close(parent.eval().encode_image(images), expected)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "ids", "told"),
    [
        ((2, 3, 40, 40), torch.zeros(2, 9, dtype=torch.int64), "takes images (B, 3, 32, 32), got "),
        (
            (2, 3, 32, 32),
            torch.zeros(2, 8, dtype=torch.int64),
            "takes ids (B, 9) int64, got (2, 8)",
        ),
        ((2, 3, 32, 32), torch.zeros(2, 10, dtype=torch.int64), "ids (B, 9) int64, got (2, 10)"),
        ((2, 3, 32, 32), torch.zeros(2, dtype=torch.int64), "ids (B, 9) int64, got (2,) int64"),
        ((2, 3, 32, 32), torch.zeros(2, 9), "takes ids (B, 9) int64, got (2, 9) float32"),
        ((2, 3, 32, 32), torch.full((2, 9), 50), "token 50 is outside the vocabulary of 50"),
        ((2, 3, 32, 32), torch.full((2, 9), -1), "token -1 is outside the vocabulary of 50"),
        (
            (2, 3, 32, 32),
            torch.zeros(3, 9, dtype=torch.int64),
            "2 images and 3 texts: a batch needs one text an image",
        ),
    ],
)
def test_bad_input_is_one_line(images, ids, told):
    with pytest.raises(UsageError) as caught:
        some_model()(torch.zeros(images), ids)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        some_model()(torch.zeros(images), ids, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"context_length": 8.0}, "context_length must be an integer, got 8.0 (float)"),
        ({"image_size": 225}, "image_size 225 is not divisible by patch_size 16"),
        ({"drop_path": 1}, "drop_path must be a number in [0, 1), got 1"),
        (
            {"num_classes": 9},
            f"{CRATE} is a contrastive model and has no num_classes; it has image",
        ),
        ({"text_heads": 7}, "text_dim 1024 is not divisible by text_heads 7"),
        (
            {"text_depth": None},
            "give all of embed_dim, text_dim, text_depth and text_heads, or none",
        ),
        ({"causal": True}, "a model with a text tower cannot be causal or have a decoder"),
    ],
)
def test_bad_requests_are_one_line(options, told):
    with torch.device("meta"), pytest.raises(UsageError) as caught:
        create_model(CRATE, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_text_tower_and_parts_of_nothing_are_refused():
    with pytest.raises(UsageError, match="a contrastive model needs a text tower"):
        build_contrastive(resolve("crate_alpha_tiny_patch16"), **SIZES)
    with pytest.raises(UsageError, match="micro must be at least 1, got 0"):
        some_model().encode_image(torch.zeros(2, 3, 32, 32), 0)
