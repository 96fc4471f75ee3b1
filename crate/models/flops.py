"""Parameters and multiply-accumulates in closed form; no torch.

For vision and language models, masked autoencoders, contrastive models, truncated backbones and
segmentation decoders. d width, L depth, N = g² patches, p patch size, T
tokens, V vocabulary, C classes. All functions raise `UsageError` for invalid sizes.
"""

import math
from dataclasses import replace

from crate.errors import UsageError
from crate.layers.operators import ATTENTION, FEEDFORWARD
from crate.models.spec import ModelSpec, check_positive_int

# As in crate/models/segmenter.py, which imports torch.
POOLED = sum(scale**2 for scale in (1, 2, 3, 6))  # pixels of UPerNet's pooled maps together
AUXILIARY_CHANNELS = 256


# --- vision and language models -----------------------------------------------------------


def parameter_count(spec: ModelSpec, *, image_size: int, num_classes: int) -> int:
    """Parameters of the whole model, head included.

    For CRATE-alpha: L(2d² + 8d² + 4d) + (3p²d + d) + (N + 1)d + d + 2d + (d + 1) classes.
    """
    check_positive_int("num_classes", num_classes)
    d = spec.dim
    patches = spec.grid(image_size) ** 2
    pixels = 3 * spec.patch_size**2

    stem = pixels * d + d * spec.outer_bias
    if spec.stem == "linear":
        stem += 2 * pixels + 2 * d
    tokens = (patches + 1) * d + d
    head = 2 * d + d * num_classes + num_classes * spec.outer_bias
    return spec.depth * block_parameters(spec) + stem + tokens + head


def language_parameter_count(
    spec: ModelSpec, *, vocab_size: int, block_size: int, positions: bool = True
) -> int:
    """Parameters of the whole language model; the head is the token embedding and counts once.

    positions: count the position embedding; the code of nanoGPT and CRATE-GPT does not.
    For CRATE-GPT: L(3d² + 5d) + V d + block_size d.
    """
    check_positive_int("vocab_size", vocab_size)
    check_positive_int("block_size", block_size)
    embeddings = (vocab_size + block_size * positions) * spec.dim
    return spec.depth * block_parameters(spec) + embeddings + 2 * spec.dim * spec.final_norm


def block_parameters(spec: ModelSpec) -> int:
    """Parameters of one block: its operators and two LayerNorms."""
    attention, feedforward = ATTENTION[spec.attention], FEEDFORWARD[spec.feedforward]
    return attention.parameters(spec) + feedforward.parameters(spec) + 4 * spec.dim


def macs(spec: ModelSpec, *, image_size: int, num_classes: int) -> int:
    """Multiply-accumulates of one image's forward pass; twice this is FLOPs.

    Counts matrix products only: every linear map, attention's two N²d products, stem and head.
    Operators count as published: the 2023 ISTA is three d x d products per token (D x, DᵀD x, Dᵀx),
    of which ours needs one; ODL is four d x 4d products.
    """
    check_positive_int("num_classes", num_classes)
    d = spec.dim
    patches = spec.grid(image_size) ** 2
    stem_and_head = patches * 3 * spec.patch_size**2 * d + d * num_classes
    return spec.depth * block_macs(spec, patches + 1) + stem_and_head


def language_macs(spec: ModelSpec, *, vocab_size: int, tokens: int) -> int:
    """Multiply-accumulates of the forward pass of one sequence, with logits of all T tokens.

    Counted as in `macs`; attention's T²d products count in full, although half is masked.
    """
    check_positive_int("vocab_size", vocab_size)
    check_positive_int("tokens", tokens)
    return spec.depth * block_macs(spec, tokens) + tokens * spec.dim * vocab_size


def block_macs(spec: ModelSpec, tokens: int) -> int:
    """Multiply-accumulates of one block over T tokens: its linear maps and attention's 2T²d."""
    linear = ATTENTION[spec.attention].macs(spec) + FEEDFORWARD[spec.feedforward].macs(spec)
    return tokens * linear + 2 * tokens**2 * spec.dim


