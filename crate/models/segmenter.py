"""Semantic segmentation networks: a vision transformer as backbone, and a decoder.

B batch, S image size, g = S / p patches a side, d width, C classes.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError
from crate.models.build import build
from crate.models.features import layer_tokens
from crate.models.spec import ModelSpec
from crate.models.transfer import transfer_weights
from crate.models.vision import VisionTransformer

AUXILIARY_CHANNELS = 256
DROPOUT = 0.1  # of whole channels before a classifier: mmsegmentation's decode heads


class Decoding(Protocol):
    """The settings of a segmentation recipe that decide its network."""

    image_size: int
    layers: list[int]
    decoder: str
    channels: int | None
    auxiliary: float
    drop_path: float
    dont_load: list[str]


class Segmenter(nn.Module):
    """Decodes the patch tokens of a few layers to one logit a class and pixel.

    images: (B, 3, S, S) -> logits (B, C, S, S) float32 in evaluation; in training a tuple of them:
    the decoder's, and the auxiliary head's if there is one.
    """

    def __init__(self, backbone: VisionTransformer, decoder: nn.Module, layers: list[int]):
        super().__init__()
        self.backbone, self.decoder, self.layers = backbone, decoder, layers

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        tokens = layer_tokens(self.backbone, images, self.layers)
        side = self.backbone.spec.grid(images.shape[-1])
        maps = [t.transpose(1, 2).unflatten(2, (side, side)) for t in tokens]  # (B, d, g, g)
        scores = tuple(
            F.interpolate(score.float(), images.shape[-2:], mode="bilinear", align_corners=False)
            for score in self.decoder(maps)
        )
        return scores if self.training else scores[0]


class UPerNet(nn.Module):
    """UPerNet (Xiao et al. 2018) on a pyramid of four layers' patch tokens, as in BEiT.

    A plain transformer has one resolution; as in BEiT's and MAE's segmentation (arXiv 2106.08254,
    2111.06377), the layers' maps are scaled by 4, 2, 1 and 1/2. The heads are those of the library
    transformers; dropout and initialisation of the classifiers follow mmsegmentation.

    maps: four (B, d, g, g), g at least 1 -> logits (B, C, 4g, 4g), and in training those of the
    auxiliary head, an FCN with one convolution on the third map, (B, C, g, g).
    """

    def __init__(self, width: int, classes: int, *, channels: int, auxiliary: bool):
        super().__init__()
        # an import of 3 to 5 seconds
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        config = UperNetConfig(
            hidden_size=channels,
            pool_scales=(1, 2, 3, 6),
            auxiliary_channels=AUXILIARY_CHANNELS,
            auxiliary_num_convs=1,
            auxiliary_concat_input=False,
            num_labels=classes,
        )
        self.pyramid = nn.ModuleList(
            (
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            )
        )
        self.head = _prepare(UperNetHead(config, [width] * 4))
        self.auxiliary = _prepare(UperNetFCNHead(config, [width] * 4)) if auxiliary else None

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        levels = [scale(m) for scale, m in zip(self.pyramid, maps, strict=True)]
        if self.auxiliary is None or not self.training:
            return (self.head(levels),)
        return self.head(levels), self.auxiliary(levels)


class LinearDecoder(nn.Module):
    """BatchNorm and a linear map of each patch token of the last map.

    The linear decoder of DINOv2's segmentation (arXiv 2304.07193). There the backbone is frozen and
    has its last norm; here it is trained, as with UPerNet.
    maps: (B, d, g, g) each -> logits (B, C, g, g).
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, classes, kernel_size=1)
        _start_classifier(self.classifier)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor]:
        return (self.classifier(self.norm(maps[-1])),)


def build_segmenter(
    spec: ModelSpec, recipe: Decoding, classes: int, weights: dict[str, Tensor] | None
) -> tuple[Segmenter, dict]:
    """The network of a segmentation recipe, deterministic given `torch.manual_seed`.

    weights: a parent's, transferred to the backbone; None initialises it. The decoder is always
    new. The backbone has no head, no last norm and no block above the last layer that the decoder
    reads, so that every parameter has a gradient, as DistributedDataParallel requires.

    Returns the network, and the record of the transfer (`transfer_weights`) for run.json.
    Raises `UsageError` for a layer that the model does not have, `RunError` for weights that do not
    fit.
    """
    layers = recipe.layers[-1:] if recipe.decoder == "linear" else recipe.layers
    if max(layers) >= spec.depth:
        raise UsageError(f"layers: {max(layers)}: this model has layers 0 to {spec.depth - 1}")
    backbone = build(
        spec, num_classes=classes, image_size=recipe.image_size, drop_path=recipe.drop_path
    )
    backbone.norm, backbone.head = nn.Identity(), nn.Identity()
    transferred: dict = {}
    if weights is not None:
        kept = {k: v for k, v in weights.items() if k.split(".")[0] not in ("head", "norm")}
        transferred = transfer_weights(backbone, kept, recipe.dont_load)
    backbone.blocks = backbone.blocks[: max(layers) + 1]
    if recipe.decoder == "linear":
        decoder = LinearDecoder(spec.dim, classes)
    else:
        width = recipe.channels or spec.dim
        decoder = UPerNet(spec.dim, classes, channels=width, auxiliary=recipe.auxiliary > 0)
    return Segmenter(backbone, decoder, layers), transferred


def _prepare(head: nn.Module) -> nn.Module:
    """A head of transformers with mmsegmentation's initialisation and dropout."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _start_classifier(head.classifier)
    head.classifier = nn.Sequential(nn.Dropout2d(DROPOUT), head.classifier)
    return head


def _start_classifier(layer: nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
