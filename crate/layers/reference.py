"""Every operator written as its equation, head by head and token by token. Slow; for tests only.

d width, N tokens, K heads, M dictionary atoms. A token is a column vector x of size d, as in the
papers; Z is (N, d), one token a row.
"""

import math

import torch
from torch import Tensor


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """exp(s_j) / Σ_k exp(s_k) over a list of scalars."""
    largest = max(score.item() for score in scores)
    exponentials = [torch.exp(score - largest) for score in scores]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def attention_head(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """One head: token i receives Σ_j a_ij v_j with a_i = softmax_j(q_iᵀ k_j / √(d/K)).

    q, k, v: (N, d/K). Returns the output (N, d/K) and the weights a (N, N).
    """
    tokens, width = q.shape
    outputs, weights = [], []
    for i in range(tokens):
        seen = i + 1 if causal else tokens
        row = softmax([q[i] @ k[j] / math.sqrt(width) for j in range(seen)])
        outputs.append(sum(a * v[j] for j, a in enumerate(row)))
        weights.append(torch.stack(row + [torch.zeros_like(row[0])] * (tokens - seen)))
    return torch.stack(outputs), torch.stack(weights)


def mssa(
    z: Tensor, u: Tensor, w: Tensor, bias: Tensor | None, heads: int, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """MSSA (CRATE, arXiv 2306.01129): SSA of every subspace, concatenated, times W.

    SSA of head k is (U_kᵀZ) softmax((U_kᵀZ)ᵀ(U_kᵀZ)), scaled by 1/√(d/K) as in the code.
    z: (N, d); u: (d, d), rows k d/K … (k+1) d/K are U_kᵀ; w: (d, d); bias: (d,).
    Returns the output (N, d) and the weights (K, N, N).
    """
    width = z.shape[1] // heads
    outputs, weights = [], []
    for k in range(heads):
        u_k = u[k * width : (k + 1) * width]  # U_kᵀ: (d/K, d)
        projected = torch.stack([u_k @ token for token in z])
        output, weight = attention_head(projected, projected, projected, causal)
        outputs.append(output)
        weights.append(weight)
    joined = torch.cat(outputs, dim=1)
    output = torch.stack([w @ token for token in joined])
    return output if bias is None else output + bias, torch.stack(weights)


def mhsa(
    z: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    w: Tensor,
    bias: Tensor | None,
    heads: int,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Multi-head self-attention (arXiv 1706.03762, equation 1 and section 3.2.2).

    z: (N, d); qkv: (3d, d), the query, key and value projections one under the other; w: (d, d).
    Returns the output (N, d) and the weights (K, N, N).
    """
    d = z.shape[1]
    width = d // heads
    projected = torch.stack([qkv @ token for token in z])
    if qkv_bias is not None:
        projected = projected + qkv_bias
    query, key, value = projected[:, :d], projected[:, d : 2 * d], projected[:, 2 * d :]
    outputs, weights = [], []
    for k in range(heads):
        part = slice(k * width, (k + 1) * width)
        output, weight = attention_head(query[:, part], key[:, part], value[:, part], causal)
        outputs.append(output)
        weights.append(weight)
    joined = torch.cat(outputs, dim=1)
    output = torch.stack([w @ token for token in joined])
    return output if bias is None else output + bias, torch.stack(weights)


def relu(x: Tensor) -> Tensor:
    """max(x, 0): with x shifted by the threshold, the prox of the non-negative l1 penalty."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def ista(x: Tensor, d: Tensor, eta: float, lam: float) -> Tensor:
    """ISTA step of CRATE (arXiv 2306.01129): relu(x − η Dᵀ(D x − x) − ηλ); x: (d,), D: (d, d)."""
    gradient = d.t() @ (d @ x - x)
    return relu(x - eta * gradient - eta * lam)


def odl_codes(x: Tensor, d: Tensor, eta: float, lam: float) -> Tensor:
    """z₂ of CRATE-alpha (arXiv 2405.20299): two ISTA steps from 0; x: (d,), D: (d, M)."""
    z1 = relu(eta * (d.t() @ x) - eta * lam)
    return relu(z1 - eta * (d.t() @ (d @ z1 - x)) - eta * lam)


def odl(x: Tensor, d: Tensor, d_hat: Tensor, eta: float, lam: float) -> Tensor:
    """CRATE-alpha's block (arXiv 2405.20299): D̂ z₂; the tied variant has D̂ = D."""
    return d_hat @ odl_codes(x, d, eta, lam)


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tanh: bool = False) -> Tensor:
    """W₂ GELU(W₁ x + b₁) + b₂ with GELU(h) = h Φ(h), Φ the normal distribution function.

    With `tanh`, GPT-2's Φ(h) ≈ ½ (1 + tanh(√(2/π) (h + 0.044715 h³))).
    """
    h = w1 @ x + b1
    if tanh:
        inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return w2 @ (h * 0.5 * (1 + torch.tanh(inner))) + b2
    return w2 @ (h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))) + b2
