"""Parameters and multiply-accumulates of a model in closed form; no torch.

d width, L depth, N patches, p patch size. Both functions raise `UsageError` for sizes that make no
sense (`ModelSpec.grid`).
"""

from crate.models.registry import ModelSpec, check_positive_int


def parameter_count(spec: ModelSpec, *, image_size: int, num_classes: int) -> int:
    """Parameters of the whole model, head included.

    For CRATE-alpha: L(2d² + 8d² + 4d) + (3p²d + d) + (N + 1)d + d + 2d + (d + 1) classes.
    """
    check_positive_int("num_classes", num_classes)
    d = spec.dim
    patches = spec.grid(image_size) ** 2
    pixels = 3 * spec.patch_size**2

    attention = d * d + d * spec.projection_bias
    attention += d * d if spec.attention == "MSSA" else 3 * (d * d + d * spec.qkv_bias)
    feedforward = {
        "ISTA": d * d,
        "ODL": (1 + spec.decoupled) * spec.dictionary_ratio * d * d,
        "MLP": 2 * spec.mlp_ratio * d * d + spec.mlp_ratio * d + d,
    }[spec.feedforward]
    block = attention + feedforward + 4 * d
    stem = pixels * d + d
    if spec.stem == "linear":
        stem += 2 * pixels + 2 * d
    tokens = (patches + 1) * d + d
    head = 2 * d + d * num_classes + num_classes
    return spec.depth * block + stem + tokens + head


def macs(spec: ModelSpec, *, image_size: int, num_classes: int) -> int:
    """Multiply-accumulates of one image's forward pass; twice this is FLOPs.

    Counts matrix products only: every linear map, attention's two N²d products, stem and head.
    The operators count as published: the 2023 ISTA is three d x d products per token (D x,
    DᵀD x, Dᵀx), ours folds them into one; ODL is four d x 4d products.
    """
    check_positive_int("num_classes", num_classes)
    d = spec.dim
    patches = spec.grid(image_size) ** 2
    tokens = patches + 1

    attention = (2 if spec.attention == "MSSA" else 4) * d * d
    feedforward = {
        "ISTA": 3 * d * d,
        "ODL": 4 * spec.dictionary_ratio * d * d,
        "MLP": 2 * spec.mlp_ratio * d * d,
    }[spec.feedforward]
    block = tokens * (attention + feedforward) + 2 * tokens**2 * d
    return spec.depth * block + patches * 3 * spec.patch_size**2 * d + d * num_classes
