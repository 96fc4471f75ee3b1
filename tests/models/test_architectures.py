"""Whole models against independent implementations holding the same weights."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from crate.models.build import build
from crate.models.zoo import resolve

SIZES = {"num_classes": 7, "image_size": 32}
SMALL = {"dim": 24, "heads": 3, "depth": 3, "patch_size": 8}


def small(name, **overrides):
    """A small model in float64 whose biases and norms are not at their trivial start."""
    model = build(resolve(name, **SMALL, **overrides), **SIZES).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def same_values_and_gradients(ours, theirs, images):
    images = images.clone().requires_grad_()
    a, b = ours(images), theirs(images)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    (ga,) = torch.autograd.grad(a.square().sum(), images)
    (gb,) = torch.autograd.grad(b.square().sum(), images)
    assert ga.abs().max() > 1e-3
    torch.testing.assert_close(ga, gb, rtol=1e-8, atol=1e-10)


def test_vit_equals_torchvision():
    ours = small("vit_base_patch16")
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=96,
        num_classes=7, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).double().eval()  # fmt: skip
    names = {
        "patch_embedding.projection": "conv_proj",
        "class_token": "class_token",
        "positions": "encoder.pos_embedding",
        "norm": "encoder.ln",
        "head": "heads.head",
    }
    for layer in range(3):
        here, there = f"blocks.{layer}", f"encoder.layers.encoder_layer_{layer}"
        names[f"{here}.norm1"] = f"{there}.ln_1"
        names[f"{here}.norm2"] = f"{there}.ln_2"
        names[f"{here}.attention.projection"] = f"{there}.self_attention.out_proj"
        names[f"{here}.attention.qkv.weight"] = f"{there}.self_attention.in_proj_weight"
        names[f"{here}.attention.qkv.bias"] = f"{there}.self_attention.in_proj_bias"
        names[f"{here}.feedforward.hidden"] = f"{there}.mlp.0"
        names[f"{here}.feedforward.output"] = f"{there}.mlp.3"
    state = {}
    for key, value in ours.state_dict().items():
        stem, _, leaf = key.rpartition(".")
        state[names[key] if key in names else f"{names[stem]}.{leaf}"] = value
    theirs.load_state_dict(state, strict=True)

    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    same_values_and_gradients(ours.eval(), theirs, images)
    tokens = torch.randn(2, 17, 24, dtype=torch.float64)
    block = theirs.encoder.layers[1]
    torch.testing.assert_close(ours.blocks[1](tokens), block(tokens), rtol=1e-10, atol=1e-10)


def norm(x, layer, eps):
    """LayerNorm from its definition, with the ε a paper's code used."""
    centred = x - x.mean(-1, keepdim=True)
    scale = centred.square().mean(-1, keepdim=True).add(eps).sqrt()
    return centred / scale * layer.weight + layer.bias


def tied_attention(x, operator, heads):
    w = x @ operator.subspaces.weight.T
    b, n, d = w.shape
    w = w.reshape(b, n, heads, d // heads).permute(0, 2, 1, 3)
    a = torch.softmax(torch.einsum("bkic,bkjc->bkij", w, w) * (d // heads) ** -0.5, dim=-1)
    return torch.einsum("bkij,bkjc->bikc", a, w).reshape(b, n, d) @ operator.projection.weight.T


def crate_2023(model, images, heads=3, p=8, eps=1e-5):
    """The 2023 CRATE, from its equations; the ISTA step in the order its code takes it."""
    b, _, height, width = images.shape
    patches = [
        images[:, :, i : i + p, j : j + p].permute(0, 2, 3, 1).reshape(b, -1)
        for i in range(0, height, p)
        for j in range(0, width, p)
    ]
    stem = model.patch_embedding
    x = norm(torch.stack(patches, dim=1), stem.norm1, eps)
    x = norm(x @ stem.projection.weight.T + stem.projection.bias, stem.norm2, eps)
    x = torch.cat([model.class_token.repeat(b, 1, 1), x], dim=1) + model.positions
    for block in model.blocks:
        attended = tied_attention(norm(x, block.norm1, eps), block.attention, heads)
        x = attended + block.attention.projection.bias + x
        y, w = norm(x, block.norm2, eps), block.feedforward.dictionary
        grad_1 = F.linear(F.linear(y, w), w.t())
        grad_2 = F.linear(y, w.t())
        x = F.relu(y + 0.1 * (grad_2 - grad_1) - 0.1 * 0.1)
    return norm(x[:, 0], model.norm, eps) @ model.head.weight.T + model.head.bias


def crate_alpha(model, images, heads=3, p=8, eps=1e-6):
    """CRATE-alpha and its ablation rows, from their equations."""
    stem = model.patch_embedding.projection
    pixels = F.unfold(images, p, stride=p).transpose(1, 2)
    x = pixels @ stem.weight.flatten(1).T + stem.bias
    x = torch.cat([model.class_token.repeat(len(images), 1, 1), x], dim=1) + model.positions
    for block in model.blocks:
        x = tied_attention(norm(x, block.norm1, eps), block.attention, heads) + x
        y = norm(x, block.norm2, eps)
        d = block.feedforward.dictionary
        d1 = d if block.feedforward.decoder is None else block.feedforward.decoder
        z = F.relu(0.1 * (y @ d) - 0.1 * 0.1)
        z = F.relu(z - 0.1 * ((z @ d.T - y) @ d) - 0.1 * 0.1)
        x = z @ d1.T + (x if model.spec.residual else 0)
    return norm(x[:, 0], model.norm, eps) @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("crate_base_patch16", crate_2023),
        ("crate_base_patch32_overcomplete", crate_alpha),
        ("crate_base_patch32_overcomplete_decoupled", crate_alpha),
        ("crate_alpha_base_patch32", crate_alpha),
    ],
)
def test_crate_equals_the_published_architecture(name, literal):
    model = small(name)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    same_values_and_gradients(model, partial(literal, model), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name", ["crate_base_patch16", "crate_alpha_base_patch16", "vit_base_patch16"]
)
def test_gpu_equals_cpu(name):
    model = small(name)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(images)
    torch.testing.assert_close(model.cuda()(images.cuda()).cpu(), expected)
