"""Parameters and multiply-accumulates of a contrastive model in closed form; no torch.

d, w widths of the vision and the text tower, e of the space they share. All functions
raise `UsageError` for sizes that make no sense.
"""

from crate.models.flops import block_macs, block_parameters, macs, parameter_count
from crate.models.spec import ModelSpec, check_positive_int


def contrastive_parameter_count(
    spec: ModelSpec, *, image_size: int, vocab_size: int, context_length: int
) -> int:
    """Parameters of both towers, their projections and the scale of the logits."""
    vision = parameter_count(spec, image_size=image_size, num_classes=spec.embed_dim)
    return vision + text_parameter_count(spec, vocab_size, context_length) + 1


def text_parameter_count(spec: ModelSpec, vocab_size: int, context_length: int) -> int:
    """Parameters of the text tower: embeddings, blocks, last norm, projection without a bias."""
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
