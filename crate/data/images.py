"""Labelled pictures as batches of tensors, to train on and to evaluate.

Embedded sets are in memory as uint8 tensors and are augmented batch-wise; real sets are read and
augmented picture by picture in loader processes.

    pixels (B, C, S, S) uint8; labels (B,) int64, or (B, M) padded with -1 where a picture may have
    several (imagenet1k_real)
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from crate.data.augment import (
    centre_view,
    crop_batch,
    crop_boxes,
    rand_augment,
    resized,
    training_view,
)
from crate.data.batches import (
    Reader,
    batch_indices,
    load_batches,
    own_places,
    stacked,
    training_batches,
)
from crate.data.datasets import ImageSet
from crate.data.pictures import Pictures
from crate.data.sources import open_pictures
from crate.data.stand_ins import load
from crate.errors import RunError
from crate.recipes import ImageRecipe, ImageTraining
from crate.runtime import Runtime, generator_for, seed_for

# Pictures that cannot be read, beyond which a run ends: this share, or this many of a small set
TOLERATED, FEW = 0.001, 5
NEIGHBOURS = 8  # pictures in a row, of which a training needs one


class MemoryImages:
    """An embedded split as uint8 tensors on the device the model is on."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, *, size: int, runtime: Runtime):
        pixels = resized(pixels, size)
        self.pixels, self.labels = pixels.to(runtime.device), labels.to(runtime.device)
        self.runtime = runtime

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "MemoryImages":
        """These pictures alone, in this order."""
        chosen, size = torch.from_numpy(indices), self.pixels.shape[-1]
        pixels, labels = self.pixels[chosen], self.labels[chosen]
        return MemoryImages(pixels, labels, size=size, runtime=self.runtime)

    def training(
        self, recipe: ImageTraining, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`(pixels, labels)` of this rank's part of updates `first` to `last` - 1."""
        count, size = len(self), self.pixels.shape[-1]
        for update in range(first, last):
            _, indices = batch_indices(count, recipe.batch_size, seed, update, recipe.last_batch)
            generator = generator_for(seed, "augment", update)
            # drawn for the whole batch, then cut to this rank's part: ranks change nothing
            flips = torch.rand(len(indices), generator=generator) < 0.5
            boxes = None
            if recipe.crop_area_min < 1:
                boxes = crop_boxes(recipe, len(indices), size, size, generator)
            mine = own_places(len(indices), recipe.batch_size, self.runtime)
            chosen = indices[mine].to(self.pixels.device)
            pixels = self.pixels[chosen]
            if boxes is not None:
                pixels = crop_batch(pixels, boxes[mine], size, recipe.interpolation)
            if recipe.flip:
                flip = flips[mine].to(pixels.device).view(-1, 1, 1, 1)
                pixels = torch.where(flip, pixels.flip(-1), pixels)
            if recipe.randaugment:
                seeds = [seed_for(seed, "randaugment", update, place) for place in mine]
                pixels = torch.stack(
                    [
                        rand_augment(picture, recipe, each)
                        for picture, each in zip(pixels, seeds, strict=True)
                    ]
                )
            yield pixels, self.labels[chosen]

    def evaluation(
        self, recipe: ImageRecipe, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's pictures in order, whole and unchanged."""
        ranks = slice(self.runtime.rank, None, self.runtime.world)
        pixels, labels = self.pixels[ranks], self.labels[ranks]
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield pixels[part], labels[part]


class StreamedImages:
    """One split of pictures that are read as they are needed, in loader processes."""

    def __init__(self, pictures: Pictures, *, size: int, runtime: Runtime):
        self.pictures, self.size, self.runtime = pictures, size, runtime
        self.unreadable: set[str] = set()  # what was said of them, once each

    def __len__(self) -> int:
        return len(self.pictures)

    def select(self, indices: np.ndarray) -> "StreamedImages":
        """These pictures alone, in this order."""
        chosen = self.pictures.select(indices)
        return StreamedImages(chosen, size=self.size, runtime=self.runtime)

    def training(
        self, recipe: ImageTraining, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`(pixels, labels)` of this rank's part of updates `first` to `last` - 1.

        The picture that follows takes the place of one that cannot be read.

        Raises:
            RunError: too many pictures cannot be read, or a batch does not divide over the ranks.
        """
        batches = training_batches(
            len(self),
            recipe.batch_size,
            seed,
            first,
            last,
            name="picture",
            runtime=self.runtime,
            last_batch=recipe.last_batch,
        )
        read = functools.partial(_training_example, self.pictures, self.size, recipe)
        return self._load(read, batches, recipe)

    def evaluation(
        self, recipe: ImageRecipe, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's pictures in order, as `centre_view` sees them.

        One that cannot be read is left out. Raises `RunError` if there are too many of these.
        """
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        batches = (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
        read = functools.partial(_evaluation_example, self.pictures, self.size, recipe)
        return self._load(read, batches, recipe)

    def _load(self, read: Callable, batches: Iterator, recipe: ImageTraining) -> Iterator:
        loaded = load_batches(
            Reader(read),
            batches,
            workers=recipe.compute.workers,
            runtime=self.runtime,
            collate=_readable,
        )
        for pixels, labels, errors in loaded:
            self._warn(errors)
            if len(pixels):
                yield pixels, labels

    def _warn(self, errors: list[str]) -> None:
        """Say once of each picture why it cannot be read, and end the run if they are too many."""
        most = min(max(FEW, TOLERATED * len(self)), len(self) - 1)
        for error in errors:
            if error not in self.unreadable:
                self.unreadable.add(error)
                if len(self.unreadable) > most:
                    raise RunError(
                        f"{error}, as {len(self.unreadable) - 1} others of {len(self):,} pictures; "
                        "'crate data check NAME --thorough' lists them"
                    )
                print(f"warning: {error}; left out", file=sys.stderr, flush=True)


def _training_example(
    pictures: Pictures, size: int, recipe: ImageTraining, key: tuple[int, int]
) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    index, seed = key
    errors = []
    for place in range(index, index + NEIGHBOURS):
        try:
            image, label = pictures.read(place % len(pictures))
        except RunError as error:
            errors.append(str(error))
        else:
            return training_view(image, size, recipe, seed), label, errors
    raise RunError(errors[0])


def _evaluation_example(
    pictures: Pictures, size: int, recipe: ImageRecipe, index: int
) -> tuple[torch.Tensor | None, np.ndarray | None, list[str]]:
    try:
        image, label = pictures.read(index)
    except RunError as error:
        return None, None, [str(error)]
    return centre_view(image, size, recipe.eval_resize, recipe.interpolation), label, []


def _readable(examples: list) -> tuple[torch.Tensor | list, torch.Tensor | list, list[str]]:
    """Pixels and labels of the pictures that could be read, and what is wrong with the others."""
    errors = [error for *_, of_one in examples for error in of_one]
    read = [(pixels, label) for pixels, label, _ in examples if pixels is not None]
    return *(stacked(read) if read else ([], [])), errors


def open_split(
    dataset: ImageSet,
    split: str,
    *,
    size: int,
    runtime: Runtime,
    data_root: str | Path,
    held_out_for: str = "test",
) -> MemoryImages | StreamedImages:
    """Open a split (train, validation, test) with pictures of `size` pixels a side.

    Args:
        held_out_for: the split that the run is evaluated on; "validation" keeps that split out of
            the training part (see `crate/data/splits.py`).

    Raises:
        UsageError: the set has no such split. RunError: it cannot be read.
    """
    if not dataset.embedded:
        pictures = open_pictures(dataset, split, data_root, held_out_for=held_out_for)
        return StreamedImages(pictures, size=size, runtime=runtime)
    pixels, labels = load(dataset.name, split, dataset.splits[split])
    pixels, labels = torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels)
    return MemoryImages(pixels, labels, size=size, runtime=runtime)
