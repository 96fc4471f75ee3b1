"""Pictures into batches: orders, crops, flips, mixing, splits, and folders of real files."""

import dataclasses
import math
import os
import re
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import (
    CenterCrop,
    Compose,
    PILToTensor,
    RandAugment,
    Resize,
)
from torchvision.transforms.v2.functional import resized_crop

from crate.data.augment import (
    centre_view,
    crop_batch,
    crops_of_tensorflow,
    crops_of_torchvision,
    mix,
    normalise,
    rand_augment,
    training_view,
)
from crate.data.batches import batch_indices, epoch_order, own_places
from crate.data.catalogue import DATASETS, get_dataset
from crate.data.datasets import Dataset, check_available
from crate.data.embedded import photos
from crate.data.images import MemoryImages, StreamedImages, open_split
from crate.errors import RunError
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification
from crate.training.loop import _weight

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RANKS = [dataclasses.replace(CPU, rank=rank, world=2) for rank in (0, 1)]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_recipe(**keys) -> Classification:
    base = {"dataset": "imagenet1k", "follows": [], "epochs": 1.0, "batch_size": 4, "lr": 1e-3}
    return Classification(**base | keys)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


# --- which pictures -----------------------------------------------------------


def test_an_epoch_sees_each_picture_once():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_batches_of_an_epoch_are_disjoint_and_follow_its_order():
    epochs = [[batch_indices(50, 8, 3, 6 * epoch + k)[1] for k in range(6)] for epoch in (0, 1)]
    for epoch, batches in enumerate(epochs):
        seen = torch.cat(batches).tolist()
        assert len(set(seen)) == 48  # 50 = 6 · 8 + 2: two are left out
        assert seen == epoch_order(50, 3, epoch)[:48].tolist()


@pytest.mark.parametrize(("last_batch", "updates"), [("keep", 7), ("carry", 6)])
def test_no_picture_is_left_out(last_batch, updates):
    """Four epochs of 50 pictures in batches of 8, as one stream or with a smaller last batch."""
    total = 4 * updates + (last_batch == "carry")  # 25 batches of 8 are four epochs
    batches = [batch_indices(50, 8, 3, update, last_batch) for update in range(total)]
    sizes = [len(indices) for _, indices in batches]
    assert sizes == ([8, 8, 8, 8, 8, 8, 2] * 4 if last_batch == "keep" else [8] * 25)
    epochs, indices = map(torch.cat, zip(*batches, strict=True))
    assert epochs.tolist() == [epoch for epoch in range(4) for _ in range(50)]
    for epoch in range(4):
        assert torch.equal(indices[epochs == epoch], epoch_order(50, 3, epoch))


@pytest.mark.parametrize(("count", "world"), [(2, 2), (3, 2), (1, 2), (2, 4)])
def test_each_picture_of_a_smaller_batch_counts_once(count, world):
    """Ranks' mean losses, weighted as the loop does and averaged, are the mean over the batch."""
    ranks = [Runtime(CPU.device, CPU.dtype, "", rank, world) for rank in range(world)]
    losses, mean = torch.rand(count, dtype=torch.float64), 0.0
    for runtime in ranks:
        own = losses[list(own_places(count, 4 * world, runtime))].mean()
        mean += _weight(count, 4 * world, runtime) * own / world
    assert float(mean) == pytest.approx(float(losses.mean()), abs=1e-12)


def test_ranks_share_a_batch_without_overlap():
    parts = [rank.shard(torch.arange(10)) for rank in RANKS]
    assert torch.cat(parts).tolist() == list(range(10))
    assert [len(part) for part in parts] == [5, 5]
    with pytest.raises(RunError, match="a batch of 9 does not divide over 2 processes"):
        RANKS[0].shard(torch.arange(9))


# --- crops and flips -----------------------------------------------------------


LAWS = [crops_of_torchvision, crops_of_tensorflow]


