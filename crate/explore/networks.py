"""Networks for a person's own data: their weights from any file, and their device."""

from pathlib import Path
from typing import TYPE_CHECKING

from crate.environment import EXPERIMENTS
from crate.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch


def read_any_weights(
    path: Path, spec: ModelSpec, *, listed_as: str | None = None
) -> "dict[str, torch.Tensor]":
    """The weights of a run's file or of an official checkpoint, under our names.

    Args:
        spec: the model that the weights belong to.
        listed_as: a model's name. If experiments/released.yaml lists the file, it must be listed
            for this model and have the listed size and hash. None: not verified.

    Raises:
        UsageError, RunError: as `read_checkpoint`, `verify_if_listed` and `convert`.
    """
    from crate.checkpoints.convert import convert
    from crate.checkpoints.manifest import verify_if_listed
    from crate.checkpoints.read import read_checkpoint
    from crate.weights import require_weights

    ours = "token_embedding.weight" if spec.causal else "class_token"
    if listed_as is not None:
        verify_if_listed(path, listed_as, EXPERIMENTS)
    state = read_checkpoint(path)
    if ours in state:
        return require_weights(state, path)
    return convert(state, spec, name=listed_as, where=path)


def best_device() -> str:
    """ "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
