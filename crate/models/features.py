"""Features of a trained vision transformer: of a whole image, and of each patch.

B batch, N patches, d width, K heads, H image size. Layers count from 0; patches come row by row,
without the class token. Only the blocks that a feature needs are run.
"""

from torch import Tensor

from crate.errors import UsageError, unknown
from crate.layers.attention import MSSA
from crate.layers.block import run_blocks
from crate.models.autoencoder import NORM_EPS, MaskedAutoencoder
from crate.models.spec import ModelSpec
from crate.models.transfer import transfer_weights, vision_weights
from crate.models.vision import VisionTransformer

PROJECTIONS = ("query", "key", "value")  # in the order of MHSA's `qkv`
PATCH_FEATURES = (*PROJECTIONS, "tokens")
OF_A_PICTURE = ("token", "mean")


def pretrained(
    spec: ModelSpec, weights: dict[str, Tensor] | None, *, image_size: int
) -> VisionTransformer:
    """A model in evaluation mode with given weights, its positions interpolated to `image_size`.

    weights: those of a run, head included. Of a masked autoencoder, the encoder with its last norm
    is taken; of a contrastive model, the vision tower. None: the model is initialised from torch's
    seed (if the spec has a decoder, as the autoencoder's encoder). Weights without a head get a new
    one for one class.
    Raises `UsageError` if patches do not fill the image, `RunError` for another model's weights.
    """
    if weights is None and spec.decoder != "none":
        weights = MaskedAutoencoder(spec, image_size=image_size).state_dict()
    encoder = weights is not None and "mask_token" in weights
    weights = None if weights is None else vision_weights(weights)
    classes = 1
    if weights is not None and "head.weight" in weights:  # else transfer_weights names the error
        classes = len(weights["head.weight"])
    model = VisionTransformer(spec, num_classes=classes, image_size=image_size)
    if weights is not None:
        transfer_weights(model, weights, ["head"] if encoder else [])
    if encoder:
        model.norm.eps = NORM_EPS
    return model.eval()


def image_features(model: VisionTransformer, images: Tensor, kind: str) -> Tensor:
    """One feature vector an image, as a head gets it: (B, 3, H, H) -> (B, d).

    kind: "token", the class token, or "mean" of the patch tokens; followed by the last norm.
    Raises `UsageError` for an unknown kind.
    """
    if kind not in OF_A_PICTURE:
        raise unknown("feature", kind, OF_A_PICTURE)
    x = model.forward_features(images)  # (B, 1 + N, d)
    return model.norm(x[:, 0] if kind == "token" else x[:, 1:].mean(dim=1))


def patch_features(model: VisionTransformer, images: Tensor, layer: int, kind: str) -> Tensor:
    """One feature vector a patch: (B, 3, H, H) -> (B, N, d).

    kind: "tokens", the input of block `layer`; or "query", "key" or "value", the projections of
    that block's attention, heads concatenated. MSSA has one projection for all three.
    Raises `UsageError` for an unknown layer or kind.
    """
    if kind not in PATCH_FEATURES:
        raise unknown("feature", kind, PATCH_FEATURES)
    entering = _entering(model, images, layer)
    if kind == "tokens":
        return entering[:, 1:]
    block = model.blocks[layer]
    x = block.norm1(entering)
    if isinstance(block.attention, MSSA):
        return block.attention.subspaces(x)[:, 1:]
    return block.attention.qkv(x).chunk(3, dim=-1)[PROJECTIONS.index(kind)][:, 1:]


def class_attention(model: VisionTransformer, images: Tensor, layer: int) -> Tensor:
    """Attention of the class token to the patches in block `layer`: (B, 3, H, H) -> (B, K, N).

    Its row of the softmax without the entry of the class token itself, so a row sums to less than
    1. Raises `UsageError` for an unknown layer.
    """
    entering = _entering(model, images, layer)
    x = model.blocks[layer].norm1(entering)  # (B, 1 + N, d)
    attention = model.blocks[layer].attention
    if isinstance(attention, MSSA):
        q = k = attention.subspaces(x)
    else:
        q, k, _ = attention.qkv(x).chunk(3, dim=-1)
    k = k.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # (B, K, 1 + N, d/K)
    q = q[:, :1].unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # (B, K, 1, d/K)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, K, 1, 1 + N)
    return logits.softmax(dim=-1)[:, :, 0, 1:]


def layer_tokens(model: VisionTransformer, images: Tensor, layers: list[int]) -> list[Tensor]:
    """Patch tokens after each of `layers`, in that order: (B, 3, H, H) -> [(B, N, d)].

    Raises `UsageError` for an unknown layer.
    """
    for layer in layers:
        _check_layer(model, layer)
    if not layers:
        return []
    after: dict[int, Tensor] = {}
    x = model.embed(images)
    for layer in range(max(layers) + 1):
        x = model.blocks[layer](x)
        if layer in layers:
            after[layer] = x[:, 1:]
    return [after[layer] for layer in layers]


def _check_layer(model: VisionTransformer, layer: int) -> None:
    depth = len(model.blocks)
    if type(layer) is not int or not 0 <= layer < depth:
        raise UsageError(f"no layer {layer!r}: this model has layers 0 to {depth - 1}")


def _entering(model: VisionTransformer, images: Tensor, layer: int) -> Tensor:
    """Tokens that enter block `layer`: (B, 1 + N, d), class token first."""
    _check_layer(model, layer)
    return run_blocks(model.blocks[:layer], model.embed(images))
