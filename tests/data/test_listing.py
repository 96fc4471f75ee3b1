"""Trees and tar shards: the same pictures in the same order, with and without an index."""

import dataclasses
import io
import os
import pickle
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from crate.data.catalogue import DATASETS
from crate.data.check import check
from crate.data.datasets import Dataset
from crate.data.images import open_split
from crate.data.listing import index_path, list_part, read_index, write_index
from crate.data.pictures import FilePictures, ShardPictures
from crate.errors import RunError
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
CLASSES = ["n00000001", "n00000002", "n00000003", "n00000004"]
KINDS = ("tree", "class tars", "webdataset")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Path]:
    """imagenet21k in its three forms; data_root by kind."""
    roots = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    train = roots["tree"] / "imagenet21k/train"
    for label, name in enumerate(CLASSES):
        (train / name).mkdir(parents=True)
        for k in range(5 + label):
            pixels = np.random.RandomState(10 * label + k).randint(0, 256, (12, 14, 3), np.uint8)
            suffix = ("JPEG", "jpg", "png")[k % 3]
            Image.fromarray(pixels).save(train / name / f"{name}_{k}{k}.{suffix}")
    class_tars(train, roots["class tars"] / "imagenet21k/train")
    webdataset(train, roots["webdataset"] / "imagenet21k/train")
    return roots


