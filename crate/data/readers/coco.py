"""COCO (Lin et al. 2014): a folder of pictures, and one JSON file with the objects in them."""

import json
import math
from pathlib import Path

from crate.data.datasets import ImageSet
from crate.data.files import Unusable, load_json, open_image, require_files, shortened
from crate.data.scenes import FileScenes, pixels_text
from crate.errors import RunError

ARCHIVES = {
    "val2017.zip": "val2017",
    "annotations_trainval2017.zip": "annotations/instances_val2017.json",
}

# Beyond any picture: pycocotools walks along the edges of a polygon pixel by pixel.
FARTHEST = 100_000
LARGEST = 1e10  # area; COCO's scoring leaves out larger objects


def read(dataset: ImageSet, root: Path, part: str) -> "CocoScenes":
    """The pictures in the folder `part`, with the objects of annotations/instances_<part>.json."""
    path = root / "annotations" / f"instances_{part}.json"
    found = load_json(path)
    wrong = _not_coco(found)
    if wrong:
        raise Unusable(f"{path}: is not in COCO's format ({wrong})")
    require_files(root / part, [image["file_name"] for image in found["images"]], path)
    return CocoScenes(dataset.title, root / part, path, found)


class CocoScenes(FileScenes):
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
        image, entry = open_image(Path(self.name(index)), "RGB"), self.images[index]
        stated = (entry["width"], entry["height"])
        if image.size != stated:  # a copy that was turned or scaled: no annotation fits it
            raise RunError(
                f"{self.name(index)}: is {pixels_text(image.size)}, {self.listed_in} says "
                f"{pixels_text(stated)}"
            )
        return image

    def objects(self) -> dict:
        parts = {"images": self.images, "annotations": self.annotations}
        parts["categories"] = self.categories
        return {key: [dict(entry) for entry in entries] for key, entries in parts.items()}


def _not_coco(found: object) -> str:
    """Why a file as a whole cannot be used; "" if it can."""
    if not isinstance(found, dict):
        return "it is not an object of images, annotations and categories"
    for key in ("images", "annotations", "categories"):
        entries = found.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return f"'{key}' is not a list of objects"
        ids = [entry.get("id") for entry in entries]
        # pycocotools takes the annotation 0 to mean "none"
        lowest = 1 if key == "annotations" else 0
        odd = [id for id in ids if type(id) is not int or not lowest <= id < 2**63]
        if odd:
            shown = shortened(json.dumps(odd[0]))
            return f"{key}: an id is {shown}, not a whole number from {lowest} to 2⁶³ - 1"
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
    """The annotations that pycocotools can use, and a line for each kind of the others."""
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


def _fault(annotation: dict, sizes: dict, categories: set) -> str:
    """Why an annotation cannot be used; "" if it can."""
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
        return "the area is not a number of pixels"
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
            return "a coordinate is not a finite number"
        if max(polygon) > FARTHEST or min(polygon) < -FARTHEST:
            return f"a coordinate is beyond {FARTHEST:,}"
    return ""


def _numbers(values: object) -> bool:
    """Whether it is a list of finite numbers."""
    try:
        known = isinstance(values, list) and set(map(type, values)) <= {int, float}
        return known and all(map(math.isfinite, values))
    except OverflowError:  # an integer of more than 308 digits
        return False


def _rle_fault(rle: dict, size: tuple[int, int]) -> str:
    """Why run lengths cannot be used; "" if they can.

    They go down the columns, as a list or as COCO's text; `size` is (height, width).
    """
    counts = rle.get("counts")
    if rle.get("size") != list(size):
        return "the RLE's size is not its picture's"
    if isinstance(counts, str):
        counts = _counts(counts)
    if not isinstance(counts, list) or set(map(type, counts)) - {int}:
        return "the RLE's counts are not a list of whole numbers"
    if min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
        return "the RLE's counts do not fill its picture"
    return ""


def _counts(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed text; None if it is not valid.

    A number is written in groups of 5 bits, lowest first, a character (from "0" on) each; bit 5
    says that more follow, bit 4 of the last is the sign. From the fourth on it is the difference
    from the number two before. Where counts are short, pycocotools reads
    memory out of bounds.
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
