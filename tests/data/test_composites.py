"""Composites: what is seen, what the map says and what the objects cover are one thing."""

import hashlib
import re

import numpy as np
import pytest
from pycocotools.coco import COCO

from crate.data.catalogue import DATASETS
from crate.data.embedded import CLIP_ART_FOLDERS, folder_of, photos
from crate.data.readers import composites
from crate.data.scenes import IGNORED
from crate.data.sources import open_scenes

SPLITS = composites.SPLITS


def opened(split: str, name: str = "composites"):
    return open_scenes(DATASETS[name], split, "nowhere")


def test_no_drawing_and_no_relative_is_in_two_splits():
    names = composites.split_names()
    families = {
        split: {re.sub(r"[\W\d_]+$", "", name.removesuffix(".png")) for name in chosen}
        for split, chosen in names.items()
    }
    recoloured = {
        split: {re.sub(r"_(bw|colour)\b", "", family) for family in chosen}
        for split, chosen in families.items()
    }
    for parts in (names, families, recoloured):
        assert len(set().union(*parts.values())) == sum(map(len, map(set, parts.values())))
    for split, chosen in names.items():
        assert {folder_of(name) for name in chosen} == set(CLIP_ART_FOLDERS), split
    pixels = [
        {drawing.tobytes() for drawings in found.values() for drawing in drawings}
        for found in composites._drawings().values()
    ]
    assert len(set().union(*pixels)) == sum(map(len, pixels))


def test_relatives_by_name_silhouette_and_pixels():
    """By hand: a ring that is recoloured, a copy a shade off, versions, a chain, and strangers."""
    rows, columns = np.indices((64, 64)) - 31.5
    ring = (rows**2 + columns**2 < 900).astype(np.uint8)
    cross = ((abs(rows) < 5) | (abs(columns) < 5)).astype(np.uint8)
    square = np.zeros((64, 64), np.uint8)
    square[4:60, 4:60] = 1

    def drawn(shape: np.ndarray, *colour: int) -> np.ndarray:
        return np.dstack([shape[..., None] * np.array(colour, np.uint8), 255 * shape])

    drawings = {
        "food/fruit/plum.png": drawn(ring, 90, 0, 90),
        "food/fruit/apple.png": drawn(ring, 200, 0, 0),  # the plum's silhouette
        "food/fruit/apple_bw_02.png": drawn(cross, 0, 0, 0),  # the apple's name
        "recreation/sports/ball.png": drawn(ring, 255, 255, 0),  # a ring of another folder
        "signs_and_symbols/flags/red.png": drawn(square, 255, 0, 0),
        "signs_and_symbols/flags/blue.png": drawn(square, 0, 0, 255),
        "signs_and_symbols/flags/blue_flag.png": drawn(square, 0, 5, 250),  # nearly the blue
    }
    family = composites.relatives(list(drawings), np.stack(list(drawings.values()))).tolist()
    assert family[0] == family[1] == family[2]
    assert family[5] == family[6]
    assert len({family[0], family[3], family[4], family[5]}) == 4


