"""Sets with maps or objects, written small in their exact layouts: read right, or refused."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision import datasets
from writers import SCENE_WRITERS, VOC_LISTS, coco, coco_file, coco_object, noise

from crate.data.catalogue import DATASETS
from crate.data.datasets import Dataset, advice, check_available
from crate.data.scenes import IGNORED
from crate.data.sources import open_scenes, read_part
from crate.errors import RunError, UsageError


@pytest.fixture(params=SCENE_WRITERS)
def written(request, tmp_path) -> tuple[Dataset, Path]:
    SCENE_WRITERS[request.param](tmp_path)
    return DATASETS[request.param], tmp_path


def refused(name: str, root: Path, split: str = "test") -> str:
    with pytest.raises(RunError) as caught:
        open_scenes(DATASETS[name], split, root)
    line = str(caught.value)
    assert "\n" not in line
    assert f"run 'crate data prepare {name} --data-root {root}'" in line
    return line


# --- reading them -----------------------------------------------------------


def test_ade20k(tmp_path):
    folder = SCENE_WRITERS["ade20k"](tmp_path)
    check_available(DATASETS["ade20k"], tmp_path)
    for split, part, short in (("train", "training", "train"), ("test", "validation", "val")):
        scenes = open_scenes(DATASETS["ade20k"], split, tmp_path)
        assert scenes.ids == list(range(len(scenes)))
        assert (scenes.has_maps, scenes.has_objects) == (True, False)
        for k in range(len(scenes)):
            path = folder / f"images/{part}/ADE_{short}_{k + 1:08d}.jpg"
            assert scenes.name(k) == str(path)
            assert np.array_equal(np.array(scenes.picture(k)), np.array(Image.open(path)))
            stored = np.array(Image.open(folder / f"annotations/{part}/{path.stem}.png"))
            labels = scenes.labels(k)
            assert labels.dtype == np.uint8
            assert labels[0, :3].tolist() == [IGNORED, 0, 149]
            assert np.array_equal(labels == IGNORED, stored == 0)
            assert np.array_equal(labels[stored > 0], stored[stored > 0] - 1)


def test_voc2012_is_read_as_torchvision_reads_it(tmp_path):
    SCENE_WRITERS["voc2012"](tmp_path)
    check_available(DATASETS["voc2012"], tmp_path)
    for split, part in DATASETS["voc2012"].folders.items():
        scenes = open_scenes(DATASETS["voc2012"], split, tmp_path)
        theirs = datasets.VOCSegmentation(tmp_path / "voc2012", image_set=part)
        assert [Path(scenes.name(k)).stem for k in scenes.ids] == VOC_LISTS[part]
        for k, (picture, labels) in enumerate(theirs):
            assert np.array_equal(np.array(scenes.picture(k)), np.array(picture))
            assert np.array_equal(scenes.labels(k), np.array(labels))
            assert (scenes.labels(k)[:, 3] == IGNORED).all()


def test_coco_is_read_as_torchvision_reads_it(tmp_path):
    folder = SCENE_WRITERS["coco"](tmp_path)
    check_available(DATASETS["coco"], tmp_path)
    scenes = open_scenes(DATASETS["coco"], "test", tmp_path)
    path = folder / "annotations/instances_val2017.json"
    theirs = datasets.CocoDetection(folder / "val2017", path)
    assert scenes.ids == theirs.ids == [25, 139, 872]
    assert (scenes.has_maps, scenes.has_objects, scenes.problems) == (False, True, [])
    mine = scenes.objects()
    for k, (picture, objects) in enumerate(theirs):
        assert np.array_equal(np.array(scenes.picture(k)), np.array(picture))
        assert [a for a in mine["annotations"] if a["image_id"] == scenes.ids[k]] == objects
    stored = json.loads(path.read_text())
    assert mine == stored | {"images": sorted(stored["images"], key=lambda image: image["id"])}
    mine["annotations"][0].clear()  # what pycocotools does to them stays with the caller
    assert len(scenes.objects()["annotations"][0]) == 7


def test_a_validation_part_is_held_out_of_training(tmp_path):
    SCENE_WRITERS["ade20k"](tmp_path)
    dataset = dataclasses.replace(DATASETS["ade20k"], holdout=1)

    def names(split: str, **keys) -> list[str]:
        scenes = open_scenes(dataset, split, tmp_path, **keys)
        assert scenes.ids == list(range(len(scenes)))
        assert scenes.labels(0).shape == scenes.picture(0).size[::-1]  # a map of its own picture
        return [scenes.name(k) for k in range(len(scenes))]

    whole, validation = names("train"), names("validation")
    assert validation == [whole[np.random.RandomState(2024).permutation(3)[0]]]
    assert names("train", held_out_for="validation") == [n for n in whole if n not in validation]
    assert not set(names("test")) & set(whole)
    assert names("validation", held_out_for="validation") == validation


def test_what_a_set_does_not_have(written):
    dataset, root = written
    scenes = open_scenes(dataset, "test", root)
    lacks = "no objects, only maps" if scenes.has_maps else "no maps of classes"
    with pytest.raises(UsageError, match=f"^{dataset.title} has {lacks}"):
        scenes.objects() if scenes.has_maps else scenes.labels(0)
    with pytest.raises(UsageError, match=f"^{dataset.title}: unknown split 'tset'; did you mean"):
        open_scenes(dataset, "tset", root)


def test_what_no_set_has(tmp_path):
    with pytest.raises(UsageError, match="COCO val2017: unknown split 'train'; valid: test"):
        open_scenes(DATASETS["coco"], "train", tmp_path)
    with pytest.raises(UsageError, match=r"composites.*: unknown split 'tset'; did you mean"):
        open_scenes(DATASETS["composites"], "tset", tmp_path)
    with pytest.raises(UsageError, match="CIFAR-10 has labels of whole pictures, no maps"):
        open_scenes(DATASETS["cifar10"], "test", tmp_path)


# --- pictures and maps of every kind -----------------------------------------------------------


@pytest.fixture
def first(tmp_path) -> tuple[Path, Path]:
    """Picture and map of ADE20K's first training scene, to be replaced by others."""
    folder = SCENE_WRITERS["ade20k"](tmp_path)
    name = "training/ADE_train_00000001"
    return folder / f"images/{name}.jpg", folder / f"annotations/{name}.png"


