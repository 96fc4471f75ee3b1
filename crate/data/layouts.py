"""The real sets as they lie on disk, read into `Pictures`.

Folders and files are those that torchvision's own classes make and read (the tests compare them
picture by picture), with three differences: nothing that a file contains is executed (CIFAR's
batches are pickles), an unreadable file is told in one line, and md5 sums are left to
`crate data check`.
"""

import io
import json
import pickle
import re
from pathlib import Path

import numpy as np

from crate.data.catalogue import ImageSet, advice, home
from crate.data.folders import class_folders, shard_files
from crate.data.listing import list_part
from crate.data.pictures import ArrayPictures, FilePictures, Pictures, ShardPictures
from crate.errors import RunError


def open_pictures(dataset: ImageSet, part: str, data_root: str | Path) -> Pictures:
    """All pictures of one part on disk (a value of `dataset.folders`).

    Raises:
        RunError: something is missing, unreadable or not of this set; nothing is read in part.
    """
    root = home(dataset, data_root)
    if not dataset.labels:
        return _class_folders(dataset, part, root)
    try:
        pictures = READERS[dataset.labels](root, part)
    except _Unusable as error:
        raise RunError(f"{error}; {advice(dataset, data_root)}") from None
    _check_labels(pictures, dataset, root / part)
    return pictures


class _Unusable(Exception):
    """What is wrong with a set; what to do about it is added above."""


def _check_labels(pictures: Pictures, dataset: ImageSet, where: Path) -> None:
    labels = pictures.labels
    lowest = -1 if labels.ndim == 2 else 0  # -1 pads
    wrong = labels[(labels < lowest) | (labels >= dataset.classes)]
    if len(wrong):
        raise RunError(
            f"{where}: a label is {wrong[0]}, those of {dataset.title} are 0 to "
            f"{dataset.classes - 1:,}"
        )


# --- ImageNet -----------------------------------------------------------


def _class_folders(dataset: ImageSet, part: str, root: Path) -> Pictures:
    """A tree or tar shards (`crate/data/listing.py`), with the classes of the training part."""
    folder = root / part
    classes, pictures = list_part(folder)
    if len(classes) != dataset.classes and (classes or not len(pictures)):
        kind = "class tars" if isinstance(pictures, ShardPictures) else "class folders"
        raise RunError(
            f"{folder}: has {len(classes):,} {kind}, {dataset.title} has {dataset.classes:,}"
        )
    if not classes:  # WebDataset shards name none
        _check_labels(pictures, dataset, folder)
        return pictures
    train = root / dataset.folders["train"]
    others = class_folders(train) or [name.removesuffix(".tar") for name in shard_files(train)]
    webdataset = not class_folders(train) and len(others) != dataset.classes
    if classes != others and not webdataset:
        odd = sorted(set(classes) ^ set(others))[0]
        raise RunError(f"{folder}: its classes are not those of the training part, first {odd}")
    return pictures


REAL_LABELS = 50_000


def _real(root: Path, part: str) -> Pictures:
    """ImageNet's validation pictures, each with the labels Beyer et al. 2020 (ReaL) found for it.

    `real.json` is a list of 50,000 lists of class indices, in the order of the pictures' numbers.
    Pictures without any label are left out.
    """
    path = root / "real.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _Unusable(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise _Unusable(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None
    lists = isinstance(labels, list) and all(
        isinstance(found, list) and all(type(label) is int and label >= 0 for label in found)
        for found in labels
    )
    if not lists or len(labels) != REAL_LABELS:
        raise _Unusable(f"{path}: is not a list of {REAL_LABELS:,} lists of labels")
    _, pictures = list_part(root / part)
    numbers = []
    for index in range(len(pictures)):
        name = pictures.name(index)
        number = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
        if not number or not 1 <= int(number[1]) <= REAL_LABELS:
            raise RunError(f"{name}: is not called as a validation picture, ILSVRC2012_val_…")
        numbers.append(int(number[1]))
    found = [labels[number - 1] for number in numbers]
    kept = np.array([index for index, several in enumerate(found) if several], dtype=np.int64)
    padded = np.full((len(found), max(map(len, labels))), -1, dtype=np.int64)
    for row, several in zip(padded, found, strict=True):
        row[: len(several)] = several
    pictures = pictures.select(np.arange(len(pictures)))  # the listing itself is shared
    pictures.labels = padded
    return pictures.select(kept)


