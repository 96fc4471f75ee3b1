"""Official weights as ours and back, strictly: every key and shape must be a model's.

`layouts/` says how the official codes name and shape weights; this file does the work that is the
same for all. torch is imported only where weights are converted.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate.checkpoints.find import Found, find_weights, unknown_layout
from crate.checkpoints.layouts import LAYOUTS
from crate.checkpoints.layouts.base import Layout, Parts, Shapes, grid_side, read_sizes
from crate.checkpoints.layouts.clipa import TEXT_LAYOUTS
from crate.errors import RunError, UsageError
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.models.zoo import MODELS, resolve

if TYPE_CHECKING:
    import torch

PATCH_KERNEL = "patch_embedding.projection.weight"

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


def convert(
    content: Mapping[str, Any],
    model: str | ModelSpec,
    *,
    name: str | None = None,
    where: str | Path = "the checkpoint",
    take: str | None = None,
) -> dict[str, "torch.Tensor"]:
    """Official weights under our names, for `load_state_dict(strict=True)`; all or nothing.

    Sizes that a specification leaves open (image size and classes, or vocabulary and length of a
    text) are the file's; `infer_sizes` gives them. float16 and bfloat16 (in a .npz: two bytes of
    void) are widened exactly; float64 is rounded, with a line on stderr.

    Args:
        content: tensors or numpy arrays by name, in one of `LAYOUTS`, wherever they stand in what
            a file holds (`find.py`).
        model: a model's name, or a specification.
        name, where: of the specification and of the file, for messages.
        take: where in the file the weights stand; None: as `find_weights` finds them.

    Returns:
        float32 tensors that share no memory with `weights`.

    Raises:
        UsageError: the weights are another model's: the first key that is missing, unexpected or of
            another shape, with both shapes; or two tensors differ that are one here.
        RunError: a value is not a tensor, not of a floating type, or not finite.
    """
    spec, label = _named(model, name)
    with _about(where):
        found = find_weights(content, LAYOUTS.values(), take=take, where=where)
        return _convert_found(found, spec, label, where)


def ours_or_converted(
    content: Mapping[str, Any],
    model: str | ModelSpec,
    *,
    name: str | None = None,
    where: str | Path = "the checkpoint",
) -> dict[str, "torch.Tensor"]:
    """As `convert`; weights that have our names already, wherever they stand, stay as they are.

    Raises:
        UsageError: as `convert`; or our weights are of other patches (a stage's start would
            interpolate their kernels).
        RunError: as `convert`.
    """
    spec, label = _named(model, name)
    with _about(where):
        found = find_weights(content, LAYOUTS.values(), where=where)
        if not found.ours:
            return _convert_found(found, spec, label, where)
        _require_tensors(found)
        kernels = [v for k, v in found.weights.items() if k.endswith(PATCH_KERNEL) and v.ndim == 4]
        for side in (kernel.shape[-1] for kernel in kernels):
            if side != spec.patch_size:
                raise UsageError(
                    f"not the weights of {label}: patches of {side} px, expected {spec.patch_size}"
                )
    from crate.weights import require_weights

    return require_weights(found.weights, where)


def convert_text(
    content: Mapping[str, Any], model: str | ModelSpec, *, where: str | Path = "the checkpoint"
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
        found = find_weights(content, TEXT_LAYOUTS, where=where)
        layout = found.layout
        if layout is None:
            first = next(iter(found.weights))
            raise UsageError(f"holds no CLIP or CLIPA text tower; its first key is '{first}'")
        text = layout.tidy(layout.named(found.weights))
        try:
            expected = _expected(layout, spec, _shapes(text))
        except UsageError as error:
            _require_tensors(found)
            raise UsageError(f"its text tower is not that of {label}: {error}") from None
        return _converted(expected, text, where)


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


def _named(model: str | ModelSpec, name: str | None = None) -> tuple[ModelSpec, str]:
    if isinstance(model, str):
        return resolve(model), model
    return model, name or f"a {model.attention}-{model.feedforward} model of width {model.dim}"


@contextlib.contextmanager
def _about(what: str | Path) -> Iterator[None]:
    """Errors say what they are about."""
    try:
        yield
    except (UsageError, RunError) as error:
        raise type(error)(f"{what}: {error}") from None


def _convert_found(
    found: Found, spec: ModelSpec, label: str, where: str | Path
) -> dict[str, "torch.Tensor"]:
    """`convert` of the weights that were found; errors lack the name of the file."""
    layout = found.layout
    if layout is None:
        raise unknown_layout(found, LAYOUTS.values())
    flat = layout.tidy(layout.named(found.weights))
    shapes = _shapes(flat)
    try:
        expected = _expected(layout, spec, shapes)
    except UsageError as error:
        _require_tensors(found)
        raise UsageError(
            f"not the weights of {label}: {error}{_models_that_fit(layout, shapes)}"
        ) from None
    _require_plain(flat)
    layout.check(spec, flat)
    return _converted(expected, flat, where)


# --- names and shapes -----------------------------------------------------------------------------


def _require_plain(weights: Mapping[str, Any]) -> None:
    """Raise `RunError` about a tensor that is not dense, before values are compared."""
    from crate.weights import require_dense

    for key, value in weights.items():
        require_dense(value, key)


def _require_tensors(found: Found) -> None:
    """Raise `RunError` about what stands among weights that do not fit, and is no tensor."""
    for key, kind in found.others.items():
        raise RunError(f"'{key}' is not a tensor but {kind}")


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
    if fitting:
        return f"; the weights fit {' or '.join(fitting)}"
    return (
        f"; its {len(shapes):,} tensors of the {layout.name} layout fit no model of 'crate "
        "models': add one of their sizes to models.yaml"
    )


# --- values ---------------------------------------------------------------------------------------


def _converted(
    expected: Parts, flat: Mapping[str, Any], where: object
) -> dict[str, "torch.Tensor"]:
    """Tensors that have the right names and shapes, as ours."""
    import torch

    from crate.weights import to_float32

    converted: dict[str, torch.Tensor] = {}
    rounded = 0
    for key, part in expected.items():
        official, wide = to_float32(flat[key], key)
        rounded += wide
        tensor = part.turn(official) if part.turn else official
        if part.lossy and not torch.equal(part.back(tensor), official):
            raise UsageError(f"'{key}': {part.lossy}")
        if part.ours in converted:
            tensor = torch.cat([converted[part.ours], tensor])
        converted[part.ours] = tensor.contiguous()
    if rounded:
        tensors = f"{rounded:,} tensor{'s are' if rounded > 1 else ' is'}"
        print(f"note: {where}: {tensors} float64; rounded to float32", file=sys.stderr)
    return converted
