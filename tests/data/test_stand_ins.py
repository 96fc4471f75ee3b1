"""Embedded stand-ins: stated sizes, test parts that may decide, no relative on both sides."""

import numpy as np
import pytest

from crate.data import stand_ins
from crate.data.catalogue import DATASETS
from crate.data.datasets import ImageSet

SETS = [dataset for dataset in DATASETS.values() if isinstance(dataset, ImageSet)]
EMBEDDED = [d for d in SETS if d.embedded and not d.scenes]  # labelled pictures


@pytest.mark.parametrize("dataset", EMBEDDED, ids=lambda dataset: dataset.name)
def test_an_entry_states_its_pictures_classes_and_statistics(dataset):
    for split, count in dataset.splits.items():
        pixels, labels = stand_ins.load(dataset.name, split, count)
        assert len(pixels) == len(labels) == count
        assert pixels.dtype == np.uint8
        classes = set(range(dataset.classes))
        assert set(labels) <= classes
        assert set(labels) == classes or split == "validation"
    pixels, _ = stand_ins.load(dataset.name, "train", dataset.splits["train"])
    if not dataset.name.startswith("fashion_mnist"):  # its statistics are the usual ones
        np.testing.assert_allclose(dataset.mean, (pixels / 255).mean((0, 2, 3)), atol=1e-4)
        np.testing.assert_allclose(dataset.std, (pixels / 255).std((0, 2, 3)), atol=1e-4)
    assert dataset.name == "fashion_mnist_tiny" or dataset.splits["test"] >= 1_000


@pytest.mark.parametrize("name", [*stand_ins._SETS, "fashion_mnist_pretrain"])
def test_no_picture_is_in_two_parts(name):
    splits = DATASETS[name].splits
    parts = {s: stand_ins.load(name, s, n)[0] for s, n in splits.items()}
    seen = [{picture.tobytes() for picture in pixels} for pixels in parts.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_pre_training_and_fine_tuning_share_no_picture():
    first = stand_ins.load("fashion_mnist_pretrain", "train", 45_000)[0]
    second = stand_ins.load("fashion_mnist_finetune", "train", 10_000)[0]
    assert not {p.tobytes() for p in first} & {p.tobytes() for p in second}


def test_relatives_stay_on_one_side():
    for name, make in stand_ins._SETS.items():
        _, _, relatives = make(name)
        parts = [{relatives[i] for i in part} for part in stand_ins.parts(relatives).values()]
        assert len(set.union(*parts)) == sum(map(len, parts))


def test_drawings_lie_on_white():
    pixels, _ = stand_ins.load("clip_art_topics", "train", 1_579)
    corners = pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 255
