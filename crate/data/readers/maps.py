"""Pictures and class maps of one's own: images/<part>/<name>.jpg, annotations/<part>/<name>.png."""

from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import IMAGE_SUFFIXES, Unusable, file_names, require_files
from crate.data.scenes import IGNORED, MapScenes

ARCHIVES: dict[str, str] = {}  # a person's own files are not unpacked


class OwnScenes(MapScenes):
    """Pictures of any format; `files` maps their names without suffix to those with it."""

    files: dict[str, str]

    def name(self, index: int) -> str:
        return str(self.pictures / self.files[self.names[index]])


def read(dataset: ImageSet, root: Path, part: str) -> OwnScenes:
    """In a map, 0 is background, 1 to `classes` - 1 are the classes, and 255 is ignored."""
    found = files(root, part)
    classes = np.full(256, -1, dtype=np.int16)
    classes[: dataset.classes], classes[IGNORED] = np.arange(dataset.classes), IGNORED
    folders = (root / name for name in needs(part))
    scenes = OwnScenes(dataset.title, *folders, sorted(found), classes)
    scenes.files = found
    return scenes


def needs(part: str) -> tuple[str, str]:
    """The folders of a part's pictures and maps."""
    return f"images/{part}", f"annotations/{part}"


def files(root: Path, part: str) -> dict[str, str]:
    """Names of a part's pictures without suffix → with it. Raises `Unusable` without their maps."""
    pictures, maps = (root / name for name in needs(part))
    found: dict[str, str] = {}
    for name in file_names(pictures):
        if name.lower().endswith(IMAGE_SUFFIXES):
            stem = name.rpartition(".")[0]
            if stem in found:
                raise Unusable(f"{pictures}: {name} and {found[stem]} would have the same map")
            found[stem] = name
    require_files(maps, [f"{stem}.png" for stem in sorted(found)], pictures)
    return found
