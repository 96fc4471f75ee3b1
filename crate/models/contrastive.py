"""Contrastive models: a vision and a text tower that embed images and texts in one space.

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
MOST_SCALE = 100.0  # upper limit of the factor of the cosines, as in CLIP
MOST_LOGIT_SCALE = 4.60517  # just below ln 100, where the clamp still passes a gradient
TINY = 1e-8  # added to a norm before dividing by it


class TextTower(nn.Module):
    """CLIPA's text transformer (arXiv 2305.07017): tokens to an embedding, not yet normalised.

    Token and learned position embeddings, blocks without a causal mask, LayerNorm, and a linear map
    without bias of the last position, whatever token it holds. Deterministic given
    `torch.manual_seed`.

    ids: (B, T) int64, T = context_length -> (B, embed_dim).
    Raises `UsageError` for invalid sizes, ids of another shape or type and, on a CPU only (a GPU
    would have to synchronise), ids outside the vocabulary.
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
        x = run_blocks(self.blocks, self.embed(ids), only=slice(-1, None))  # (B, 1, w)
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
                    f"token {wrong} is outside the vocabulary of {self.vocab_size:,} tokens"
                )
        return self.token_embedding(ids) + self.positions


@torch.no_grad()
def initialise(tower: TextTower) -> None:
    """Initialise every weight of a text tower of depth L as CLIPA's code does.

    Token embedding normal(0.02), positions normal(0.01); query, key and value normal(w^-1/2), the
    MLP's first map normal((2w)^-1/2), the last map of each of the 2 L residual branches
    normal((2Lw)^-1/2), the projection normal(w^-1/2); biases 0.
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
    """CRATE-alpha-CLIPA or ViT-CLIPA, as the spec says: embeds images and texts in one space.

    `vision` is a `VisionTransformer` whose head is the projection into the space; `text` is a
    `TextTower`; `logit_scale` is the logarithm of the factor of the cosines. Deterministic given
    `torch.manual_seed`.

    images: (B, 3, image_size, image_size); ids: (B, context_length) int64. Returns
        image_features, text_features  (B, embed_dim) each, of norm 1
        scale                          exp(logit_scale), at most 100; a scalar

    micro: examples that pass through a tower at once; None for all. In training, activations are
    then recomputed in the backward pass (gradient checkpointing, arXiv 1604.06174), so that a loss
    over all pairs of a batch needs the memory of one micro-batch and has the same gradients.
    drop_path: stochastic-depth rate of the vision tower's last block, in [0, 1).
    Raises `UsageError` for invalid sizes, images of another size, ids of another length, and
    unequal numbers of images and texts.
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
        nn.init.normal_(self.vision.head.weight, std=0.02)  # whatever the spec's `init`
        self.text = TextTower(spec, vocab_size=vocab_size, context_length=context_length)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def forward(
        self, images: Tensor, ids: Tensor, micro: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if len(images) != len(ids):
            raise UsageError(
                f"{len(images):,} images and {len(ids):,} texts: a batch needs one text an image"
            )
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():  # beyond the clamp in `scale`, the gradient would stay 0
                self.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        return self.encode_image(images, micro), self.encode_text(ids, micro), self.scale()

    def encode_image(self, images: Tensor, micro: int | None = None) -> Tensor:
        """Images (B, 3, S, S) to embeddings (B, embed_dim) of norm 1, at least float32."""
        return _unit(_in_parts(self.vision, images, micro))

    def encode_text(self, ids: Tensor, micro: int | None = None) -> Tensor:
        """Ids (B, context_length) to embeddings (B, embed_dim) of norm 1, at least float32."""
        return _unit(_in_parts(self.text, ids, micro))

    def scale(self) -> Tensor:
        """The factor of the cosines: a scalar, at most 100."""
        return self.logit_scale.exp().clamp(max=MOST_SCALE)

    def freeze_text(self) -> None:
        """Freeze the text tower and the scale: they get no gradient."""
        self.text.requires_grad_(False)
        self.logit_scale.requires_grad_(False)


def _in_parts(tower: nn.Module, x: Tensor, micro: int | None) -> Tensor:
    """A tower applied to a batch (B, …), `micro` examples at a time."""
    if micro is not None:
        check_positive_int("micro", micro)
    if micro is None or micro >= len(x):
        return tower(x)
    parts = x.split(micro)
    if not torch.is_grad_enabled():
        return torch.cat([tower(part) for part in parts])
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])


def _unit(x: Tensor) -> Tensor:
    """Vectors (B, e) divided by their norm + 1e-8, as in the official code; at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast leaves bfloat16
    return x / (x.norm(dim=-1, keepdim=True) + TINY)