def opened(root: Path):
    return open_scenes(DATASETS["ade20k"], "train", root)


@pytest.mark.parametrize(
    ("size", "mode", "kind"),
    [
        ((1, 1), "RGB", "JPEG"),
        ((7, 5), "L", "JPEG"),
        ((7, 5), "CMYK", "JPEG"),
        ((7, 5), "1", "PNG"),
        ((7, 5), "P", "PNG"),
        ((7, 5), "RGBA", "PNG"),
    ],
)
def test_pictures_of_every_mode_become_rgb(first, tmp_path, size, mode, kind):
    picture, labels = first
    image = Image.fromarray(noise(size[1], size[0], 3)).convert(mode)
    image.save(picture, kind)
    Image.fromarray(np.full(size[::-1], 150, np.uint8)).save(labels)
    scenes = opened(tmp_path)
    assert scenes.picture(0).mode == "RGB"
    assert scenes.picture(0).size == size
    assert (scenes.labels(0) == np.full(size[::-1], 149)).all()


def test_a_turn_in_exif_is_not_made(first, tmp_path):
    """Maps and coordinates are those of the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    stored = Image.open(first[0])
    stored.save(first[0], exif=exif)
    assert Image.open(first[0]).getexif()[0x0112] == 6
    scenes = opened(tmp_path)
    assert scenes.picture(0).size == stored.size
    assert scenes.labels(0).shape == stored.size[::-1]


def test_huge_pictures(first, tmp_path, monkeypatch):
    """Pillow warns from 90 megapixels on, and refuses twice as many."""
    scenes = opened(tmp_path)
    assert scenes.picture(0).size == (20, 11)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 219)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scenes.picture(0).size == (20, 11)
        assert scenes.labels(0).shape == (11, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 109)
    for read, path in ((scenes.picture, first[0]), (scenes.labels, first[1])):
        with pytest.raises(RunError, match=rf"^{path}: cannot .* \(Image size \(220 pixels\) exc"):
            read(0)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "text", "empty", "gone"])
def test_a_file_that_is_no_picture(first, tmp_path, which, damage):
    scenes = opened(tmp_path)
    content = first[which].read_bytes()
    changed = {"cut": content[:-40], "text": b"<html>", "empty": b"", "gone": None}[damage]
    first[which].unlink() if changed is None else first[which].write_bytes(changed)
    with pytest.raises(RunError) as caught:
        (scenes.picture, scenes.labels)[which](0)
    assert str(caught.value).startswith(f"{first[which]}: cannot be read as an image (")
    if which == 0 and damage != "cut":  # a map's size is compared with the picture's head
        with pytest.raises(RunError, match=f"^{first[0]}: cannot be read as an image"):
            scenes.labels(0)


@pytest.mark.parametrize(
    ("name", "values", "mode", "told"),
    [
        ("ade20k", np.full((11, 20), 151), "L", "a value is 151, those of ADE20K are 0 to 150"),
        ("ade20k", np.full((11, 20), 255), "L", "a value is 255, those of ADE20K are 0 to 150"),
        ("ade20k", np.zeros((20, 11)), "L", "is 11 by 20 pixels, its picture {} 20 by 11 pixels"),
        (
            "ade20k",
            np.zeros((11, 20, 3)),
            "RGB",
            "is not a map of classes (its mode is RGB, a map's",
        ),
        (
            "ade20k",
            np.zeros((11, 20)),
            "1",
            "is not a map of classes (its mode is 1, a map's L or P)",
        ),
        (
            "voc2012",
            np.full((9, 12), 21),
            "P",
            "a value is 21, those of PASCAL VOC 2012 are 0 to 20 and 255",
        ),
        ("voc2012", np.full((9, 12), 254), "P", "a value is 254, those of PASCAL VOC 2012 are"),
    ],
)
def test_a_map_that_is_none(tmp_path, name, values, mode, told):
    SCENE_WRITERS[name](tmp_path)
    scenes = open_scenes(DATASETS[name], "train", tmp_path)
    path = scenes.maps / f"{scenes.names[0]}.png"
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette(bytes(768))
    else:
        image = image.convert(mode)
    image.save(path)
    with pytest.raises(RunError) as caught:
        scenes.labels(0)
    assert str(caught.value).startswith(f"{path}: {told.format(scenes.name(0))}")


# --- what is missing is told before any work -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part", "gone", "told"),
    [
        (
            "ade20k",
            "training",
            "images/training/*2.jpg",
            "images/training: lacks 1 of the 3 files that {}/annotations/training names, first "
            "ADE_train_00000002.jpg",
        ),
        (
            "ade20k",
            "training",
            "annotations/training/*.png",
            "annotations/training: lacks 3 of the 3 files that {}/images/training names, first "
            "ADE_train_00000001.png",
        ),
        (
            "voc2012",
            "train",
            "JPEGImages/*0999.jpg",
            "JPEGImages: lacks 1 of the 3 files that {}/ImageSets/Segmentation/train.txt names, "
            "first 2011_000999.jpg",
        ),
        (
            "voc2012",
            "train",
            "SegmentationClass/*.png",
            "SegmentationClass: lacks 3 of the 3 files that "
            "{}/ImageSets/Segmentation/train.txt names, first 2007_000032.png",
        ),
        (
            "voc2012",
            "train",
            "ImageSets/Segmentation/train.txt",
            "ImageSets/Segmentation/train.txt: cannot be read (No such file or directory)",
        ),
        (
            "coco",
            "val2017",
            "val2017/*.jpg",
            "val2017: lacks 3 of the 3 files that {}/annotations/instances_val2017.json names, "
            "first 000000000139.jpg",
        ),
        (
            "coco",
            "val2017",
            "annotations/*.json",
            "annotations/instances_val2017.json: cannot be read (No such file or directory)",
        ),
    ],
)
def test_what_is_missing_is_counted(tmp_path, name, part, gone, told):
    folder = SCENE_WRITERS[name](tmp_path)
    for path in folder.glob(gone):
        path.unlink()
    (folder / gone).with_name("._hidden.jpg").touch()  # as other systems leave them
    with pytest.raises(RunError) as caught:
        read_part(DATASETS[name], part, tmp_path)
    instead = advice(DATASETS[name], tmp_path)
    assert str(caught.value) == f"{folder}/{told.format(folder)}; {instead}"


def test_an_empty_part_is_refused(tmp_path):
    folder = SCENE_WRITERS["voc2012"](tmp_path)
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(RunError, match="voc2012, val: no images for the test split of PASCAL"):
        open_scenes(DATASETS["voc2012"], "test", tmp_path)
    (folder / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe")
    assert "val.txt: cannot be read (it is not UTF-8 text)" in refused("voc2012", tmp_path)


# --- COCO's file -----------------------------------------------------------


def changed(key: str, **values):
    """The written file, with the first entry of a list changed."""

    def change(content: dict) -> None:
        content[key][0].update(values)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("[1, 2", "is not JSON (Expecting ',' delimiter"),
        ("[" * 100_000 + "]" * 100_000, "is not read: it nests lists or objects too deep"),
        ('{"images": ' * 100_000 + "{}" + "}" * 100_000, "is not read: it nests lists or objec"),
        ("[" + "1" * 5_000 + "]", "is not JSON (a number of too many digits)"),
        ("\xff", "is not JSON ("),
        (
            "[]",
            "is not in COCO's format (it is not an object of images, annotations and categories)",
        ),
        ("{}", "is not in COCO's format ('images' is not a list of objects)"),
        (lambda c: c.update(annotations=[7]), "('annotations' is not a list of objects)"),
        (lambda c: c.pop("categories"), "('categories' is not a list of objects)"),
        (changed("images", id=872), "(images: the id 872 is there twice)"),
        (changed("annotations", id=3), "(annotations: the id 3 is there twice)"),
        (changed("categories", id=2), "(categories: the id 2 is there twice)"),
        (
            changed("images", id="139"),
            '(images: an id is "139", not a whole number from 0 to 2⁶³ - 1)',
        ),
        (changed("categories", id=10**20), "(categories: an id is 100000000000000000000, not a"),
        (
            changed("images", id=10**4000),
            "(images: an id is 10000000000000000000… (4,001 characte",
        ),
        (changed("annotations", id=0), "(annotations: an id is 0, not a whole number from 1 to"),
        (changed("images", file_name=None), "(image 139 has no file_name)"),
        (changed("images", height=0), "(image 139 has no width and height)"),
        (changed("images", height=2**33), "(image 139 is too large, "),
    ],
)
def test_a_file_that_is_not_cocos(tmp_path, change, told):
    folder = coco(tmp_path)
    path = folder / "annotations/instances_val2017.json"
    if isinstance(change, str):
        path.write_bytes(change.encode("latin1"))
    else:
        content = json.loads(path.read_text())
        change(content)
        coco_file(folder, content)
    line = refused("coco", tmp_path)
    assert line.startswith(f"{path}: ")
    assert told in line


def test_a_picture_that_is_not_as_the_file_says(tmp_path):
    """A copy that was scaled or turned: no annotation would fit."""
    folder = coco(tmp_path)
    scenes = open_scenes(DATASETS["coco"], "test", tmp_path)
    path = folder / "val2017/000000000025.jpg"
    Image.open(path).rotate(90, expand=True).save(path)
    with pytest.raises(RunError, match=f"^{path}: is 15 by 20 pixels, .*json says 20 by 15 pixels"):
        scenes.picture(0)


TRIANGLE = [1, 1, 9, 1, 9, 9]
WHOLE = {"size": [15, 20], "counts": [0, 300]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"segmentation": "polygon"}, "the segmentation is neither polygons nor RLE"),
        ({"segmentation": None}, "the segmentation is neither polygons nor RLE"),
        ({"segmentation": []}, "the segmentation is neither polygons nor RLE"),
        ({"segmentation": TRIANGLE}, "the segmentation is neither polygons nor RLE"),
        ({"segmentation": [TRIANGLE, TRIANGLE[:4]]}, "a polygon has an odd number of coordinates "),
        ({"segmentation": [[*TRIANGLE, 3]]}, "a polygon has an odd number of coordinates or fewer"),
        ({"segmentation": [[*TRIANGLE, math.nan, 3]]}, "a coordinate is not a finite number"),
        ({"segmentation": [[*TRIANGLE, "4", 3]]}, "a coordinate is not a finite number"),
        ({"segmentation": [[*TRIANGLE, 10**400, 3]]}, "a coordinate is not a finite number"),
        ({"segmentation": [[*TRIANGLE, 1e12, 3]]}, "a coordinate is beyond 100,000"),
        ({"segmentation": WHOLE | {"size": [20, 15]}}, "the RLE's size is not its picture's"),
        ({"segmentation": {"counts": [0, 300]}}, "the RLE's size is not its picture's"),
        ({"segmentation": WHOLE | {"counts": [0, 299]}}, "the RLE's counts do not fill its "),
        ({"segmentation": WHOLE | {"counts": [-5, 305]}}, "the RLE's counts do not fill its "),
        ({"segmentation": WHOLE | {"counts": []}}, "the RLE's counts do not fill its picture"),
        ({"segmentation": WHOLE | {"counts": ""}}, "the RLE's counts do not fill its picture"),
        (
            {"segmentation": WHOLE | {"counts": "é"}},
            "the RLE's counts are not a list of whole numbers",
        ),
        (
            {"segmentation": WHOLE | {"counts": [0, 300.0]}},
            "the RLE's counts are not a list of whole numbers",
        ),
        ({"bbox": None}, "the bbox is not four finite numbers"),
        ({"bbox": [1, 2, 3]}, "the bbox is not four finite numbers"),
        ({"bbox": [1, 2, 3, math.inf]}, "the bbox is not four finite numbers"),
        ({"image_id": 5}, "the image_id is of no picture"),
        ({"image_id": [25]}, "the image_id is of no picture"),
        ({"category_id": 12}, "the category_id is of no category"),
        ({"area": None}, "the area is not a number of pixels"),
        ({"iscrowd": 2}, "iscrowd is neither 0 nor 1"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out(tmp_path, changes, told):
    folder = coco(tmp_path)
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    whole = list(content["annotations"])
    for number in (50, 40):
        broken = coco_object(id=number, image_id=25, segmentation=[TRIANGLE]) | changes
        content["annotations"].insert(1, broken)
    coco_file(folder, content)
    scenes = open_scenes(DATASETS["coco"], "test", tmp_path)
    assert scenes.objects()["annotations"] == whole
    (problem,) = scenes.problems
    assert problem.startswith(f"{path}: 2 annotations left out, {told}")
    assert problem.endswith("; first id 40")


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(tmp_path):
    """Every text that it writes is usable; cut short or with a stray character, none is."""
    folder = coco(tmp_path)
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    masks, content["annotations"] = {}, []
    for k in range(1, 200):
        random = np.random.RandomState(k)
        mask = random.rand(15, 20) < random.choice([0, 0.02, 0.5, 0.9, 1])
        mask[:, 10 : 10 + k % 10] |= k % 3 == 0  # long runs: numbers of several characters
        text = rle.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        masks[k] = mask
        for number, counts in ((k, text), (1_000 + k, text[:-1]), (2_000 + k, text + " ")):
            segmentation = {"size": [15, 20], "counts": counts}
            entry = coco_object(id=number, image_id=25, segmentation=segmentation)
            content["annotations"].append(entry)
    coco_file(folder, content)
    scenes = open_scenes(DATASETS["coco"], "test", tmp_path)
    kept = scenes.objects()["annotations"]
    assert [annotation["id"] for annotation in kept] == list(masks)
    assert sum(int(line.split(": ")[1].split()[0]) for line in scenes.problems) == 2 * len(masks)
    reader = COCO()
    reader.dataset = scenes.objects()
    reader.createIndex()
    for number, mask in masks.items():
        assert np.array_equal(reader.annToMask(reader.anns[number]), mask)
