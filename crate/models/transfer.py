"""Transfers weights from one stage to the next; positions and patch kernels are interpolated."""

import torch
import torch.nn.functional as F
from torch import nn

from crate.errors import RunError, UsageError, nearest
from crate.models.vision import resize_positions


def transfer_weights(
    model: nn.Module, weights: dict[str, torch.Tensor], dont_load: list[str]
) -> dict:
    """Load a parent's weights into `model`; on an error, nothing is loaded.

    Positions are interpolated to the new grid (bicubic) and patch kernels to the new patch size
    (bilinear, as CRATE-alpha's code).

    Args:
        dont_load: names of parameters or modules that keep their initial values.

    Returns:
        names of parameters, for run.json: `{"new": […], "resized": […]}`.

    Raises:
        UsageError: a name in `dont_load` that the model does not have.
        RunError: the parent lacks a parameter, has another one, or a shape does not fit.
    """
    own = model.state_dict()

    def listed(name: str) -> bool:
        return any(name == entry or name.startswith(f"{entry}.") for entry in dont_load)

    for entry in dont_load:
        if not any(name == entry or name.startswith(f"{entry}.") for name in own):
            parts = [name.split(".") for name in own]
            names = {".".join(p[:k]) for p in parts for k in range(1, len(p) + 1)}
            raise UsageError(f"dont_load: the model has no '{entry}'{nearest(entry, names)}")
    loaded, resized = {}, []
    for name, tensor in own.items():
        if listed(name):
            continue
        if name not in weights:
            raise RunError(
                f"the parent's weights have no '{name}'; give a parent of the same architecture"
            )
        value = weights[name]
        if value.shape != tensor.shape:
            value = _adapt(name, value, tensor)
            resized.append(name)
        loaded[name] = value
    foreign = [name for name in weights if name not in own and not listed(name)]
    if foreign:
        raise RunError(
            f"the parent's weights have '{foreign[0]}', which this model lacks; give a parent of "
            "the same architecture"
        )
    model.load_state_dict(loaded, strict=False)
    return {"new": [name for name in own if name not in loaded], "resized": resized}


def vision_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part of a model's weights that fits a `VisionTransformer` of the same specification.

    Of an autoencoder its encoder, which has no head; of a contrastive model its vision tower, whose
    head is the projection; of a vision model everything.
    """
    if "mask_token" in state:
        others = ("mask_token", "decoder_")
        return {name: tensor for name, tensor in state.items() if not name.startswith(others)}
    if "logit_scale" in state:
        return {
            name.removeprefix("vision."): tensor
            for name, tensor in state.items()
            if name.startswith("vision.")
        }
    return state


def _adapt(name: str, value: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    name = name.removeprefix("vision.")
    if name == "positions" and value.shape[-1] == wanted.shape[-1]:
        return resize_positions(value, round((wanted.shape[1] - 1) ** 0.5))
    if (
        name == "patch_embedding.projection.weight"
        and value.dim() == wanted.dim() == 4
        and value.shape[:2] == wanted.shape[:2]
    ):
        return F.interpolate(value, wanted.shape[2:], mode="bilinear", antialias=True)
    raise RunError(
        f"the parent's '{name}' has shape {tuple(value.shape)}, this model needs "
        f"{tuple(wanted.shape)}"
    )
