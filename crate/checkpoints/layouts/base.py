"""What a layout of official checkpoints states, and what all layouts share. No torch on import."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from crate.models.build import (
    AUTOENCODER_SIZES,
    CONTRASTIVE_SIZES,
    LANGUAGE_SIZES,
    VISION_SIZES,
)
from crate.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

Turn = Callable[["torch.Tensor"], "torch.Tensor"]
Shapes = Mapping[str, tuple[int, ...]]

# The size of a file that lacks the tensor it is read off.
DEFAULT_SIZES = {
    "vision": VISION_SIZES,
    "language": LANGUAGE_SIZES,
    "autoencoder": AUTOENCODER_SIZES,
    "contrastive": CONTRASTIVE_SIZES,
}


class Part(NamedTuple):
    """One tensor of an official file.

    ours    our name; several tensors of one name are its rows, in their order
    shape   its official shape
    turn    official tensor → ours; None: the same
    back    ours → official tensor, where that is not `turn` once more (a transpose)
    lossy   the complaint about a tensor that `turn` and `back` change; empty: not compared
    """

    ours: str
    shape: tuple[int, ...]
    turn: Turn | None = None
    back: Turn | None = None
    lossy: str = ""

    @property
    def our_shape(self) -> tuple[int, ...]:
        import torch

        turned = self.turn(torch.empty(self.shape, device="meta")) if self.turn else self
        return tuple(turned.shape)


Parts = dict[str, Part]  # official name → part


def any_file(weights: Mapping[str, Any]) -> bool:
    return True


def untouched(weights: dict[str, Any]) -> dict[str, Any]:
    return weights


def accept(spec: ModelSpec, weights: Mapping[str, Any]) -> None:
    pass


def nothing_beside(spec: ModelSpec, official: Mapping[str, "torch.Tensor"]) -> dict:
    return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one published code names and shapes the weights of a kind of model.

    name       as `format` in experiments/released.yaml
    kind       of `MODEL_KINDS`
    sign       a key that only files of this layout have
    fits       whether that code has the architecture of a specification
    parts      `parts(spec, **sizes)`: official names → parts
    sized_by   size → official key whose shape gives it (`read_sizes`)
    exported   whether `to_official` writes this layout

    For files that need more:

    section    weights are only the keys that begin so
    prefix     files may lack this beginning of all keys
    confirm    `confirm(weights)`: whether it is this layout, of several with the same sign
    tidy       `tidy(weights)`: what parts name; drops buffers, cuts padding, fills in zeros. Raises
               `UsageError`, without the name of the file, as `check`
    check      `check(spec, weights)` raises `UsageError` where values are not this model's
    beside     `beside(spec, official)`: what a state dict of that code holds beside its weights
    """

    name: str
    kind: str
    sign: str
    fits: Callable[[ModelSpec], bool]
    parts: Callable[..., Parts]
    sized_by: Mapping[str, str]
    exported: bool = False
    section: str = ""
    prefix: str = ""
    confirm: Callable[[Mapping[str, Any]], bool] = any_file
    tidy: Callable[[dict[str, Any]], dict[str, Any]] = untouched
    check: Callable[[ModelSpec, Mapping[str, Any]], None] = accept
    beside: Callable[[ModelSpec, Mapping[str, "torch.Tensor"]], dict] = nothing_beside

    def recognises(self, file: Mapping[str, Any]) -> bool:
        """Whether a file is of this layout, by its keys."""
        weights = self.named(file)
        return self.sign in weights and self.confirm(weights)

    def named(self, file: Mapping[str, Any]) -> dict[str, Any]:
        """The weights of a file of this layout, under their full names."""
        bare = bool(self.prefix) and self.sign.removeprefix(self.prefix) in file
        weights = {f"{self.prefix if bare else ''}{key}": value for key, value in file.items()}
        return {key: value for key, value in weights.items() if key.startswith(self.section)}

    def has(self, spec: ModelSpec) -> bool:
        """Whether the layout has this architecture."""
        return spec.kind == self.kind and self.fits(spec)

    def expected(self, spec: ModelSpec, shapes: Shapes) -> Parts:
        """The parts of a file of this architecture, at the sizes of the file given."""
        return self.parts(spec, **read_sizes(spec, shapes, self.sized_by))


def read_sizes(spec: ModelSpec, shapes: Shapes, sized_by: Mapping[str, str]) -> dict[str, int]:
    """Sizes of a model, read off the shapes of its tensors; the usual ones where one is missing.

    Args:
        sized_by: size → name of a tensor. "tokens" (class token and patches) comes from positions
            (1, 1 + n², d) or (1 + n², d); "num_classes", "vocab_size", "block_size" and
            "context_length" are the rows of a tensor.
    """
    usual = DEFAULT_SIZES[spec.kind]
    sizes = {}
    for size, key in sized_by.items():
        shape = tuple(shapes.get(key, ()))
        if size == "tokens":
            side = grid_side((1, *shape)[-3:]) or usual["image_size"] // spec.patch_size
            sizes[size] = 1 + side * side
        else:
            sizes[size] = (shape[-2:] or (usual[size],))[0]
    return sizes


def grid_side(positions: tuple[int, ...]) -> int | None:
    """n of positions (1, 1 + n², d), a class token and n² patches; None for another shape."""
    n = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    return n if n and positions[:2] == (1, 1 + n * n) else None


# --- parts of several layouts ---------------------------------------------------------------------


def affine(there: str, here: str, *shape: int) -> Parts:
    """A weight of a shape, and a bias as long as its first axis."""
    return {
        f"{there}.weight": Part(f"{here}.weight", shape),
        f"{there}.bias": Part(f"{here}.bias", shape[:1]),
    }


def flax_norm(there: str, here: str, width: int) -> Parts:
    """A LayerNorm of flax."""
    return {
        f"{there}/scale": Part(f"{here}.weight", (width,)),
        f"{there}/bias": Part(f"{here}.bias", (width,)),
    }


def flax_dense(there: str, here: str, inputs: int, outputs: int) -> Parts:
    """A Dense of flax, whose kernel is (in, out)."""
    return {
        f"{there}/kernel": Part(f"{here}.weight", (inputs, outputs), transpose),
        f"{there}/bias": Part(f"{here}.bias", (outputs,)),
    }


def transpose(w: "torch.Tensor") -> "torch.Tensor":
    return w.t()


def add_axis(w: "torch.Tensor") -> "torch.Tensor":
    return w[None]


def drop_axis(w: "torch.Tensor") -> "torch.Tensor":
    return w[0]


def join_heads_in(kernel: "torch.Tensor") -> "torch.Tensor":
    """A flax kernel (d, K, d/K) of attention's input → (d, d), rows are outputs."""
    return kernel.flatten(1).t()


def join_heads_out(kernel: "torch.Tensor") -> "torch.Tensor":
    """A flax kernel (K, d/K, d) of attention's output → (d, d), rows are outputs."""
    return kernel.flatten(0, 1).t()


def flax_params(weights: dict[str, Any]) -> dict[str, Any]:
    """The last norm directly under its tower: big_vision may nest it in the encoder."""

    def direct(key: str) -> str:
        short = key.replace("/Transformer/encoder_norm/", "/encoder_norm/")
        return key if short in weights else short

    return {direct(key): value for key, value in weights.items()}
