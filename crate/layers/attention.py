"""Attention: multi-head subspace self-attention (MSSA) and the usual multi-head one (MHSA).

B batch, N tokens, M tokens that are seen (N, or more with a cache), d width, K heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError


class KVCache:
    """What one attention layer keeps of the tokens it has seen: `tensors`, each (B, K, M, d/K).

    MSSA keeps one tensor, MHSA two. None is changed in place: a copy of the list is a way back.
    """

    def __init__(self):
        self.tensors: list[Tensor] = []

    def extend(self, *new: Tensor) -> list[Tensor]:
        """Append the tensors (B, K, N, d/K) of N new tokens; returns those of all tokens."""
        if self.tensors:
            new = [torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)]
        self.tensors = list(new)
        return self.tensors


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(N, M), true where a key comes after the query: the queries are the last N of M tokens."""
    n, m = q.shape[-2], k.shape[-2]
    return torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1 + m - n)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √(d/K)) v, written out.

    q: (B, K, N, d/K); k, v: (B, K, M, d/K), where `causal` takes q for the last N of M tokens.
    Returns the output (B, K, N, d/K) and the weights (B, K, N, M).
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, K, N, M)
    if causal:
        logits = logits.masked_fill(causal_mask(q, k), float("-inf"))
    weights = logits.softmax(dim=-1)
    return weights @ v, weights


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, record: dict | None) -> Tensor:
    """Attention by the faster of two equal ways; see `plain_attention` for shapes.

    Fused, but for bfloat16 on a CPU: there the fused backward pass takes 2 to 7 times as long
    as the plain products (benchmarks/operators.py). Recording needs the weights, so it is plain.
    """
    if record is None and not (q.device.type == "cpu" and q.dtype == torch.bfloat16):
        n, m = q.shape[-2], k.shape[-2]
        if causal and 1 < n < m:  # is_causal takes the queries for the first of the tokens
            return F.scaled_dot_product_attention(q, k, v, attn_mask=~causal_mask(q, k))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal and n == m)
    output, weights = plain_attention(q, k, v, causal)
    if record is not None:
        record["attention"] = weights
    return output


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim < 1 or dim % heads:
        raise UsageError(f"dim {dim} is not divisible by heads {heads}")


class MSSA(nn.Module):
    """Multi-head subspace self-attention: one projection U is query, key and value at once.

        w = U x, split in K heads;  softmax(w wᵀ / √(d/K)) w;  output projection

    CRATE (arXiv 2306.01129), the MSSA operator, with the output projection of its code.

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["attention"] is (B, K, N, M). With a
    `cache`, x follows the tokens it keeps, and joins them: w alone is kept.
    Raises `UsageError` when `heads` does not divide `dim`.
    """

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
        self, x: Tensor, record: dict | None = None, cache: KVCache | None = None
    ) -> Tensor:
        w = self.subspaces(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, K, N, d/K)
        (seen,) = [w] if cache is None else cache.extend(w)  # (B, K, M, d/K)
        x = attend(w, seen, seen, self.causal, record)
        return self.projection(x.transpose(1, 2).flatten(-2))  # (B, N, d)


class MHSA(nn.Module):
    """Multi-head self-attention with its own query, key and value (arXiv 1706.03762, section 3.2).

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["attention"] is (B, K, N, M). With a
    `cache`, x follows the tokens it keeps, and joins them: keys and values are kept.
    Raises `UsageError` when `heads` does not divide `dim`.
    """

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
        self, x: Tensor, record: dict | None = None, cache: KVCache | None = None
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, K, d/K)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each (B, K, N, d/K)
        if cache is not None:
            k, v = cache.extend(k, v)  # each (B, K, M, d/K)
        x = attend(q, k, v, self.causal, record)
        return self.projection(x.transpose(1, 2).flatten(-2))  # (B, N, d)