@pytest.mark.parametrize("sample_crops", LAWS)
@pytest.mark.parametrize(("height", "width", "area"), [(200, 300, 0.08), (224, 224, 0.5)])
def test_crops_keep_their_limits(height, width, area, sample_crops):
    boxes = sample_crops(2000, height, width, area, torch.Generator().manual_seed(0))
    top, left, h, w = boxes.T
    assert torch.equal(boxes, boxes.round())
    assert ((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width)).all()
    whole = (h == height) & (w == width)
    slack = 0.5 * (h + w) + 0.25  # each side was rounded by at most half a pixel
    assert (whole | ((h * w - slack) / (height * width) <= 1)).all()
    assert ((h * w + slack) / (height * width) >= area).all()
    assert (whole | ((w + 0.5) / (h - 0.5) >= 3 / 4)).all()
    assert (whole | ((w - 0.5) / (h + 0.5) <= 4 / 3)).all()
    # and they fill the limits: areas spread evenly, both orientations, every corner reachable
    share = h * w / (height * width)
    assert share.min() < area + 0.03
    assert 0.4 < (w > h).float().mean() < 0.8
    assert top.min() == left.min() == 0
    assert height - 1 <= (top + h).max() <= height
    assert width - 1 <= (left + w).max() <= width


def test_a_shape_no_crop_fits():
    """TensorFlow takes the picture whole, torchvision its largest middle part of aspect 4/3."""
    arguments = (20, 10, 200, 0.9, torch.Generator().manual_seed(0))
    assert crops_of_tensorflow(*arguments).tolist() == [[0, 0, 10, 200]] * 20
    assert crops_of_torchvision(*arguments).tolist() == [[0, 93, 10, 13]] * 20
    torch.manual_seed(0)
    theirs = RandomResizedCrop.get_params(torch.zeros(3, 10, 200), [0.9, 1], [3 / 4, 4 / 3])
    assert list(theirs) == [0, 93, 10, 13]


def literal_tensorflow_crop(height: int, width: int, area_min: float, random) -> tuple[int, int]:
    """Height and width by sample_distorted_bounding_box, one try after another, with scalars.

    tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc, in words: an aspect ratio is
    drawn; heights are bounded by the areas, and from above by the picture; a height is drawn.
    """
    for _ in range(100):
        ratio = random.uniform(0.75, 1.33)
        low = round(math.sqrt(area_min * height * width / ratio))
        high = round(math.sqrt(height * width / ratio))
        if round(high * ratio) > width:
            high = int((width + 0.5 - 1e-7) / ratio)
        high = min(high, height)
        h = random.randint(low, high) if low < high else high
        w = round(h * ratio)
        if h * w < area_min * height * width:
            h, w = h + 1, round((h + 1) * ratio)
        if h * w > height * width:
            h, w = h - 1, round((h - 1) * ratio)
        if area_min * height * width <= h * w and w <= width and h <= height:
            return h, w
    return height, width


@pytest.mark.parametrize(
    ("height", "width", "area", "median"),
    [(375, 500, 0.08, 0.33), (500, 375, 0.08, None), (224, 224, 0.4, None)],
)
def test_tensorflows_crops_follow_their_law(height, width, area, median):
    count, random = 5000, Random(0)
    boxes = crops_of_tensorflow(count, height, width, area, torch.Generator().manual_seed(0))
    h, w = boxes[:, 2].numpy(), boxes[:, 3].numpy()
    theirs = np.array([literal_tensorflow_crop(height, width, area, random) for _ in range(count)])
    for mine, other in ((h, theirs[:, 0]), (w, theirs[:, 1]), (h * w, theirs.prod(1))):
        assert ks_2samp(mine, other).pvalue > 0.01
    if median:
        assert np.median(h * w / (height * width)) == pytest.approx(median, abs=0.01)


def test_torchvisions_crops_follow_their_law():
    torch.manual_seed(0)
    picture = torch.zeros(1, 375, 500)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(5000)]
    )
    boxes = crops_of_torchvision(5000, 375, 500, 0.08, torch.Generator().manual_seed(1)).numpy()
    for column in range(4):
        assert ks_2samp(boxes[:, column], theirs[:, column]).pvalue > 0.01
    share = boxes[:, 2] * boxes[:, 3] / (375 * 500)
    assert np.median(share) == pytest.approx(0.42, abs=0.01)


def test_the_whole_box_at_its_own_size_is_the_picture():
    pixels = noise(3, 1, 28, 28)
    boxes = torch.tensor([[0.0, 0.0, 28.0, 28.0]]).expand(3, 4)
    assert torch.equal(crop_batch(pixels, boxes, 28), pixels)


