"""Blocks to compare: CRATE-alpha's as its PyTorch code writes it, and ours; what they cost.

B batch, N tokens, d width, K heads, M = 4 d atoms.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# width, heads, depth, tokens of a picture of 224 pixels
SIZES = {"B/16": (768, 12, 12, 197), "L/14": (1024, 16, 24, 257), "tiny": (32, 2, 2, 17)}


class OfficialStyleBlock(nn.Module):
    """Each equation as it stands, one operation after the other: (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int, heads: int, eta: float = 0.1, lam: float = 0.1):
        super().__init__()
        self.heads, self.eta, self.lam = heads, eta, lam
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.subspaces = nn.Linear(dim, dim, bias=False)
        self.projection = nn.Linear(dim, dim, bias=False)
        self.dictionary = nn.Parameter(torch.empty(dim, 4 * dim))
        self.decoder = nn.Parameter(torch.empty(dim, 4 * dim))

    def attend(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        w = self.subspaces(x).reshape(b, n, self.heads, d // self.heads).permute(0, 2, 1, 3)
        weights = (w @ w.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(dim=-1)
        return self.projection((weights @ w).permute(0, 2, 1, 3).reshape(b, n, d))

    def code(self, x: Tensor) -> Tensor:
        d = self.dictionary
        z = F.relu(self.eta * torch.einsum("pm,bnp->bnm", d, x) - self.eta * self.lam)
        error = torch.einsum("pm,bnm->bnp", d, z) - x
        step = self.eta * torch.einsum("pm,bnp->bnm", d, error)
        z = F.relu(z - step - self.eta * self.lam)
        return torch.einsum("pm,bnm->bnp", self.decoder, z)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.code(self.norm2(x))


def blocks(size: str, *, recompute: bool = False) -> tuple[nn.Module, nn.Module]:
    """The official-style block and ours, with the same weights."""
    dim, heads, _, _ = SIZES[size]
    ours = make_block(dim, heads)
    official = OfficialStyleBlock(dim, heads)
    names = {"subspaces.": "attention.subspaces.", "projection.": "attention.projection."}
    state = ours.state_dict()
    for name, tensor in official.state_dict().items():
        mine = next((new + name.removeprefix(old) for old, new in names.items() if old in name), "")
        mine = mine or (name if "norm" in name else f"feedforward.{name}")
        tensor.copy_(state[mine])
    for module in ours.modules():
        if hasattr(module, "recompute"):
            module.recompute = recompute
    return official, ours


def make_block(dim: int, heads: int) -> nn.Module:
    """CRATE-alpha's block of the package `crate` that is imported now, at either layout."""
    for place in ("crate.models.blocks", "crate.models.transformer"):
        try:
            make = importlib.import_module(place).make_blocks
            break
        except ModuleNotFoundError:
            continue
    zoo = "crate.models.zoo" if place.endswith("blocks") else "crate.models.registry"
    resolve = importlib.import_module(zoo).resolve
    return make(resolve("crate_alpha_base_patch16", dim=dim, heads=heads, depth=1))[0]


def train_step(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward pass of a block on tokens x (B, N, d), under autocast."""

    def step() -> None:
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            output = module(x)
        output.backward(torch.ones_like(output))
        for parameter in module.parameters():
            parameter.grad = None

    return step


def kept_bytes(module: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """Bytes of activations kept for the backward pass; parameters and their casts are left out."""
    weights = {parameter.numel() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with held, torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = module(x)
    del output
    return sum(kept.values())


def product_flops(step: Callable[[], None]) -> int:
    """FLOPs of the matrix products of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def product(tokens: int, dim: int, dtype: torch.dtype, device: str) -> tuple[Callable, int]:
    """The product D x of a block alone, and its FLOPs."""
    x = torch.randn(tokens, dim, dtype=dtype, device=device)
    d = torch.randn(dim, 4 * dim, dtype=dtype, device=device)
    return lambda: x @ d, 2 * tokens * dim * 4 * dim