# --- CIFAR -----------------------------------------------------------


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
    """Knows the few names that a published batch contains, none of which does anything."""

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


def _batch(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """One pickled batch: pixels uint8 (n, 32, 32, 3), labels (n,) int64."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _Unusable(f"{path}: cannot be read ({error.strerror})") from None
    try:
        entry = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        found = np.array(entry[labels.encode()], dtype=np.int64)
        pixels = np.frombuffer(entry[b"data"].content, np.uint8).reshape(len(found), 3, 32, 32)
        if found.ndim != 1:
            raise ValueError("its labels are no list")
    except Exception as error:  # there is no end of what a damaged pickle raises
        reason = str(error).split("\n")[0] or type(error).__name__
        raise _Unusable(f"{path}: is not a batch of CIFAR ({reason})") from None
    return pixels.transpose(0, 2, 3, 1), found


def _cifar(folder: str, labels: str, files: dict[str, tuple[str, ...]]):
    def read(root: Path, part: str) -> Pictures:
        batches = [_batch(root / folder / file, labels) for file in files[part]]
        pixels, found = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return ArrayPictures(np.ascontiguousarray(pixels), found)

    return read


# --- Oxford's flowers and pets -----------------------------------------------------------


def _all_there(folder: Path, files: list[str], listed_in: Path) -> np.ndarray:
    try:
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise _Unusable(f"{folder}: cannot be read ({error.strerror})") from None
    missing = [file for file in files if file not in there]
    if missing:
        raise _Unusable(
            f"{folder}: lacks {len(missing):,} of the {len(files):,} pictures that "
            f"{listed_in} names, first {missing[0]}"
        )
    return np.array([file.encode() for file in files], dtype=np.bytes_)


def _flowers(root: Path, part: str) -> Pictures:
    """Pictures are numbered from 1; setid.mat lists each part's, imagelabels.mat has all labels."""
    from scipy.io import loadmat

    folder = root / "flowers-102"
    split = {"train": "trnid", "val": "valid", "test": "tstid"}[part]
    found = {}
    for file, key in {"setid.mat": split, "imagelabels.mat": "labels"}.items():
        try:
            content = io.BytesIO((folder / file).read_bytes())
            found[file] = loadmat(content, variable_names=[key])[key].ravel().astype(np.int64)
        except OSError as error:
            raise _Unusable(f"{folder / file}: cannot be read ({error.strerror})") from None
        except Exception as error:  # scipy lets through whatever a damaged file makes it meet
            reason = str(error).split("\n")[0] or type(error).__name__
            raise _Unusable(f"{folder / file}: cannot be read ({reason})") from None
    ids, labels = found.values()
    if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
        raise _Unusable(
            f"{folder / 'setid.mat'}: names picture {ids.max()}, imagelabels.mat labels "
            f"{len(labels):,}"
        )
    files = [f"image_{number:05d}.jpg" for number in ids.tolist()]
    names = _all_there(folder / "jpg", files, folder / "setid.mat")
    return FilePictures(folder / "jpg", names, labels[ids - 1] - 1)


def _pets(root: Path, part: str) -> Pictures:
    """One picture a line: name, breed (1 to 37), cat or dog, breed among those."""
    folder = root / "oxford-iiit-pet"
    path = folder / "annotations" / f"{part}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _Unusable(f"{path}: cannot be read ({error})") from None
    files, labels = [], []
    for number, line in enumerate(lines, start=1):
        try:
            name, breed, _, _ = line.split()
            labels.append(int(breed) - 1)
        except ValueError:
            raise _Unusable(f"{path}, line {number}: is not 'name breed species breed'") from None
        files.append(f"{name}.jpg")
    names = _all_there(folder / "images", files, path)
    return FilePictures(folder / "images", names, np.array(labels, dtype=np.int64))


READERS = {
    "real": _real,
    "cifar10": _cifar(
        "cifar-10-batches-py",
        "labels",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    ),
    "cifar100": _cifar("cifar-100-python", "fine_labels", {"train": ("train",), "test": ("test",)}),
    "flowers102": _flowers,
    "pets": _pets,
}