def class_tars(tree: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in CLASSES:
        with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for file in sorted((tree / name).iterdir(), reverse=True):
                tar.add(file, file.name)


def webdataset(tree: Path, folder: Path) -> None:
    """Three shards in an order of their own, in the form that carries long names too (pax)."""
    folder.mkdir(parents=True)
    files = [file for name in CLASSES for file in (tree / name).iterdir()]
    files = [files[k] for k in np.random.RandomState(0).permutation(len(files))]
    for shard, part in enumerate(np.array_split(np.arange(len(files)), 3)):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for k in part:
                label = str(CLASSES.index(files[k].parent.name)).encode()
                add(tar, f"{files[k].stem}.cls", label)
                add(tar, f"{files[k].stem}.json", b"{}")
                add(tar, files[k].name.lower(), files[k].read_bytes())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def small() -> Dataset:
    return dataclasses.replace(DATASETS["imagenet21k"], classes=4, holdout=4)


@pytest.fixture(params=KINDS)
def copied(request, kinds, tmp_path) -> Path:
    """A data_root to change."""
    shutil.copytree(kinds[request.param], tmp_path, dirs_exist_ok=True)
    list_part.cache_clear()
    return tmp_path


def make_recipe(**keys) -> Classification:
    base = {"dataset": "imagenet21k", "follows": [], "epochs": 1.0, "batch_size": 4, "lr": 1e-3}
    return Classification(**base | keys)


def opened(dataset, split: str, root: Path, **keys):
    list_part.cache_clear()
    return open_split(dataset, split, size=8, runtime=CPU, data_root=root, **keys)


def batches(dataset, root: Path, workers: int = 0) -> list[torch.Tensor]:
    found = []
    for split in ("train", "validation", "test"):
        images = opened(dataset, split, root)
        recipe = make_recipe(compute={"workers": workers})
        found += [t for batch in images.evaluation(recipe, 3) for t in batch]
        if split == "train":
            found += [t for batch in images.training(recipe, 7, 1, 9) for t in batch]
    return found


# --- three forms, one result -----------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_shards_are_the_tree(kinds, small, kind, workers):
    """Same pictures, labels, held-out parts, order, crops and flips."""
    tree, shards = batches(small, kinds["tree"]), batches(small, kinds[kind], workers)
    assert len(tree) == len(shards) > 30
    assert all(torch.equal(a, b) for a, b in zip(tree, shards, strict=True))


def test_the_tree_is_torchvisions(kinds):
    classes, pictures = list_part(kinds["tree"] / "imagenet21k/train")
    other = ImageFolder(kinds["tree"] / "imagenet21k/train")
    assert classes == other.classes
    assert [pictures.name(k) for k in range(len(pictures))] == [path for path, _ in other.samples]
    assert pictures.labels.tolist() == other.targets


@pytest.mark.parametrize("copied", ["tree"], indirect=True)
def test_pictures_in_folders_of_a_class_count_too(copied, small):
    train = copied / "imagenet21k/train"
    write_index(train)
    (train / CLASSES[0] / "more").mkdir()
    shutil.copy(next((train / CLASSES[1]).iterdir()), train / CLASSES[0] / "more/one.PNG")
    assert len(opened(small, "train", copied)) == 26 + 1 - 4
    write_index(train)
    (train / CLASSES[0] / "more/one.PNG").rename(train / CLASSES[0] / "more/two.png")
    with pytest.raises(RunError, match=r"is out of date \(n00000001/more changed"):
        read_index(train)


# --- the index -----------------------------------------------------------


def test_an_index_changes_nothing(copied, small, capsys, monkeypatch):
    train = copied / "imagenet21k/train"
    before = batches(small, copied)
    assert write_index(train) == 26
    assert index_path(train) == copied / "imagenet21k/index-train.npz"
    monkeypatch.setattr("crate.data.listing.scan", None)  # nothing is listed again
    after = batches(small, copied)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert capsys.readouterr().err == ""


def read_anew(train: Path, capsys, changed: str) -> list[int]:
    """Labels as listed after a change, which one line tells; a new index agrees and is silent."""
    list_part.cache_clear()
    found = list_part(train)[1].labels.tolist()
    told = capsys.readouterr().err
    assert told == (
        f"warning: {index_path(train)}: is out of date ({changed} changed); listing {train} "
        "('crate data prepare imagenet21k' makes it anew)\n"
    )
    write_index(train)
    list_part.cache_clear()
    assert list_part(train)[1].labels.tolist() == found
    assert capsys.readouterr().err == ""
    return found


@pytest.mark.parametrize("copied", ["tree"], indirect=True)
def test_a_change_of_a_tree_is_noticed(copied, capsys):
    train = copied / "imagenet21k/train"
    write_index(train)
    first, *_ = sorted((train / CLASSES[0]).iterdir())
    shutil.copy(first, first.with_name("another.png"))
    assert read_anew(train, capsys, CLASSES[0]).count(0) == 6
    next((train / CLASSES[1]).iterdir()).unlink()
    assert read_anew(train, capsys, CLASSES[1]).count(1) == 5
    shutil.rmtree(train / CLASSES[2])
    assert read_anew(train, capsys, CLASSES[2]).count(2) == 8  # the last class moved up
    (train / "n99999999").mkdir()
    assert max(read_anew(train, capsys, "n99999999")) == 2  # it is empty


@pytest.mark.parametrize("copied", KINDS[1:], indirect=True)
def test_a_change_of_shards_is_noticed(copied, capsys):
    train = copied / "imagenet21k/train"
    write_index(train)
    first, second, *_ = sorted(train.iterdir())
    before = list_part(train)[1].labels.tolist()
    os.utime(first, (1, 1))
    assert read_anew(train, capsys, first.name) == before
    with tarfile.open(second, "a") as tar:
        add(tar, "zebra.png", b"a picture")
        if second.name.startswith("train"):
            add(tar, "zebra.cls", b"3")
    assert len(read_anew(train, capsys, second.name)) == len(before) + 1
    shutil.copy(first, train / "zzz.tar")
    if not first.name.startswith("train"):
        assert read_anew(train, capsys, "zzz.tar").count(4) == 5
    first.rename(train / "away")
    list_part.cache_clear()
    assert len(list_part(train)[1]) < len(before) + 6


def test_a_damaged_index_is_not_believed(copied, small, capsys):
    train = copied / "imagenet21k/train"
    before = batches(small, copied)
    write_index(train)
    good = index_path(train).read_bytes()
    middle = len(good) // 2
    arrays = dict(np.load(index_path(train)))

    def saved(**changes) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{k: v for k, v in (arrays | changes).items() if v is not None})
        return file.getvalue()

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(copied / "executed"),))

    flipped = bytes([good[middle] ^ 255])
    damaged = {
        "empty": b"",
        "cut off": good[:middle],
        "a flipped bit": good[:middle] + flipped + good[middle + 1 :],
        "text": b"classes: n01",
        "a pickle": pickle.dumps(Bomb()),
        "an array of objects": saved(labels=np.array([Bomb()], dtype=object)),
        "one array": saved(labels=None),
        "fewer labels": saved(labels=arrays["labels"][:-1]),
        "another version": saved(version=np.array(99)),
    }
    for name, content in damaged.items():
        index_path(train).write_bytes(content)
        capsys.readouterr()
        list_part.cache_clear()
        assert len(list_part(train)[1]) == 26, name
        told = capsys.readouterr().err
        assert told.startswith(f"warning: {index_path(train)}: is damaged"), name
        assert told.count("\n") == 1
    assert not (copied / "executed").exists()
    after = batches(small, copied)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- what is wrong with shards -----------------------------------------------------------


