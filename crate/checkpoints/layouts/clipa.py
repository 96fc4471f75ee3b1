"""Layouts of CRATE-alpha-CLIPA, an image and a text tower (w width of the text tower, e of
their shared space), and of text towers alone.

clipa-torch    CRATE-alpha's torch_inference/model/clipa_model.py, as its files were published:
               visual.conv1 without a bias, an in_proj_weight (3d, d) that is MSSA's projection
               three times, parameters c_fc, which encodes, and c_proj, which decodes (d, 4d);
               visual.proj (d, e), text_projection (e, w), CLIP's text transformer
clipa-layers   what the authors' conversion of their JAX code writes: the vision tower as
               alpha-torch under visual., the text tower as clipa-torch
clipa-jax      that code's .npz: params/img as alpha-jax's params, params/txt, params/t

No file shows which GELU a text tower has, or whether a text sees what follows (CLIPA's does,
CLIP's does not): the caller knows, who names the model.

Sources: UCSC-VLAA/CRATE-alpha; open_clip's model.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crate.checkpoints.layouts import crate as classifiers
from crate.checkpoints.layouts.base import (
    Layout,
    Part,
    Parts,
    add_axis,
    affine,
    drop_axis,
    flax_dense,
    flax_norm,
    flax_params,
    join_heads_in,
    join_heads_out,
    transpose,
)
from crate.errors import UsageError
from crate.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def has_clipa(spec: ModelSpec) -> bool:
    """CRATE-alpha-CLIPA."""
    white = (spec.attention, spec.feedforward) == ("MSSA", "ODL") and spec.decoupled
    return white and spec.stem == "conv" and not (spec.projection_bias or spec.outer_bias)


def has_text_tower(spec: ModelSpec) -> bool:
    """Any contrastive model."""
    return True


# --- both towers ----------------------------------------------------------------------------------


def clipa_torch_parts(spec: ModelSpec, tokens: int, vocab_size: int, context_length: int) -> Parts:
    tower = clip_vision_parts(spec, tokens)
    return in_vision_tower(tower) | clip_text_parts(spec, vocab_size, context_length)


def clipa_layers_parts(spec: ModelSpec, tokens: int, vocab_size: int, context_length: int) -> Parts:
    tower = under("visual.", classifiers.torch_parts(spec, tokens, spec.embed_dim))
    tower["visual.pos_embedding"] = Part("positions", (tokens, spec.dim), add_axis, drop_axis)
    return in_vision_tower(tower) | clip_text_parts(spec, vocab_size, context_length)


def clipa_flax_parts(spec: ModelSpec, tokens: int, vocab_size: int, context_length: int) -> Parts:
    tower = {
        key.replace("params/", "params/img/"): part
        for key, part in classifiers.flax_parts(spec, tokens, spec.embed_dim).items()
    }
    return in_vision_tower(tower) | flax_text_parts(spec, vocab_size, context_length)


def under(prefix: str, parts: Parts) -> Parts:
    return {f"{prefix}{key}": part for key, part in parts.items()}


def in_vision_tower(parts: Parts) -> Parts:
    return {key: part._replace(ours=f"vision.{part.ours}") for key, part in parts.items()}


def clip_vision_parts(spec: ModelSpec, tokens: int) -> Parts:
    """The vision tower of clipa-torch."""
    d, p = spec.dim, spec.patch_size
    atoms = (d, spec.dictionary_ratio * d)
    parts = {
        "visual.class_embedding": Part(
            "class_token", (d,), lambda w: w[None, None], lambda w: w[0, 0]
        ),
        "visual.positional_embedding": Part("positions", (tokens, d), add_axis, drop_axis),
        "visual.conv1.weight": Part("patch_embedding.projection.weight", (d, 3, p, p)),
    }
    for layer in range(spec.depth):
        there, here = f"visual.transformer.resblocks.{layer}", f"blocks.{layer}"
        parts |= affine(f"{there}.ln_1", f"{here}.norm1", d)
        parts[f"{there}.attn.in_proj_weight"] = Part(
            f"{here}.attention.subspaces.weight",
            (3 * d, d),
            first_third,
            thrice,
            lossy="its thirds differ: a query, a key and a value, where CRATE-alpha has one "
            "projection",
        )
        parts[f"{there}.attn.out_proj.weight"] = Part(f"{here}.attention.projection.weight", (d, d))
        parts |= affine(f"{there}.ln_2", f"{here}.norm2", d)
        parts[f"{there}.mlp.c_fc"] = Part(f"{here}.feedforward.dictionary", atoms)
        parts[f"{there}.mlp.c_proj"] = Part(f"{here}.feedforward.decoder", atoms)
    parts |= affine("visual.ln_post", "norm", d)
    parts["visual.proj"] = Part("head.weight", (d, spec.embed_dim), transpose)
    return parts


def first_third(w: "torch.Tensor") -> "torch.Tensor":
    return w[: len(w) // 3].clone()  # not a view: the rest need not be kept


def thrice(w: "torch.Tensor") -> "torch.Tensor":
    return w.repeat(3, 1)


# --- the text tower -------------------------------------------------------------------------------


def clip_text_parts(spec: ModelSpec, vocab_size: int, context_length: int) -> Parts:
    """CLIP's names of a text tower and of the scale of the logits."""
    text = spec.text_spec
    w, hidden = text.dim, text.mlp_ratio * text.dim
    parts = {
        "token_embedding.weight": Part("text.token_embedding.weight", (vocab_size, w)),
        "positional_embedding": Part("text.positions", (context_length, w), add_axis, drop_axis),
    }
    for layer in range(text.depth):
        there, here = f"transformer.resblocks.{layer}", f"text.blocks.{layer}"
        parts |= affine(f"{there}.ln_1", f"{here}.norm1", w)
        parts[f"{there}.attn.in_proj_weight"] = Part(f"{here}.attention.qkv.weight", (3 * w, w))
        parts[f"{there}.attn.in_proj_bias"] = Part(f"{here}.attention.qkv.bias", (3 * w,))
        parts |= affine(f"{there}.attn.out_proj", f"{here}.attention.projection", w, w)
        parts |= affine(f"{there}.ln_2", f"{here}.norm2", w)
        parts |= affine(f"{there}.mlp.c_fc", f"{here}.feedforward.hidden", hidden, w)
        parts |= affine(f"{there}.mlp.c_proj", f"{here}.feedforward.output", w, hidden)
    parts |= affine("ln_final", "text.norm", w)
    parts["text_projection"] = Part("text.head.weight", (spec.embed_dim, w))
    parts["logit_scale"] = Part("logit_scale", ())
    return parts


