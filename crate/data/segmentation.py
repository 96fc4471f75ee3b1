"""Pictures with class maps, as batches to train on and as windows to test with.

What happens to a picture is mmsegmentation's pipeline for ADE20K (facts of
mmseg/datasets/pipelines/transforms.py, and of the sliding test in encoder_decoder.py), in Pillow
and numpy; Pillow antialiases what it shrinks, OpenCV there does not. Every random number is drawn
from a seed made of (seed, epoch, picture), so that the order of work never changes a result.

    pixels (B, 3, S, S) uint8; maps (B, S, S) uint8, a class or 255, which is ignored
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from crate.data.batches import Reader, load_batches, make_loader, training_batches
from crate.data.datasets import ImageSet
from crate.data.scenes import IGNORED, Scenes
from crate.recipes import Compute
from crate.runtime import Runtime

CROP_TRIES = 10  # crops checked; if one class fills all of them too much, the next is taken as is
BRIGHTNESS = 32  # of 255
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # in OpenCV's unit, two degrees

# --- one picture -----------------------------------------------------------


def scaled_size(width: int, height: int, longest: float, shortest: float) -> tuple[int, int]:
    """The largest (width, height) of the same ratio within two limits, each at least a pixel."""
    factor = min(longest / max(width, height), shortest / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def place_crop(
    labels: np.ndarray, size: int, category_max: float, random: np.random.RandomState
) -> tuple[int, int]:
    """Top and left of a random crop in which no class fills `category_max` of the labelled pixels.

    labels: (H, W) uint8. `CROP_TRIES` places are tried, then one more is taken as it is; a crop
    with a single class, or without any, is never accepted.
    """
    height, width = labels.shape
    for tried in range(CROP_TRIES + 1):
        top = random.randint(max(height - size, 0) + 1)
        left = random.randint(max(width - size, 0) + 1)
        if category_max >= 1 or tried == CROP_TRIES:
            break
        crop = labels[top : top + size, left : left + size]
        counts = np.bincount(crop.ravel(), minlength=256)[:IGNORED]
        if 0 < counts.max() < category_max * counts.sum():
            break
    return top, left


def distort(image: Image.Image, random: np.random.RandomState) -> Image.Image:
    """Random brightness, contrast, saturation and hue, each with probability one half.

    Contrast comes before or after the other two, at random. Values are cut to 0 to 255 after each.
    """

    def contrast(image: Image.Image) -> Image.Image:
        if random.rand() < 0.5:
            image = image.point(_table(random.uniform(*CONTRAST), 0) * 3)
        return image

    if random.rand() < 0.5:
        image = image.point(_table(1, random.uniform(-BRIGHTNESS, BRIGHTNESS)) * 3)
    contrast_first = random.rand() < 0.5
    if contrast_first:
        image = contrast(image)
    saturation = random.uniform(*SATURATION) if random.rand() < 0.5 else 1
    hue = random.randint(-HUE, HUE) if random.rand() < 0.5 else 0
    if saturation != 1 or hue:
        turn = round(hue / 180 * 256)  # Pillow's circle of hues has 256 parts
        turned = [(h + turn) % 256 for h in range(256)]
        image = image.convert("HSV").point(turned + _table(saturation, 0) + _table(1, 0))
        image = image.convert("RGB")
    return image if contrast_first else contrast(image)


def _table(factor: float, shift: float) -> list[int]:
    """Each of the 256 values times `factor` plus `shift`, cut to 0 to 255."""
    return np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8).tolist()


def training_crop(
    image: Image.Image, labels: np.ndarray, recipe: "CropRecipe", seed: int, fill: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and its map as the network trains on them, decided by `seed`.

    Scaled at random, cropped at random, flipped, its colours changed. Where a picture is smaller
    than the crop, pixels are `fill` and the map is ignored.

    Args:
        labels: (H, W) uint8.
        fill: one uint8 a channel.

    Returns:
        pixels (3, S, S) and map (S, S), both uint8.
    """
    random = np.random.RandomState(seed % 2**32)
    ratio = random.uniform(*recipe.ratio)
    size = scaled_size(*image.size, *(int(limit * ratio) for limit in recipe.resize))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    side = recipe.image_size
    top, left = place_crop(labels, side, recipe.category_max, random)
    labels = labels[top : top + side, left : left + side]
    height, width = labels.shape
    image = image.crop((left, top, left + width, top + height))
    flip = recipe.flip and random.rand() < 0.5
    if recipe.photometric:
        image = distort(image, random)
    pixels = np.asarray(image)
    if flip:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = fill
    canvas[:height, :width] = pixels
    map_ = np.full((side, side), IGNORED, np.uint8)
    map_[:height, :width] = labels
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), torch.from_numpy(map_)


def windows(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Top and left of each square of `size` that a test looks at, row by row.

    They are `stride` apart, the last of a row or column flush with the border. A side shorter
    than `size` has one, at 0.
    """
    rows, columns = (
        [min(k, max(side - size, 0)) for k in range(0, max(side - size + stride, 1), stride)]
        for side in (height, width)
    )
    return [(top, left) for top in rows for left in columns]


# --- batches -----------------------------------------------------------


class CropRecipe(Protocol):
    """The fields of a recipe that say how pictures and maps are cropped and augmented."""

    batch_size: int
    image_size: int  # pixels a side of a crop
    resize: Sequence[int]  # limits of the longer and the shorter side
    ratio: Sequence[float]  # smallest and largest factor of `resize`
    category_max: float  # largest share of a crop that one class may fill
    flip: bool
    photometric: bool
    compute: Compute


class LabelledScenes:
    """One split of pictures with class maps, read as they are needed, in loader processes."""

    def __init__(self, scenes: Scenes, dataset: ImageSet, *, runtime: Runtime):
        self.scenes, self.dataset, self.runtime = scenes, dataset, runtime

    def __len__(self) -> int:
        return len(self.scenes)

    def training(
        self, recipe: CropRecipe, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`(pixels, maps)` of this rank's part of updates `first` to `last` - 1.

        Raises:
            RunError: a picture or map cannot be read, or a batch does not divide over the ranks.
        """
        batches = training_batches(
            len(self), recipe.batch_size, seed, first, last, name="scene", runtime=self.runtime
        )
        # a margin has the mean colour: 0 after normalisation
        fill = np.round(255 * np.array(self.dataset.mean)).astype(np.uint8)
        reader = Reader(functools.partial(_training_example, self.scenes, recipe, fill))
        return load_batches(reader, batches, workers=self._workers(recipe), runtime=self.runtime)

    def evaluation(self, recipe: CropRecipe) -> Iterator[tuple[torch.Tensor, torch.Tensor] | str]:
        """This rank's pictures in order, one by one, on the CPU.

        Yields the picture scaled to `resize` (3, h, w), and its map at its own size (H, W), both
        uint8; or the text of an error, if they cannot be read.
        """
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        reader = Reader(functools.partial(_evaluation_example, self.scenes, recipe.resize))
        options = {"workers": self._workers(recipe), "runtime": self.runtime}
        return iter(make_loader(reader, sampler=mine, batch_size=None, **options))

    def _workers(self, recipe: CropRecipe) -> int:
        return 0 if self.dataset.embedded else recipe.compute.workers


def _training_example(
    scenes: Scenes, recipe: CropRecipe, fill: np.ndarray, key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    index, seed = key
    return training_crop(scenes.picture(index), scenes.labels(index), recipe, seed, fill)


def _evaluation_example(
    scenes: Scenes, resize: Sequence[int], index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = scenes.picture(index), scenes.labels(index)
    size = scaled_size(*image.size, *resize)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.tensor(labels)
