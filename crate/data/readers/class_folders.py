"""ImageNet's form: a tree part/class/picture, or tar shards in part (`crate/data/listing.py`)."""

from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import class_folders, is_empty, say_once, shard_files
from crate.data.listing import list_part
from crate.data.pictures import Pictures, ShardPictures
from crate.errors import RunError


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The pictures of a part, whose classes must be those of the training part, if that is here."""
    folder = root / part
    classes, pictures = list_part(folder)
    if len(classes) != dataset.classes and (classes or not len(pictures)):
        kind = "class tars" if isinstance(pictures, ShardPictures) else "class folders"
        raise RunError(
            f"{folder}: has {len(classes):,} {kind}, {dataset.title} has {dataset.classes:,}"
        )
    if not classes:  # WebDataset shards name no classes
        return pictures
    train = root / dataset.folders["train"]
    _find_empty_classes(dataset, folder, classes, pictures, trained=train == folder)
    if train == folder or not train.is_dir() or is_empty(train):
        return pictures
    others = class_folders(train) or [name.removesuffix(".tar") for name in shard_files(train)]
    webdataset = not class_folders(train) and len(others) != dataset.classes
    if classes != others and not webdataset:
        odd = sorted(set(classes) ^ set(others))[0]
        lacks = train if odd in classes else folder
        raise RunError(
            f"{lacks}: has no class {odd}, which {folder if lacks == train else train} has"
        )
    return pictures


def _find_empty_classes(
    dataset: ImageSet, folder: Path, classes: list[str], pictures: Pictures, *, trained: bool
) -> None:
    """A class without a picture: an error where it is trained on, else a warning.

    In copies that differ in size, always a warning. One may evaluate a few pictures.
    """
    empty = np.setdiff1d(np.arange(len(classes)), pictures.labels)
    if not len(empty):
        return
    have = "classes have" if len(empty) > 1 else "classes has"
    some = f"{len(empty):,} of its {have} no picture, first {classes[empty[0]]}"
    if (trained and not dataset.approximate) or len(empty) == len(classes):
        raise RunError(f"{folder}: {some}; unpack {'it' if len(empty) > 1 else 'that'} again")
    say_once(f"warning: {folder}: {some}")
