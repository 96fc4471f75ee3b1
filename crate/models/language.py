"""Language models: tokens to logits of the next token, as GPT-2 (Radford et al. 2019).

B batch, T tokens, d width, L depth. CRATE-GPT has GPT-2's embeddings and head around its own block.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import RunError, UsageError
from crate.layers.attention import KVCache
from crate.layers.block import run_blocks
from crate.models.blocks import make_blocks
from crate.models.spec import ModelSpec, check_positive_int


class Cache:
    """The KV caches of all layers of a model, empty at first.

    With it, generating passes each token through the model once. MSSA caches one d-vector a layer
    and token, MHSA two (keys and values).
    """

    def __init__(self, model: "LanguageModel"):
        self.layers = [KVCache() for _ in model.blocks]

    def clear(self) -> None:
        """Forget all tokens."""
        for layer in self.layers:
            layer.tensors = []

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        tensors = self.layers[0].tensors
        return tensors[0].shape[-2] if tensors else 0

    @property
    def bytes(self) -> int:
        """Memory of the cached tensors of all layers and the whole batch."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors)


class LanguageModel(nn.Module):
    """CRATE-GPT, CRATE-alpha-GPT or GPT-2, as the spec says: tokens to logits of the next token.

    Token and learned position embeddings, blocks, LayerNorm (if the spec has `final_norm`), and a
    head without bias that is tied to the token embedding. Deterministic given `torch.manual_seed`.

    ids: (B, T) int64 -> logits (B, T, vocab_size); logits at t depend on the tokens up to t only.
    With a `cache` (`Cache`), ids follow the cached tokens and are appended to them.
    drop_path: stochastic-depth rate of the last block, in [0, 1).
    Raises `UsageError` for invalid sizes, and for more tokens than `block_size`.
    """

    def __init__(
        self, spec: ModelSpec, *, vocab_size: int, block_size: int, drop_path: float = 0.0
    ):
        super().__init__()
        check_positive_int("vocab_size", vocab_size)
        check_positive_int("block_size", block_size)
        if type(drop_path) not in (int, float) or not 0 <= drop_path < 1:
            raise UsageError(f"drop_path must be a number in [0, 1), got {drop_path!r}")
        if not spec.causal:
            raise UsageError("a language model must be causal: a token may not see later ones")
        self.spec = spec
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, spec.dim)
        self.position_embedding = nn.Embedding(block_size, spec.dim)
        self.blocks = make_blocks(spec, drop_path)
        self.norm = nn.LayerNorm(spec.dim, eps=spec.norm_eps) if spec.final_norm else None
        initialise(self)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        return self.head(self.forward_features(ids, cache=cache))

    def head(self, x: Tensor) -> Tensor:
        """Tokens after the last block (B, T, d) -> logits (B, T, vocab_size)."""
        x = x if self.norm is None else self.norm(x)
        return F.linear(x, self.token_embedding.weight)

    def forward_features(
        self, ids: Tensor, records: list[dict] | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Tokens after the last block, before the final norm: (B, T, d).

        records: a list to which one dict per layer is appended (see `Block`).
        """
        first = 0 if cache is None else cache.length
        self._check(ids, first)
        positions = self.position_embedding.weight[first : first + ids.shape[1]]  # (T, d)
        x = self.token_embedding(ids) + positions
        return run_blocks(self.blocks, x, records, None if cache is None else cache.layers)

    def _check(self, ids: Tensor, first: int) -> None:
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.dtype != torch.int64:
            kind = str(ids.dtype).removeprefix("torch.")
            raise UsageError(
                f"a language model takes ids (B, T) int64, T ≥ 1; got {tuple(ids.shape)} {kind}"
            )
        if first + ids.shape[1] > self.block_size:
            seen = f" after {first:,} cached ones" if first else ""
            raise UsageError(
                f"{ids.shape[1]:,} tokens{seen} do not fit into a block of {self.block_size:,}"
            )

    def layer_records(self, ids: Tensor) -> list[dict]:
        """One dict per layer: "attention" (B, K, T, T), "attention_output" and "output" (B, T, d),
        and "codes" (B, T, M) if the feed-forward is a sparse coder with M atoms.

        Keeps the graph unless called under `torch.no_grad()`.
        """
        records: list[dict] = []
        self.forward_features(ids, records)
        return records


@torch.no_grad()
def initialise(model: LanguageModel) -> None:
    """Initialise every weight except dictionaries (`init_dictionary`).

    As GPT-2 and CRATE-GPT's code: Linear and embeddings normal(0.02), biases 0; the last map of
    each residual branch normal(0.02 / √(2 L)).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.blocks:
        ends = [block.attention.projection]
        if model.spec.feedforward == "MLP" and model.spec.residual:
            ends.append(block.feedforward.output)
        for module in ends:
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * model.spec.depth))


