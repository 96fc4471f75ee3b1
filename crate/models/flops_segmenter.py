"""Closed forms of a network that is used in part, or with a decoder; no torch.

Beside `complexity`, which every classifier's run depends on. d width, L depth, N = g² patches,
C classes, c channels of the decoder. Convolutions count as matrix products, norms not at all.
"""

from dataclasses import replace

from crate.models.flops import block_macs, macs, parameter_count
from crate.models.spec import ModelSpec

# Those of crate/models/segmenter.py, which imports torch.
POOLED = sum(scale**2 for scale in (1, 2, 3, 6))  # pixels of UPerNet's pooled maps together
AUXILIARY_CHANNELS = 256


def backbone_parameter_count(spec: ModelSpec, *, image_size: int, blocks: int) -> int:
    """Parameters of the first `blocks` (from 1) blocks and what is below them: no norm, no head."""
    head = 2 * spec.dim + spec.dim + spec.outer_bias
    return parameter_count(replace(spec, depth=blocks), image_size=image_size, num_classes=1) - head


def backbone_macs(spec: ModelSpec, *, image_size: int, blocks: int) -> int:
    """Multiply-accumulates of one image up to and with the first `blocks` (from 0) blocks."""
    tokens = spec.grid(image_size) ** 2 + 1
    whole = macs(spec, image_size=image_size, num_classes=1) - spec.dim
    return whole - (spec.depth - blocks) * block_macs(spec, tokens)


def projection_macs(spec: ModelSpec, *, image_size: int) -> int:
    """Multiply-accumulates of one block's queries, keys and values: (3)d² a token."""
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

    UPerNet's pyramid has 4g, 2g, g and g/2 (rounded up) pixels a side. auxiliary: with the second
    head, which only training has.
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
