"""Attention: multi-head subspace self-attention (MSSA) and standard multi-head attention (MHSA).

B batch, N tokens, M keys (N, or more with a KV cache), d width, K heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError
from crate.layers.gradients import Attention, attention_weights, causal_mask

ALL = slice(None)  # of the tokens


class KVCache:
    """The KV cache of one attention layer: `tensors` of the tokens so far, each (B, K, M, d/K).

    MSSA caches one tensor, MHSA two. No tensor is changed in place, so a copy of the list restores
    the cache.
    """

    def __init__(self):
        self.tensors: list[Tensor] = []

    def extend(self, *new: Tensor) -> list[Tensor]:
        """Append tensors (B, K, N, d/K) of N new tokens; returns those of all M tokens."""
        if self.tensors:
            new = [torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)]
        self.tensors = list(new)
        return self.tensors


def attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, record: dict | None, recompute: bool = False
) -> Tensor:
    """softmax(q kᵀ / √(d/K)) v, by the faster kernel (arXiv 1706.03762, equation 1).

    q: (B, K, N, d/K); k, v: (B, K, M, d/K) -> (B, K, N, d/K). causal: q are the last N of the M
    tokens. The fused kernel, except for bfloat16 on a CPU, where its backward pass takes 2 to 7
    times as long (benchmarks/operators.py), and with a `record` dict, which gets the weights
    (B, K, N, M). recompute: the weights are not kept for the backward pass.
    """
    if record is not None:
        output, record["attention"] = plain_attention(q, k, v, causal)
        return output
    n, m = q.shape[-2], k.shape[-2]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        flat = (each.flatten(0, 1) for each in (q, k, v))  # (B K, N or M, d/K)
        return Attention.apply(*flat, causal, recompute).view(q.shape)
    if causal and 1 < n < m:  # is_causal would take the queries for the first tokens
        mask = ~causal_mask(n, m, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and n == m)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """The output of attention, see `attend`, and its weights (B, K, N, M)."""
    weights = attention_weights(*(each.flatten(0, 1) for each in (q, k)), causal)
    weights = weights.unflatten(0, q.shape[:2])
    return weights @ v, weights


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim < 1 or dim % heads:
        raise UsageError(f"dim {dim} is not divisible by heads {heads}")


class MSSA(nn.Module):
    """Multi-head subspace self-attention: one projection U gives query, key and value.

        w = U x, split in K heads;  softmax(w wᵀ / √(d/K)) w;  output projection

    CRATE (arXiv 2306.01129), the MSSA operator, with the output projection of its code.

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["attention"] is (B, K, N, M). With a
    `cache`, x follows the cached tokens, and its w is appended to the cache.
    only: the tokens that are returned, as a slice; with `causal`, the last ones.
    Raises `UsageError` unless `heads` divides `dim`.
    """

    partial = True
    recompute = False

    def __init__(
        self, dim: int, heads: int, *, projection_bias: bool = False, causal: bool = False
    ):
        super().__init__()
        _check_heads(dim, heads)
        self.heads = heads
        self.causal = causal
        self.subspaces = nn.Linear(dim, dim, bias=False)  # U
        self.projection = nn.Linear(dim, dim, bias=projection_bias)

    def forward(
        self,
        x: Tensor,
        record: dict | None = None,
        cache: KVCache | None = None,
        only: slice = ALL,
    ) -> Tensor:
        w = self.subspaces(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, K, N, d/K)
        (seen,) = [w] if cache is None else cache.extend(w)  # (B, K, M, d/K)
        x = attend(w[:, :, only], seen, seen, self.causal, record, self.recompute)
        return self.projection(x.transpose(1, 2).flatten(-2))  # (B, N, d)


class MHSA(nn.Module):
    """Multi-head self-attention with its own query, key and value (arXiv 1706.03762, section 3.2).

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["attention"] is (B, K, N, M). With a
    `cache`, x follows the cached tokens, and its keys and values are appended to the cache.
    only: the tokens that are returned, as a slice; with `causal`, the last ones.
    Raises `UsageError` unless `heads` divides `dim`.
    """

    partial = True
    recompute = False

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        projection_bias: bool = True,
        causal: bool = False,
    ):
        super().__init__()
        _check_heads(dim, heads)
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.projection = nn.Linear(dim, dim, bias=projection_bias)

    def forward(
        self,
        x: Tensor,
        record: dict | None = None,
        cache: KVCache | None = None,
        only: slice = ALL,
    ) -> Tensor:
        qkv = self.qkv(x).chunk(3, dim=-1)  # each (B, N, d)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in qkv)
        if cache is not None:
            k, v = cache.extend(k, v)  # each (B, K, M, d/K)
        x = attend(q[:, :, only], k, v, self.causal, record, self.recompute)
        return self.projection(x.transpose(1, 2).flatten(-2))  # (B, N, d)
