"""Embedded pictures with captions: the stand-in for pairs from the web at small scales.

Fashion-MNIST, each picture with the name of its class, and the drawings of Open Clip Art that no
other set is evaluated on, each with the name of its file or folder (`crate/data/drawing_names.py`),
in one of a few phrases: "a photo of a sneaker.", "a drawing of a penguin.". A picture always has
the same caption.

Splits share no picture: training has the 45,000 of `fashion_mnist_pretrain`, validation the 5,000
that all its sets hold out, test some that `fashion_mnist_finetune` trains on. Fashion-MNIST's own
test part is in no split, because zero-shot classification is measured on it. Drawings that vary
one theme are in the same split. Nothing here needs torch.
"""

import functools
import re

import numpy as np

from crate.data import stand_ins
from crate.data.drawing_names import (
    ARTICLED,
    CONTINENTS,
    FLAGS,
    NAMES,
    NO_PLACES,
    OTHER_FLAGS,
)
from crate.data.embedded import open_clip_art
from crate.data.splits import SPLIT_SEED, permutation
from crate.data.stand_ins import family_of, on_white

FASHION_MNIST_NAMES = (
    "t-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
PHOTO_PHRASES = (
    "a photo of {}.",
    "a picture of {}.",
    "a grey photo of {}.",
    "a small photo of {}.",
    "a black and white photo of {}.",
    "a photo of {} in a shop.",
)
DRAWING_PHRASES = (
    "a drawing of {}.",
    "a picture of {}.",
    "a small drawing of {}.",
    "an illustration of {}.",
    "a cartoon of {}.",
    "clip art of {}.",
)

# Split → its pictures of Fashion-MNIST: a set of `stand_ins`, a split of it, and their number.
PHOTOS = {
    "train": ("fashion_mnist_pretrain", "train", 45_000),
    "validation": ("fashion_mnist_pretrain", "validation", 5_000),
    "test": ("fashion_mnist_finetune", "train", 2_250),
}
DRAWINGS = {"validation": 250, "test": 250}  # training has the others


def captioned(split: str, count: int) -> list[tuple[np.ndarray, list[str]]]:
    """Fashion-MNIST's and Open Clip Art's share of a split.

    Args:
        split: "train", "validation" or "test".
        count: of both together, the first of a fixed random order, so that the mixture is the same
            for any number.

    Returns:
        pixels uint8 (N, 1, 28, 28) and (N, 3, 32, 32), each with its N captions.
    """
    name, part, photos = PHOTOS[split]
    images, files = open_clip_art(32)
    drawings = _drawings(files)[split]
    order = permutation(photos + len(drawings))
    chosen = np.sort(order[:count])
    ours = chosen[chosen < photos]
    pixels, labels = stand_ins.load(name, part, photos)
    names = [FASHION_MNIST_NAMES[label] for label in labels[ours]]
    theirs = drawings[chosen[chosen >= photos] - photos]
    called = [name_of(files[place]) for place in theirs]
    return [
        (pixels[ours], _captions(names, PHOTO_PHRASES, ours)),
        (on_white(images[theirs]), _captions(called, DRAWING_PHRASES, theirs)),
    ]


def _captions(names: list[str], phrases: tuple[str, ...], places: np.ndarray) -> list[str]:
    """Each name in a phrase that its picture's place decides."""
    which = np.random.RandomState(SPLIT_SEED).randint(len(phrases), size=100_000)[places]
    return [phrases[k].format(with_article(n)) for k, n in zip(which, names, strict=True)]


def _drawings(files: list[str]) -> dict[str, np.ndarray]:
    """Split → places of its drawings: families that no labelled set is evaluated on."""
    evaluated = set()
    for name in stand_ins.CLIP_ART:
        chosen = [k for ks in stand_ins.clip_art_classes(name, files).values() for k in ks]
        families = [family_of(files[place]) for place in chosen]
        parts = stand_ins.parts(families)
        evaluated |= {families[i] for split in ("validation", "test") for i in parts[split]}
    free = np.array([i for i, file in enumerate(files) if family_of(file) not in evaluated])
    families, member = np.unique([family_of(files[i]) for i in free], return_inverse=True)
    rank = permutation(len(families))[member]
    free, rank = free[np.argsort(rank, kind="stable")], np.sort(rank)
    parts, start = {}, 0
    for split, wanted in DRAWINGS.items():
        parts[split] = free[start : start + wanted]
        start += np.searchsorted(rank[start:], rank[start + wanted - 1], side="right")
    return parts | {"train": free[start:]}


# --- what a drawing is called -----------------------------------------------------------


def name_of(file: str) -> str:
    """The name of a drawing, by its file ("animals/birds/crow_01.png": "crow").

    Its own name without numbers and authors, or that of its folder.
    """
    folder, _, base = file.removesuffix(".png").rpartition("/")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", " ", base).lower().split()
    if folder.startswith(FLAGS) and folder.split("/")[2] in CONTINENTS:
        place = " ".join(words)
        if not place.startswith(NO_PLACES):
            country = folder.split("/")[-1].replace("_", " ")
            for name in (country, "usa", "uk"):
                place = place.removeprefix(f"{name} ")
            place = place.removesuffix(" alternate")
            article = "the " * place.endswith(ARTICLED)
            return f"~the flag of {article}{place}"
    parts = folder.split("/")
    folders = ["/".join(parts[:k]) for k in range(len(parts), 0, -1)]  # its own first
    known = [_names()[name] for name in folders if name in _names()]
    for _, called in known:
        for length in range(len(words), 0, -1):
            if " ".join(words[:length]) in called:
                return called[" ".join(words[:length])]
    return known[0][0]


def folder_name(folder: str) -> str:
    """What the drawings of a folder are called: "bird" for "animals/birds"."""
    return _names()[folder][0].removeprefix("~")


@functools.cache
def _names() -> dict[str, tuple[str, dict[str, str]]]:
    """Folder → what its drawings are called, and beginning of a name → what such are called."""
    lines = re.sub(r"\n +", " ", NAMES + OTHER_FLAGS).split("\n")
    found = {}
    for folder, _, text in (line.partition(": ") for line in lines if line):
        what, *items = text.split("; ")
        pairs = (item.partition(" = ") for item in items)
        found[folder] = what, {begins: called or begins for begins, _, called in pairs}
    return found


def with_article(name: str) -> str:
    """ "a sneaker", "an ankle boot", "scissors"; what begins with "~" stays without."""
    if name.startswith("~"):
        return name[1:]
    head = re.split(" (?:of|on|with) ", name)[0]
    if head.endswith("s") and not head.endswith(("ss", "us", "is")):
        return name  # several
    vowel = name.startswith(tuple("aeiou")) and not name.startswith(("uni", "us", "eu", "one"))
    return f"an {name}" if vowel or name.startswith("hour") else f"a {name}"
