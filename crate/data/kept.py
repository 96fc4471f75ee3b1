"""Arrays that are made once from files of the package, and kept on this machine.

Decoding the embedded pictures takes longer than many a small run on them. What is kept lies in
`$CRATE_CACHE`, else `$XDG_CACHE_HOME/crate`, else `~/.cache/crate`, may be deleted at any time, and
is mapped into memory, where processes share it. Without a folder to write to, nothing is kept.
"""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from crate.environment import cache_folder
from crate.errors import RunError
from crate.records import atomic_path


def kept(name: str, version: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of `make`, from the cache if it is there whole; read-only.

    version: of what the array is made from, such as a file's sha256; part of the file's name, as is
        a digest of the array itself, so that a damaged file is made again.
    """
    found = None
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or a closed one
        for path in cache_folder().glob(f"{name}-{version[:16]}-*.npy"):
            found = _whole(path)
        if found is not None:
            return found
    array = make()
    with contextlib.suppress(RunError, RuntimeError):
        path = cache_folder() / f"{name}-{version[:16]}-{_digest(array)}.npy"
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    array = array.view()
    array.flags.writeable = False
    return array


def _whole(path: Path) -> np.ndarray | None:
    """The array of a file, unless it is damaged."""
    with contextlib.suppress(ValueError, EOFError):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if path.stem.endswith(_digest(array)):
            return array.view(np.ndarray)
    return None


def _digest(array: np.ndarray) -> str:
    facts = f"{array.dtype.str}{array.shape}".encode()
    content = hashlib.blake2b(facts, digest_size=16)
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()