def test_crops_equal_torchvisions():
    pixels = noise(3, 3, 40, 32)
    boxes = [(0, 0, 20, 16), (5, 3, 17, 29), (20, 16, 20, 16)]
    ours = crop_batch(pixels, torch.tensor(boxes, dtype=torch.float32), 24)
    for picture, box, mine in zip(pixels, boxes, ours, strict=True):
        theirs = resized_crop(picture, *box, [24, 24], antialias=False).int()
        # A crop that is first cut out repeats its own border, ours sees the pixels beyond it.
        inside = (slice(None), slice(2, -2), slice(2, -2))
        assert (mine.int() - theirs)[inside].abs().max() <= 1


def test_training_batches_from_memory():
    pixels, labels = noise(40, 1, 8, 8), torch.arange(40)
    images = MemoryImages(pixels, labels, size=8, runtime=CPU)
    recipe = make_recipe(batch_size=20, flip=True)
    batches = list(images.training(recipe, 0, 0, 4))
    flipped = 0
    for batch, ids in batches:
        for picture, index in zip(batch, ids, strict=True):
            same = torch.equal(picture, pixels[index])
            assert same or torch.equal(picture, pixels[index].flip(-1))
            flipped += not same
    assert 25 <= flipped <= 55  # of 80
    assert sorted(torch.cat([ids for _, ids in batches[:2]]).tolist()) == list(range(40))
    # resumed: update 3 alone is what it was
    (again,) = images.training(recipe, 0, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(again, batches[3], strict=True))
    plain = next(images.training(make_recipe(batch_size=20, flip=False), 0, 0, 1))
    assert torch.equal(plain[0], pixels[plain[1]])


@pytest.mark.parametrize(
    "extra",
    [
        {"crop_area_min": 0.2},
        {"crop_area_min": 0.2, "pipeline": "tensorflow", "interpolation": "bicubic"},
        {"randaugment": [2, 9]},
        {"randaugment": [2, 9], "pipeline": "tensorflow"},
    ],
)
def test_ranks_together_see_the_batch_of_one(extra):
    pixels, labels = noise(16, 1, 12, 12), torch.arange(16)
    recipe = make_recipe(batch_size=8, **extra)
    one, *two = (
        next(MemoryImages(pixels, labels, size=12, runtime=runtime).training(recipe, 5, 1, 2))
        for runtime in (CPU, *RANKS)
    )
    for k in range(2):
        assert torch.equal(torch.cat([part[k] for part in two]), one[k])
    seen = torch.cat(
        [
            batch
            for batch, _ in MemoryImages(pixels, labels, size=12, runtime=CPU).training(
                recipe, 5, 0, 8
            )
        ]
    )
    assert len(seen.flatten(1).unique(dim=0)) > 16  # not only the pictures as they are


def test_evaluation_sees_each_picture_once_and_unchanged():
    pixels, labels = noise(11, 1, 6, 6), torch.arange(11)
    for ranks in ([CPU], RANKS):
        seen = [
            batch
            for runtime in ranks
            for batch in MemoryImages(pixels, labels, size=6, runtime=runtime).evaluation(
                make_recipe(crop_area_min=0.1), 4
            )
        ]
        ids = torch.cat([ids for _, ids in seen])
        assert sorted(ids.tolist()) == list(range(11))
        assert torch.equal(torch.cat([batch for batch, _ in seen]), pixels[ids])


