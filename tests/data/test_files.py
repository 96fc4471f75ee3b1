"""What is a file of a set and what is not, and what a run asks for: one rule for all readers."""

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from writers import SCENE_WRITERS, WRITERS, ade20k, noise, voc2012

from crate.data.catalogue import DATASETS
from crate.data.datasets import check_available
from crate.data.files import decode_image, hidden, open_image, say_once
from crate.data.listing import list_part
from crate.data.pair_shards import list_pairs
from crate.data.prepare_texts import _source_files
from crate.data.sources import open_pictures, read_part
from crate.errors import RunError
from crate.planning.loader import Experiments
from crate.tasks.base import splits_read

CLASSES = ("n01440764", "n01443537", "n02084071")
LITTER = (
    "._a.JPEG",
    ".DS_Store",
    "Thumbs.db",
    ".hidden/b.JPEG",
    "__MACOSX/c.JPEG",
    "@eaDir/d.JPEG",
)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing listed, nothing said yet."""
    for cached in (list_part, list_pairs, say_once):
        cached.cache_clear()


@pytest.fixture
def imagenet():
    return dataclasses.replace(DATASETS["imagenet1k"], classes=3, holdout=2)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 9, 3, seed=seed)).save(path, "JPEG")
    return path


def tree(root: Path, *parts: str) -> Path:
    for part in parts:
        for k, name in enumerate(CLASSES):
            for i in range(2):
                picture(root / "imagenet1k" / part / name / f"{name}_{i}.JPEG", 10 * k + i)
    return root


def litter(folder: Path) -> None:
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not a picture")


# --- hidden files -----------------------------------------------------------


def test_what_is_hidden():
    assert all(map(hidden, LITTER))
    assert hidden("a/.b/c.jpg")
    assert not any(map(hidden, ("a.jpg", "./a.jpg", "../a.jpg", "a.b/c..d")))


def test_hidden_files_of_a_tree_are_skipped_and_said_once(tmp_path, imagenet, capsys):
    tree(tmp_path, "train", "val")
    clean = [read_part(imagenet, part, tmp_path).files.tolist() for part in ("train", "val")]
    list_part.cache_clear()
    for part in ("train", "val"):
        litter(tmp_path / "imagenet1k" / part)  # beside the classes
        litter(tmp_path / "imagenet1k" / part / CLASSES[1])  # among pictures
    found = [read_part(imagenet, part, tmp_path).files.tolist() for part in ("train", "val")]
    assert found == clean
    list_part.cache_clear()
    read_part(imagenet, "train", tmp_path)
    told = [
        f"note: {tmp_path}/imagenet1k/{part}: 6 hidden files skipped\n" for part in ("train", "val")
    ]
    assert capsys.readouterr().err == "".join(told)


def test_hidden_members_of_tars_are_skipped_and_said(tmp_path, capsys):
    folder = tmp_path / "imagenet21k/train"
    folder.mkdir(parents=True)
    for name in CLASSES:
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for member in (f"./{name}_0.JPEG", f"._{name}_0.JPEG", f"__MACOSX/{name}.JPEG"):
                add(tar, member, picture(tmp_path / "a.JPEG").read_bytes())
    (folder / "._n01440764.tar").write_bytes(b"not a tar")
    dataset = dataclasses.replace(DATASETS["imagenet21k"], classes=3)
    found = read_part(dataset, "train", tmp_path)
    assert found.labels.tolist() == [0, 1, 2]
    assert capsys.readouterr().err == f"note: {folder}: 6 hidden files skipped\n"


def test_hidden_members_of_shards_of_pairs_are_skipped_and_said(tmp_path, capsys):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for stem in ("a", "._a", ".trash/b", "__MACOSX/c"):
            add(tar, f"{stem}.jpg", b"1")
            add(tar, f"{stem}.txt", b"2")
    (tmp_path / "._0.tar").write_bytes(b"not a tar")
    shards = list_pairs(tmp_path)
    assert (len(shards), int(shards.bad.sum()), len(shards.names)) == (1, 0, 1)
    assert capsys.readouterr().err == f"note: {tmp_path}: 6 hidden files skipped\n"


PAIR = "a pair is <key>.jpg (or .png …) and <key>.txt, and a key ends at the first dot"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (
            [f"{k}.{end}" for k in "xyz" for end in ("input.jpg", "output.txt", "json")],
            "0.tar has 9 members: 3 '.input.jpg', 3 '.output.txt', 3 '.json'; ",
        ),
        (
            ["x.gif", "x.caption", "y.gif"],
            "0.tar has 3 members: 2 '.gif', 1 '.caption'; ",
        ),
        (["x.gif", "x.txt"], "1 key without a picture (0.tar/x); 0.tar has 2 members: 1 '.gif', "),
        ([], "0.tar has no members; "),
        ([f"x.{k}" for k in range(9)], "0.tar has 9 members: 1 '.0', 1 '.1', 1 '.2', 1 '.3', …; "),
    ],
)
def test_shards_without_pairs_say_what_they_have(tmp_path, members, told):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in members:
            add(tar, name, b"1")
    with pytest.raises(RunError) as caught:
        list_pairs(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: has no pairs: {told}")
    assert str(caught.value).endswith(PAIR)


@pytest.mark.parametrize("write", [ade20k, voc2012])
def test_hidden_files_of_scenes_are_skipped(tmp_path, write):
    folder = write(tmp_path)
    name = write.__name__
    before = [
        read_part(DATASETS[name], part, tmp_path).names for part in DATASETS[name].folders.values()
    ]
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        litter(inside)
    after = [
        read_part(DATASETS[name], part, tmp_path).names for part in DATASETS[name].folders.values()
    ]
    assert after == before


def test_hidden_files_among_texts_are_skipped(tmp_path, capsys):
    litter(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    assert [path.name for path in _source_files(tmp_path)] == ["a.txt"]
    assert capsys.readouterr().err == f"note: {tmp_path}: 6 hidden files skipped\n"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# --- what a run asks for -----------------------------------------------------------


def test_a_run_that_reads_val_alone_asks_for_val_alone(tmp_path, imagenet):
    tree(tmp_path, "val")
    check_available(imagenet, tmp_path, ["test"])
    found = open_pictures(imagenet, "test", tmp_path)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for splits in (["train", "test"], ["validation"], None):  # validation is cut out of train
        with pytest.raises(RunError, match=r"ImageNet-1K is not at .*/imagenet1k/train: download"):
            check_available(imagenet, tmp_path, splits)


@pytest.mark.parametrize("inside", [(), (".DS_Store",), ("Thumbs.db", "._x")])
def test_an_empty_folder_is_not_a_set(tmp_path, imagenet, inside):
    tree(tmp_path, "val")
    train = tmp_path / "imagenet1k/train"
    train.mkdir()
    for name in inside:
        (train / name).touch()
    with pytest.raises(RunError, match="imagenet1k/train, which is empty: download"):
        check_available(imagenet, tmp_path, ["train"])
    assert len(open_pictures(imagenet, "test", tmp_path)) == 6  # its classes are not compared


@pytest.mark.parametrize("name", sorted(WRITERS | SCENE_WRITERS))
def test_each_split_needs_its_own_files(tmp_path, name):
    (WRITERS | SCENE_WRITERS)[name](tmp_path)
    dataset = DATASETS[name]
    needs = dataset.parts_need
    for split, part in dataset.folders.items():
        for path in needs.get(part, ()):
            kept = tmp_path / name / path
            kept.rename(kept.with_name("elsewhere"))
            with pytest.raises(RunError, match=f"is not at {kept}: "):
                check_available(dataset, tmp_path, [split])
            others = [each for each in dataset.folders if dataset.folders[each] != part]
            check_available(dataset, tmp_path, others)
            kept.with_name("elsewhere").rename(kept)
    check_available(dataset, tmp_path)


def test_a_token_file_is_asked_for_by_its_split(tmp_path):
    (tmp_path / "openwebtext").mkdir()
    for suffix in (".bin", ".json"):
        (tmp_path / "openwebtext" / f"val{suffix}").write_text("x")
    check_available(DATASETS["openwebtext"], tmp_path, ["test"])
    with pytest.raises(RunError, match=r"OpenWebText is not at .*/train\.bin"):
        check_available(DATASETS["openwebtext"], tmp_path, ["train"])


@pytest.mark.parametrize(
    ("step", "splits"),
    [
        ("imagenet1k", ["train", "test"]),
        ("imagenet1k_evaluated", ["test"]),
        ("imagenet1k_zeroshot", ["test"]),
        ("imagenet1k_mae", ["train", "test"]),
        ("imagenet1k_mae_untrained", ["train", "test"]),
        ("imagenet1k_layerwise", ["train", "test"]),
        ("cifar10_probe", ["train", "validation", "test"]),
        ("openwebtext_bigram", ["train", "test"]),
        ("openwebtext_untrained", ["test"]),
        ("wikitext", ["test"]),
        ("ade20k_whole_image", ["train", "test"]),
        ("ade20k_ground_truth", ["test"]),
        ("coco_maskcut_cpal", ["test"]),
        ("released", []),
        ("throughput", []),
    ],
)
def test_a_step_says_which_splits_it_reads(step, splits):
    recipe = Experiments().recipe(step, "paper")
    found = splits_read([recipe])
    assert [sorted(read) for _, read in found] == ([sorted(splits)] if splits else [])


def test_the_right_part_is_blamed_for_a_class_too_many(tmp_path, imagenet):
    tree(tmp_path, "train", "val")
    (tmp_path / "imagenet1k/val" / CLASSES[2]).rename(tmp_path / "imagenet1k/val/n09999999")
    told = "imagenet1k/val: has no class n02084071, which .*/imagenet1k/train has"
    with pytest.raises(RunError, match=told):
        read_part(imagenet, "val", tmp_path)
    picture(tmp_path / "imagenet1k/train/extra/a.JPEG")
    list_part.cache_clear()
    with pytest.raises(RunError, match="imagenet1k/train: has 4 class folders, ImageNet-1K has 3"):
        read_part(imagenet, "train", tmp_path)


# --- what is empty -----------------------------------------------------------


@pytest.mark.parametrize("content", [(), ("._a.JPEG", ".DS_Store"), ("readme.txt",)])
def test_an_empty_class_is_no_class(tmp_path, imagenet, content, capsys):
    tree(tmp_path, "train", "val")
    folder = tmp_path / "imagenet1k/train" / CLASSES[1]
    for path in folder.iterdir():
        path.unlink()
    for name in content:
        (folder / name).write_text("not a picture")
    told = "imagenet1k/train: 1 of its classes has no picture, first n01443537; unpack that again"
    with pytest.raises(RunError, match=told):
        open_pictures(imagenet, "train", tmp_path)
    assert len(open_pictures(imagenet, "test", tmp_path)) == 6
    approximate = dataclasses.replace(imagenet, approximate=True)  # copies lack some classes
    assert len(open_pictures(approximate, "train", tmp_path)) == 4
    assert "warning: " in capsys.readouterr().err


def test_a_few_pictures_may_be_evaluated(tmp_path, imagenet, capsys):
    tree(tmp_path, "train", "val")
    for path in (tmp_path / "imagenet1k/val" / CLASSES[0]).iterdir():
        path.unlink()
    assert set(open_pictures(imagenet, "test", tmp_path).labels.tolist()) == {1, 2}
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "1 of its classes has no picture, first n01440764" in said


def test_a_class_tar_without_a_picture_is_no_class(tmp_path):
    folder = tmp_path / "imagenet1k/train"
    folder.mkdir(parents=True)
    for k, name in enumerate(CLASSES):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            if k:
                add(tar, "a.JPEG", b"1")
    dataset = dataclasses.replace(DATASETS["imagenet1k"], classes=3, approximate=True)
    assert read_part(dataset, "train", tmp_path).labels.tolist() == [1, 2]
    with pytest.raises(RunError, match="1 of its classes has no picture, first n01440764"):
        read_part(dataclasses.replace(dataset, approximate=False), "train", tmp_path)


def test_classes_that_are_all_empty_are_an_error_in_any_copy(tmp_path, imagenet):
    for name in CLASSES:
        (tmp_path / "imagenet1k/train" / name).mkdir(parents=True)
    for approximate in (False, True):
        dataset = dataclasses.replace(imagenet, approximate=approximate)
        with pytest.raises(RunError, match="3 of its classes have no picture, first n01440764"):
            read_part(dataset, "train", tmp_path)


# --- what is no picture -----------------------------------------------------------


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    for name, reason in (
        ("pipe.jpg", "it is not a regular file"),
        ("folder.jpg", "it is not a regular file"),
        ("loop.jpg", "Too many levels of symbolic links"),
        ("empty.jpg", "it is empty"),
        ("none.jpg", "No such file or directory"),
    ):
        with pytest.raises(RunError) as caught:
            open_image(tmp_path / name, "RGB")
        assert str(caught.value) == f"{tmp_path / name}: cannot be read as an image ({reason})"


def test_pipes_in_a_tree_are_skipped_and_links_followed(tmp_path, imagenet, capsys):
    tree(tmp_path, "train")
    folder = tmp_path / "imagenet1k/train" / CLASSES[0]
    os.mkfifo(folder / "a.JPEG")
    (folder / "linked.JPEG").symlink_to(folder / f"{CLASSES[0]}_0.JPEG")
    (folder / "loop").symlink_to(folder / "loop")
    found = read_part(imagenet, "train", tmp_path)
    assert [Path(found.name(k)).name for k in range(3)] == [
        "linked.JPEG", "n01440764_0.JPEG", "n01440764_1.JPEG",
    ]  # fmt: skip
    assert capsys.readouterr().err == f"note: {tmp_path}/imagenet1k/train: 1 special file skipped\n"


# --- colours -----------------------------------------------------------


def written(image: Image.Image, kind: str, **options) -> io.BytesIO:
    content = io.BytesIO()
    image.save(content, kind, **options)
    content.seek(0)
    return content


GREY16 = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # 0, 257, … 65,535


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(GREY16), "PNG"),
        (Image.fromarray(GREY16), "TIFF"),
        (Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
        (Image.fromarray((GREY16 // 257).astype(np.uint8)), "PNG"),
        (Image.fromarray((GREY16 / 65_535).astype(np.float32)), "TIFF"),
    ],
)
def test_grey_of_any_depth_has_the_same_values(image, kind):
    found = np.asarray(decode_image(written(image, kind), "RGB"))
    assert found.shape == (16, 16, 3)
    assert np.array_equal(found[..., 0].ravel(), np.arange(256))
    assert (found == found[..., :1]).all()


def test_transparency_is_white_in_every_mode():
    half = np.zeros((2, 2, 4), np.uint8)
    half[0, :, :] = (200, 100, 50, 255)  # above opaque, below transparent black
    rgba = Image.fromarray(half)
    palette = Image.fromarray(np.array([[1, 1], [0, 0]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 100, 50])
    grey = Image.fromarray(np.array([[100, 100], [7, 7]], np.uint8))
    expected = np.full((2, 2, 3), 255)
    expected[0] = (200, 100, 50)
    for source in (written(rgba, "PNG"), written(palette, "PNG", transparency=0)):
        assert np.array_equal(np.asarray(decode_image(source, "RGB")), expected)
    found = np.asarray(decode_image(written(grey, "PNG", transparency=7), "RGB"))
    assert found[..., 0].tolist() == [[100, 100], [255, 255]]
    opaque = written(palette, "PNG")
    assert np.asarray(decode_image(opaque, "RGB"))[1].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_person_and_a_reader_see_the_same_picture(tmp_path):
    from crate.explore.pictures import open_picture

    Image.fromarray(GREY16).save(tmp_path / "a.png")
    theirs, ours = open_picture(tmp_path / "a.png"), open_image(tmp_path / "a.png", "RGB")
    assert np.array_equal(np.asarray(theirs), np.asarray(ours))
