"""Weights files (.safetensors), written atomically."""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from crate.errors import RunError
from crate.records import RunFolder, atomic_path


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
