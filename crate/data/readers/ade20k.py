"""ADE20K as in ADEChallengeData2016 (Zhou et al. 2017): pictures and maps in two folders."""

from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import file_names, require_files
from crate.data.scenes import IGNORED, MapScenes

ARCHIVES = {"ADEChallengeData2016.zip": "ADEChallengeData2016"}


def read(dataset: ImageSet, root: Path, part: str) -> MapScenes:
    """In a map, 0 is "other" (ignored) and 1 to 150 are the classes."""
    folder = root / "ADEChallengeData2016"
    pictures, maps = folder / "images" / part, folder / "annotations" / part
    names = sorted({*_stems(pictures, ".jpg"), *_stems(maps, ".png")})
    require_files(pictures, [f"{name}.jpg" for name in names], maps)
    require_files(maps, [f"{name}.png" for name in names], pictures)
    classes = np.full(256, -1, dtype=np.int16)
    classes[0], classes[1:151] = IGNORED, np.arange(150)
    return MapScenes(dataset.title, pictures, maps, names, classes)


def _stems(folder: Path, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in file_names(folder) if name.endswith(suffix)]
