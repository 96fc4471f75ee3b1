"""Layouts of masked autoencoders, in one frame: patch_embed.proj, cls_token, mask_token, …

crate-mae   the CRATE repository's model/crate_ae: blocks.{i}.layers.0.0 is the attention and .1
            the dictionary, in decoder_blocks the other way round
vit-mae     facebookresearch/mae, and the ViT-MAE beside CRATE-MAE: timm's blocks

Sources: Ma-Lab-Berkeley/CRATE; facebookresearch/mae, models_mae.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from crate.checkpoints.layouts.base import Layout, Part, Parts, affine
from crate.errors import UsageError
from crate.models.spec import ModelSpec


def has_crate_mae(spec: ModelSpec) -> bool:
    """CRATE-MAE; its code has one width, and mask tokens before the encoder."""
    white = (spec.attention, spec.feedforward, spec.decoder) == ("MSSA", "ISTA", "inverse")
    return white and has_frame(spec) and not spec.embeds_decoder


def has_vit_mae(spec: ModelSpec) -> bool:
    """ViT-MAE, of He et al. or of one width."""
    black = (spec.attention, spec.feedforward, spec.decoder) == ("MHSA", "MLP", "blocks")
    narrow = spec.mask_tokens == "encoder" and spec.embeds_decoder
    return black and has_frame(spec) and not narrow


def has_frame(spec: ModelSpec) -> bool:
    return spec.stem == "conv" and spec.projection_bias


def crate_mae_parts(spec: ModelSpec, tokens: int) -> Parts:
    return frame(spec, tokens, crate_block, inverse_crate_block)


def vit_mae_parts(spec: ModelSpec, tokens: int) -> Parts:
    return frame(spec, tokens, timm_block, timm_block)


Block = Callable[[ModelSpec, str, int], Parts]  # of a specification, the block's name and its width


def frame(spec: ModelSpec, tokens: int, encoder_block: Block, decoder_block: Block) -> Parts:
    """Official names of an autoencoder around its blocks."""
    decoder = spec.decoder_spec
    d, e, p = spec.dim, decoder.dim, spec.patch_size
    parts = {
        "cls_token": Part("class_token", (1, 1, d)),
        "pos_embed": Part("positions", (1, tokens, d)),
        "mask_token": Part("mask_token", (1, 1, e)),
        "decoder_pos_embed": Part("decoder_positions", (1, tokens, e)),
    }
    parts |= affine("patch_embed.proj", "patch_embedding.projection", d, 3, p, p)
    for layer in range(spec.depth):
        parts |= encoder_block(spec, f"blocks.{layer}", d)
    parts |= affine("norm", "norm", d)
    parts |= affine("decoder_embed", "decoder_embedding", e, d)
    for layer in range(decoder.depth):
        parts |= decoder_block(spec, f"decoder_blocks.{layer}", e)
    parts |= affine("decoder_norm", "decoder_norm", e)
    return parts | affine("decoder_pred", "decoder_prediction", 3 * p * p, e)


def crate_block(spec: ModelSpec, block: str, width: int) -> Parts:
    first, second = f"{block}.layers.0.0", f"{block}.layers.0.1"
    norms = affine(f"{first}.norm", f"{block}.norm1", width)
    norms |= affine(f"{second}.norm", f"{block}.norm2", width)
    dictionary = f"{block}.feedforward.dictionary"
    return norms | crate_operators(first, second, block, dictionary, width)


def inverse_crate_block(spec: ModelSpec, block: str, width: int) -> Parts:
    """The dictionary first, as in ours."""
    first, second = f"{block}.layers.0.0", f"{block}.layers.0.1"
    norms = affine(f"{first}.norm", f"{block}.norm1", width)
    norms |= affine(f"{second}.norm", f"{block}.norm2", width)
    return norms | crate_operators(second, first, block, f"{block}.dictionary", width)


def crate_operators(attention: str, atoms: str, block: str, dictionary: str, width: int) -> Parts:
    parts = {
        f"{attention}.fn.qkv.weight": Part(f"{block}.attention.subspaces.weight", (width, width))
    }
    parts |= affine(f"{attention}.fn.to_out.0", f"{block}.attention.projection", width, width)
    parts[f"{atoms}.fn.weight"] = Part(dictionary, (width, width))
    return parts


def timm_block(spec: ModelSpec, block: str, width: int) -> Parts:
    hidden = spec.mlp_ratio * width
    parts = affine(f"{block}.norm1", f"{block}.norm1", width)
    parts |= affine(f"{block}.attn.qkv", f"{block}.attention.qkv", 3 * width, width)
    if not spec.qkv_bias:
        del parts[f"{block}.attn.qkv.bias"]
    parts |= affine(f"{block}.attn.proj", f"{block}.attention.projection", width, width)
    parts |= affine(f"{block}.norm2", f"{block}.norm2", width)
    parts |= affine(f"{block}.mlp.fc1", f"{block}.feedforward.hidden", hidden, width)
    return parts | affine(f"{block}.mlp.fc2", f"{block}.feedforward.output", width, hidden)


def check_positions(spec: ModelSpec, weights: Mapping[str, Any]) -> None:
    """With mask tokens in the encoder, the official one adds the decoder's positions."""
    if spec.mask_tokens == "decoder":
        return
    if not (weights["pos_embed"] == weights["decoder_pos_embed"]).all():
        raise UsageError(
            "'pos_embed' is not 'decoder_pos_embed', which the official encoder adds instead: an "
            "encoder here has its own"
        )


LAYOUTS = (
    Layout(
        name="crate-mae",
        kind="autoencoder",
        sign="decoder_blocks.0.layers.0.0.fn.weight",
        fits=has_crate_mae,
        parts=crate_mae_parts,
        sized_by={"tokens": "pos_embed"},
        exported=True,
        check=check_positions,
    ),
    Layout(
        name="vit-mae",
        kind="autoencoder",
        sign="decoder_blocks.0.attn.qkv.weight",
        fits=has_vit_mae,
        parts=vit_mae_parts,
        sized_by={"tokens": "pos_embed"},
        exported=True,
        check=check_positions,
    ),
)
