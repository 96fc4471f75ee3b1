"""Weights files (.safetensors), written atomically."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from crate.errors import RunError
from crate.records import RunFolder, atomic_path

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_weights(model: nn.Module, folder: RunFolder) -> None:
    """Write a model's state dict to the run's weights file. Raises `RunError` if that fails."""
    save_tensors(model.state_dict(), folder.weights)


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a weights file. Raises `RunError` where the disk is full."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # how it reports a full disk
            raise RunError(f"{path}: cannot be written ({error})") from None


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a weights file. Raises `RunError` if it is missing or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: weights cannot be read ({error})") from None


def to_float32(value: Any, key: str) -> tuple[torch.Tensor, bool]:
    """A copy of a tensor or a numpy array as float32, and whether it was wider and was rounded.

    Raises:
        RunError: it is not a dense tensor of finite floats.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:  # how numpy keeps bfloat16
            bits = np.ascontiguousarray(value).view(np.int16)
            tensor = torch.tensor(bits).view(torch.bfloat16)
        elif value.dtype.kind == "f" and value.dtype.itemsize <= 8:
            tensor = torch.tensor(value.astype(value.dtype.newbyteorder("="), copy=False))
        else:
            raise RunError(f"'{key}' is {value.dtype}; weights are float16, bfloat16 or float32")
    else:
        tensor = value.detach()
    require_dense(tensor, key)
    if tensor.dtype not in FLOATS:
        name = str(tensor.dtype).removeprefix("torch.")
        raise RunError(f"'{key}' is {name}; weights are float16, bfloat16 or float32")
    narrow = tensor.cpu().to(torch.float32, copy=True)
    if not narrow.isfinite().all():
        raise RunError(f"'{key}' holds values that are not finite (NaN or infinity)")
    return narrow, tensor.dtype == torch.float64


def require_dense(value: Any, key: str) -> None:
    """Raise `RunError` about a tensor that does not hold each of its values."""
    if not isinstance(value, torch.Tensor):
        return
    if value.is_meta:
        raise RunError(f"'{key}' has a shape and no values (a meta tensor); have it saved anew")
    if value.is_nested or value.layout != torch.strided:
        raise RunError(f"'{key}' is a sparse or nested tensor; have it saved as a dense one")


def require_weights(state: dict[str, Any], where: str | Path) -> dict[str, torch.Tensor]:
    """A network's weights under our names, as float32; buffers of whole numbers stay.

    Raises:
        RunError: one is no dense tensor, or holds values that are not finite.
    """
    try:
        return {key: _checked(value, key) for key, value in state.items()}
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


def _checked(value: Any, key: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise RunError(f"'{key}' is not a tensor but {type(value).__name__}")
    counts = key.endswith("num_batches_tracked")
    return value if counts else to_float32(value, key)[0]