@pytest.mark.parametrize("pipeline", ["torchvision", "tensorflow"])
def test_randaugment_is_decided_by_its_seed_alone(pipeline):
    picture, recipe = noise(3, 24, 24), make_recipe(randaugment=[2, 9], pipeline=pipeline)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rand_augment(picture, recipe, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(rand_augment(picture, recipe, 7), first)
    others = [rand_augment(picture, recipe, seed) for seed in range(8)]
    assert len({tuple(other.flatten().tolist()) for other in others}) >= 4
    assert first.shape == picture.shape
    assert first.dtype == torch.uint8


def test_torchvisions_randaugment_takes_the_nearest_pixel():
    """As the transfer scripts, which give no interpolation; bilinear differs by 2 to 3 of 255."""
    recipe, differences = make_recipe(randaugment=[2, 14]), []
    photo = photos()["astronaut"]
    picture = torch.from_numpy(np.array(Image.fromarray(photo).resize((224, 224))))
    picture = picture.permute(2, 0, 1).contiguous()
    for seed in range(60):
        torch.manual_seed(seed)
        theirs = RandAugment(2, 14)(picture)
        assert torch.equal(rand_augment(picture, recipe, seed), theirs)
        torch.manual_seed(seed)
        bilinear = RandAugment(2, 14, interpolation=InterpolationMode.BILINEAR)(picture)
        difference = (theirs.float() - bilinear.float()).abs().mean().item()
        differences += [difference] if difference else []
    assert 1 < np.mean(differences) < 5


def test_bicubic_crops_are_sharper():
    """He et al.'s crops: the variance within patches is larger, by 4 % on ImageNet."""
    means = {}
    for interpolation in ("bilinear", "bicubic"):
        recipe = make_recipe(crop_area_min=0.2, flip=False, interpolation=interpolation)
        views = [
            training_view(Image.fromarray(photo).convert("RGB"), 224, recipe, seed).float()
            for photo in photos().values()
            for seed in range(4)
        ]
        patches = torch.stack(views).unfold(2, 16, 16).unfold(3, 16, 16)
        means[interpolation] = patches.var((-1, -2)).mean().item()
        evaluated = centre_view(
            Image.fromarray(photos()["astronaut"]).convert("RGB"), 224, 256, interpolation
        )
        means[interpolation, "evaluated"] = (
            evaluated.float().unfold(1, 16, 16).var(-1).mean().item()
        )
    assert 1.01 < means["bicubic"] / means["bilinear"] < 1.12
    assert means["bicubic", "evaluated"] > means["bilinear", "evaluated"]


def test_normalise():
    colour = torch.tensor([[[[255]], [[0]], [[51]]]], dtype=torch.uint8)
    got = normalise(colour, get_dataset("imagenet1k")).flatten().tolist()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert got == pytest.approx(expected, abs=1e-5)
    grey = normalise(noise(2, 1, 4, 4), get_dataset("fashion_mnist_tiny"))
    assert grey.shape == (2, 3, 4, 4)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert grey[0, 0, 0, 0] == pytest.approx((noise(2, 1, 4, 4)[0, 0, 0, 0] / 255 - 0.286) / 0.353)


# --- mixing -----------------------------------------------------------


OFF = {"mixup": 0.0, "cutmix": 0.0}


def mixed(seed: int, count: int = 8, **keys):
    """Pictures filled with their own index, so that a mix can be read off."""
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 16, 20).contiguous()
    labels = torch.arange(count)
    return mix(images, labels, count, [seed] * count, **OFF | keys)


def test_mixing_that_is_off_gives_one_hot_targets():
    images, targets = mixed(0)
    assert torch.equal(targets, torch.eye(8))
    assert torch.equal(images[:, 0, 0, 0], torch.arange(8.0))


def test_mixup_is_its_formula():
    keeps = []
    for seed in range(50):
        images, targets = mixed(seed, mixup=0.8)
        keep = targets[0, 0].item()
        keeps.append(keep)
        partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
        expected = keep * torch.eye(8) + (1 - keep) * torch.eye(8)[partner]
        torch.testing.assert_close(targets, expected)
        values = keep * torch.arange(8.0) + (1 - keep) * partner
        torch.testing.assert_close(images, values.view(-1, 1, 1, 1).expand_as(images))
    assert min(keeps) < 0.2 < 0.8 < max(keeps)  # Beta(0.8, 0.8) covers the interval


def test_cutmix_weighs_labels_by_the_area_that_is_left():
    keeps = []
    for seed in range(50):
        images, targets = mixed(seed, cutmix=1.0)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        for k in range(8):
            pasted = images[k, 0] == k ^ 1
            assert ((images[k, 0] == k) | pasted).all()
            area = pasted.float().mean().item()
            assert targets[k, k].item() == pytest.approx(1 - area, abs=1e-6)
            assert targets[k, k ^ 1].item() == pytest.approx(area, abs=1e-6)
            rows, columns = pasted.any(1), pasted.any(0)
            assert pasted.sum() == rows.sum() * columns.sum()  # one rectangle
        keeps.append(targets[0, 0].item())
    assert min(keeps) < 0.5 < 0.9 < max(keeps)