# --- masked autoencoders: d, e widths of encoder and decoder ------------------------------


def kept_patches(patches: int, mask_ratio: float) -> int:
    """The number of visible patches of N: N (1 − mask_ratio), rounded down.

    Raises `UsageError` if that is 0 or N.
    """
    number = type(mask_ratio) in (int, float) and math.isfinite(mask_ratio)
    if not (number and 0 < mask_ratio < 1):
        raise UsageError(f"mask_ratio must be a number in (0, 1), got {mask_ratio!r}")
    kept = int(patches * (1 - mask_ratio))
    if kept in (0, patches):
        share = "none" if kept else "all"
        raise UsageError(f"mask_ratio {mask_ratio} masks {share} of {patches:,} patches")
    return kept


def autoencoder_parameter_count(spec: ModelSpec, *, image_size: int) -> int:
    """Parameters of a masked autoencoder, including frozen and unused ones, as the papers count.

    For CRATE-MAE: 2L(3d² + 5d) + 2(3p²d) + d² + 2(N + 1)d + 3p² + 8d.
    """
    decoder = _decoder(spec)
    d, e, pixels = spec.dim, decoder.dim, 3 * spec.patch_size**2
    tokens = spec.grid(image_size) ** 2 + 1
    stem, class_token, norms = pixels * d + d, d, 2 * d + 2 * e
    mask_token = d if spec.mask_tokens == "encoder" else e
    embedding, prediction = d * e + e, e * pixels + pixels
    around = stem + class_token + mask_token + tokens * (d + e) + norms + embedding + prediction
    blocks = spec.depth * block_parameters(spec) + decoder.depth * block_parameters(decoder)
    return around + blocks


def autoencoder_macs(spec: ModelSpec, *, image_size: int, mask_ratio: float = 0.75) -> int:
    """Multiply-accumulates of one image's forward pass, counted as `macs` does.

    All patches are embedded, before masking; the decoder predicts patches, not the class token.
    """
    decoder = _decoder(spec)
    d, e, pixels = spec.dim, decoder.dim, 3 * spec.patch_size**2
    patches = spec.grid(image_size) ** 2
    kept = kept_patches(patches, mask_ratio)
    seen = 1 + (patches if spec.mask_tokens == "encoder" else kept)
    block = block_macs(decoder, patches + 1)
    if spec.decoder == "inverse":
        block -= 2 * (patches + 1) * e * e  # one product per token; ISTA counts as three
    embedding = seen * d * e if spec.embeds_decoder else 0
    around = patches * pixels * (d + e) + embedding
    return around + spec.depth * block_macs(spec, seen) + decoder.depth * block


def _decoder(spec: ModelSpec) -> ModelSpec:
    """The spec of the decoder's blocks; an inverse block has the parameters of an ISTA block."""
    decoder = spec.decoder_spec
    return replace(decoder, feedforward="ISTA") if spec.decoder == "inverse" else decoder


# --- contrastive models: d, w widths of the towers, e of the shared space -------------------


def contrastive_parameter_count(
    spec: ModelSpec, *, image_size: int, vocab_size: int, context_length: int
) -> int:
    """Parameters of both towers, their projections and the scale of the logits."""
    vision = parameter_count(spec, image_size=image_size, num_classes=spec.embed_dim)
    return vision + text_parameter_count(spec, vocab_size, context_length) + 1


def text_parameter_count(spec: ModelSpec, vocab_size: int, context_length: int) -> int:
    """Parameters of the text tower: embeddings, blocks, last norm, projection without bias."""
    check_positive_int("vocab_size", vocab_size)
    check_positive_int("context_length", context_length)
    w = spec.text_dim
    blocks = spec.text_depth * block_parameters(spec.text_spec)
    return (vocab_size + context_length) * w + blocks + 2 * w + w * spec.embed_dim


