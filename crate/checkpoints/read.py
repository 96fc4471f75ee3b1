"""Checkpoint files, read safely: no code in them runs, and damage is one line.

What a file is, its first bytes say; its name does not matter. torch, numpy and safetensors are
imported when a file is read: planning looks files up without.
"""

import zipfile
from pathlib import Path
from typing import Any

from crate.checkpoints.pickles import MAGIC, read_pickled
from crate.errors import RunError, UsageError, reason_of

AGAIN = "download it again"
LINK = f"{AGAIN}, from the link to the file"
UNPACK = "unpack it, and give the file of weights in it"

# First bytes → what a file is, and what to do.
FOREIGN = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the weights; fetch it with git lfs pull",
    ),
    (b"\x1f\x8b", f"is a gzip archive, not weights; {UNPACK}"),
    (b"BZh", f"is a bzip2 archive, not weights; {UNPACK}"),
    (b"\xfd7zXZ", f"is an xz archive, not weights; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"is a zstd archive, not weights; {UNPACK}"),
    (b"7z\xbc\xaf", f"is a 7z archive, not weights; {UNPACK}"),
    (b"Rar!", f"is a rar archive, not weights; {UNPACK}"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them, which is not read here"),
    (b"GGUF", "is a GGUF file of quantised weights, which is not read here"),
    (b"\x93NUMPY", "is one array (.npy), not a file of weights"),
)
START = 512  # bytes that say what a file is; a tar says so at byte 257


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: of PyTorch's files what was saved, else names to tensors.

    Reads what torch.save writes (values only: code in a pickle is refused and never run),
    safetensors, and .npz (only what is under params/; the optimiser's state stays on the disk).

    Raises:
        UsageError: there is no such file.
        RunError: it is empty, cut short, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {_instead(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(START)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({reason_of(error)})") from None
    reason = _foreign(start)
    if reason:
        raise RunError(f"{path}: {reason}")
    if start.startswith(b"PK"):
        weights = _read_zip(path)
    elif _is_safetensors(start):
        weights = _read_safetensors(path)
    else:
        weights = read_pickled(path)
    if not isinstance(weights, dict) or not weights:
        raise RunError(f"{path}: holds no weights, but {_described(weights)}")
    return weights


def _instead(path: Path) -> str:
    """Why a path is not a file."""
    if path.is_dir():
        return "is a folder; give the file of weights in it"
    if path.exists():
        return "is not a regular file"
    return "is a link that leads nowhere" if path.is_symlink() else "no such file"


def _foreign(start: bytes) -> str:
    """What is wrong with a file, by its first bytes, and what to do; "" if nothing is."""
    if not start:
        return f"is empty; {AGAIN}"
    if not any(start):
        return f"begins with zeros: its download did not finish; {AGAIN}"
    for magic, reason in FOREIGN:
        if start.startswith(magic):
            return reason
    if start[257:262] == b"ustar":
        return f"is a tar archive, not weights; {UNPACK}"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"is a web page, not weights; {LINK}"
    if start.startswith((b"PK", MAGIC)) or _is_safetensors(start):
        return ""
    if start.startswith(b"\x80"):
        return (
            "is a pickle that torch.save did not write, and code of a pickle is not run here; have "
            "the weights saved with torch.save or safetensors"
        )
    if start.isascii() and start.replace(b"\n", b"").replace(b"\r", b"").decode().isprintable():
        first = start.decode().strip().split("\n")[0][:40]
        return f"is text ('{first}'), not weights; {LINK}"
    return "is damaged, or not a file of weights (PyTorch's, safetensors, or .npz of the JAX code)"


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of its header, 8 bytes, and a JSON object."""
    return start[4:9] == b"\0\0\0\0{"


def _described(value: object) -> str:
    return "nothing" if isinstance(value, dict) else f"a {type(value).__name__}"


def _read_zip(path: Path) -> Any:
    """A PyTorch file or an .npz, whose members' checksums are compared first."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inside = [name.partition("/")[2] for name in names]
            if "constants.pkl" in inside:
                raise RunError(
                    f"{path}: is a TorchScript program, whose code is not run here; have the "
                    "model's state_dict() saved instead"
                )
            if "data.pkl" in inside:
                damaged = archive.testzip()  # torch does not compare them
                if damaged:
                    raise RunError(f"{path}: is damaged (checksum of {damaged}); {AGAIN}")
                return read_pickled(path)
            if not all(name.endswith(".npy") for name in names):
                raise RunError(f"{path}: is a zip archive, not weights; {UNPACK}")
    except RunError:
        raise
    except Exception:  # which one, a damaged file decides
        raise RunError(f"{path}: is cut short or damaged; {AGAIN}") from None
    return _read_npz(path)


def _read_npz(path: Path) -> dict:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:  # a member is read when it is named
            names = [name for name in archive.files if name.startswith("params/")]
            weights = {name: archive[name] for name in names}
    except Exception:  # which one, a damaged file decides
        raise RunError(f"{path}: is damaged, or holds arrays of objects; {AGAIN}") from None
    if not names:
        raise RunError(f"{path}: has nothing under params/: not a checkpoint of the JAX code")
    return weights


def _read_safetensors(path: Path) -> dict:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except Exception:  # which one, a damaged file decides
        raise RunError(f"{path}: is cut short or damaged; {AGAIN}") from None