def test_the_switch_chooses_between_mixup_and_cutmix():
    def cut(seed: int, switch: float) -> bool:
        images = mixed(seed, mixup=0.8, cutmix=1.0, switch=switch)[0]
        return bool(images[1, 0].unique().numel() > 1 or images[1, 0, 0, 0] in (0, 1))

    assert not any(cut(seed, 0.0) for seed in range(20))
    assert all(cut(seed, 1.0) for seed in range(20))
    assert 20 < sum(cut(seed, 0.5) for seed in range(80)) < 60


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_halves_are_mixed_as_the_whole(keys):
    images, labels = noise(8, 3, 10, 10).float(), torch.arange(8)
    seeds = [3, 3, 3, 3, 4, 4, 4, 4]
    whole = mix(images, labels, 8, seeds, **OFF | keys)
    for part in (slice(0, 4), slice(4, 8), slice(0, 2), slice(2, 8)):
        half = mix(images[part], labels[part], 8, seeds[part], **OFF | keys)
        assert torch.equal(half[0], whole[0][part])
        assert torch.equal(half[1], whole[1][part])
    assert whole[1][0, 0] != whole[1][4, 4]  # another group, another weight
    odd = mix(images[:5], labels[:5], 8, seeds[:5], **OFF | keys)
    torch.testing.assert_close(odd[1].sum(1), torch.ones(5))
    torch.testing.assert_close(odd[0][4], images[4])  # without a neighbour: itself


# --- splits -----------------------------------------------------------


def test_embedded_splits_share_no_picture(monkeypatch):
    """Fashion-MNIST's indices in place of its pictures."""
    counts = {"train": 60_000, "test": 10_000}

    def indices(split: str):
        count = counts[split]
        return np.arange(count, dtype=np.int32).reshape(-1, 1, 1), np.arange(count)

    monkeypatch.setattr("crate.data.stand_ins.fashion_mnist", indices)
    parts = {}
    for name, sizes in {
        "fashion_mnist_pretrain": {"train": 45_000, "validation": 5_000, "test": 10_000},
        "fashion_mnist_finetune": {"train": 10_000, "validation": 5_000, "test": 10_000},
    }.items():
        for split, size in sizes.items():
            opened = open_split(get_dataset(name), split, size=1, runtime=CPU, data_root="none")
            assert opened.pixels.flatten().tolist() == opened.labels.tolist()
            parts[name, split] = set(opened.labels.tolist())
            assert len(parts[name, split]) == len(opened) == size
    pretrain, finetune, held_out = (
        parts["fashion_mnist_pretrain", "train"],
        parts["fashion_mnist_finetune", "train"],
        parts["fashion_mnist_pretrain", "validation"],
    )
    assert pretrain | finetune | held_out == set(range(60_000))  # 45,000 + 10,000 + 5,000
    assert parts["fashion_mnist_finetune", "validation"] == held_out
    for name in ("fashion_mnist_pretrain", "fashion_mnist_finetune"):
        assert parts[name, "test"] == set(range(10_000))


# --- image folders -----------------------------------------------------------

CLASSES = ["n01440764", "n01443537", "n02084071"]
SIZES = [(40, 60), (60, 40), (50, 50), (5, 3), (3, 9), (120, 33)]  # width, height


