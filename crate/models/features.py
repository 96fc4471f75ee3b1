"""What a trained vision transformer knows of a picture, and of each patch of it.

Features of the whole picture; tokens, projections and attention of its patches. B batch, N
patches, d width, K heads. Layers are counted from 0; patches come row by row, and the
class token is left out. No block runs that the answer does not need.
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

    weights: a run's, head included; of a masked autoencoder the encoder is taken, with its own last
    norm, of a contrastive model the vision tower; None leaves the model as torch's seed starts it
    (where the spec has a decoder, as it starts the autoencoder's encoder). Without a head, one of
    one class is new.
    Raises `UsageError` for a size its patches do not fill, `RunError` for another model's weights.
    """
    if weights is None and spec.decoder != "none":
        weights = MaskedAutoencoder(spec, image_size=image_size).state_dict()
    encoder = weights is not None and "mask_token" in weights
    weights = None if weights is None else vision_weights(weights)
    classes = 1
    if weights is not None and "head.weight" in weights:  # without it `carry` says what is missing
        classes = len(weights["head.weight"])
    model = VisionTransformer(spec, num_classes=classes, image_size=image_size)
    if weights is not None:
        transfer_weights(model, weights, ["head"] if encoder else [])
    if encoder:
        model.norm.eps = NORM_EPS
    return model.eval()


def image_features(model: VisionTransformer, images: Tensor, kind: str) -> Tensor:
    """One feature vector a picture: (B, 3, H, H) -> (B, d), what a head of that pool would see.

    kind: "token", the class token, or "mean" of the patch tokens; then the last norm.
    Raises `UsageError` for a kind that does not exist.
    """
    if kind not in OF_A_PICTURE:
        raise unknown("feature", kind, OF_A_PICTURE)
    x = model.forward_features(images)  # (B, 1 + N, d)
    return model.norm(x[:, 0] if kind == "token" else x[:, 1:].mean(dim=1))


def patch_features(model: VisionTransformer, images: Tensor, layer: int, kind: str) -> Tensor:
    """One feature vector a patch: (B, 3, H, H) -> (B, N, d).

    kind: "tokens", what enters block `layer`; or "query", "key" or "value", what that block's
    attention projects it to, heads side by side. MSSA has one projection, which is all three.
    Raises `UsageError` for a layer or a kind that does not exist.
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
    """How the class token of block `layer` attends to the patches: (B, 3, H, H) -> (B, K, N).

    Its row of the softmax without its own entry, so a row sums to less than 1.
    Raises `UsageError` for a layer that does not exist.
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

    Raises `UsageError` for a layer that does not exist.
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
        raise UsageError(f"no layer {layer!r}: this model has {depth}, counted from 0")


def _entering(model: VisionTransformer, images: Tensor, layer: int) -> Tensor:
    """Tokens that enter block `layer`: (B, 1 + N, d), class token first."""
    _check_layer(model, layer)
    return run_blocks(model.blocks[:layer], model.embed(images))