def image_macs(spec: ModelSpec, *, image_size: int) -> int:
    """Multiply-accumulates of one image through the vision tower and its projection."""
    return macs(spec, image_size=image_size, num_classes=spec.embed_dim)


def text_macs(spec: ModelSpec, *, context_length: int) -> int:
    """Multiply-accumulates of one text through the text tower and its projection."""
    check_positive_int("context_length", context_length)
    blocks = spec.text_depth * block_macs(spec.text_spec, context_length)
    return blocks + spec.text_dim * spec.embed_dim


# --- networks used in part, and segmenters: c channels of the decoder ----------------------

# Convolutions count as matrix products; norms do not count.


def backbone_parameter_count(spec: ModelSpec, *, image_size: int, blocks: int) -> int:
    """Parameters of stem, tokens and the first `blocks` (at least 1) blocks; no norm, no head."""
    head = 2 * spec.dim + spec.dim + spec.outer_bias
    return parameter_count(replace(spec, depth=blocks), image_size=image_size, num_classes=1) - head


def backbone_macs(spec: ModelSpec, *, image_size: int, blocks: int) -> int:
    """Multiply-accumulates of one image through the stem and the first `blocks` (0 or more)."""
    tokens = spec.grid(image_size) ** 2 + 1
    whole = macs(spec, image_size=image_size, num_classes=1) - spec.dim
    return whole - (spec.depth - blocks) * block_macs(spec, tokens)


def projection_macs(spec: ModelSpec, *, image_size: int) -> int:
    """Multiply-accumulates of one block's query, key and value: 3d² a token, d² for MSSA."""
    tokens = spec.grid(image_size) ** 2 + 1
    return tokens * spec.dim**2 * (1 if spec.attention == "MSSA" else 3)


def decoder_parameter_count(
    decoder: str, *, dim: int, classes: int, channels: int, auxiliary: bool
) -> int:
    """Parameters of a decoder of crate/models/segmenter.py, "upernet" or "linear".

    UPerNet: 12d² + 5d of the pyramid, 16dc + 99c² + 24c of its head before the classifier.
    """
    d, c = dim, channels
    if decoder == "linear":
        return 2 * d + d * classes + classes
    pyramid = 3 * (4 * d * d + d) + 2 * d
    pooled = 4 * (d * c + 2 * c)
    bottleneck = 9 * (d + 4 * c) * c + 2 * c
    laterals = 3 * (d * c + 2 * c) + 3 * (9 * c * c + 2 * c)
    fused = 9 * 4 * c * c + 2 * c
    head = pyramid + pooled + bottleneck + laterals + fused + c * classes + classes
    a = AUXILIARY_CHANNELS
    return head + (9 * d * a + 2 * a + a * classes + classes if auxiliary else 0)


def decoder_macs(
    decoder: str, *, dim: int, classes: int, channels: int, auxiliary: bool, grid: int
) -> int:
    """Multiply-accumulates of a decoder on maps of g x g patches.

    UPerNet's pyramid has 4g, 2g, g and g/2 (rounded up) pixels a side. auxiliary: include the
    auxiliary head, which is used in training only.
    """
    d, c, n = dim, channels, grid**2
    if decoder == "linear":
        return n * d * classes
    coarse = (-(-grid // 2)) ** 2
    pyramid = 4 * d * d * (n + 4 * n + n)  # transposed convolutions of 2 x 2, without overlap
    pooled = POOLED * d * c
    bottleneck = coarse * 9 * (d + 4 * c) * c
    laterals = 21 * n * (d * c + 9 * c * c)
    fused = 16 * n * (9 * 4 * c * c + c * classes)
    second = n * AUXILIARY_CHANNELS * (9 * d + classes) if auxiliary else 0
    return pyramid + pooled + bottleneck + laterals + fused + second