def test_a_picture_in_a_shard_that_does_not_open_is_named(kinds, small, tmp_path, capsys):
    source = kinds["class tars"] / "imagenet21k/train"
    train = Path(shutil.copytree(source, tmp_path / "imagenet21k/train"))
    with tarfile.open(train / f"{CLASSES[1]}.tar", "a") as tar:
        add(tar, "half.JPEG", b"\xff\xd8\xff\xe0 no more")
    whole = dataclasses.replace(small, holdout=0, folders={"train": "train"})
    for workers in (0, 2):
        images = opened(whole, "train", tmp_path)
        recipe = make_recipe(batch_size=1, compute={"workers": workers})
        assert len(list(images.training(recipe, 0, 0, 27))) == 27
        (warning,) = capsys.readouterr().err.splitlines()
        named = f"warning: {train}/{CLASSES[1]}.tar/half.JPEG: cannot be read as an image"
        assert warning.startswith(named)


@pytest.mark.parametrize("copied", KINDS[1:], indirect=True)
@pytest.mark.parametrize("cut", ["at the end", "in the end", "in a picture", "halfway"])
def test_a_shard_that_is_not_whole_is_named(copied, cut):
    """Cut between members too, where tarfile sees nothing wrong."""
    train = copied / "imagenet21k/train"
    shard = sorted(train.iterdir())[1]
    with tarfile.open(shard) as tar:
        *_, last = tar
        end = last.offset_data + -(-last.size // 512) * 512  # where the closing zeros begin
    content = shard.read_bytes()
    places = {"at the end": end, "in the end": end + 100, "in a picture": end - 600}
    shard.write_bytes(content[: places.get(cut, end // 2)])
    with pytest.raises(RunError) as caught:
        list_part(train)
    assert str(caught.value).startswith(f"{shard}: ")
    assert "\n" not in str(caught.value)
    damaged = bytearray(content)
    damaged[last.offset : last.offset + 4] = b"\xff\xff\xff\xff"  # a header with a wrong sum
    shard.write_bytes(bytes(damaged))
    with pytest.raises(RunError, match="is cut off or damaged at byte"):
        list_part(train)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.jpg": b"x"}, "'a' has no label ('.cls')"),
        ({"a.cls": b"1"}, "'a' has no picture"),
        (
            {"a.input.jpg": b"x", "a.cls": b"1", "b.jpg": b"x", "b.cls": b"0"},
            "'a' has no picture, as 1 of 3 keys, which end at the first dot; it has 6 members: ",
        ),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "'a.cls' is not a label: b'dog'"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "'a.cls' is not a label: b'-1'"),
        ({"a.jpg": b"x", "a.cls": b"9" * 30}, "'a.cls' is not a label: b'9999"),
        ({"a.jpg": b"x", "a.png": b"y", "a.cls": b"1"}, "'a.png' is there twice"),
    ],
)
def test_webdataset_shards_that_make_no_sense(tmp_path, members, told):
    train = tmp_path / "imagenet21k/train"
    train.mkdir(parents=True)
    with tarfile.open(train / "00.tar", "w") as tar:
        add(tar, "0.cls", b"0")
        add(tar, "0.jpg", b"x")
        for name, content in members.items():
            add(tar, name, content)
    with pytest.raises(RunError) as caught:
        list_part(train)
    assert str(caught.value).startswith(f"{train}/00.tar: {told}")


def test_labels_and_class_counts_are_compared_with_the_set(kinds, small):
    fewer = dataclasses.replace(small, classes=3)
    told = {
        "tree": f"has 4 class folders, {small.title} has 3",
        "class tars": f"has 4 class tars, {small.title} has 3",
        "webdataset": f"a label is 3, those of {small.title} are 0 to 2",
    }
    for kind, root in kinds.items():
        with pytest.raises(RunError) as caught:
            opened(fewer, "train", root)
        assert str(caught.value) == f"{root}/imagenet21k/train: {told[kind]}"


def test_check_counts_each_kind(kinds, small):
    told = {"tree": "4 class folders", "class tars": "4 class tars", "webdataset": "4 labels"}
    for kind, root in kinds.items():
        there, wrong = check(small, root)
        assert there == [f"{root}/imagenet21k/train: {told[kind]}, 26 images; no index"]
        assert wrong == []
        more = dataclasses.replace(small, classes=5, approximate=False)
        assert check(more, root)[1] == [
            f"{root}/imagenet21k/train: has {told[kind]}, {small.title} has 5",
            f"{root}/imagenet21k/train: 26 images, {small.title} has 13,151,276",
        ]


def test_parts_may_be_of_different_kinds(kinds, tmp_path):
    """Shards to train on, a tree to test on."""
    for kind in KINDS:
        root = tmp_path / kind / "imagenet1k"
        root.mkdir(parents=True)
        (root / "train").symlink_to(kinds[kind] / "imagenet21k/train")
        (root / "val").symlink_to(kinds["tree"] / "imagenet21k/train")
        splits = {"train": 26, "validation": 4, "test": 26}
        both = dataclasses.replace(DATASETS["imagenet1k"], classes=4, holdout=4, splits=splits)
        assert len(opened(both, "test", root.parent)) == 26
        assert check(both, root.parent)[1] == []


def test_a_part_without_anything(small, tmp_path):
    (tmp_path / "imagenet21k/train").mkdir(parents=True)
    with pytest.raises(RunError, match="imagenet21k/train: has 0 class folders"):
        opened(small, "train", tmp_path)


# --- what travels to loader processes -----------------------------------------------------------


def test_pictures_are_light_and_carry_no_open_file(kinds):
    shards = list_part(kinds["class tars"] / "imagenet21k/train")[1]
    shards.OPEN = 2  # fewer than there are
    expected = [np.array(shards.read(k)[0]) for k in range(len(shards))]
    assert len(shards._open) == 2
    copy = pickle.loads(pickle.dumps(shards))
    assert copy._open == {}
    assert all(np.array_equal(copy.read(k)[0], image) for k, image in enumerate(expected))
    # a picture costs its name and label, not a Python object of 50 bytes or more
    count = 100_000
    files = np.array([b"n00000001/n00000001_%06d.JPEG" % k for k in range(count)])
    pictures = FilePictures(Path("."), files, np.zeros(count, np.int64))
    assert len(pickle.dumps(pictures)) < 40 * count
    tracemalloc.start()
    part = pictures.select(np.arange(0, count, 2))
    assert tracemalloc.get_traced_memory()[0] < 45 * count / 2
    tracemalloc.stop()
    assert part.name(1).endswith("000002.JPEG")
    assert isinstance(shards.select(np.array([3])), ShardPictures)
