"""Attention and sparse coding with backward passes written by hand.

Autograd gives the same gradients with more passes over memory, and keeps every intermediate
tensor. Tests compare both, and both with `reference.py`.

B batch, N tokens, M keys (attention) or dictionary atoms (sparse coding), d width, K heads, T = B N
tokens. `recompute` keeps less for the backward pass and computes it again there, bit for bit.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """Tensors as autocast would hand them to a product: it does not look into what is below."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def causal_mask(n: int, m: int, device: torch.device) -> Tensor:
    """bool (N, M), true where a key comes after its query; queries are the last N of M tokens."""
    return torch.ones(n, m, dtype=torch.bool, device=device).triu(1 + m - n)


def attention_weights(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / √(d/K)): (B K, N, d/K), (B K, M, d/K) -> (B K, N, M)."""
    scale = q.shape[-1] ** -0.5
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale)
    if causal and q.shape[1] > 1:
        mask = causal_mask(q.shape[1], k.shape[1], q.device)
        logits = logits.masked_fill_(mask, float("-inf"))
    return logits.softmax(dim=-1)


class Attention(torch.autograd.Function):
    """o = P v with P = softmax(q kᵀ / √c), c = d/K; without a fused kernel.

    q: (B K, N, c); k, v: (B K, M, c) -> (B K, N, c). Of a gradient g of o,

        dv = Pᵀ g;  dP = g vᵀ;  dS = P ∘ (dP − Σ_j P ∘ dP);  dq = dS k / √c;  dk = dSᵀ q / √c
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool, recompute: bool) -> Tensor:
        weights = attention_weights(q, k, causal)
        ctx.causal = causal
        ctx.save_for_backward(q, k, v, None if recompute else weights)
        return weights @ v

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        if weights is None:
            weights = attention_weights(q, k, ctx.causal)
        scale = q.shape[-1] ** -0.5
        dv = weights.mT @ g
        ds = torch._softmax_backward_data(g @ v.mT, weights, -1, weights.dtype)
        dq = torch.baddbmm(q, ds, k, beta=0, alpha=scale)
        dk = torch.baddbmm(k, ds.mT, q, beta=0, alpha=scale)
        return dq, dk, dv, None, None


def first_codes(x: Tensor, d: Tensor, eta: float, lam: float) -> Tensor:
    """z₁ = relu(η Dᵀx − ηλ): (T, d), D (d, M) -> (T, M)."""
    threshold = d.new_full((d.shape[1],), -eta * lam)
    return torch.addmm(threshold, x, d, alpha=eta).relu_()


def second_codes(z1: Tensor, r: Tensor, d: Tensor, eta: float, lam: float) -> Tensor:
    """z₂ = relu(z₁ + η Dᵀr − ηλ) with the residual r = x − D z₁: (T, M), (T, d) -> (T, M)."""
    return torch.addmm(z1, r, d, alpha=eta).sub_(eta * lam).relu_()


def sparse_codes(x: Tensor, d: Tensor, eta: float, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """z₁ (T, M), r (T, d) and z₂ (T, M) of tokens x (T, d)."""
    z1 = first_codes(x, d, eta, lam)
    r = torch.addmm(x, z1, d.t(), alpha=-1)
    return z1, r, second_codes(z1, r, d, eta, lam)


class SparseCoding(torch.autograd.Function):
    """D̂ z₂ with z₁ = relu(η Dᵀx − ηλ), r = x − D z₁, z₂ = relu(z₁ + η Dᵀr − ηλ).

    x: (T, d); D, D̂: (d, M) -> (T, d). Of a gradient g of the output, with the masks of the codes,

        g₂ = (D̂ᵀg) ∘ [z₂ > 0];  dr = η D g₂;  g₁ = (g₂ − Dᵀdr) ∘ [z₁ > 0];  dx = dr + η D g₁
        dD̂ = g z₂ᵀ;  dD = η (x g₁ᵀ + r g₂ᵀ) − dr z₁ᵀ

    where tokens are columns; here they are rows. `recompute` keeps x and r alone.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, d: Tensor, decoder: Tensor, eta: float, lam: float, recompute: bool
    ) -> Tensor:
        z1, r, z2 = sparse_codes(x, d, eta, lam)
        ctx.eta, ctx.lam = eta, lam
        ctx.save_for_backward(x, r, d, decoder, *((None, None) if recompute else (z1, z2)))
        return z2 @ decoder.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, d, decoder, z1, z2 = ctx.saved_tensors
        eta, lam = ctx.eta, ctx.lam
        if z1 is None:
            z1 = first_codes(x, d, eta, lam)
            z2 = second_codes(z1, r, d, eta, lam)
        active = torch.ops.aten.threshold_backward  # gradients where codes are above 0
        d_decoder = g.t() @ z2
        g2 = active(g @ decoder, z2, 0)
        dr = torch.addmm(g, g2, d.t(), beta=0, alpha=eta)
        g1 = active(torch.addmm(g2, dr, d, alpha=-1), z1, 0)
        dx = torch.addmm(dr, g1, d.t(), alpha=eta)
        dd = torch.addmm(g1.new_empty(1), x.t(), g1, beta=0, alpha=eta)
        dd = dd.addmm_(r.t(), g2, alpha=eta).addmm_(dr.t(), z1, alpha=-1)
        return dx, dd, d_decoder, None, None, None