def generate(
    model: LanguageModel,
    ids: Sequence[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    cache: Cache | None = None,
) -> Iterator[int]:
    """Continue a prompt by up to `count` tokens; yields one id at a time.

    The model should be in evaluation mode. When the block is full, its last half becomes the prompt
    of a new block and earlier tokens are forgotten, so the cost of a token stays bounded.

    Args:
        ids: the prompt, 1 to block_size tokens.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: choose among the k likeliest tokens; None for all.
        generator: a CPU generator, whatever the model's device; None for torch's own.
        stop: an id that ends the text; it is not yielded.
        cache: an empty one, for callers that want to know its size; None makes one.

    Raises:
        UsageError: an invalid argument; raised at once.
        RunError: logits are not finite; raised while generating.
    """
    ids = [int(token) for token in ids]
    if not ids:
        raise UsageError("the prompt is empty: give at least one token")
    if len(ids) > model.block_size:
        raise UsageError(
            f"the prompt has {len(ids):,} tokens, more than the block of {model.block_size:,}"
        )
    for token in [*ids, *([] if stop is None else [stop])]:
        if not 0 <= token < model.vocab_size:
            raise UsageError(
                f"token {token} is outside the vocabulary of {model.vocab_size:,} tokens"
            )
    if count < 0:
        raise UsageError(f"count must be at least 0, got {count}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature must be finite and at least 0, got {temperature}")
    if top_k is not None:
        check_positive_int("top_k", top_k)
    if temperature == 0:
        top_k = 1
    return _generate(model, ids, count, temperature, top_k, generator, stop, cache or Cache(model))


def _generate(
    model: LanguageModel,
    context: list[int],
    count: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
    stop: int | None,
    cache: Cache,
) -> Iterator[int]:
    for _ in range(count):
        if len(context) > model.block_size:
            context = context[-max(model.block_size // 2, 1) :]
            cache.clear()
        token = choose(_next_logits(model, context, cache), temperature, top_k, generator)
        if token == stop:
            return
        yield token
        context.append(token)


@torch.no_grad()  # not on the generator: it would stay in force in the caller's code
def _next_logits(model: LanguageModel, context: list[int], cache: Cache) -> Tensor:
    """Logits (vocab_size,) after `context`, whose first tokens are cached."""
    ids = torch.tensor([context[cache.length :]], device=model.token_embedding.weight.device)
    x = model.forward_features(ids, cache=cache)
    return model.head(x[:, -1:])[0, 0]


def choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> int:
    """Draw an id from softmax(logits / temperature) of the k largest; logits: (vocab_size,).

    Raises `RunError` if logits are not finite.
    """
    logits = logits.double().cpu()  # so that all devices draw alike, up to rounding of the logits
    if not logits.isfinite().all():
        raise RunError("the model's logits are not finite; no token can be drawn")
    ids = torch.arange(len(logits))
    if top_k is not None and top_k < len(logits):
        logits, ids = logits.topk(top_k)
    if len(ids) == 1:  # also greedy decoding (temperature 0)
        return int(ids)
    # the largest becomes 0 before the division: a tiny temperature overflows to −∞ only
    shares = ((logits - logits.max()) / temperature).softmax(dim=0)
    return int(ids[torch.multinomial(shares, 1, generator=generator)])
