"""Official weights as ours and back, strictly: every key and shape must be a model's.

`layouts/` says how the official codes name and shape weights; this file does the work that is the
same for all. torch is imported only where weights are converted.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate.checkpoints.layouts import LAYOUTS
from crate.checkpoints.layouts.base import Layout, Parts, Shapes, grid_side, read_sizes
from crate.checkpoints.layouts.clipa import TEXT_LAYOUTS
from crate.errors import RunError, UsageError
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.models.zoo import MODELS, resolve

if TYPE_CHECKING:
    import torch

# Kind of model → size → our tensor whose shape gives it.
OUR_SIZES = {
    "vision": {"num_classes": "head.weight", "tokens": "positions"},
    "language": {
        "vocab_size": "token_embedding.weight",
        "block_size": "position_embedding.weight",
    },
    "autoencoder": {"tokens": "positions"},
    "contrastive": {
        "tokens": "vision.positions",
        "vocab_size": "text.token_embedding.weight",
        "context_length": "text.positions",
    },
}
# Our keys that no official file has.
OUR_SIGNS = ("patch_embedding.projection.weight", "token_embedding.weight", "vision.positions")


def convert(
    weights: Mapping[str, Any], model: str | ModelSpec, *, where: str | Path = "the checkpoint"
) -> dict[str, "torch.Tensor"]:
    """Official weights under our names, for `load_state_dict(strict=True)`; all or nothing.

    Sizes that a specification leaves open (image size and classes, or vocabulary and length of a
    text) are the file's; `infer_sizes` gives them. float16 and bfloat16 (in a .npz: two bytes of
    void) are widened exactly.

    Args:
        weights: tensors or numpy arrays by name, in one of `LAYOUTS`; bare, or under "state_dict"
            or "model"; with or without the prefixes "module." (of a parallel model) and
            "_orig_mod." (of a compiled one).
        model: a model's name, or a specification.
        where: the file, for messages.

    Returns:
        float32 tensors that share no memory with `weights`.

    Raises:
        UsageError: the weights are another model's: the first key that is missing, unexpected or of
            another shape, with both shapes; or two tensors differ that are one here.
        RunError: a value is not a tensor, not of a floating type, or not finite.
    """
    spec, label = _named(model)
    with _about(where):
        file = _unwrapped(weights)
        layout = _layout_of(file, LAYOUTS.values())
        if layout is None:
            raise _unknown_layout(file)
        flat = layout.tidy(_checked(layout.named(file)))
        shapes = _shapes(flat)
        try:
            expected = _expected(layout, spec, shapes)
        except UsageError as error:
            raise UsageError(
                f"not the weights of {label}: {error}{_models_that_fit(layout, shapes)}"
            ) from None
        layout.check(spec, flat)
        return _converted(expected, flat)


def convert_text(
    weights: Mapping[str, Any], model: str | ModelSpec, *, where: str | Path = "the checkpoint"
) -> dict[str, "torch.Tensor"]:
    """Our `text.*` and `logit_scale` of an official contrastive model, whatever its vision tower.

    As `convert`, from any of CLIPA's layouts; and from open_clip's, whose text_projection is (w, e)
    for a text tower of width w and a shared space of width e. The vision tower beside it tells
    which of the two a file has.

    Raises:
        UsageError: there is no text tower, or one of other sizes (vocabulary and context are the
            file's).
        RunError: as `convert`.
    """
    spec, label = _named(model)
    with _about(where):
        file = _unwrapped(weights)
        layout = _layout_of(file, TEXT_LAYOUTS)
        if layout is None:
            first = next(iter(file))
            raise UsageError(f"holds no CLIP or CLIPA text tower; its first key is '{first}'")
        text = layout.tidy(_checked(layout.named(file)))
        try:
            expected = _expected(layout, spec, _shapes(text))
        except UsageError as error:
            raise UsageError(f"its text tower is not that of {label}: {error}") from None
        return _converted(expected, text)


def to_official(
    state: Mapping[str, "torch.Tensor"], model: str | ModelSpec
) -> dict[str, "torch.Tensor"]:
    """Our weights in the layout of the model's PyTorch code; the inverse of `convert`, bit for bit.

    alpha-torch for CRATE-alpha and the rows of its ablation, crate-torch for the 2023 CRATE,
    crate-mae and vit-mae for the autoencoders, clipa-torch for CRATE-alpha-CLIPA, crate-gpt for
    CRATE-GPT (its code's causal masks included) and gpt2 for GPT-2.
    Heads, η, λ, ε, the GELU and the residual stand in that code, not in a file of weights.

    Raises:
        UsageError: no official code has this architecture (ViT, CRATE-alpha-GPT, ViT-MAE-Small,
            ViT-CLIPA), or the weights are another's.
    """
    spec, label = _named(model)
    layout = next((each for each in LAYOUTS.values() if each.exported and each.has(spec)), None)
    if layout is None:
        code = "published code" if spec.causal else "official CRATE code"
        raise UsageError(f"{label}: no {code} has this architecture")
    shapes = _shapes(state)
    official = layout.parts(spec, **read_sizes(spec, shapes, OUR_SIZES[spec.kind]))
    ours = {part.ours: part._replace(shape=part.our_shape) for part in official.values()}
    with _about(f"not the weights of {label}"):
        _check_shapes(ours, shapes)
    converted = {}
    for key, part in official.items():
        tensor = state[part.ours].detach().cpu().clone()
        back = part.back or part.turn
        converted[key] = back(tensor).contiguous() if back else tensor
    return converted | layout.beside(spec, converted)


def infer_sizes(state: Mapping[str, "torch.Tensor"], model: str | ModelSpec) -> dict[str, int]:
    """The sizes of our weights, to build a model that they fit.

    Returns:
        of a classifier num_classes and image_size; of an autoencoder image_size; of a language
        model vocab_size and block_size; of both towers of a contrastive model image_size,
        vocab_size and context_length. The vision part alone of the last two is a classifier's.

    Raises:
        UsageError: there is no head, or the positions are not those of a square grid.
    """
    spec, label = _named(model)
    own = {"autoencoder": "mask_token", "contrastive": "logit_scale"}.get(spec.kind)
    kind = spec.kind if own is None or own in state else "vision"
    sizes = {}
    for size, key in OUR_SIZES[kind].items():
        axes = 3 if key.endswith("positions") else 2  # (1, n, d) or (n, d)
        if key not in state or state[key].dim() != axes:
            raise UsageError(f"not the weights of {label}: no '{key}' with {axes} axes")
        shape = tuple(state[key].shape)
        if size == "tokens":
            side = grid_side(shape)
            if side is None:
                raise UsageError(f"'{key}' has shape {shape}, expected (1, 1 + n², {spec.dim})")
            sizes["image_size"] = side * spec.patch_size
        else:
            sizes[size] = shape[-2]
    return sizes


def _named(model: str | ModelSpec) -> tuple[ModelSpec, str]:
    if isinstance(model, str):
        return resolve(model), model
    return model, f"a {model.attention}-{model.feedforward} model of width {model.dim}"


@contextlib.contextmanager
def _about(what: str | Path) -> Iterator[None]:
    """Errors say what they are about."""
    try:
        yield
    except (UsageError, RunError) as error:
        raise type(error)(f"{what}: {error}") from None


# --- what a file holds ----------------------------------------------------------------------------


def _unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by name, without a wrapper and without the prefixes of one."""
    inner = weights.get("state_dict", weights.get("model", weights))
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(k, str) for k in inner):
        raise RunError("holds no mapping of names to tensors")
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in inner):
            inner = {key.removeprefix(prefix): value for key, value in inner.items()}
    return dict(inner)


