"""Pictures with maps of what is in them (ADE20K, PASCAL VOC 2012) or with objects (COCO).

    picture   PIL image in RGB, as stored: a turn that EXIF asks for is not made, because maps and
              coordinates are those of the stored pixels
    map       uint8 (H, W), the class of each pixel, 255 where it has none
    objects   in COCO's format; boxes [x, y, width, height] in pixels

Folders and files are those of the official archives, unpacked. Nothing here needs torch.
"""

import copy
import json
import math
import warnings
from pathlib import Path

import numpy as np

from crate.data.catalogue import ImageSet, advice, home, split_part
from crate.errors import RunError, UsageError, unknown

IGNORED = 255  # in a map: no class; neither trained on nor counted

# A validation part is a fixed part of a fixed permutation (numpy's legacy generator never
# changes), as of the labelled sets (crate/data/images.py).
SPLIT_SEED = 2024


class Scenes:
    """The pictures of one split.

    `ids` are COCO's of the pictures, or their numbers from 0; `problems` says in a line each kind
    which annotations were left out because they cannot be used.
    """

    has_maps = False
    has_objects = False
    ids: list[int]
    problems: tuple[str, ...] | list[str] = ()

    def __init__(self, title: str):
        self.title = title  # of the data set

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        """What a message calls a picture."""
        raise NotImplementedError

    def picture(self, index: int):
        """Raises `RunError` naming the file that cannot be read."""
        raise NotImplementedError

    def labels(self, index: int) -> np.ndarray:
        """The map of a picture. Raises `RunError` naming the file and what is wrong with it."""
        raise UsageError(f"{self.title} has no maps of classes")

    def objects(self) -> dict:
        """COCO's "images", "annotations" and "categories" of exactly these pictures.

        The dictionaries are the caller's: pycocotools writes into them.
        """
        raise UsageError(f"{self.title} has no objects, only maps of classes")


def open_scenes(
    dataset: ImageSet, split: str, data_root: str | Path, *, held_out_for: str = "test"
) -> Scenes:
    """Open a split (train, validation, test).

    Where a set has no validation part of its own, it is held out of the training part, and out of
    `train` only when a run is judged on it (`spare`): published recipes train on everything.

    Raises:
        UsageError: the set has no such split, or neither maps nor objects. RunError: it cannot be
            read, or not all of it is there.
    """
    if not dataset.scenes:
        raise UsageError(f"{dataset.title} has labels of whole pictures, no maps and no objects")
    if dataset.embedded:
        from crate.data.composites import Composites

        if split not in dataset.splits:
            raise unknown("split", split, dataset.splits, where=dataset.title)
        return Composites(dataset.title, split, dataset.splits[split])
    part = split_part(dataset, split)
    scenes = open_part(dataset, part, data_root)
    if split == "train" or split not in dataset.folders:
        order = np.random.RandomState(SPLIT_SEED).permutation(len(scenes))
        held_out = order[: dataset.holdout]
        if split == "train":
            lost = (
                held_out
                if held_out_for == "validation" and held_out_for not in dataset.folders
                else []
            )
            chosen = np.setdiff1d(order, lost)
        else:
            chosen = np.sort(held_out)
        scenes = scenes.select(chosen.tolist())
    if not len(scenes):
        where = home(dataset, data_root)
        raise RunError(f"{where}, {part}: no images for the {split} split of {dataset.title}")
    return scenes


def open_part(dataset: ImageSet, part: str, data_root: str | Path) -> Scenes:
    """All pictures of one part on disk (a value of `dataset.folders`).

    Raises:
        RunError: something is missing, unreadable or not of this set.
    """
    try:
        return READERS[dataset.scenes](dataset.title, home(dataset, data_root), part)
    except _Unusable as error:
        raise RunError(f"{error}; {advice(dataset, data_root)}") from None


class _Unusable(Exception):
    """What is wrong with a set; what to do about it is added above."""


# --- files -----------------------------------------------------------


def _read(path: Path, mode: str | None = None):
    """The picture in a file, converted to `mode`. Raises `RunError` naming the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 90 megapixels, which is no attack; of odd EXIF
            with Image.open(path) as image:
                image.load()
                return image.convert(mode) if mode else image
    except UnidentifiedImageError:
        reason = "its format is unknown"
    except Exception as error:  # there is no end of what a damaged file makes Pillow raise
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        reason = reason or type(error).__name__
    raise RunError(f"{path}: cannot be read as an image ({reason})")


def _size(path: Path) -> tuple[int, int]:
    """Width and height as the head of a file states them. Raises `RunError` naming the file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.size
    except Exception:
        return _read(path).size  # says what is wrong


