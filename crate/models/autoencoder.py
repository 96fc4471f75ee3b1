"""Masked autoencoders: most patches of an image are masked, and predicted from the others.

B batch, S image size, p patch size, N patches, of which n are visible; d width of the encoder, e of
the decoder. CRATE-MAE is arXiv 2404.02446, ViT-MAE is He et al., arXiv 2111.06377.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError
from crate.layers.block import run_blocks
from crate.layers.sparse_coding import init_dictionary
from crate.models.blocks import make_attention, make_blocks
from crate.models.flops import kept_patches
from crate.models.spec import ModelSpec, check_positive_int
from crate.models.vision import ConvStem

NORM_EPS = 1e-6  # of the last norm of encoder and decoder, independent of the blocks' ε
VARIANCE_EPS = 1e-6  # of a normalised patch


class InverseBlock(nn.Module):
    """CRATE's block inverted: first a dictionary, then attention is subtracted.

        y = A norm(x);  x = y − attention(norm(y))

    CRATE-MAE (arXiv 2404.02446), the decoder. As in its code, A is d x d, initialised as a
    dictionary, and shares no weights with the encoder.

    x: (B, N, d) -> (B, N, d).
    """

    def __init__(self, attention: nn.Module, *, dim: int, norm_eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.dictionary = nn.Parameter(torch.empty(dim, dim))  # A
        init_dictionary(self.dictionary)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        # as in Block, the tokens themselves stay in their precision
        y = F.linear(self.norm1(x), self.dictionary).to(x.dtype)
        return y - self.attention(self.norm2(y))


class MaskedAutoencoder(nn.Module):
    """CRATE-MAE or ViT-MAE, as the spec says: masks patches and predicts their pixels.

    The encoder (`patch_embedding`, `class_token`, `positions`, `blocks`, `norm`) has the parameters
    of a `VisionTransformer` without a head (`transfer.vision_weights`); its positions are fixed. A
    learned mask token replaces a masked patch before the encoder, or before the decoder
    (`ModelSpec.mask_tokens`). As in the published code, `decoder_embedding` and `decoder_positions`
    exist even if they are not used; they are then frozen. Deterministic given `torch.manual_seed`.

    images: (B, 3, image_size, image_size). Returns
        loss         mean squared error of the masked patches' pixels; with `normalise_patches`,
                     each target patch has mean 0 and standard deviation 1
        prediction   (B, N, 3p²), all patches in the order of `patchify`
        mask         (B, N) float32, 1 where a patch is masked, 0 where it is visible

    mask_ratio: share of the patches that is masked; N (1 − mask_ratio), rounded down, are visible.
    noise: (B, N), fixes the mask: the n patches with the smallest values are visible. None draws it
    uniformly from torch's generator on the images' device.
    drop_path: stochastic-depth rate of the encoder's last block, in [0, 1).
    Raises `UsageError` for invalid sizes, and for images of another size.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        image_size: int,
        normalise_patches: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if spec.decoder == "none":
            raise UsageError("an autoencoder needs a decoder: 'inverse' or 'blocks'")
        if spec.causal:
            raise UsageError(
                "an autoencoder cannot be causal: a patch is predicted from all others"
            )
        if spec.stem != "conv":
            raise UsageError(f"an autoencoder's stem is 'conv', not '{spec.stem}'")
        if type(normalise_patches) is not bool:
            raise UsageError(f"normalise_patches must be true or false, got {normalise_patches!r}")
        if type(drop_path) not in (int, float) or not 0 <= drop_path < 1:
            raise UsageError(f"drop_path must be a number in [0, 1), got {drop_path!r}")
        grid = spec.grid(image_size)
        decoder = spec.decoder_spec
        d, e, pixels = spec.dim, decoder.dim, 3 * spec.patch_size**2
        self.spec = spec
        self.image_size = image_size
        self.normalise_patches = normalise_patches

        self.patch_embedding = ConvStem(d, spec.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, d))
        self.positions = nn.Parameter(sincos_positions(d, grid), requires_grad=False)
        self.blocks = make_blocks(spec, drop_path)
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)

        self.mask_token = nn.Parameter(torch.empty(1, 1, e if self.masks_decoder else d))
        self.decoder_embedding = nn.Linear(d, e)
        self.decoder_positions = nn.Parameter(sincos_positions(e, grid), requires_grad=False)
        if spec.decoder == "inverse":
            self.decoder_blocks = nn.ModuleList(
                InverseBlock(make_attention(decoder), dim=e, norm_eps=spec.norm_eps)
                for _ in range(decoder.depth)
            )
        else:
            self.decoder_blocks = make_blocks(decoder)
        self.decoder_norm = nn.LayerNorm(e, eps=NORM_EPS)
        self.decoder_prediction = nn.Linear(e, pixels)
        initialise(self)
        self.decoder_embedding.requires_grad_(spec.embeds_decoder)

    @property
    def masks_decoder(self) -> bool:
        """Whether the decoder gets the mask tokens, so that the encoder sees n patches only."""
        return self.spec.mask_tokens == "decoder"

    def forward(
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._check(images)
        kept = self.draw_kept(images, mask_ratio, noise)
        prediction = self.decode(self.forward_features(images, kept=kept), kept)
        mask = self.mask(kept)
        return self.loss(images, prediction, mask), prediction, mask

    def draw_kept(self, images: Tensor, mask_ratio: float, noise: Tensor | None = None) -> Tensor:
        """Indices (B, n) of the visible patches, ascending; see the class for `noise`."""
        patches = self.positions.shape[1] - 1
        count = kept_patches(patches, mask_ratio)
        if noise is None:
            noise = torch.rand(len(images), patches, device=images.device)
        elif tuple(noise.shape) != (len(images), patches):
            expected = (len(images), patches)
            raise UsageError(
                f"noise must be {expected}, one value a patch, got {tuple(noise.shape)}"
            )
        order = noise.argsort(dim=1, stable=True)  # of equal values, the first patch is visible
        return order[:, :count].sort(dim=1).values

    def mask(self, kept: Tensor) -> Tensor:
        """The mask (B, N) float32 of visible patches' indices (B, n): 1 where a patch is masked."""
        mask = torch.ones(len(kept), self.positions.shape[1] - 1, device=kept.device)
        return mask.scatter(1, kept, 0.0)

    def forward_features(
        self, images: Tensor, records: list[dict] | None = None, *, kept: Tensor | None = None
    ) -> Tensor:
        """Tokens after the encoder's last block, before its norm, class token first.

        (B, 1 + N, d); if the decoder gets the mask tokens, (B, 1 + n, d) of the visible patches.

        records: a list to which one dict per layer is appended (see `Block`).
        kept: indices (B, n) of the visible patches; None masks nothing.
        """
        return run_blocks(self.blocks, self.embed(images, kept), records)

    def embed(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block, class token first: (B, 1 + N, d) or (B, 1 + n, d)."""
        self._check(images)
        x = self.patch_embedding(images)  # (B, N, d)
        if kept is not None and not self.masks_decoder:
            x = torch.where(self.mask(kept)[..., None] > 0, self.mask_token, x)
        class_token = self.class_token.expand(len(x), -1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positions  # (B, 1 + N, d)
        if kept is not None and self.masks_decoder:
            seen = F.pad(kept + 1, (1, 0))  # (B, 1 + n), the class token too
            x = x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1]))
        return x

    def layer_records(self, images: Tensor) -> list[dict]:
        """One dict per layer of the encoder, without masking; as `VisionTransformer.layer_records`.

        "attention" (B, K, 1 + N, 1 + N), "attention_output" and "output" (B, 1 + N, d), and
        "codes" (B, 1 + N, M) if the feed-forward is a sparse coder with M atoms. Keeps the graph
        unless called under `torch.no_grad()`.
        """
        records: list[dict] = []
        self.forward_features(images, records)
        return records

    def decode(self, x: Tensor, kept: Tensor) -> Tensor:
        """Pixels (B, N, 3p²) of all patches, from what `forward_features` returned for `kept`."""
        x = self.norm(x)
        if self.spec.embeds_decoder:
            x = self.decoder_embedding(x).to(x.dtype)
        if self.masks_decoder:
            patches = self.mask_token.to(x.dtype).expand(len(x), self.positions.shape[1] - 1, -1)
            index = kept[..., None].expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :1], patches.scatter(1, index, x[:, 1:])], dim=1)
            x = x + self.decoder_positions  # (B, 1 + N, e)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_prediction(self.decoder_norm(x[:, 1:]))

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the pixels of the patches whose mask (B, N) is 1; a scalar."""
        target = self.patchify(images)
        if self.normalise_patches:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        error = (prediction - target).square().mean(dim=-1)  # (B, N)
        return (error * mask).sum() / mask.sum()

    def complete(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Images (B, 3, S, S) whose masked patches (mask 1) are replaced by the prediction.

        With `normalise_patches`, the prediction lacks each patch's mean and standard deviation; the
        true ones are used.
        """
        patches = self.patchify(images)
        if self.normalise_patches:
            mean, deviation = _statistics(patches)
            prediction = prediction * deviation + mean
        return self.unpatchify(torch.where(mask[..., None] > 0, prediction, patches))

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, 3p²): patches row by row, the pixels of each as (p, p, 3)."""
        self._check(images)
        p, side = self.spec.patch_size, self.spec.grid(self.image_size)
        x = images.unflatten(3, (side, p)).unflatten(2, (side, p))  # (B, 3, side, p, side, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, 3p²) -> (B, 3, S, S): the inverse of `patchify`. Raises `UsageError` otherwise."""
        p, side = self.spec.patch_size, self.spec.grid(self.image_size)
        shape = (side * side, 3 * p * p)
        if patches.dim() != 3 or tuple(patches.shape[1:]) != shape:
            raise UsageError(
                f"this model's patches are (B, {shape[0]}, {shape[1]}), got {tuple(patches.shape)}"
            )
        x = patches.unflatten(2, (p, p, 3)).unflatten(1, (side, side))  # (B, side, side, p, p, 3)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _check(self, images: Tensor) -> None:
        size = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise UsageError(
                f"this model takes images (B, 3, {size}, {size}), got {tuple(images.shape)}"
            )


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each patch: (B, N, 3p²) -> (B, N, 1), twice."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPS).sqrt()


@torch.no_grad()
def initialise(model: MaskedAutoencoder) -> None:
    """Initialise every weight except positions and dictionaries (`init_dictionary`).

    As both papers' code: Linear xavier-uniform, the patch embedding as a Linear, biases 0 except
    the patch embedding's (torch's default), class and mask token normal(0.02).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embedding.projection.weight.flatten(1))  # a view
    nn.init.normal_(model.class_token, std=0.02)
    nn.init.normal_(model.mask_token, std=0.02)


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed positions of a class token (zeros) and a square grid: (1, 1 + grid², dim) float32.

    Half the channels encode a patch's column, half its row: the sines, then the cosines, of it
    times 10,000^(−4i/dim), i = 0 … dim/4 − 1 (arXiv 1706.03762, section 3.5, on each axis).
    Raises `UsageError` unless dim is a multiple of 4.
    """
    check_positive_int("dim", dim)
    check_positive_int("grid", grid)
    if dim % 4:
        raise UsageError(f"fixed positions need a dim that is a multiple of 4, got {dim}")
    exponents = torch.arange(dim // 4, dtype=torch.float64) * (-4 / dim)
    frequencies = torch.exp(exponents * math.log(10_000))  # (dim/4,)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (grid, dim/4)
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (grid, dim/2)
    columns = line[None].expand(grid, -1, -1)
    rows = line[:, None].expand(-1, grid, -1)
    patches = torch.cat([columns, rows], dim=-1).flatten(0, 1)  # (grid², dim)
    return torch.cat([torch.zeros_like(patches[:1]), patches])[None].float()
