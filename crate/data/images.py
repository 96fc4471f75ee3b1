"""Labelled pictures as batches of tensors: read, cropped, flipped, augmented, mixed.

Embedded sets live in memory as uint8 tensors and are augmented batch-wise; real sets are read and
augmented picture by picture in loader processes. Both draw every random number from a seed
made of (seed, picture or update), so that the order of work never changes a result.

    pixels (B, C, H, W) uint8 as stored; images (B, 3, H, W) float, normalised; labels (B,) int64,
    or (B, M) padded with -1 where a picture may have several (imagenet1k_real)
    targets (B, classes) float after mixing
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from crate.data.catalogue import ImageSet, PairSet, home, split_part
from crate.data.layouts import open_pictures
from crate.data.pictures import Pictures
from crate.errors import RunError
from crate.recipes import ImageTraining
from crate.runtime import Runtime, generator_for, seed_for
from crate.tasks.classification.recipe import Classification

# --- what a batch is made of -----------------------------------------------------------


def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of one epoch: a permutation of `count` indices."""
    return torch.randperm(count, generator=generator_for(seed, "order", epoch))


def batch_indices(count: int, batch_size: int, seed: int, index: int) -> torch.Tensor:
    """Indices of the global batch of update `index`; what does not fill a batch is left out."""
    per_epoch = count // batch_size
    epoch, position = divmod(index, per_epoch)
    order = _order_cache(count, seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


_last_order: tuple = (None, None)


def _order_cache(count: int, seed: int, epoch: int) -> torch.Tensor:
    global _last_order
    key = (count, seed, epoch)
    if _last_order[0] != key:
        _last_order = (key, epoch_order(*key))
    return _last_order[1]


def sample_crops(
    count: int, height: int, width: int, area_min: float, generator: torch.Generator
) -> torch.Tensor:
    """Inception crops (Szegedy et al. 2015): area in [area_min, 1], aspect ratio in [3/4, 4/3].

    Returns `(count, 4)` float: top, left, height, width. Ten tries each, then the whole picture.
    """
    tries = (count, 10)
    area = torch.empty(tries).uniform_(area_min, 1, generator=generator) * height * width
    log_ratio = torch.empty(tries).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator)
    w, h = (area * log_ratio.exp()).sqrt().round(), (area / log_ratio.exp()).sqrt().round()
    place = torch.empty(*tries, 2).uniform_(0, 1, generator=generator)
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.int().argmax(1)
    rows = torch.arange(count)
    h, w, place = h[rows, first], w[rows, first], place[rows, first]
    top = (place[:, 0] * (height - h + 1)).floor()
    left = (place[:, 1] * (width - w + 1)).floor()
    boxes = torch.stack([top, left, h, w], 1)
    boxes[~fits.any(1)] = torch.tensor([0.0, 0.0, height, width])
    return boxes


