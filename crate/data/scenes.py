"""Pictures with maps of what is in them (ADE20K, PASCAL VOC 2012) or with objects (COCO).

    picture   PIL image in RGB, as stored: the rotation in its EXIF is not applied, because maps and
              coordinates are those of the stored pixels
    map       uint8 (H, W), the class of each pixel, 255 where it has none
    objects   in COCO's format; boxes [x, y, width, height] in pixels

`crate/data/readers` has a module for each form on disk. Nothing here needs torch.
"""

import copy
from pathlib import Path

import numpy as np

from crate.data.files import image_size, open_image, without_content
from crate.errors import RunError, UsageError

IGNORED = 255  # in a map: no class; neither trained on nor counted


class Scenes:
    """The pictures of one split.

    `ids` are COCO's ids of the pictures, or their numbers from 0; `problems` has a line for each
    kind of annotation that was left out because it cannot be used.
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
        """The name of a picture in messages."""
        raise NotImplementedError

    def picture(self, index: int):
        """A picture in RGB. Raises `RunError` naming the file that cannot be read."""
        raise NotImplementedError

    def look(self, index: int) -> None:
        """Read enough of a picture to see that it is one. Raises `RunError` naming the file."""
        self.picture(index)

    def decode(self, index: int) -> None:
        """Read a picture, and its map. Raises `RunError` naming the file."""
        self.picture(index)
        if self.has_maps:
            self.labels(index)

    def without_content(self) -> list[int]:
        """The pictures that no byte is stored of, by their sizes alone."""
        return []

    def labels(self, index: int) -> np.ndarray:
        """The map of a picture. Raises `RunError` naming the file and what is wrong with it."""
        raise UsageError(f"{self.title} has no maps of classes")

    def objects(self) -> dict:
        """COCO's "images", "annotations" and "categories" of exactly these pictures.

        The dictionaries are the caller's: pycocotools writes into them.
        """
        raise UsageError(f"{self.title} has no objects, only maps of classes")


class FileScenes(Scenes):
    """Pictures in files, each of the name `name(index)`."""

    def look(self, index: int) -> None:
        image_size(Path(self.name(index)))

    def without_content(self) -> list[int]:
        return without_content(Path(self.name(index)) for index in range(len(self)))


class MapScenes(FileScenes):
    """Pictures (`.jpg`) and maps (`.png`) of the same names in two folders.

    `classes` (256,) int16 is the class of each value of a map: 255 where it is ignored, -1 where
    the value is invalid.
    """

    has_maps = True

    def __init__(
        self, title: str, pictures: Path, maps: Path, names: list[str], classes: np.ndarray
    ):
        super().__init__(title)
        self.pictures, self.maps, self.names, self.classes = pictures, maps, names, classes
        self.ids = list(range(len(names)))

    def select(self, indices: np.ndarray) -> "MapScenes":
        """Some of the pictures, in the order of `indices`."""
        chosen = copy.copy(self)
        chosen.names = [self.names[index] for index in indices]
        chosen.ids = list(range(len(indices)))
        return chosen

    def name(self, index: int) -> str:
        return str(self.pictures / f"{self.names[index]}.jpg")

    def picture(self, index: int):
        return open_image(Path(self.name(index)), "RGB")

    def labels(self, index: int) -> np.ndarray:
        path = self.maps / f"{self.names[index]}.png"
        image = open_image(path)
        if image.mode not in ("L", "P"):
            raise RunError(
                f"{path}: is not a map of classes (its mode is {image.mode}, a map's L or P)"
            )
        size = image_size(Path(self.name(index)))
        if image.size != size:
            raise RunError(
                f"{path}: is {pixels_text(image.size)}, its picture {self.name(index)} "
                f"{pixels_text(size)}"
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


def pixels_text(size: tuple[int, int]) -> str:
    """A size (width, height) in words."""
    return f"{size[0]} by {size[1]} pixels"
