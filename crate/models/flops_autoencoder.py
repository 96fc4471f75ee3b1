"""Parameters and multiply-accumulates of a masked autoencoder in closed form; no torch.

Beside `complexity`, which every classifier's run depends on. d, e widths of encoder and decoder, L
depth, N patches, p patch size. All functions raise `UsageError` for sizes that make no sense.
"""

import math
from dataclasses import replace

from crate.errors import UsageError
from crate.models.flops import block_macs, block_parameters
from crate.models.spec import ModelSpec


def kept_patches(patches: int, mask_ratio: float) -> int:
    """How many of N patches a masked autoencoder sees: N (1 − mask_ratio), rounded down.

    Raises `UsageError` where that is none of them or all.
    """
    number = type(mask_ratio) in (int, float) and math.isfinite(mask_ratio)
    if not (number and 0 < mask_ratio < 1):
        raise UsageError(f"mask_ratio must be a number in (0, 1), got {mask_ratio!r}")
    kept = int(patches * (1 - mask_ratio))
    if kept in (0, patches):
        what = "masks none" if kept else "keeps none"
        raise UsageError(f"mask_ratio {mask_ratio} {what} of {patches:,} patches")
    return kept


def autoencoder_parameter_count(spec: ModelSpec, *, image_size: int) -> int:
    """Parameters of a whole masked autoencoder, with frozen positions and what it does not use.

    The papers count like this. For CRATE-MAE: 2L(3d² + 5d) + 2(3p²d) + d² + 2(N + 1)d + 3p² + 8d.
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
    """Multiply-accumulates of one image's forward pass, counted as `complexity.macs` does.

    All patches are embedded before some are masked; only the patches are predicted.
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
    """The decoder's blocks; those of an inverse one hold attention and a d x d map, as ISTA's."""
    decoder = spec.decoder_spec
    return replace(decoder, feedforward="ISTA") if spec.decoder == "inverse" else decoder