def crop_batch(pixels: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a box out of each picture, resize it bilinearly: (B, C, H, W) → (B, C, size, size)."""
    height, width = pixels.shape[-2:]
    top, left, h, w = boxes.to(pixels.device).T
    # affine maps from output coordinates in [-1, 1] to the box, pixel centres at half-integers
    theta = torch.zeros(len(boxes), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 0, 2] = w / width, (2 * left + w) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * top + h) / height - 1
    grid = F.affine_grid(theta, [len(boxes), 1, size, size], align_corners=False)
    cut = F.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return cut.round().to(torch.uint8)


def rand_augment(picture: torch.Tensor, operations: list[int], seed: int) -> torch.Tensor:
    """RandAugment (Cubuk et al. 2020) of one uint8 picture (C, H, W), decided by `seed`."""
    transform = _rand_augment(*operations)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        return transform(picture)


def _rand_augment(count: int, magnitude: int):
    from crate.environment import import_torchvision

    import_torchvision()
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    return RandAugment(count, magnitude, interpolation=InterpolationMode.BILINEAR)


def normalise(pixels: torch.Tensor, dataset: ImageSet | PairSet) -> torch.Tensor:
    """uint8 pixels (B, C, H, W) → float images (B, 3, H, W); grey becomes three equal channels."""
    mean = torch.tensor(dataset.mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std, device=pixels.device).view(1, -1, 1, 1)
    images = (pixels.float() / 255 - mean) / std
    return images.expand(-1, 3, -1, -1).contiguous()


def mix(
    images: torch.Tensor, labels: torch.Tensor, recipe: Classification, classes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019), one of the two for the whole batch.

    Partners are neighbours in the batch (0 with 1, 2 with 3, …), whose order is random anyway:
    any even split over ranks or micro-batches mixes the same pictures.

    Returns:
        mixed images, and targets (B, classes) without label smoothing.
    """
    targets = F.one_hot(labels, classes).float()
    if not (recipe.mixup or recipe.cutmix) or len(images) < 2:
        return images, targets
    partner = torch.arange(len(images), device=images.device) ^ 1
    partner = partner.clamp(max=len(images) - 1)  # the last of an odd batch stays alone
    random = np.random.RandomState(seed % 2**32)
    cut = recipe.cutmix > 0 and (recipe.mixup == 0 or random.rand() < recipe.mix_switch)
    alpha = recipe.cutmix if cut else recipe.mixup
    keep = float(random.beta(alpha, alpha))
    if cut:
        height, width = images.shape[-2:]
        h, w = int(height * math.sqrt(1 - keep)), int(width * math.sqrt(1 - keep))
        y, x = random.randint(height), random.randint(width)
        top, bottom = max(0, y - h // 2), min(height, y + (h + 1) // 2)
        left, right = max(0, x - w // 2), min(width, x + (w + 1) // 2)
        images = images.clone()
        images[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
        keep = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = keep * images + (1 - keep) * images[partner]
    return images, keep * targets + (1 - keep) * targets[partner]


# --- sources -----------------------------------------------------------


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
        for index in range(first, last):
            indices = batch_indices(count, recipe.batch_size, seed, index)
            generator = generator_for(seed, "augment", index)
            # drawn for the whole batch, then cut to this rank's part: ranks change nothing
            flips = torch.rand(len(indices), generator=generator) < 0.5
            boxes = None
            if recipe.crop_area_min < 1:
                boxes = sample_crops(len(indices), size, size, recipe.crop_area_min, generator)
            mine = self.runtime.shard(torch.arange(len(indices)))
            chosen = indices[mine].to(self.pixels.device)
            pixels = self.pixels[chosen]
            if boxes is not None:
                pixels = crop_batch(pixels, boxes[mine], size)
            if recipe.flip:
                flip = flips[mine].to(pixels.device).view(-1, 1, 1, 1)
                pixels = torch.where(flip, pixels.flip(-1), pixels)
            if recipe.randaugment:
                seeds = [seed_for(seed, "randaugment", index, int(i)) for i in mine]
                pixels = torch.stack(
                    [
                        rand_augment(p, recipe.randaugment, s)
                        for p, s in zip(pixels, seeds, strict=True)
                    ]
                )
            yield pixels, self.labels[chosen]

    def evaluation(
        self, recipe: ImageTraining, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's pictures in order, whole and unchanged."""
        ranks = slice(self.runtime.rank, None, self.runtime.world)
        pixels, labels = self.pixels[ranks], self.labels[ranks]
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield pixels[part], labels[part]


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures uint8 (N, C, H, W) scaled to (N, C, size, size), with antialiasing."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    pixels = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)


class StreamedImages:
    """One split of pictures that are read as they are needed, in loader processes."""

    def __init__(self, pictures: Pictures, *, size: int, runtime: Runtime):
        self.pictures, self.size, self.runtime = pictures, size, runtime

    def __len__(self) -> int:
        return len(self.pictures)

    def select(self, indices: np.ndarray) -> "StreamedImages":
        """These pictures alone, in this order."""
        chosen = self.pictures.select(indices)
        return StreamedImages(chosen, size=self.size, runtime=self.runtime)

    def training(
        self, recipe: ImageTraining, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        per_epoch = len(self) // recipe.batch_size

        def batches() -> Iterator[list[tuple[int, int]]]:
            for index in range(first, last):
                indices = batch_indices(len(self), recipe.batch_size, seed, index)
                epoch = index // per_epoch
                mine = self.runtime.shard(indices).tolist()
                yield [(i, seed_for(seed, "picture", epoch, i)) for i in mine]

        return self._load(_TrainingReader(self, recipe), batches(), recipe)

    def evaluation(
        self, recipe: ImageTraining, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        batches = (
            [(i, 0) for i in mine[start : start + batch_size]]
            for start in range(0, len(mine), batch_size)
        )
        return self._load(_EvaluationReader(self, recipe), batches, recipe)

    def _load(self, reader: "_Reader", batches: Iterator, recipe: ImageTraining) -> Iterator:
        return load_batches(reader, batches, _collate, recipe=recipe, runtime=self.runtime)


def load_batches(
    reader: torch.utils.data.Dataset,
    batches: Iterator[list],
    collate: Callable[[list], tuple | str],
    *,
    recipe: ImageTraining,
    runtime: Runtime,
) -> Iterator[tuple]:
    """What `collate` makes of each batch in loader processes, its tensors on the run's device.

    Raises:
        RunError: it is a text, that of an error.
    """
    loader = DataLoader(
        reader,
        batch_sampler=batches,
        num_workers=recipe.compute.workers,
        prefetch_factor=4 if recipe.compute.workers else None,  # batches a process is ahead
        collate_fn=collate,
        pin_memory=runtime.device.type == "cuda",
    )
    for item in loader:
        if isinstance(item, str):
            raise RunError(item)
        yield tuple(
            part.to(runtime.device, non_blocking=True) if isinstance(part, torch.Tensor) else part
            for part in item
        )


class _Reader(torch.utils.data.Dataset):
    """One picture by (index, seed), in a loader process; an error travels back as its text."""

    def __init__(self, images: StreamedImages, recipe: ImageTraining):
        self.pictures, self.size, self.recipe = images.pictures, images.size, recipe

    def __getitem__(self, key: tuple[int, int]):
        index, seed = key
        try:
            image, label = self.pictures.read(index)
        except RunError as error:
            return str(error)
        return self.prepare(image, seed), label

    def prepare(self, image, seed: int) -> torch.Tensor:
        raise TypeError("training and evaluation prepare pictures differently")


class _TrainingReader(_Reader):
    def prepare(self, image, seed: int) -> torch.Tensor:
        return training_view(image, self.size, self.recipe, seed)


def training_view(image, size: int, recipe: ImageTraining, seed: int) -> torch.Tensor:
    """A picture cropped and augmented as a recipe wants it, decided by `seed`; uint8 (3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.center_crop:
        picture = centre_view(image, size, recipe.eval_resize)
    else:
        box = sample_crops(1, image.height, image.width, recipe.crop_area_min, generator)[0]
        top, left, h, w = box.tolist()
        image = image.resize((size, size), 2, box=(left, top, left + w, top + h))  # 2: bilinear
        picture = _to_tensor(image)
    if recipe.flip and torch.rand((), generator=generator) < 0.5:
        picture = picture.flip(-1)
    if recipe.randaugment:
        picture = rand_augment(picture, recipe.randaugment, seed)
    return picture


class _EvaluationReader(_Reader):
    def prepare(self, image, seed: int) -> torch.Tensor:
        return centre_view(image, self.size, self.recipe.eval_resize)


def centre_view(image, size: int, resize: int | None) -> torch.Tensor:
    """torchvision's Resize(resize) and CenterCrop(size), rounding included; (3, size, size) uint8.

    Without `resize`, the whole picture is scaled to a square.
    """
    if resize is None:
        return _to_tensor(image.resize((size, size), 2))
    shorter = min(image.size)
    image = image.resize([resize * side // shorter for side in image.size], 2)
    left, top = (_centre(side, size) for side in image.size)
    return _to_tensor(image.crop((left, top, left + size, top + size)))


def _centre(side: int, size: int) -> int:
    """Where a crop of `size` begins; negative (and padded with black) if the side is smaller."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def _to_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _collate(items: list) -> tuple[torch.Tensor, torch.Tensor] | str:
    for item in items:
        if isinstance(item, str):
            return item
    pictures, labels = zip(*items, strict=True)
    return torch.stack(pictures), torch.from_numpy(np.stack(labels))


# --- opening -----------------------------------------------------------

# A split is a fixed part of a fixed permutation (numpy's legacy generator never changes).
SPLIT_SEED = 2024


def open_split(
    dataset: ImageSet,
    split: str,
    *,
    size: int,
    runtime: Runtime,
    data_root: str | Path,
    held_out_for: str = "test",
) -> MemoryImages | StreamedImages:
    """Open a split (train, validation, test) with pictures of `size` pixels.

    Where a set has no test part of its own, one is held out of its training part for good. A
    validation part is held out only when it is what a run is judged on (`spare`): published
    recipes train on everything.

    Raises:
        UsageError: the set has no such split. RunError: it cannot be read.
    """
    if dataset.embedded:
        pixels, labels = _embedded_split(dataset, split)
        return MemoryImages(pixels, labels, size=size, runtime=runtime)
    part = split_part(dataset, split)
    pictures = open_pictures(dataset, part, data_root)
    if split in dataset.folders and split != "train":
        chosen = np.arange(len(pictures))
    else:
        order = np.random.RandomState(SPLIT_SEED).permutation(len(pictures))
        parts, start = {}, 0
        for name in ("validation", "test"):
            if name not in dataset.folders:
                parts[name] = order[start : start + dataset.holdout]
                start += dataset.holdout
        if split == "train":
            held_out = [parts[name] for name in {"test", held_out_for} & set(parts)]
            chosen = np.setdiff1d(np.arange(len(pictures)), np.concatenate([[], *held_out]))
        else:
            chosen = np.sort(parts[split])
    if not len(chosen):
        where = home(dataset, data_root) / part
        raise RunError(f"{where}: no images for the {split} split of {dataset.title}")
    return StreamedImages(pictures.select(chosen.astype(np.int64)), size=size, runtime=runtime)


def _embedded_split(dataset: ImageSet, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    from crate.data.stand_ins import load

    pixels, labels = load(dataset.name, split, dataset.splits[split])
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels)