def open_clip_text_parts(spec: ModelSpec, vocab_size: int, context_length: int) -> Parts:
    """As `clip_text_parts`; text_projection is (w, e)."""
    parts = clip_text_parts(spec, vocab_size, context_length)
    part = parts["text_projection"]
    parts["text_projection"] = Part(part.ours, part.shape[::-1], transpose)
    return parts


def flax_text_parts(spec: ModelSpec, vocab_size: int, context_length: int) -> Parts:
    """As `clip_text_parts`, for the names of the JAX code."""
    text = spec.text_spec
    w, k, hidden = text.dim, text.heads, text.mlp_ratio * text.dim
    parts = {
        "params/txt/Embed_0/embedding": Part("text.token_embedding.weight", (vocab_size, w)),
        "params/txt/pos_embedding": Part("text.positions", (1, context_length, w)),
    }
    for layer in range(text.depth):
        there, here = f"params/txt/Transformer/encoderblock_{layer}", f"text.blocks.{layer}"
        attention = f"{there}/MultiHeadDotProductAttention_0"
        parts |= flax_norm(f"{there}/LayerNorm_0", f"{here}.norm1", w)
        for name in ("query", "key", "value"):  # the rows of ours, in turn
            parts[f"{attention}/{name}/kernel"] = Part(
                f"{here}.attention.qkv.weight", (w, k, w // k), join_heads_in
            )
            parts[f"{attention}/{name}/bias"] = Part(
                f"{here}.attention.qkv.bias", (k, w // k), lambda w: w.flatten()
            )
        parts[f"{attention}/out/kernel"] = Part(
            f"{here}.attention.projection.weight", (k, w // k, w), join_heads_out
        )
        parts[f"{attention}/out/bias"] = Part(f"{here}.attention.projection.bias", (w,))
        parts |= flax_norm(f"{there}/LayerNorm_1", f"{here}.norm2", w)
        mlp = f"{there}/MlpBlock_0"
        parts |= flax_dense(f"{mlp}/Dense_0", f"{here}.feedforward.hidden", w, hidden)
        parts |= flax_dense(f"{mlp}/Dense_1", f"{here}.feedforward.output", hidden, w)
    parts |= flax_norm("params/txt/encoder_norm", "text.norm", w)
    parts["params/txt/head/kernel"] = Part("text.head.weight", (w, spec.embed_dim), transpose)
    parts["params/t"] = Part("logit_scale", (1,), drop_axis)
    return parts


CLIP_TEXT_SIZES = {
    "vocab_size": "token_embedding.weight",
    "context_length": "positional_embedding",
}
FLAX_TEXT_SIZES = {
    "vocab_size": "params/txt/Embed_0/embedding",
    "context_length": "params/txt/pos_embedding",
}

LAYOUTS = (
    Layout(  # before clipa-torch, whose sign it has too
        name="clipa-layers",
        kind="contrastive",
        sign="visual.cls_token",
        fits=has_clipa,
        parts=clipa_layers_parts,
        sized_by={"tokens": "visual.pos_embedding", **CLIP_TEXT_SIZES},
    ),
    Layout(
        name="clipa-torch",
        kind="contrastive",
        sign="visual.conv1.weight",
        fits=has_clipa,
        parts=clipa_torch_parts,
        sized_by={"tokens": "visual.positional_embedding", **CLIP_TEXT_SIZES},
        exported=True,
    ),
    Layout(
        name="clipa-jax",
        kind="contrastive",
        sign="params/img/embedding/kernel",
        fits=has_clipa,
        parts=clipa_flax_parts,
        sized_by={"tokens": "params/img/pos_embedding", **FLAX_TEXT_SIZES},
        section="params/",
        tidy=flax_params,
    ),
)


# --- text towers alone: `convert_text` ------------------------------------------------------------


def in_crate_alpha_file(weights: Mapping[str, Any]) -> bool:
    """Whether the vision tower beside a text tower is CRATE-alpha's."""
    block = "visual.transformer.resblocks.0.mlp.c_fc", "visual.transformer.layers.0.0.fn.qkv.weight"
    return any(key in weights for key in block)


def without_vision(weights: dict[str, Any]) -> dict[str, Any]:
    """The text tower of a PyTorch file."""
    text = {key: value for key, value in weights.items() if not key.startswith("visual.")}
    if len(text) == len(weights):
        raise UsageError(
            "holds a text tower alone: only the vision tower of the file would tell "
            "which way round its text_projection is"
        )
    return text


def without_flax_vision(weights: dict[str, Any]) -> dict[str, Any]:
    """The text tower of a file of the JAX code."""
    text = {key: value for key, value in weights.items() if not key.startswith("params/img/")}
    return flax_params(text)


CLIP_TEXT = Layout(
    name="clipa-text",
    kind="contrastive",
    sign="token_embedding.weight",
    fits=has_text_tower,
    parts=clip_text_parts,
    sized_by=CLIP_TEXT_SIZES,
    confirm=in_crate_alpha_file,
    tidy=without_vision,
)
TEXT_LAYOUTS = (
    Layout(
        name="clipa-jax-text",
        kind="contrastive",
        sign="params/txt/Embed_0/embedding",
        fits=has_text_tower,
        parts=flax_text_parts,
        sized_by=FLAX_TEXT_SIZES,
        section="params/",
        tidy=without_flax_vision,
    ),
    CLIP_TEXT,
    replace(
        CLIP_TEXT,
        name="open-clip-text",
        parts=open_clip_text_parts,
        confirm=lambda weights: not in_crate_alpha_file(weights),
    ),
)