def test_a_photograph_of_the_test_part_is_in_no_other(monkeypatch):
    """Each photograph painted in one colour, and nothing upon it."""
    shades = {name: 20 * k for k, name in enumerate(sorted(photos()))}
    painted = {name: np.full_like(photo, shades[name]) for name, photo in photos().items()}
    monkeypatch.setattr(composites, "_photos", lambda: painted)
    random = np.random.RandomState(0)
    seen = {
        split: {int(composites._background(split, random).max()) for _ in range(60)}
        for split in SPLITS
    }
    assert seen["test"] == {shades[name] for name in composites.TEST_PHOTOS}
    assert seen["train"] == seen["validation"] == set(shades.values()) - seen["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_map_and_masks_agree(split):
    """Where alpha leaves no doubt: each pixel of a class is of the one object that covers it."""
    objects, classes = 0, set()
    for index in range(150):
        pixels, labels, found = composites.compose(split, index)
        assert pixels.shape == (112, 112, 3)
        assert labels.shape == (112, 112)
        covered = np.zeros((112, 112), dtype=int)
        for category, mask in found:
            assert set(np.unique(labels[mask])) <= {category, IGNORED}
            assert mask.sum() >= composites.SMALLEST
            covered += mask
        assert covered.max(initial=0) <= 1
        assert not covered[labels == 0].any()
        left = (labels != 0) & (labels != IGNORED) & (covered == 0)
        assert left.sum() < composites.SMALLEST * composites.DRAWINGS  # too small for objects
        objects += len(found)
        classes |= set(np.unique(labels))
    assert classes == {*range(17), IGNORED}
    assert objects > 300


def test_annotations_load_in_pycocotools(capsys):
    scenes = opened("test", "composites_tiny")
    reader = COCO()
    reader.dataset = scenes.objects()
    reader.createIndex()
    assert reader.getImgIds() == scenes.ids
    names = {c["id"]: c["name"] for c in reader.loadCats(reader.getCatIds())}
    assert names == dict(enumerate(CLIP_ART_FOLDERS, start=1))
    assert len(reader.anns) == len(reader.dataset["annotations"]) > len(scenes)
    for index in scenes.ids:
        annotations = reader.imgToAnns[index]
        found = composites.compose("test", index)[2]
        for annotation, (category, mask) in zip(annotations, found, strict=True):
            assert np.array_equal(reader.annToMask(annotation), mask)
            assert annotation["category_id"] == category
            assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box


def test_a_picture_is_the_same_whatever_is_read_before():
    whole, few = opened("train"), opened("train", "composites_tiny")
    assert (len(whole), len(few)) == (2_000, 64)
    composites.compose.cache_clear()
    first = [(np.array(whole.picture(k)), whole.labels(k)) for k in range(8)]
    composites.compose.cache_clear()
    for k in reversed(range(8)):
        assert np.array_equal(few.labels(k), first[k][1])
        assert np.array_equal(np.array(few.picture(k)), first[k][0])
    whole.labels(0)[:] = 7  # the caller's own
    assert np.array_equal(whole.labels(0), first[0][1])
    more = composites.Composites("", "train", 80).objects()["annotations"]
    objects = few.objects()["annotations"]
    assert objects == more[: len(objects)] != more
    assert whole.name(3) == "composites/train/00003"


def test_pictures_never_change():
    """Written down: another value would make finished results wrong."""
    digest = {}
    for split in SPLITS:
        found = hashlib.sha256()
        for index in (0, 1, 2, 3, 15):
            pixels, labels, objects = composites.compose(split, index)
            for array in (pixels, labels, *(mask for _, mask in objects)):
                found.update(array.tobytes())
        digest[split] = found.hexdigest()[:16]
    assert digest == EXPECTED


EXPECTED = {
    "train": "b1312e9a5aecbc75",
    "validation": "73ef321b7f014ae9",
    "test": "0c3c7310298a3a1c",
}


def test_pictures_differ():
    first = {composites.compose(s, k)[0].tobytes() for s in SPLITS for k in range(100)}
    assert len(first) == 300


def test_statistics_are_those_of_the_training_part():
    first, second, count = np.zeros(3), np.zeros(3), len(opened("train"))
    for index in range(count):
        pixels = composites.compose("train", index)[0].reshape(-1, 3).astype(np.float32) / 255
        first, second = first + pixels.mean(0), second + (pixels**2).mean(0)
    mean = first / count
    for name in ("composites", "composites_tiny"):
        np.testing.assert_allclose(DATASETS[name].mean, mean, atol=1e-4)
        np.testing.assert_allclose(DATASETS[name].std, np.sqrt(second / count - mean**2), atol=1e-4)


def test_edges_have_no_halo(monkeypatch):
    """A red disc with a soft edge on green: each pixel is a mixture of those two colours."""
    rows, columns = np.mgrid[:64, :64] - 31.5
    alpha = np.clip(3 * (30 - np.hypot(rows, columns)), 0, 255)
    disc = np.zeros((64, 64, 4), dtype=np.uint8)
    disc[..., 3] = alpha
    disc[alpha >= 1, 0] = 255  # as the assets: no colour where nothing is seen
    green = np.zeros((300, 300, 3), dtype=np.uint8)
    green[..., 1] = 255
    drawings = {"test": {category: [disc] for category in range(1, 17)}}
    monkeypatch.setattr(composites, "_drawings", lambda: drawings)
    monkeypatch.setattr(composites, "_photos", lambda: {"chelsea": green, "coffee": green})
    for index in range(20):
        pixels = composites.compose.__wrapped__("test", index)[0].astype(int)
        assert (pixels[..., 2] == 0).all()
        assert pixels[..., 0].max() > 80
        assert (np.abs(pixels.sum(-1) - 255) <= 2 * composites.DRAWINGS).all()
