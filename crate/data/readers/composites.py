"""Composites: drawings on photographs, the embedded stand-in for real scenes at small scales.

A picture is a crop of one photograph with one to four drawings of Open Clip Art on it. Their alpha
says to the pixel what belongs to whom:

    map       0 is the photograph, 1 to 16 the folder of the topmost drawing, 255 where the
              topmost drawing is neither clearly there (alpha from 3/4 on) nor clearly not (up
              to 1/4): soft edges, shadows, glass
    objects   the visible part of each drawing, where its alpha is 1/2 or more and no later
              drawing's is; parts of fewer than 16 pixels are left out

Picture `index` of a split is made from a seed of the split and `index` alone, by numpy's legacy
generator, whose numbers never change, and in integers (Pillow's fixed-point resizing of
premultiplied colours, so that edges have no halo): it is the same picture in a split of any size
and whatever was read before. Test pictures share no photograph with the others, and no split
shares a drawing, or a relative of one (`relatives`), with another. Nothing here needs torch.
"""

import functools
import re
from pathlib import Path

import numpy as np
import scipy.sparse

from crate.data.datasets import ImageSet
from crate.data.embedded import CLIP_ART_FOLDERS, folder_of, open_clip_art, photos
from crate.data.scenes import IGNORED, Scenes

SEED = 2024
SPLITS = ("train", "validation", "test")
SIZE = 112  # pixels a side
DRAWINGS = 4  # on a picture, at most
SHORTEST, LONGEST = 24, 64  # longer side of a drawing, in pixels
INSIDE = 0.75  # of a drawing's width and height, at least, lies in the picture
SMALLEST = 16  # visible pixels of an object
# A drawing is used if this much of its square is clearly there, and half of what can be seen.
SOLID = 0.05

TEST_PHOTOS = ("chelsea", "gravel", "rocket")  # training and validation share the four others
SHARE = {"train": 0.5, "validation": 0.2, "test": 0.3}  # of the drawings of each folder, about


def read(dataset: ImageSet, root: Path, part: str) -> "Composites":
    """The pictures of a split; `part` is its name, `root` is not used."""
    return Composites(dataset.title, part, dataset.splits[part])


