"""What happens to a picture before a network sees it: crops, flips, RandAugment, mixing, scaling.

Every random number comes from a seed or generator that the caller makes of (run's seed, picture or
update), so that the order of work never changes a result.

    pixels (B, C, H, W) uint8 as stored; images (B, 3, H, W) float, normalised; labels (B,) int64
    targets (B, classes) float after mixing
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from crate.data.datasets import ImageSet, PairSet
from crate.data.rand_augment import rand_augment_of_crate_alpha
from crate.environment import import_torchvision
from crate.recipes import ImageTraining

RESAMPLING = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers; all antialias

# --- batches of tensors -----------------------------------------------------------


def crop_boxes(
    recipe: ImageTraining, count: int, height: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Inception crops (Szegedy et al. 2015) by the law of the recipe's pipeline.

    Returns `(count, 4)` float: top, left, height, width.
    """
    law = {"torchvision": crops_of_torchvision, "tensorflow": crops_of_tensorflow}
    return law[recipe.pipeline](count, height, width, recipe.crop_area_min, generator)


def crops_of_torchvision(
    count: int, height: int, width: int, area_min: float, generator: torch.Generator
) -> torch.Tensor:
    """The law of torchvision's RandomResizedCrop.

    The area is uniform in [area_min, 1], the logarithm of the aspect ratio between those of 3/4 and
    4/3. After ten tries that do not fit, the largest centred box of such a ratio.

    Returns `(count, 4)` float: top, left, height, width.
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
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    boxes[~fits.any(1)] = torch.tensor([(height - h) // 2, (width - w) // 2, h, w]).float()
    return boxes


def crops_of_tensorflow(
    count: int, height: int, width: int, area_min: float, generator: torch.Generator
) -> torch.Tensor:
    """The law of TensorFlow's sample_distorted_bounding_box. Crops are smaller than torchvision's.

    The aspect ratio is uniform in [3/4, 1.33], then the height in what the areas [area_min, 1] and
    the picture allow. After a hundred tries that do not fit, the whole picture.

    Returns `(count, 4)` float: top, left, height, width.
    """
    tries = (count, 100)
    least, most = area_min * height * width, height * width
    u = torch.rand(4, *tries, dtype=torch.float64, generator=generator)
    ratio = 0.75 + (1.33 - 0.75) * u[0]
    low, high = (least / ratio).sqrt().round(), (most / ratio).sqrt().round()
    too_wide = (high * ratio).round() > width
    high = torch.where(too_wide, ((width + 0.5 - 1e-7) / ratio).floor(), high).clamp(max=height)
    low = torch.minimum(low, high)
    h = low + (u[1] * (high - low + 1)).floor()
    h = torch.where((h * ratio).round() * h < least, h + 1, h)  # rounding must not fail a try
    h = torch.where((h * ratio).round() * h > most, h - 1, h)
    w = (h * ratio).round()
    fits = (w * h >= least) & (w * h <= most) & (w <= width) & (h <= height) & (w >= 1) & (h >= 1)
    # as there, the last place is never drawn
    top, left = (u[2] * (height - h)).floor(), (u[3] * (width - w)).floor()
    boxes = torch.stack([top, left, h, w], -1)[torch.arange(count), fits.int().argmax(1)].float()
    boxes[~fits.any(1)] = torch.tensor([0.0, 0.0, height, width])
    return boxes


def crop_batch(
    pixels: torch.Tensor, boxes: torch.Tensor, size: int, interpolation: str = "bilinear"
) -> torch.Tensor:
    """Cut a box out of each picture and resize it: (B, C, H, W) → (B, C, size, size)."""
    height, width = pixels.shape[-2:]
    top, left, h, w = boxes.to(pixels.device).T
    # affine maps from output coordinates in [-1, 1] to the box, pixel centres at half-integers
    theta = torch.zeros(len(boxes), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 0, 2] = w / width, (2 * left + w) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * top + h) / height - 1
    grid = F.affine_grid(theta, [len(boxes), 1, size, size], align_corners=False)
    cut = F.grid_sample(
        pixels.float(), grid, mode=interpolation, padding_mode="border", align_corners=False
    )
    return cut.round().clamp(0, 255).to(torch.uint8)


def rand_augment(picture: torch.Tensor, recipe: ImageTraining, seed: int) -> torch.Tensor:
    """RandAugment (Cubuk et al. 2020) of one uint8 picture (C, H, W), decided by `seed`."""
    operations, level = recipe.randaugment
    if recipe.pipeline == "tensorflow":
        generator = torch.Generator().manual_seed(seed)
        return rand_augment_of_crate_alpha(picture, operations, level, generator)
    transform = _rand_augment_of_torchvision(operations, level)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        return transform(picture)


def _rand_augment_of_torchvision(operations: int, level: int):
    import_torchvision()
    from torchvision.transforms.v2 import RandAugment

    return RandAugment(operations, level)  # the nearest pixel, as the papers' transfer scripts


def normalise(pixels: torch.Tensor, dataset: ImageSet | PairSet) -> torch.Tensor:
    """uint8 pixels (B, C, H, W) → float images (B, 3, H, W); grey becomes three equal channels."""
    mean = torch.tensor(dataset.mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(dataset.std, device=pixels.device).view(1, -1, 1, 1)
    images = (pixels.float() / 255 - mean) / std
    return images.expand(-1, 3, -1, -1).contiguous()


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures uint8 (N, C, H, W) scaled to (N, C, size, size), with antialiasing."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    pixels = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    seeds: list[int],
    *,
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch.

    Partners are neighbours in the batch (0 with 1, 2 with 3, …), whose order is random anyway:
    any even split over ranks or micro-batches mixes the same pictures.

    Args:
        images: float (B, C, H, W).
        labels: int64 (B,).
        seeds: of each picture: those of equal seeds share the kind, the weight and the box.
        mixup, cutmix: parameter a of the Beta(a, a) that the weights come from; 0: off.
        switch: probability of CutMix where both are on.

    Returns:
        mixed images, and targets float (B, classes) without label smoothing.
    """
    targets = F.one_hot(labels, classes).float()
    if not (mixup or cutmix) or len(images) < 2:
        return images, targets
    partner = torch.arange(len(images), device=images.device) ^ 1
    partner = partner.clamp(max=len(images) - 1)  # the last of an odd batch stays alone
    mixed = images.clone()
    keep = torch.ones(len(images), 1, device=images.device)  # of each picture's own target
    height, width = images.shape[-2:]
    places: dict[int, list[int]] = {}
    for place, seed in enumerate(seeds):
        places.setdefault(seed, []).append(place)
    for seed, those in places.items():
        group = torch.tensor(those, device=images.device)
        other = images[partner[group]]
        random = np.random.RandomState(seed % 2**32)
        cut = cutmix > 0 and (mixup == 0 or random.rand() < switch)
        alpha = cutmix if cut else mixup
        weight = float(random.beta(alpha, alpha))
        if cut:
            h, w = int(height * math.sqrt(1 - weight)), int(width * math.sqrt(1 - weight))
            y, x = random.randint(height), random.randint(width)
            top, bottom = max(0, y - h // 2), min(height, y + (h + 1) // 2)
            left, right = max(0, x - w // 2), min(width, x + (w + 1) // 2)
            mixed[group, :, top:bottom, left:right] = other[..., top:bottom, left:right]
            weight = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            mixed[group] = weight * images[group] + (1 - weight) * other
        keep[group] = weight
    return mixed, keep * targets + (1 - keep) * targets[partner]


# --- one PIL image -----------------------------------------------------------


def training_view(image, size: int, recipe: ImageTraining, seed: int) -> torch.Tensor:
    """A PIL image cropped and augmented by a recipe, decided by `seed`: uint8 (3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    if recipe.center_crop:
        picture = centre_view(image, size, recipe.eval_resize, recipe.interpolation)
    else:
        box = crop_boxes(recipe, 1, image.height, image.width, generator)[0]
        top, left, h, w = box.tolist()
        filter_ = RESAMPLING[recipe.interpolation]
        image = image.resize((size, size), filter_, box=(left, top, left + w, top + h))
        picture = _to_tensor(image)
    if recipe.flip and torch.rand((), generator=generator) < 0.5:
        picture = picture.flip(-1)
    if recipe.randaugment:
        picture = rand_augment(picture, recipe, seed)
    return picture


def centre_view(
    image, size: int, resize: int | None, interpolation: str = "bilinear"
) -> torch.Tensor:
    """torchvision's Resize(resize) and CenterCrop(size), rounding included: uint8 (3, size, size).

    Without `resize`, the whole PIL image is scaled to a square.
    """
    filter_ = RESAMPLING[interpolation]
    if resize is None:
        return _to_tensor(image.resize((size, size), filter_))
    shorter = min(image.size)
    image = image.resize([resize * side // shorter for side in image.size], filter_)
    left, top = (_centre(side, size) for side in image.size)
    return _to_tensor(image.crop((left, top, left + size, top + size)))


def _centre(side: int, size: int) -> int:
    """Where a crop of `size` begins; negative (and padded with black) if the side is smaller."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def _to_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