def _files(folder: Path, suffix: str) -> list[str]:
    """Names of the files of a folder, without their suffix; hidden ones are no pictures."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise _Unusable(f"{folder}: cannot be read ({error.strerror})") from None
    return [n.removesuffix(suffix) for n in names if n.endswith(suffix) and n[0] != "."]


def _all_there(folder: Path, suffix: str, names: list[str], listed_in: Path) -> None:
    there = set(_files(folder, suffix))
    missing = [name for name in names if name not in there]
    if missing:
        raise _Unusable(
            f"{folder}: lacks {len(missing):,} of the {len(names):,} files that {listed_in} "
            f"names, first {missing[0]}{suffix}"
        )


# --- sets with maps -----------------------------------------------------------


class MapScenes(Scenes):
    """Pictures (`.jpg`) and maps (`.png`) of the same names in two folders.

    `classes` (256,) int16 is the class of each value of a map, 255 where it is ignored and -1
    where the set has no such value.
    """

    has_maps = True

    def __init__(
        self, title: str, pictures: Path, maps: Path, names: list[str], classes: np.ndarray
    ):
        super().__init__(title)
        self.pictures, self.maps, self.names, self.classes = pictures, maps, names, classes
        self.ids = list(range(len(names)))

    def select(self, indices: list[int]) -> "MapScenes":
        """Some of the pictures, in the order of `indices`."""
        chosen = copy.copy(self)
        chosen.names = [self.names[index] for index in indices]
        chosen.ids = list(range(len(indices)))
        return chosen

    def name(self, index: int) -> str:
        return str(self.pictures / f"{self.names[index]}.jpg")

    def picture(self, index: int):
        return _read(Path(self.name(index)), "RGB")

    def labels(self, index: int) -> np.ndarray:
        path = self.maps / f"{self.names[index]}.png"
        image = _read(path)
        if image.mode not in ("L", "P"):
            raise RunError(
                f"{path}: is no map of classes (its mode is {image.mode}, a map's L or P)"
            )
        size = _size(Path(self.name(index)))
        if image.size != size:
            raise RunError(
                f"{path}: is {_pixels(image.size)}, its picture {self.name(index)} {_pixels(size)}"
            )
        values = np.array(image)
        found = self.classes[values]
        if found.min() < 0:
            valid = np.flatnonzero(self.classes >= 0)
            last = valid[np.diff(valid, append=1_000) > 1][0]  # 255 stands apart
            more = f" and {valid[-1]}" if last < valid[-1] else ""
            raise RunError(
                f"{path}: a value is {values[found < 0][0]}, those of {self.title} are 0 to "
                f"{last}{more}"
            )
        return found.astype(np.uint8)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} by {size[1]} pixels"


def _ade20k(title: str, root: Path, part: str) -> Scenes:
    """ADEChallengeData2016 (Zhou et al. 2017): 0 in a map is "other", 1 to 150 are the classes."""
    folder = root / "ADEChallengeData2016"
    pictures, maps = folder / "images" / part, folder / "annotations" / part
    names = sorted({*_files(pictures, ".jpg"), *_files(maps, ".png")})
    _all_there(pictures, ".jpg", names, maps)
    _all_there(maps, ".png", names, pictures)
    classes = np.full(256, -1, dtype=np.int16)
    classes[0], classes[1:151] = IGNORED, np.arange(150)
    return MapScenes(title, pictures, maps, names, classes)


def _voc2012(title: str, root: Path, part: str) -> Scenes:
    """VOC2012 (Everingham et al. 2012): 0 in a map is background, 1 to 20 are things, 255 void.

    Maps have a palette; its indices are the classes.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    pictures, maps = folder / "JPEGImages", folder / "SegmentationClass"
    listed = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
    try:
        names = listed.read_text(encoding="utf-8").split()
    except OSError as error:
        raise _Unusable(f"{listed}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise _Unusable(f"{listed}: is not a list of names") from None
    _all_there(pictures, ".jpg", names, listed)
    _all_there(maps, ".png", names, listed)
    classes = np.full(256, -1, dtype=np.int16)
    classes[:21], classes[IGNORED] = np.arange(21), IGNORED
    return MapScenes(title, pictures, maps, names, classes)


# --- COCO -----------------------------------------------------------


class CocoScenes(Scenes):
    """Pictures with boxes and masks of their objects, in the order of the pictures' ids."""

    has_objects = True

    def __init__(self, title: str, folder: Path, listed_in: Path, found: dict):
        super().__init__(title)
        self.folder, self.listed_in = folder, listed_in
        self.images = sorted(found["images"], key=lambda image: image["id"])
        self.categories = found["categories"]
        self.ids = [image["id"] for image in self.images]
        self.annotations, self.problems = _usable(found, listed_in)

    def name(self, index: int) -> str:
        return str(self.folder / self.images[index]["file_name"])

    def picture(self, index: int):
        image, entry = _read(Path(self.name(index)), "RGB"), self.images[index]
        stated = (entry["width"], entry["height"])
        if image.size != stated:  # a copy that was turned or scaled: no annotation fits it
            raise RunError(
                f"{self.name(index)}: is {_pixels(image.size)}, {self.listed_in} says "
                f"{_pixels(stated)}"
            )
        return image

    def objects(self) -> dict:
        parts = {"images": self.images, "annotations": self.annotations}
        parts["categories"] = self.categories
        return {key: [dict(entry) for entry in entries] for key, entries in parts.items()}


def _coco(title: str, root: Path, part: str) -> Scenes:
    path = root / "annotations" / f"instances_{part}.json"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise _Unusable(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None
    wrong = _not_coco(found)
    if wrong:
        raise _Unusable(f"{path}: is not in COCO's format ({wrong})")
    files = [image["file_name"] for image in found["images"]]
    _all_there(root / part, "", files, path)
    return CocoScenes(title, root / part, path, found)


def _not_coco(found: object) -> str:
    """What makes a file useless as a whole; empty if nothing does."""
    if not isinstance(found, dict):
        return "it is no object of images, annotations and categories"
    for key in ("images", "annotations", "categories"):
        entries = found.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return f"'{key}' is no list of objects"
        ids = [entry.get("id") for entry in entries]
        # pycocotools takes the annotation 0 for "none"
        lowest = 1 if key == "annotations" else 0
        odd = [id for id in ids if type(id) is not int or id < lowest]
        if odd:
            return f"{key}: an id is {json.dumps(odd[0])}, not a whole number from {lowest}"
        if len(set(ids)) < len(ids):
            seen = set()
            twice = next(id for id in ids if id in seen or seen.add(id))
            return f"{key}: the id {twice} is there twice"
    for image in found["images"]:
        sides = [image.get("width"), image.get("height")]
        if type(image.get("file_name")) is not str:
            return f"image {image['id']} has no file_name"
        if any(type(side) is not int or side < 1 for side in sides):
            return f"image {image['id']} has no width and height"
        if max(sides) > FARTHEST or sides[0] * sides[1] >= 2**32:  # pycocotools counts in 32 bits
            return f"image {image['id']} is too large, {sides[0]} x {sides[1]}"
    return ""


def _usable(found: dict, path: Path) -> tuple[list[dict], list[str]]:
    """The annotations that pycocotools can work on, and a line for each kind of others."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in found["images"]}
    categories = {category["id"] for category in found["categories"]}
    usable, others = [], {}
    for annotation in found["annotations"]:
        fault = _fault(annotation, sizes, categories)
        if fault:
            others.setdefault(fault, []).append(annotation["id"])
        else:
            usable.append(annotation)
    problems = [
        f"{path}: {len(ids):,} annotation{'s' if len(ids) > 1 else ''} left out, {fault}; "
        f"first id {ids[0]}"
        for fault, ids in others.items()
    ]
    return usable, problems


# Beyond any picture: pycocotools walks along a polygon's edges pixel by pixel.
FARTHEST = 100_000
LARGEST = 1e10  # area: what is larger COCO's scoring leaves out


def _fault(annotation: dict, sizes: dict, categories: set) -> str:
    """Why an annotation cannot be used; empty if it can."""
    image, category, box, area, crowd, segmentation = (
        annotation.get(key)
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    )
    if type(image) is not int or image not in sizes:
        return "the image_id is of no picture"
    if type(category) is not int or category not in categories:
        return "the category_id is of no category"
    if not _numbers(box) or len(box) != 4:
        return "the bbox is not four finite numbers"
    if not _numbers([area]) or not 0 <= area <= LARGEST:
        return "the area is no number of pixels"
    if crowd not in (0, 1):
        return "iscrowd is neither 0 nor 1"
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, sizes[image])
    if not isinstance(segmentation, list) or not segmentation:
        return "the segmentation is neither polygons nor RLE"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return "the segmentation is neither polygons nor RLE"
        if len(polygon) % 2 or len(polygon) < 6:
            return "a polygon has an odd number of coordinates or fewer than 6"
        if not _numbers(polygon):
            return "a coordinate is no finite number"
        if max(polygon) > FARTHEST or min(polygon) < -FARTHEST:
            return f"a coordinate is beyond {FARTHEST:,}"
    return ""


def _numbers(values: object) -> bool:
    """Is it a list of finite numbers?"""
    try:
        known = isinstance(values, list) and set(map(type, values)) <= {int, float}
        return known and all(map(math.isfinite, values))
    except OverflowError:  # an integer of more than 308 digits
        return False


def _rle_fault(rle: dict, size: tuple[int, int]) -> str:
    """Run lengths down the columns, as a list or as COCO's text; `size` is (height, width)."""
    counts = rle.get("counts")
    if rle.get("size") != list(size):
        return "the RLE's size is not its picture's"
    if isinstance(counts, str):
        counts = _counts(counts)
    if not isinstance(counts, list) or set(map(type, counts)) - {int}:
        return "the RLE's counts are none"
    if min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
        return "the RLE's counts do not fill its picture"
    return ""


def _counts(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed text; None where it is none.

    A number is written in groups of 5 bits, lowest first, a character (from "0" on) each; bit 5
    says that more follow, bit 4 of the last is the sign. From the fourth on it is the difference
    from the number two before. pycocotools reads memory that is not its own where counts are short.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if not shift else None


READERS = {"ade20k": _ade20k, "voc2012": _voc2012, "coco": _coco}
