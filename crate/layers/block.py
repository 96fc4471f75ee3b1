"""The block of all models: any attention, any feed-forward, with or without its residual.

B batch, N tokens, d width. Tokens are Z^l before layer l, Z^{l+1/2} after its attention and
Z^{l+1} after its feed-forward.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from crate.layers.attention import ALL, KVCache


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drop a residual branch of some samples.

    x: (B, ...) -> (B, ...). A sample's branch is zero with probability `rate`, else divided by
    1 − rate, so that its mean stays. In evaluation x is returned unchanged.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)  # (B, 1, ..., 1)
        return x * (mask / keep)


class Block(nn.Module):
    """x = x + attention(norm(x)); x = feedforward(norm(x)), plus x if `residual`.

    x: (B, N, d) -> (B, N, d). Drop path acts on residual branches only: without a residual, a
    dropped feed-forward would zero the sample. A `record` dict collects the two operators' records,
    "attention_output" (Z^{l+1/2}) and "output" (Z^{l+1}), each (B, N, d). `cache`: attention's KV
    cache of the tokens before x.

    only: the tokens that are returned, as a slice. Operators with `partial = True` then compute no
    others: attention takes `only`, and a feed-forward takes each token by itself.
    """

    def __init__(
        self,
        attention: nn.Module,
        feedforward: nn.Module,
        residual: bool,
        *,
        dim: int,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.feedforward = feedforward
        self.residual = residual
        self.drop_path = DropPath(drop_path)
        self.partial = all(getattr(each, "partial", False) for each in (attention, feedforward))

    def forward(
        self,
        x: Tensor,
        record: dict | None = None,
        cache: KVCache | None = None,
        only: slice = ALL,
    ) -> Tensor:
        if only == ALL:
            x = x + self.drop_path(self.attention(self.norm1(x), record, cache))
        elif self.partial:
            y = self.attention(self.norm1(x), record, cache, only)
            x = x[:, only] + self.drop_path(y)
        else:
            return self(x, record, cache)[:, only]
        if record is not None:
            record["attention_output"] = x
        y = self.feedforward(self.norm2(x), record)
        # under autocast y may be bfloat16; the tokens keep their precision
        x = x + self.drop_path(y) if self.residual else y.to(x.dtype)
        if record is not None:
            record["output"] = x
        return x


def run_blocks(
    blocks: Sequence[Block],
    x: Tensor,
    records: list[dict] | None = None,
    caches: Sequence[KVCache] | None = None,
    only: slice = ALL,
) -> Tensor:
    """Apply blocks in turn: (B, N, d) -> (B, N, d).

    records: a list to which one dict per block is appended. caches: one KV cache per block.
    only: the tokens that are read afterwards; the last block computes no others where it can.
    """
    for layer, block in enumerate(blocks):
        record = None if records is None else {}
        last = layer == len(blocks) - 1
        x = block(x, record, None if caches is None else caches[layer], only if last else ALL)
        if records is not None:
            records.append(record)
    return x
