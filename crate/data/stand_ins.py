"""Embedded pictures as labelled sets with splits: the stand-ins for real sets at small scales.

    fashion_mnist_*       Fashion-MNIST, its training part cut into parts that share no picture
    clip_art_*            Open Clip Art at 32 pixels on white, by topic or by folder
    handwritten_digits    scikit-learn's digits, 8 pixels a side

Drawings that vary one theme (`house_01.png`, `house_02.png`) are in the same split
(`crate/data/splits.py`). Nothing here needs torch.
"""

import re
from collections.abc import Callable

import numpy as np

from crate.data.embedded import (
    fashion_mnist,
    folder_of,
    handwritten_digits,
    open_clip_art,
    topic_of,
)
from crate.data.splits import by_family, permutation
from crate.registry import Registry


def load(name: str, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One split of an embedded set of pictures.

    Args:
        split: "train", "validation" or "test".
        count: number of pictures of the split, as the catalogue states it.

    Returns:
        pixels uint8 (N, C, H, W) with 1 or 3 channels, labels int64 (N,).
    """
    if name.startswith("fashion_mnist"):
        return _fashion_mnist(name, split, count)
    pixels, labels, relatives = _SETS[name](name)
    chosen = parts(relatives)[split][:count]
    return pixels[chosen], labels[chosen]


# The smallest test split that gives a verdict; the split to tune on.
TEST, VALIDATION = 1_000, 150


def parts(families: list[str]) -> dict[str, np.ndarray]:
    """Split → indices of drawings; `families` names the family of each."""
    return by_family(families, {"test": TEST, "validation": VALIDATION})


def _fashion_mnist(name: str, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """45,000 pictures to pre-train on, 10,000 others to fine-tune, 5,000 to tune on."""
    images, labels = fashion_mnist("test" if split == "test" else "train")
    if split == "test":
        chosen = np.arange(count)
    else:
        order = permutation(len(labels))
        fine_tuning = name == "fashion_mnist_finetune"
        start = {"validation": 55_000, "train": 45_000 if fine_tuning else 0}[split]
        chosen = order[start : start + count]
    return np.ascontiguousarray(images[chosen])[:, None], labels[chosen]


def family_of(name: str) -> str:
    """The family of a drawing: `house_01.png` and `house_02.png` vary one drawing."""
    return re.sub(r"[\W\d_]+$", "", name.removesuffix(".png"))


def on_white(images: np.ndarray) -> np.ndarray:
    """Drawings RGBA (N, S, S, 4) → pixels (N, 3, S, S), uint8."""
    colour, alpha = images[..., :3].astype(int), images[..., 3:].astype(int)
    pixels = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return pixels.astype(np.uint8).transpose(0, 3, 1, 2)


def clip_art_classes(name: str, names: list[str]) -> dict[str, list[int]]:
    """Class of a set → places in `names`, those of all drawings; in the order of the labels.

    A class has at least 20 families.
    """
    label_of, topics, most = CLIP_ART[name]
    classes: dict[str, list[int]] = {}
    for place in permutation(len(names)):
        if not topics or topic_of(names[place]) in topics:
            classes.setdefault(label_of(names[place]), []).append(int(place))
    kept = {label: sorted(places[:most]) for label, places in sorted(classes.items())}
    return {
        label: places
        for label, places in kept.items()
        if len({family_of(names[place]) for place in places}) >= 20
    }


def _clip_art(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels, labels, and the family of each drawing."""
    images, names = open_clip_art(32)
    classes = clip_art_classes(name, names)
    chosen = [place for places in classes.values() for place in places]
    labels = np.repeat(np.arange(len(classes)), [len(places) for places in classes.values()])
    return on_white(images[chosen]), labels, [family_of(names[place]) for place in chosen]


TOPICS = (
    "animals",
    "computer",
    "food",
    "geography",
    "people",
    "recreation",
    "shapes",
    "signs_and_symbols",
    "tools",
    "transportation",
)
SYMBOLS = ("computer", "shapes", "signs_and_symbols")

# Set → its labels, its topics (empty: all), the most drawings of a class.
CLIP_ART: dict[str, tuple[Callable[[str], str], tuple[str, ...], int]] = {
    "clip_art_topics": (topic_of, TOPICS, 400),
    "clip_art_folders": (folder_of, (), 120),
    "clip_art_symbols": (folder_of, SYMBOLS, 400),
}


def _digits(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images, labels = handwritten_digits()
    return images[:, None], labels, [f"{place:04d}" for place in range(len(labels))]


_SETS = Registry(
    "embedded set",
    {
        "clip_art_topics": _clip_art,
        "clip_art_folders": _clip_art,
        "clip_art_symbols": _clip_art,
        "handwritten_digits": _digits,
    },
)
