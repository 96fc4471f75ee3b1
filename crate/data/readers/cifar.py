"""CIFAR's pickled batches (Krizhevsky 2009), read without executing anything in them.

`cifar10.py` and `cifar100.py` name the files.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from crate.data.files import Unusable, read_file
from crate.data.pictures import ArrayPictures
from crate.errors import reason_of


class _Array:
    """Stands in for numpy.ndarray while a pickle is read: keeps shape and bytes, does nothing."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, _, _, self.content = state


class _Type:
    """Stands in for numpy.dtype."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Unpickles only the few names in a published batch, as inert objects: no code is run."""

    KNOWN = {
        "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
        "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
        "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes, as Python 3 writes them
    }

    def find_class(self, module: str, name: str):
        try:
            return self.KNOWN[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_batch(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """One pickled batch: pixels uint8 (n, 32, 32, 3), labels int64 (n,). Raises `Unusable`."""
    content = read_file(path)
    try:
        entry = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        found = np.array(entry[labels.encode()], dtype=np.int64)
        pixels = np.frombuffer(entry[b"data"].content, np.uint8).reshape(len(found), 3, 32, 32)
        if found.ndim != 1:
            raise ValueError("its labels are not a list")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise Unusable(f"{path}: is not a batch of CIFAR ({reason_of(error)})") from None
    return pixels.transpose(0, 2, 3, 1), found


def read_batches(folder: Path, files: tuple[str, ...], labels: str) -> ArrayPictures:
    """All pictures of some batches; `labels` is the entry of a batch that has their labels."""
    batches = [read_batch(folder / file, labels) for file in files]
    pixels, found = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return ArrayPictures(np.ascontiguousarray(pixels), found)


def published_checksums(known) -> dict[str, str]:
    """File → md5 of the batches, as torchvision's class of a set knows them."""
    files = [*known.train_list, *known.test_list]
    return {f"{known.base_folder}/{name}": md5 for name, md5 in files}