def _layout_of(file: Mapping[str, Any], layouts: Iterable[Layout]) -> Layout | None:
    """The first layout whose sign a file has."""
    return next((layout for layout in layouts if layout.recognises(file)), None)


def _unknown_layout(file: Mapping[str, Any]) -> UsageError:
    first = next(iter(file))
    if any(key in file for key in OUR_SIGNS):
        return UsageError("is in this suite's own layout already")
    if any(key.startswith(("visual.", "params/img/")) for key in file):
        return UsageError(f"is a contrastive model of a layout not read here ('{first}')")
    signs = ", ".join(dict.fromkeys(layout.sign for layout in LAYOUTS.values()))
    return UsageError(
        f"not an official CRATE checkpoint: it has none of {signs}; its first key is '{first}'"
    )


def _checked(flat: dict[str, Any]) -> dict[str, Any]:
    for key, value in flat.items():
        if not hasattr(value, "shape"):
            raise RunError(f"'{key}' is not a tensor but {type(value).__name__}")
    return flat


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _expected(layout: Layout, spec: ModelSpec, shapes: Shapes) -> Parts:
    """The parts of a file, which has them all and no others. Raises `UsageError`."""
    if not layout.has(spec):
        raise UsageError(
            f"'{layout.sign}' is of the {layout.name} layout ({MODEL_KINDS[layout.kind]}), which "
            "this model does not have"
        )
    expected = layout.expected(spec, shapes)
    _check_shapes(expected, shapes)
    return expected


