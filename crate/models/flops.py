"""Parameters and multiply-accumulates of a model in closed form; no torch.

d width, L depth, N patches, p patch size, T tokens, V vocabulary. All functions raise `UsageError`
for sizes that make no sense.
"""

from crate.layers.operators import ATTENTION, FEEDFORWARD
from crate.models.spec import ModelSpec, check_positive_int


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
    """Parameters of the whole language model; the head is the token embedding, and counted once.

    positions: count the position embedding; nanoGPT's and CRATE-GPT's code print sizes without it.
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
    The operators count as published: the 2023 ISTA is three d x d products per token (D x,
    DᵀD x, Dᵀx), ours folds them into one; ODL is four d x 4d products.
    """
    check_positive_int("num_classes", num_classes)
    d = spec.dim
    patches = spec.grid(image_size) ** 2
    stem_and_head = patches * 3 * spec.patch_size**2 * d + d * num_classes
    return spec.depth * block_macs(spec, patches + 1) + stem_and_head


def language_macs(spec: ModelSpec, *, vocab_size: int, tokens: int) -> int:
    """Multiply-accumulates of the forward pass of one sequence, logits of all its T tokens.

    Counted as `macs` does; attention's T²d products whole, although half of them are masked.
    """
    check_positive_int("vocab_size", vocab_size)
    check_positive_int("tokens", tokens)
    return spec.depth * block_macs(spec, tokens) + tokens * spec.dim * vocab_size


def block_macs(spec: ModelSpec, tokens: int) -> int:
    """Multiply-accumulates of one block over T tokens: linear maps, and attention's 2T²d."""
    linear = ATTENTION[spec.attention].macs(spec) + FEEDFORWARD[spec.feedforward].macs(spec)
    return tokens * linear + 2 * tokens**2 * spec.dim