class Composites(Scenes):
    """The first `count` pictures of a split."""

    has_maps = True
    has_objects = True

    def __init__(self, title: str, split: str, count: int):
        super().__init__(title)
        self.split, self.ids = split, list(range(count))

    def name(self, index: int) -> str:
        return f"composites/{self.split}/{index:05d}"

    def picture(self, index: int):
        from PIL import Image

        return Image.fromarray(compose(self.split, self.ids[index])[0])

    def labels(self, index: int) -> np.ndarray:
        return compose(self.split, self.ids[index])[1].copy()

    def objects(self) -> dict:
        from pycocotools import mask as rle

        images, annotations = [], []
        for index in self.ids:
            file = f"{index:05d}.png"
            images.append({"id": index, "file_name": file, "width": SIZE, "height": SIZE})
            for place, (category, mask) in enumerate(compose(self.split, index)[2]):
                encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotations.append(
                    {
                        "id": 1 + DRAWINGS * index + place,
                        "image_id": index,
                        "category_id": category,
                        "segmentation": encoded | {"counts": encoded["counts"].decode()},
                        "bbox": rle.toBbox(encoded).tolist(),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": k, "name": name} for k, name in enumerate(CLIP_ART_FOLDERS, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}


@functools.lru_cache(maxsize=4)  # a picture and its map are read one after the other
def compose(split: str, index: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Picture `index` of a split; its arrays are shared and cannot be written to.

    Returns:
        pixels uint8 (SIZE, SIZE, 3); map uint8 (SIZE, SIZE); (class, bool mask (SIZE, SIZE)) of
        each object, from the lowest to the topmost.
    """
    random = np.random.RandomState([SEED, SPLITS.index(split), index])
    pixels = _background(split, random)
    labels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    owner = np.full((SIZE, SIZE), -1)  # which drawing is seen, by its place below
    classes = []
    for place in range(random.randint(1, DRAWINGS + 1)):
        category = random.randint(1, len(CLIP_ART_FOLDERS) + 1)
        of_class = _drawings()[split][category]
        drawing = _scaled(of_class[random.randint(len(of_class))], random)
        here, there = _placed(drawing.shape[:2], random)
        colour, alpha = drawing[there][..., :3].astype(int), drawing[there][..., 3:].astype(int)
        below = pixels[here].astype(int)
        pixels[here] = np.minimum(colour + (below * (255 - alpha) + 127) // 255, 255)
        alpha = alpha[..., 0]
        labels[here][alpha > 255 / 4] = IGNORED
        labels[here][alpha >= 3 * 255 / 4] = category
        owner[here][alpha >= 255 / 2] = place
        classes.append(category)
    masks = [(category, owner == place) for place, category in enumerate(classes)]
    objects = [(category, mask) for category, mask in masks if mask.sum() >= SMALLEST]
    for array in (pixels, labels, *(mask for _, mask in objects)):
        array.flags.writeable = False
    return pixels, labels, objects


def _background(split: str, random: np.random.RandomState) -> np.ndarray:
    """A square of 0.3 to 1 of a photograph's shorter side, scaled to SIZE, mirrored or not."""
    from PIL import Image

    names = [name for name in sorted(_photos()) if (name in TEST_PHOTOS) == (split == "test")]
    photo = _photos()[names[random.randint(len(names))]]
    side = int(min(photo.shape[:2]) * (0.3 + 0.7 * random.rand()))
    top, left = (random.randint(length - side + 1) for length in photo.shape[:2])
    crop = Image.fromarray(np.ascontiguousarray(photo[top : top + side, left : left + side]))
    pixels = np.array(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return pixels[:, ::-1].copy() if random.rand() < 0.5 else pixels


def _scaled(drawing: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A drawing (h, w, 4) mirrored or not, its longer side SHORTEST to LONGEST; premultiplied."""
    from PIL import Image

    longer = random.randint(SHORTEST, LONGEST + 1)
    size = [max(1, round(longer * side / max(drawing.shape[:2]))) for side in drawing.shape[1::-1]]
    if random.rand() < 0.5:
        drawing = drawing[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(drawing)).convert("RGBa")
    return np.array(image.resize(size, Image.Resampling.BILINEAR))


def _placed(size: tuple[int, int], random: np.random.RandomState) -> tuple[tuple, tuple]:
    """Where a drawing of `size` (h, w) goes: slices of the picture, and of the drawing."""
    here, there = [], []
    for side in size:
        hidden = int(side * (1 - INSIDE))
        start = random.randint(-hidden, SIZE - side + hidden + 1)
        first, last = max(0, start), min(SIZE, start + side)
        here.append(slice(first, last))
        there.append(slice(first - start, last - start))
    return tuple(here), tuple(there)


@functools.cache
def _photos() -> dict[str, np.ndarray]:
    return photos()


def split_names() -> dict[str, list[str]]:
    """Split → names of its drawings, sorted.

    The families of each folder in a random order, each to the split that lacks most. A family
    that reaches into two folders counts as the first's.
    """
    images, names = open_clip_art(64)
    there, seen = ((images[..., 3] > 255 * k / 4).mean((1, 2)) for k in (3, 1))
    used = np.flatnonzero((there >= SOLID) & (there >= seen / 2))
    names = [names[index] for index in used]
    families: dict[str, dict[int, list[str]]] = {folder: {} for folder in CLIP_ART_FOLDERS}
    first: dict[int, str] = {}
    for name, family in zip(names, relatives(names, images[used]).tolist(), strict=True):
        folder = first.setdefault(family, folder_of(name))
        families[folder].setdefault(family, []).append(name)
    random = np.random.RandomState(SEED)
    parts = {split: [] for split in SPLITS}
    for members in families.values():
        missing = {split: share * sum(map(len, members.values())) for split, share in SHARE.items()}
        ordered = sorted(members)
        for family in (ordered[i] for i in random.permutation(len(ordered))):
            split = max(missing, key=missing.get)
            parts[split] += members[family]
            missing[split] -= len(members[family])
    return {split: sorted(chosen) for split, chosen in parts.items()}


# Words that distinguish versions of one drawing
VERSION = re.compile(r"_(bw|colou?r|black|white)(?=_|$)")
ALIKE, RECTANGLE = 0.97, 0.95  # overlap of silhouettes; of one with its box
SAME = 150.0  # mean square difference (of 255²) of colours on white


def relatives(names: list[str], images: np.ndarray) -> np.ndarray:
    """The family (a number) of each drawing; images uint8 (N, 64, 64, 4).

    Two drawings are related, and so are those related to either, if
    - their names agree but for numbers at the end and for words as `bw` or `colour`, or
    - they are of one folder and their silhouettes all but agree (intersection over union), unless
      those are mere rectangles (flags) or the plates of road signs, or
    - their pixels do.
    """
    keys = [re.sub(r"[\W\d_]+$", "", n.removesuffix(".png").lower()) for n in names]
    keys = [re.sub(r"[\W\d_]+$", "", VERSION.sub("", key)) for key in keys]
    _, key = np.unique(keys, return_inverse=True)
    related = key[:, None] == key

    seen = images[..., 3] >= 128
    flat = seen.reshape(len(names), -1).astype(np.float32)
    area = flat.sum(1)
    both = flat @ flat.T
    rows, columns = (seen.any(axis).sum(1) for axis in (2, 1))
    shaped = area < RECTANGLE * rows * columns
    folders = np.array([folder_of(name) for name in names])
    shaped &= folders != "transportation/roadsigns"
    alike = both > ALIKE * (area[:, None] + area - both)
    related |= alike & shaped[:, None] & shaped & (folders[:, None] == folders)

    alpha = images[..., 3:].astype(np.float32) / 255
    colour = (images[..., :3] * alpha + 255 * (1 - alpha)).reshape(len(names), -1)
    squares = (colour**2).sum(1)
    difference = squares[:, None] + squares - 2 * (colour @ colour.T)
    related |= difference < SAME * colour.shape[1]
    return scipy.sparse.csgraph.connected_components(related, directed=False)[1]


@functools.cache
def _drawings() -> dict[str, dict[int, list[np.ndarray]]]:
    """Split → class → drawings uint8 (h, w, 4), cut to what is visible."""
    images, names = open_clip_art(64)
    place = {name: index for index, name in enumerate(names)}
    found = {split: {} for split in SPLITS}
    for split, chosen in split_names().items():
        for name in chosen:
            drawing = images[place[name]]
            rows, columns = (np.flatnonzero(drawing[..., 3].any(axis)) for axis in (1, 0))
            cut = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            category = CLIP_ART_FOLDERS.index(folder_of(name)) + 1
            found[split].setdefault(category, []).append(cut)
    return found
