"""Two towers around the blocks: images and texts as points of one space.

CLIP (arXiv 2103.00020), with the text tower of CLIPA (arXiv 2305.07017) as CRATE-alpha has it
(UCSC-VLAA/CRATE-alpha: models/two_towers.py, models/text_transformer.py).

B batch, T tokens of a text, w width of the text tower, e of the shared space.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate.errors import UsageError
from crate.layers.block import run_blocks
from crate.models.blocks import make_blocks
from crate.models.spec import ModelSpec, check_positive_int
from crate.models.vision import VisionTransformer

TEMPERATURE = 0.07  # at the start: the cosines are divided by it
MOST_SCALE = 100.0  # by which they are ever multiplied, as in CLIP
MOST_LOGIT_SCALE = 4.60517  # just below ln 100, so that a gradient still leads away from it
TINY = 1e-8  # beside a norm that is divided by


class TextTower(nn.Module):
    """CLIPA's text transformer: tokens to a point of the shared space, not yet normalised.

    Token and learned position embeddings, blocks that see all tokens, LayerNorm, and a linear map
    without a bias of the last place, whatever stands there. Deterministic given
    `torch.manual_seed`.

    ids: (B, T) int64, T = context_length -> (B, embed_dim).
    Raises `UsageError` for sizes that make no sense and for ids of another shape or type; ids
    outside the vocabulary are told on a CPU, where a look at them costs nothing.
    """

    def __init__(self, spec: ModelSpec, *, vocab_size: int, context_length: int):
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        check_positive_int("context_length", context_length)
        text = spec.text_spec
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, text.dim)
        self.positions = nn.Parameter(torch.empty(1, context_length, text.dim))
        self.blocks = make_blocks(text)
        self.norm = nn.LayerNorm(text.dim, eps=text.norm_eps)
        self.head = nn.Linear(text.dim, spec.embed_dim, bias=False)
        initialise(self)

    def forward(self, ids: Tensor) -> Tensor:
        x = run_blocks(self.blocks, self.embed(ids))  # (B, T, w)
        return self.head(self.norm(x[:, -1]))

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens that enter the first block: (B, T, w)."""
        if ids.dim() != 2 or ids.shape[1] != self.context_length or ids.dtype != torch.int64:
            kind = str(ids.dtype).removeprefix("torch.")
            raise UsageError(
                f"this model takes ids (B, {self.context_length}) int64, got {tuple(ids.shape)} "
                f"{kind}"
            )
        if ids.device.type == "cpu" and ids.numel():
            low, high = ids.aminmax()
            if low < 0 or high >= self.vocab_size:
                wrong = int(low if low < 0 else high)
                raise UsageError(
                    f"there is no token {wrong}: the vocabulary has {self.vocab_size:,}"
                )
        return self.token_embedding(ids) + self.positions


@torch.no_grad()
def initialise(tower: TextTower) -> None:
    """Set every weight of a text tower of depth L as CLIPA's does.

    Token embedding normal(0.02), positions normal(0.01); query, key and value normal(w^-1/2), the
    MLP's first map normal((2w)^-1/2), what ends a residual branch, of which there are 2 L,
    normal((2Lw)^-1/2), the last map normal(w^-1/2); biases 0.
    """
    w, depth = tower.positions.shape[-1], len(tower.blocks)
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.positions, std=0.01)
    for block in tower.blocks:
        for linear, std in (
            (block.attention.qkv, w**-0.5),
            (block.attention.projection, (2 * depth * w) ** -0.5),
            (block.feedforward.hidden, (2 * w) ** -0.5),
            (block.feedforward.output, (2 * depth * w) ** -0.5),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
    nn.init.normal_(tower.head.weight, std=w**-0.5)


class ContrastiveModel(nn.Module):
    """CRATE-alpha-CLIPA or ViT-CLIPA, as the spec says: images and texts to points of one space.

    `vision` is a `VisionTransformer` whose head, without a bias, leads into the space; `text` a
    `TextTower`; `logit_scale` the logarithm of what cosines are multiplied by. Deterministic given
    `torch.manual_seed`.

    images: (B, 3, image_size, image_size); ids: (B, context_length) int64. Returns
        image_features, text_features  (B, embed_dim) each, of norm 1
        scale                          exp(logit_scale), at most 100; a scalar

    micro: how many examples pass through a tower at once; None for all. In training, a part's
    activations are then computed again when its gradient is (arXiv 1604.06174), so that a loss over
    all pairs of a batch holds those of one part at a time, and gives the same gradients.
    drop_path: stochastic-depth rate of the vision tower's last block, in [0, 1).
    Raises `UsageError` for sizes that make no sense, for images of another size, ids of another
    length and numbers of them that differ.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        image_size: int,
        vocab_size: int,
        context_length: int,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if spec.kind != "contrastive":
            raise UsageError("a contrastive model needs a text tower: embed_dim, text_dim, …")
        self.spec = spec
        self.image_size = image_size
        self.vision = VisionTransformer(
            spec, num_classes=spec.embed_dim, image_size=image_size, drop_path=drop_path
        )
        nn.init.normal_(self.vision.head.weight, std=0.02)  # whatever the spec's own `init`
        self.text = TextTower(spec, vocab_size=vocab_size, context_length=context_length)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def forward(
        self, images: Tensor, ids: Tensor, micro: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if len(images) != len(ids):
            raise UsageError(f"{len(images):,} images and {len(ids):,} texts are no pairs")
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():  # a clamp of the scale alone would end its gradient for ever
                self.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        return self.encode_image(images, micro), self.encode_text(ids, micro), self.scale()

    def encode_image(self, images: Tensor, micro: int | None = None) -> Tensor:
        """Images (B, 3, S, S) to points (B, embed_dim) of norm 1, in float32 at least."""
        return _unit(_in_parts(self.vision, images, micro))

    def encode_text(self, ids: Tensor, micro: int | None = None) -> Tensor:
        """Texts (B, context_length) to points (B, embed_dim) of norm 1, in float32 at least."""
        return _unit(_in_parts(self.text, ids, micro))

    def scale(self) -> Tensor:
        """What cosines are multiplied by: a scalar, at most 100."""
        return self.logit_scale.exp().clamp(max=MOST_SCALE)

    def freeze_text(self) -> None:
        """From now on the text tower and the scale take no gradient."""
        self.text.requires_grad_(False)
        self.logit_scale.requires_grad_(False)


def _in_parts(tower: nn.Module, x: Tensor, micro: int | None) -> Tensor:
    """A tower on a batch (B, …), `micro` examples at a time."""
    if micro is not None:
        check_positive_int("micro", micro)
    if micro is None or micro >= len(x):
        return tower(x)
    parts = x.split(micro)
    if not torch.is_grad_enabled():
        return torch.cat([tower(part) for part in parts])
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])


def _unit(x: Tensor) -> Tensor:
    """Points (B, e) divided by their norm (+ 1e-8, as the official code), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast leaves bfloat16
    return x / (x.norm(dim=-1, keepdim=True) + TINY)
