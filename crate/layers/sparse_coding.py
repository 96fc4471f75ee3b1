"""The feed-forward half of a block: sparse coding (ISTA, ODL), or the standard MLP.

B batch, N tokens, d width, M dictionary atoms. Dictionaries are plain parameters and everything
else is an `nn.Linear`: recipes select weight decay by module type.

The forward passes regroup the equations to train faster; reference.py has the literal equations.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.errors import UsageError
from crate.layers.gradients import SparseCoding, in_autocast_dtype, sparse_codes


def init_dictionary(dictionary: Tensor) -> None:
    """Kaiming-uniform with fan-in d, the first axis: variance 2/d, inside ±√(6/d).

    dictionary: (d, M), changed in place. As in the JAX code that trained CRATE-alpha.
    `nn.init.kaiming_uniform_` would take the second axis as fan-in, which on a d x 4d dictionary
    gives a quarter of the variance and trains worse. For a d x d dictionary both agree, and the
    2023 CRATE code does this. The initialisation of CRATE-alpha's vanilla row was not published;
    it starts in this way too.
    """
    bound = math.sqrt(6 / dictionary.shape[0])
    nn.init.uniform_(dictionary, -bound, bound)


def _check_width(dim: int, ratio: int = 1) -> None:
    if dim < 1 or ratio < 1:
        raise UsageError(f"dim and ratio must be at least 1, got dim {dim} and ratio {ratio}")


class ISTA(nn.Module):
    """One proximal gradient step of sparse coding, starting at x, with a complete D (d x d).

        relu(x − η Dᵀ(D x − x) − ηλ)

    CRATE (arXiv 2306.01129), the ISTA operator, equation 17. η = λ = 0.1 as in its code.

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["codes"] is the output.
    Raises `UsageError` unless `dim` is at least 1.
    """

    partial = True  # each token by itself

    def __init__(self, dim: int, *, step_size: float = 0.1, sparsity: float = 0.1):
        super().__init__()
        _check_width(dim)
        self.step_size = step_size
        self.sparsity = sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, dim))
        init_dictionary(self.dictionary)

    def forward(self, x: Tensor, record: dict | None = None) -> Tensor:
        d = self.dictionary
        if x.shape[-2] == 1:  # generating text: forming DᵀD costs more than it saves
            gradient = F.linear(F.linear(x, d) - x, d.t())
            codes = (x - self.step_size * gradient - self.step_size * self.sparsity).relu_()
        else:
            # One product per token instead of three: x − η Dᵀ(D x − x) = x + η(Dᵀ − DᵀD) x.
            eta = self.step_size
            step = torch.addmm(d.t(), d.t(), d, beta=eta, alpha=-eta)
            threshold = d.new_full((d.shape[1],), -self.step_size * self.sparsity)
            codes = (x + F.linear(x, step, threshold)).relu_()
        if record is not None:
            record["codes"] = codes
        return codes


class ODL(nn.Module):
    """Overcomplete dictionary learning: two ISTA steps from 0, then decoding; D is d x (ratio d).

        z₁ = relu(η Dᵀx − ηλ)
        z₂ = relu(z₁ − η Dᵀ(D z₁ − x) − ηλ)
        output = D z₂, or D̂ z₂ when decoupled

    CRATE-alpha (arXiv 2405.20299), the ODL block; η = λ = 0.1 as in its code. `Block` adds the
    residual connection.

    x: (B, N, d) -> (B, N, d). With a `record` dict, record["codes"] is z₂ (B, N, M). If
    `recompute`, codes are not kept for the backward pass, which computes them again.
    Raises `UsageError` unless `dim` and `ratio` are at least 1.
    """

    recompute = False
    partial = True  # each token by itself

    def __init__(
        self,
        dim: int,
        *,
        ratio: int = 4,
        decoupled: bool = True,
        step_size: float = 0.1,
        sparsity: float = 0.1,
    ):
        super().__init__()
        _check_width(dim, ratio)
        self.step_size = step_size
        self.sparsity = sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, ratio * dim))  # D
        init_dictionary(self.dictionary)
        if decoupled:
            self.decoder = nn.Parameter(torch.empty(dim, ratio * dim))  # D̂
            init_dictionary(self.decoder)
        else:
            self.decoder = None

    def forward(self, x: Tensor, record: dict | None = None) -> Tensor:
        d = self.dictionary
        x, d, decoder = in_autocast_dtype(x, d, d if self.decoder is None else self.decoder)
        eta, lam = self.step_size, self.sparsity
        tokens = x.flatten(0, -2)  # (B N, d)
        if record is None:
            output = SparseCoding.apply(tokens, d, decoder, eta, lam, self.recompute)
        else:
            _, _, codes = sparse_codes(tokens, d, eta, lam)
            record["codes"] = codes.view(*x.shape[:-1], -1)
            output = codes @ decoder.t()
        return output.view(x.shape)


class MLP(nn.Module):
    """Linear, GELU, Linear, with hidden width ratio x d (arXiv 2010.11929, section 3.1).

    gelu: "exact", h Φ(h) with the normal distribution function Φ; or GPT-2's "tanh"
    approximation, h/2 (1 + tanh(√(2/π) (h + 0.044715 h³))) (arXiv 1606.08415, section 2).

    x: (B, N, d) -> (B, N, d). `record` stays as it is: an MLP has no sparse codes.
    Raises `UsageError` unless `dim` and `ratio` are at least 1.
    """

    partial = True  # each token by itself

    def __init__(self, dim: int, *, ratio: int = 4, gelu: str = "exact"):
        super().__init__()
        _check_width(dim, ratio)
        self.approximate = {"exact": "none", "tanh": "tanh"}[gelu]
        self.hidden = nn.Linear(dim, ratio * dim)
        self.output = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor, record: dict | None = None) -> Tensor:
        return self.output(F.gelu(self.hidden(x), approximate=self.approximate))
