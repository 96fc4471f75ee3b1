"""Layouts of CRATE's and CRATE-alpha's image classifiers (d width, p patch size, K heads).

alpha-torch   CRATE-alpha's PyTorch classes: conv1.weight (d, 3, p, p), to_out without a bias,
              dictionaries D and D1 (d, 4d), of which D encodes and D1 decodes; the rows of its
              ablation have D alone, (d, 4d) or (d, d)
alpha-jax     the .npz of CRATE-alpha's JAX code: the same under params/, kernels as (in, out),
              those of attention as (d, K, d/K) and (K, d/K, d)
crate-torch   the 2023 CRATE code: to_patch_embedding = LayerNorm, Linear, LayerNorm on a patch
              flattened as (p, p, 3), to_out with a bias, a dictionary weight (d, d)
crate-demo    as crate-torch (crate-demo.pth, of the notebooks on emergence), with a head of two
              linear maps, mlp_head.1 (d, d) and head (classes, d); nothing stands between them, so
              ours is their product

No file shows whether the feed-forward has a residual connection (CRATE-alpha, or its row
"+ decoupled"): the caller knows, who names the model.

Sources: UCSC-VLAA/CRATE-alpha; Ma-Lab-Berkeley/CRATE, model/crate.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crate.checkpoints.layouts.base import (
    Layout,
    Part,
    Parts,
    affine,
    flax_dense,
    flax_norm,
    flax_params,
    join_heads_in,
    join_heads_out,
)
from crate.errors import UsageError
from crate.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def has_alpha(spec: ModelSpec) -> bool:
    """CRATE-alpha and the rows of its ablation."""
    white = spec.attention == "MSSA" and spec.feedforward in ("ISTA", "ODL")
    return white and spec.stem == "conv" and not spec.projection_bias and spec.outer_bias


def has_2023(spec: ModelSpec) -> bool:
    """The 2023 CRATE."""
    white = spec.attention == "MSSA" and spec.feedforward == "ISTA"
    return white and spec.stem == "linear" and spec.projection_bias and spec.outer_bias


def torch_parts(spec: ModelSpec, tokens: int, num_classes: int) -> Parts:
    """Names of the PyTorch codes, CRATE-alpha's or that of 2023 as the stem says."""
    d, p = spec.dim, spec.patch_size
    parts = {
        "cls_token": Part("class_token", (1, 1, d)),
        "pos_embedding": Part("positions", (1, tokens, d)),
    }
    if spec.stem == "conv":
        parts |= affine("conv1", "patch_embedding.projection", d, 3, p, p)
    else:
        pixels = 3 * p * p
        parts |= affine("to_patch_embedding.1", "patch_embedding.norm1", pixels)
        parts |= affine("to_patch_embedding.2", "patch_embedding.projection", d, pixels)
        parts |= affine("to_patch_embedding.3", "patch_embedding.norm2", d)
    for layer in range(spec.depth):
        there, here = f"transformer.layers.{layer}", f"blocks.{layer}"
        parts |= affine(f"{there}.0.norm", f"{here}.norm1", d)
        parts |= affine(f"{there}.1.norm", f"{here}.norm2", d)
        parts[f"{there}.0.fn.qkv.weight"] = Part(f"{here}.attention.subspaces.weight", (d, d))
        parts |= affine(f"{there}.0.fn.to_out.0", f"{here}.attention.projection", d, d)
        if not spec.projection_bias:
            del parts[f"{there}.0.fn.to_out.0.bias"]
        single = "weight" if spec.stem == "linear" else "D"
        parts |= dictionaries(spec, f"{there}.1.fn.", f"{here}.feedforward.", single)
    parts |= affine("mlp_head.0", "norm", d)
    parts |= affine("mlp_head.1", "head", num_classes, d)
    if not spec.outer_bias:
        del parts["conv1.bias"], parts["mlp_head.1.bias"]
    return parts


def is_demo(weights: Mapping[str, Any]) -> bool:
    return "head.weight" in weights


def with_one_head(weights: dict[str, Any]) -> dict[str, Any]:
    """The head's two linear maps as one: W₂(W₁x + b₁) + b₂, multiplied in float64."""
    from crate.weights import to_float32

    weights, maps = dict(weights), []
    for name in ("mlp_head.1", "head"):
        for key, axes in ((f"{name}.weight", 2), (f"{name}.bias", 1)):
            if len(getattr(weights.get(key), "shape", ())) != axes:
                raise UsageError(f"'{key}' is missing, or has not {axes} axes")
            maps.append(to_float32(weights[key], key)[0].double())
    first, bias, second, last = maps
    if (len(bias), len(last)) != (len(first), len(second)) or second.shape[1] != len(first):
        raise UsageError("the shapes of 'mlp_head.1' and 'head' do not fit each other")
    del weights["head.weight"], weights["head.bias"]
    weights["mlp_head.1.weight"] = (second @ first).float()
    weights["mlp_head.1.bias"] = (second @ bias + last).float()
    return weights


