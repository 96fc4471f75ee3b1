"""ImageNet's validation pictures with the labels of ReaL (Beyer et al. 2020, arXiv 2006.07159)."""

import re
from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import Unusable, load_json, shortened
from crate.data.listing import list_part
from crate.data.pictures import Pictures
from crate.errors import RunError

COUNT = 50_000
URL = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The pictures that have a label, each with all its labels: (N, M) int64, padded with -1.

    `real.json` is a list of 50,000 lists of class indices, in the order of the pictures' numbers.
    """
    path = root / "real.json"
    labels = load_json(path)
    lists = isinstance(labels, list) and all(
        isinstance(found, list) and all(type(label) is int and label >= 0 for label in found)
        for found in labels
    )
    if not lists or len(labels) != COUNT:
        raise Unusable(f"{path}: is not a list of {COUNT:,} lists of labels")
    over = [label for found in labels for label in found if label >= dataset.classes]
    if over:
        raise Unusable(
            f"{path}: a label is {shortened(over[0])}, those of {dataset.title} are 0 to "
            f"{dataset.classes - 1:,}"
        )
    _, pictures = list_part(root / part)
    numbers = []
    for index in range(len(pictures)):
        name = pictures.name(index)
        number = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
        if not number or not 1 <= int(number[1]) <= COUNT:
            raise RunError(
                f"{name}: is not named like a validation picture, ILSVRC2012_val_<number>"
            )
        numbers.append(int(number[1]))
    found = [labels[number - 1] for number in numbers]
    labelled = np.array([index for index, several in enumerate(found) if several], dtype=np.int64)
    padded = np.full((len(found), max(map(len, labels))), -1, dtype=np.int64)
    for row, several in zip(padded, found, strict=True):
        row[: len(several)] = several
    pictures = pictures.select(np.arange(len(pictures)))  # the listing itself is shared
    pictures.labels = padded
    return pictures.select(labelled)


def downloads() -> list[tuple[str, str, str | None]]:
    """The file with the labels, whose md5 is not published."""
    return [(URL, "", None)]