def picture(seed: int, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """A smooth picture, which JPEG keeps about as it is."""
    small = Image.fromarray(noise(4, 4, 3, seed=seed).numpy()).resize(size, 3)
    array = np.array(small)
    return array[..., 0] if channels == 1 else array


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """imagenet1k as it lies on disk, with three classes and the odd files the real one has."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for k, name in enumerate(CLASSES):
            folder = root / "imagenet1k" / split / name
            folder.mkdir(parents=True)
            for i, size in enumerate(SIZES):
                image = Image.fromarray(picture(10 * k + i, size))
                image.save(folder / f"{name}_{i}.JPEG", "JPEG", quality=95)
            (folder / "readme.txt").write_text("no picture")
        odd = root / "imagenet1k" / split / CLASSES[0]
        Image.fromarray(picture(90, (40, 30), channels=1)).save(odd / "grey.JPEG", "JPEG")
        cmyk = Image.fromarray(picture(91, (40, 30))).convert("CMYK")
        cmyk.save(odd / "cmyk.JPEG", "JPEG")
        palette = Image.fromarray(picture(92, (40, 30))).convert("P")
        palette.save(odd / "palette.JPEG", "PNG")  # n02105855_2933.JPEG is such a file
    return root


@pytest.fixture
def imagenet(monkeypatch) -> Dataset:
    small = dataclasses.replace(DATASETS["imagenet1k"], classes=3, holdout=5)
    monkeypatch.setitem(DATASETS, "imagenet1k", small)
    return small


def opened(dataset, split: str, root: Path, size: int = 16, **keys) -> StreamedImages:
    return open_split(dataset, split, size=size, runtime=CPU, data_root=root, **keys)


def test_files_and_labels_are_torchvisions(tree, imagenet):
    for split, folder in {"train": "train", "test": "val"}.items():
        images = opened(imagenet, split, tree)
        theirs = ImageFolder(tree / "imagenet1k" / folder)
        assert len(images) == 21
        paths = [images.pictures.name(k) for k in range(len(images))]
        assert list(zip(paths, images.pictures.labels, strict=True)) == theirs.samples
        for k in range(len(theirs)):
            mine, label = images.pictures.read(k)
            assert np.array_equal(np.array(mine), np.array(theirs[k][0]))
            assert label == theirs[k][1]


@pytest.mark.parametrize(("resize", "size"), [(20, 16), (21, 16), (16, 16), (12, 16), (11, 16)])
def test_evaluation_is_torchvisions(tree, imagenet, resize, size):
    images = opened(imagenet, "test", tree, size=size)
    theirs = ImageFolder(tree / "imagenet1k" / "val")
    batches = list(images.evaluation(make_recipe(eval_resize=resize), 4))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert labels.tolist() == theirs.targets
    transform = Compose([Resize(resize), CenterCrop(size), PILToTensor()])
    for mine, (image, _), (path, _) in zip(pixels, theirs, theirs.samples, strict=True):
        assert torch.equal(mine, transform(image)), path


def test_training_on_the_centre_crop_sees_what_evaluation_sees(tree, imagenet):
    images = opened(imagenet, "train", tree)
    recipe = make_recipe(eval_resize=20, center_crop=True, batch_size=4)
    pixels, labels = next(images.training(recipe, 0, 0, 1))
    views = {int(view.sum()): view for b, _ in images.evaluation(recipe, 7) for view in b}
    for mine, _ in zip(pixels, labels, strict=True):
        expected = views[int(mine.sum())]  # the sum of a picture survives its mirroring
        assert torch.equal(mine, expected) or torch.equal(mine, expected.flip(-1))


def test_evaluation_without_a_crop_squeezes_the_whole_picture(tree, imagenet):
    images = opened(imagenet, "test", tree)
    theirs = ImageFolder(tree / "imagenet1k" / "val", Compose([Resize((16, 16)), PILToTensor()]))
    pixels = torch.cat([batch for batch, _ in images.evaluation(make_recipe(), 7)])
    for mine, (expected, _) in zip(pixels, theirs, strict=True):
        assert (mine.int() - expected.int()).abs().max() <= 1


def test_loader_processes_change_nothing(tree, imagenet):
    images = opened(imagenet, "train", tree)
    batches = {}
    for workers in (0, 2):
        recipe = make_recipe(crop_area_min=0.3, randaugment=[2, 9], compute={"workers": workers})
        batches[workers] = list(images.training(recipe, 1, 2, 7))
        batches[workers] += list(images.evaluation(recipe, 8))
    assert len(batches[0]) == 5 + 3
    for one, two in zip(batches[0], batches[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert batches[0][0][0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut off", "no image", "empty"])
def test_one_picture_that_does_not_open_costs_a_warning(
    tree, imagenet, tmp_path, workers, damage, capsys
):
    root = tmp_path / "imagenet1k"
    shutil.copytree(tree / "imagenet1k", root)
    bad = root / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    content = bad.read_bytes()
    bad.write_bytes({"cut off": content[:-200], "no image": b"<html>", "empty": b""}[damage])
    whole, images = (opened(imagenet, "train", place) for place in (tree, tmp_path))
    (place,) = [k for k in range(21) if images.pictures.name(k) == str(bad)]
    recipe = make_recipe(compute={"workers": workers})

    # training: the next picture is seen in its place; two epochs, each of 20 of the 21 pictures
    mine, theirs = (list(each.training(recipe, 0, 0, 10)) for each in (images, whole))
    same = [
        torch.equal(a, b)
        for (pixels, _), (others, _) in zip(mine, theirs, strict=True)
        for a, b in zip(pixels, others, strict=True)
    ]
    assert len(same) == 40
    assert same.count(False) in (1, 2)
    assert all(len(pixels) == len(labels) == 4 for pixels, labels in mine)

    # evaluation: it is left out
    pixels, labels = map(torch.cat, zip(*images.evaluation(recipe, 8), strict=True))
    others, all_labels = map(torch.cat, zip(*whole.evaluation(recipe, 8), strict=True))
    kept = torch.arange(21) != place
    assert torch.equal(pixels, others[kept])
    assert torch.equal(labels, all_labels[kept])
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {bad}: cannot be read as an image")
    assert warning.endswith("; left out")


@pytest.mark.parametrize("bad", [6, 21])
def test_many_pictures_that_do_not_open_end_the_run(tree, imagenet, tmp_path, bad, capsys):
    root = tmp_path / "imagenet1k"
    shutil.copytree(tree / "imagenet1k", root)
    for path in sorted(root.glob("train/*/*.JPEG"))[-bad:]:
        path.write_bytes(b"")
    images = opened(imagenet, "train", tmp_path)
    with pytest.raises(RunError, match=r"as 5 others of 21 pictures; 'crate data check") as caught:
        list(images.evaluation(make_recipe(), 4))
    assert "\n" not in str(caught.value)
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_held_out_splits_are_disjoint_and_stable(tree, imagenet):
    def files(split: str, dataset=imagenet, **keys) -> set[str]:
        pictures = opened(dataset, split, tree, **keys).pictures
        found = [os.fsdecode(file) for file in pictures.files]
        assert found == sorted(found)
        return set(found)

    validation = files("validation")
    assert len(validation) == 5
    assert files("validation") == validation
    assert len(files("train")) == 21  # a published recipe trains on everything
    assert files("train", held_out_for="validation") == files("train") - validation
    no_test = dataclasses.replace(imagenet, folders={"train": "train"})  # as imagenet21k
    test, validation = files("test", no_test), files("validation", no_test)
    assert (len(test), len(validation)) == (5, 5)
    assert files("train", no_test) == files("train") - test
    assert files("train", no_test, held_out_for="validation") == files("train") - test - validation
    assert not test & validation
    # written down once: another choice would mix old test pictures into new training parts
    assert sorted(files("validation")) == VALIDATION


VALIDATION = [
    "n01440764/n01440764_4.JPEG",
    "n01440764/n01440764_5.JPEG",
    "n01443537/n01443537_4.JPEG",
    "n02084071/n02084071_1.JPEG",
    "n02084071/n02084071_5.JPEG",
]


def test_what_is_missing_is_told(tree, imagenet, tmp_path):
    expected = f"ImageNet-1K is not at {tmp_path}/imagenet1k/train: download"
    with pytest.raises(RunError, match=re.escape(expected)):
        check_available(imagenet, tmp_path)
    with pytest.raises(RunError, match="imagenet1k/train: cannot be read"):
        opened(imagenet, "train", tmp_path)
    more = dataclasses.replace(imagenet, classes=1000)
    told = r"imagenet1k/train: has 3 class folders, ImageNet-1K has 1,000"
    with pytest.raises(RunError, match=told):
        opened(more, "train", tree)
    everything = dataclasses.replace(imagenet, folders={"train": "train"}, holdout=11)
    with pytest.raises(RunError, match="no images for the train split of ImageNet-1K"):
        opened(everything, "train", tree, held_out_for="validation")  # 11 and 10: none is left