def dictionaries(spec: ModelSpec, there: str, here: str, single: str = "D") -> Parts:
    """The dictionaries of one layer; `single`: the name of ISTA's."""
    d = spec.dim
    if spec.feedforward == "ISTA":
        return {f"{there}{single}": Part(f"{here}dictionary", (d, d))}
    parts = {f"{there}D": Part(f"{here}dictionary", (d, spec.dictionary_ratio * d))}
    if spec.decoupled:
        parts[f"{there}D1"] = Part(f"{here}decoder", (d, spec.dictionary_ratio * d))
    return parts


def name_dictionaries(weights: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of the ablation's first row as D; some files call it weight, as in 2023."""

    def named(key: str) -> str:
        short = f"{key.removesuffix('weight')}D" if key.endswith(".1.fn.weight") else key
        return key if short in weights else short

    return {named(key): value for key, value in weights.items()}


def flax_parts(spec: ModelSpec, tokens: int, num_classes: int) -> Parts:
    """Names of the JAX code; a kernel of a convolution is (p, p, in, out)."""
    d, p, k = spec.dim, spec.patch_size, spec.heads
    parts = {
        "params/cls": Part("class_token", (1, 1, d)),
        "params/pos_embedding": Part("positions", (1, tokens, d)),
        "params/embedding/kernel": Part(
            "patch_embedding.projection.weight", (p, p, 3, d), kernel_of_convolution
        ),
        "params/embedding/bias": Part("patch_embedding.projection.bias", (d,)),
    }
    for layer in range(spec.depth):
        there, here = f"params/Transformer/encoderblock_{layer}", f"blocks.{layer}"
        parts |= flax_norm(f"{there}/LayerNorm_0", f"{here}.norm1", d)
        parts |= flax_norm(f"{there}/LayerNorm_1", f"{here}.norm2", d)
        attention = f"{there}/MultiHeadDotProductSubspaceAttention_0"
        parts[f"{attention}/proj/kernel"] = Part(
            f"{here}.attention.subspaces.weight", (d, k, d // k), join_heads_in
        )
        parts[f"{attention}/out/kernel"] = Part(
            f"{here}.attention.projection.weight", (k, d // k, d), join_heads_out
        )
        block = "ISTABlock_0" if spec.feedforward == "ISTA" else "OvercompleteISTABlock_0"
        parts |= dictionaries(spec, f"{there}/{block}/", f"{here}.feedforward.")
    parts |= flax_norm("params/encoder_norm", "norm", d)
    parts |= flax_dense("params/head", "head", d, num_classes)
    if not spec.outer_bias:
        del parts["params/embedding/bias"], parts["params/head/bias"]
    return parts


def kernel_of_convolution(kernel: "torch.Tensor") -> "torch.Tensor":
    """(p, p, in, out) → (out, in, p, p)."""
    return kernel.permute(3, 2, 0, 1)


LAYOUTS = (
    Layout(
        name="alpha-torch",
        kind="vision",
        sign="conv1.weight",
        fits=has_alpha,
        parts=torch_parts,
        sized_by={"tokens": "pos_embedding", "num_classes": "mlp_head.1.weight"},
        exported=True,
        tidy=name_dictionaries,
    ),
    Layout(
        name="alpha-jax",
        kind="vision",
        sign="params/embedding/kernel",
        fits=has_alpha,
        parts=flax_parts,
        sized_by={"tokens": "params/pos_embedding", "num_classes": "params/head/bias"},
        section="params/",
        tidy=flax_params,
    ),
    Layout(  # before crate-torch, whose sign it has too
        name="crate-demo",
        kind="vision",
        sign="to_patch_embedding.2.weight",
        fits=has_2023,
        parts=torch_parts,
        sized_by={"tokens": "pos_embedding", "num_classes": "mlp_head.1.weight"},
        confirm=is_demo,
        tidy=with_one_head,
    ),
    Layout(
        name="crate-torch",
        kind="vision",
        sign="to_patch_embedding.2.weight",
        fits=has_2023,
        parts=torch_parts,
        sized_by={"tokens": "pos_embedding", "num_classes": "mlp_head.1.weight"},
        exported=True,
    ),
)
