"""Official checkpoint files, read safely: no code in them runs, and damage is one line.

torch, numpy and safetensors are imported when a file is read: planning looks files up without.
"""

import zipfile
from pathlib import Path
from typing import Any

from crate.errors import RunError, UsageError

SUFFIXES = (".pth", ".pt", ".bin", ".npz", ".safetensors")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file: names to tensors, or to numpy arrays for .npz.

    Reads .pth, .pt and .bin (tensors only: code in a pickle is refused and never run), .npz (only
    what is under params/; the optimiser's state stays on the disk) and .safetensors.

    Raises:
        UsageError: there is no such file, or it has another suffix.
        RunError: it is empty, cut short, damaged, or does not hold weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: not a checkpoint, whose name ends in {', '.join(SUFFIXES)}")
    again = "; download it again"
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise RunError(f"{path}: is empty{again}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise RunError(f"{path}: is a web page, not weights{again}, from the link to the file")
    if start.startswith(b"version https://git-lfs"):
        raise RunError(f"{path}: is a Git LFS pointer, not the weights; fetch it with git lfs pull")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise RunError(f"{path}: is cut short{again}")
    reader = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix, _read_torch)
    try:
        weights = reader(path)
    except RunError:
        raise
    except Exception as error:  # which one, a damaged file decides
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunError(
            f"{path}: is damaged, or not a {path.suffix} file ({reason}){again}"
        ) from None
    if not isinstance(weights, dict) or not weights:
        raise RunError(f"{path}: holds no weights")
    return weights


def _read_torch(path: Path) -> Any:
    import pickle
    import warnings

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
            damaged = archive.testzip()
        if damaged:
            raise RunError(f"{path}: is damaged (checksum of {damaged}); download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles: they are read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's message recommends running the code
        raise RunError(
            f"{path}: is damaged, or a pickle of more than tensors, whose code is not run here"
        ) from None


def _read_npz(path: Path) -> dict:
    import numpy as np

    if not zipfile.is_zipfile(path):
        raise RunError(f"{path}: is not a .npz file; download it again")
    with np.load(path, allow_pickle=False) as archive:  # a member is read, and checked, when named
        names = [name for name in archive.files if name.startswith("params/")]
        if not names:
            raise RunError(f"{path}: has nothing under params/: not a checkpoint of the JAX code")
        return {name: archive[name] for name in names}


def _read_safetensors(path: Path) -> dict:
    import safetensors.torch

    return safetensors.torch.load_file(path)
