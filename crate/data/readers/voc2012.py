"""PASCAL VOC 2012, segmentation (Everingham et al. 2012): lists of names, pictures and maps."""

from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import read_text, require_files
from crate.data.scenes import IGNORED, MapScenes

ARCHIVES = {"VOCtrainval_11-May-2012.tar": "VOCdevkit/VOC2012"}


def read(dataset: ImageSet, root: Path, part: str) -> MapScenes:
    """In a map, 0 is background, 1 to 20 are things and 255 is void (ignored).

    Maps have a palette; its indices are the classes.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    pictures, maps = folder / "JPEGImages", folder / "SegmentationClass"
    listed = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
    names = read_text(listed).split()
    require_files(pictures, [f"{name}.jpg" for name in names], listed)
    require_files(maps, [f"{name}.png" for name in names], listed)
    classes = np.full(256, -1, dtype=np.int16)
    classes[:21], classes[IGNORED] = np.arange(21), IGNORED
    return MapScenes(dataset.title, pictures, maps, names, classes)