def _check_shapes(expected: Parts, shapes: Shapes) -> None:
    """Raise `UsageError` about the first key that is missing, of another shape, or unexpected."""
    for key, part in expected.items():
        if key not in shapes:
            raise UsageError(f"'{key}' is missing, expected with shape {part.shape}")
        if shapes[key] != part.shape:
            raise UsageError(f"'{key}' has shape {shapes[key]}, expected {part.shape}")
    for key, shape in shapes.items():
        if key not in expected:
            raise UsageError(f"unexpected '{key}' with shape {shape}")


def _models_that_fit(layout: Layout, shapes: Shapes) -> str:
    """The models of the zoo whose weights a file holds, as the end of a message."""
    fitting = []
    for name, spec in MODELS.items():
        with contextlib.suppress(UsageError):
            _expected(layout, spec, shapes)
            fitting.append(name)
    return f"; the weights fit {' or '.join(fitting)}" if fitting else ""


# --- values ---------------------------------------------------------------------------------------


def _converted(expected: Parts, flat: Mapping[str, Any]) -> dict[str, "torch.Tensor"]:
    """Tensors that have the right names and shapes, as ours."""
    import torch

    converted: dict[str, torch.Tensor] = {}
    for key, part in expected.items():
        official = _float32(flat[key], key)
        tensor = part.turn(official) if part.turn else official
        if part.lossy and not torch.equal(part.back(tensor), official):
            raise UsageError(f"'{key}': {part.lossy}")
        if part.ours in converted:
            tensor = torch.cat([converted[part.ours], tensor])
        converted[part.ours] = tensor.contiguous()
    return converted


def _float32(value: Any, key: str) -> "torch.Tensor":
    """A copy as float32, exactly. Raises `RunError` unless all values are finite floats."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:  # how numpy keeps bfloat16
            bits = np.ascontiguousarray(value).view(np.int16)
            tensor = torch.tensor(bits).view(torch.bfloat16)
        elif value.dtype.kind == "f" and value.dtype.itemsize <= 4:
            tensor = torch.tensor(value.astype(value.dtype.newbyteorder("="), copy=False))
        else:
            raise RunError(f"'{key}' is {value.dtype}, not float32, float16 or bfloat16")
    else:
        tensor = value.detach().cpu().clone()
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise RunError(f"'{key}' is {tensor.dtype}, not float32, float16 or bfloat16")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise RunError(f"'{key}' holds values that are not finite")
    return tensor
