"""ImageNet's form: a tree part/class/picture, or tar shards in part (`crate/data/listing.py`)."""

from pathlib import Path

from crate.data.datasets import ImageSet
from crate.data.files import class_folders, shard_files
from crate.data.listing import list_part
from crate.data.pictures import Pictures, ShardPictures
from crate.errors import RunError


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The pictures of a part, whose classes must be those of the training part."""
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
    others = class_folders(train) or [name.removesuffix(".tar") for name in shard_files(train)]
    webdataset = not class_folders(train) and len(others) != dataset.classes
    if classes != others and not webdataset:
        odd = sorted(set(classes) ^ set(others))[0]
        raise RunError(f"{folder}: its classes are not those of the training part, first {odd}")
    return pictures
