"""Vision transformers: image patches to class logits (arXiv 2010.11929).

B batch, H = W image size, N patches, d width, p patch size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError
from crate.layers.block import run_blocks
from crate.models.blocks import make_blocks
from crate.models.spec import ModelSpec, check_positive_int


class ConvStem(nn.Module):
    """Patches by a convolution of stride p: (B, 3, H, W) -> (B, N, d), patches row by row."""

    def __init__(self, dim: int, patch_size: int, bias: bool = True):
        super().__init__()
        self.projection = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        # patches do not overlap: one product, which small kernels' convolutions are slower than
        p, weight = self.projection.stride[0], self.projection.weight.flatten(1)  # (d, 3 p p)
        b, c, h, w = images.shape
        x = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(x.reshape(b, -1, c * p * p), weight, self.projection.bias)  # (B, N, d)


class LinearStem(nn.Module):
    """LayerNorm, Linear, LayerNorm on flattened patches, as in the 2023 CRATE code.

    (B, 3, H, W) -> (B, N, d), patches row by row; a patch is flattened as (p, p, 3).
    """

    def __init__(self, dim: int, patch_size: int, norm_eps: float, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.norm1 = nn.LayerNorm(3 * patch_size**2, eps=norm_eps)
        self.projection = nn.Linear(3 * patch_size**2, dim, bias=bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        b, c, h, w = images.shape
        p = self.patch_size
        x = images.reshape(b, c, h // p, p, w // p, p)  # (B, 3, h, p, w, p)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)  # (B, N, p p 3)
        return self.norm2(self.projection(self.norm1(x)))


class VisionTransformer(nn.Module):
    """CRATE, CRATE-alpha, their ablation rows or ViT, as the spec says; images to class logits.

    Stem, class token, learned positions, blocks, LayerNorm, and a linear head on the class token or
    on the mean of the patch tokens (`ModelSpec.pool`). Deterministic given `torch.manual_seed`.

    images: (B, 3, image_size, image_size) -> logits (B, num_classes).
    drop_path: stochastic-depth rate of the last block, in [0, 1).
    Raises `UsageError` for invalid sizes, and for images of another size.
    """

    def __init__(
        self, spec: ModelSpec, *, num_classes: int, image_size: int, drop_path: float = 0.0
    ):
        super().__init__()
        check_positive_int("num_classes", num_classes)
        patches = spec.grid(image_size) ** 2
        if type(drop_path) not in (int, float) or not 0 <= drop_path < 1:
            raise UsageError(f"drop_path must be a number in [0, 1), got {drop_path!r}")
        if spec.causal:
            raise UsageError("a vision model cannot be causal: its class token comes first")
        self.spec = spec
        self.image_size = image_size
        self.patch_embedding = (
            ConvStem(spec.dim, spec.patch_size, spec.outer_bias)
            if spec.stem == "conv"
            else LinearStem(spec.dim, spec.patch_size, spec.norm_eps, spec.outer_bias)
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, spec.dim))
        self.blocks = make_blocks(spec, drop_path)
        self.norm = nn.LayerNorm(spec.dim, eps=spec.norm_eps)
        self.head = nn.Linear(spec.dim, num_classes, bias=spec.outer_bias)
        initialise(self, spec.init)

    def forward(self, images: Tensor) -> Tensor:
        if self.spec.pool == "token":  # nothing reads the patch tokens of the last block
            x = run_blocks(self.blocks, self.embed(images), only=slice(1))[:, 0]
        else:
            x = self.forward_features(images)[:, 1:].mean(dim=1)
        return self.head(self.norm(x))

    def forward_features(self, images: Tensor, records: list[dict] | None = None) -> Tensor:
        """Tokens after the last block, before the final norm: (B, 1 + N, d), class token first.

        records: a list to which one dict per layer is appended (see `Block`).
        """
        return run_blocks(self.blocks, self.embed(images), records)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens that enter the first block: (B, 1 + N, d), class token first."""
        size = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise UsageError(
                f"this model takes images (B, 3, {size}, {size}), got {tuple(images.shape)}"
            )
        x = self.patch_embedding(images)
        class_token = self.class_token.expand(x.shape[0], -1, -1)
        return torch.cat([class_token, x], dim=1) + self.positions

    def layer_records(self, images: Tensor) -> list[dict]:
        """One dict per layer: "attention" (B, K, 1 + N, 1 + N), "attention_output" and "output"
        (B, 1 + N, d), and "codes" (B, 1 + N, M) if the feed-forward is a sparse coder of M atoms.

        Keeps the graph unless called under `torch.no_grad()`.
        """
        records: list[dict] = []
        self.forward_features(images, records)
        return records


@torch.no_grad()
def initialise(model: VisionTransformer, scheme: str) -> None:
    """Initialise every weight except dictionaries (`init_dictionary`).

    "alpha"  CRATE-alpha's JAX code: Linear normal(0.02), patch embedding kaiming-uniform (variance
             2 / fan-in), positions normal(0.02), class token normal(1e-6), biases 0
    "crate"  the 2023 CRATE code: torch's defaults, positions and class token normal(1)
    "vit"    kernels and positions truncated normal(0.02), class token normal(1e-6), biases 0
    """
    if scheme == "crate":
        nn.init.normal_(model.positions)
        nn.init.normal_(model.class_token)
        return
    normal = nn.init.normal_ if scheme == "alpha" else nn.init.trunc_normal_
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            normal(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if scheme == "alpha":
        nn.init.kaiming_uniform_(model.patch_embedding.projection.weight, nonlinearity="relu")
    normal(model.positions, std=0.02)
    nn.init.normal_(model.class_token, std=1e-6)


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Positions for another image size, by bicubic interpolation; that of the class token stays.

    positions: (1, 1 + n², d) -> (1, 1 + grid², d), unchanged if grid = n.
    Raises `UsageError` unless they belong to a class token and a square grid.
    """
    check_positive_int("grid", grid)
    old = math.isqrt(max(positions.shape[1] - 1, 0))
    if positions.dim() != 3 or old < 1 or 1 + old**2 != positions.shape[1]:
        raise UsageError(
            f"positions must be (1, 1 + n², d) for a square grid, got {tuple(positions.shape)}"
        )
    if grid == old:
        return positions
    class_position, patches = positions[:, :1], positions[:, 1:]
    patches = patches.unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, d, n, n)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2)  # (1, grid², d)
    return torch.cat([class_position, patches], dim=1)
