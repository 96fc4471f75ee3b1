"""The real sets, written small in their exact layouts: read as torchvision reads them."""

import dataclasses
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets
from writers import WRITERS, cifar10, cifar100, flowers102, noise, pets, save

from crate.data.catalogue import DATASETS
from crate.data.datasets import Dataset, check_available, data_identity
from crate.data.images import open_split
from crate.data.sources import read_part
from crate.errors import RunError, UsageError
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
CIFAR = {
    "cifar10": ("cifar-10-batches-py", datasets.CIFAR10),
    "cifar100": ("cifar-100-python", datasets.CIFAR100),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path) -> tuple[Dataset, Path]:
    WRITERS[request.param](tmp_path)
    return DATASETS[request.param], tmp_path


@pytest.fixture
def any_md5(monkeypatch):
    """torchvision reads a set only if its md5 sums are the published ones."""
    for module in ("cifar", "flowers102"):
        check = f"torchvision.datasets.{module}.check_integrity"
        monkeypatch.setattr(check, lambda path, md5=None: os.path.isfile(path))


def theirs(dataset: Dataset, part: str, root: Path):
    root = root / dataset.name
    if dataset.name in CIFAR:
        return CIFAR[dataset.name][1](root, train=part == "train")
    return {"flowers102": datasets.Flowers102, "pets": datasets.OxfordIIITPet}[dataset.name](
        root, part
    )


# --- reading them -----------------------------------------------------------


def test_pictures_and_labels_are_torchvisions(written, any_md5):
    dataset, root = written
    check_available(dataset, root)
    for part in dataset.folders.values():
        mine, other = read_part(dataset, part, root), theirs(dataset, part, root)
        assert len(mine) == len(other) > 0
        for k in range(len(other)):
            (image, label), (expected, target) = mine.read(k), other[k]
            assert image.mode == "RGB"
            assert np.array_equal(np.array(image), np.array(expected))
            assert label == target


def test_the_files_a_set_needs_are_torchvisions():
    for name, (folder, known) in CIFAR.items():
        files = [file for file, _ in known.train_list + known.test_list]
        needs = DATASETS[name].parts_need
        assert [*needs["train"], *needs["test"]] == [f"{folder}/{file}" for file in files]


def test_each_split_goes_through_the_loader(written):
    dataset, root = written
    dataset = dataclasses.replace(dataset, holdout=min(dataset.holdout, 1))
    recipe = Classification(
        dataset=dataset.name, follows=[], batch_size=2, epochs=1.0, lr=1e-3, flip=False
    )
    keys = {"size": 8, "runtime": CPU, "data_root": root}
    seen = {}
    for split in dataset.splits:
        opened = open_split(dataset, split, **keys)
        pixels, labels = (
            torch.cat(parts) for parts in zip(*opened.evaluation(recipe, 2), strict=True)
        )
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (len(opened), 3, 8, 8))
        assert (labels.dtype, labels.shape) == (torch.int64, (len(opened),))
        seen[split] = {picture.numpy().tobytes() for picture in pixels}
        next(opened.training(recipe, 0, 0, 1)) if len(opened) > 1 else None
    held_out_for = open_split(dataset, "train", held_out_for="validation", **keys)
    held_out = "validation" not in dataset.folders
    assert len(held_out_for) == len(seen["train"]) - held_out
    assert seen["validation"] <= seen["train"] if held_out else seen["validation"] - seen["train"]
    assert not seen["test"] & (seen["train"] | seen["validation"])


def test_a_split_that_a_set_does_not_have(tmp_path):
    real = DATASETS["imagenet1k_real"]
    with pytest.raises(UsageError, match="ReaL labels: unknown split 'train'; valid: test"):
        open_split(real, "train", size=8, runtime=CPU, data_root=tmp_path)


def test_what_identifies_the_data_of_a_run():
    """Written down: another value would make finished results stale."""
    normal = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    parts = {"train": "train", "test": "val"}
    expected = {
        "imagenet1k": {"classes": 1000, "folders": parts, "holdout": 10_000},
        "imagenet21k": {"classes": 19_167, "folders": {"train": "train"}, "holdout": 51_200},
        "imagenet1k_real": {"classes": 1000, "folders": {"test": "val"}, "labels": "real"},
        "pets": {
            "classes": 37,
            "folders": {"train": "trainval", "test": "test"},
            "holdout": 368,
            "labels": "pets",
        },
    }
    for name, identity in expected.items():
        assert data_identity(DATASETS[name]) == identity | normal
    assert data_identity(DATASETS["openwebtext"]) == {
        "name": "openwebtext",
        "tokenizer": "gpt2",
        "folders": parts,
        "holdout": 4_007,
    }
    real = [dataset for dataset in DATASETS.values() if not dataset.embedded]
    assert len({json.dumps(data_identity(dataset)) for dataset in real}) == len(real) == 16


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    for name in WRITERS:
        with pytest.raises(RunError) as caught:
            check_available(DATASETS[name], tmp_path)
        first = [*DATASETS[name].needs, *next(iter(DATASETS[name].parts_need.values()), ())][0]
        told = f"{DATASETS[name].title} is not at {tmp_path}/{name}/{first}: "
        command = f"run 'crate data prepare {name} --data-root {tmp_path}'"
        assert str(caught.value) == told + command


# --- CIFAR's pickles -----------------------------------------------------------


def rewritten(path: Path, **changes) -> bytes:
    """A batch written by Python 3, its keys bytes, with some entries changed."""
    entry = pickle.loads(path.read_bytes(), encoding="bytes")
    changes = {key.encode(): value for key, value in changes.items()}
    return pickle.dumps({k: v for k, v in (entry | changes).items() if v is not None}, protocol=2)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_batch_that_python_3_wrote_is_the_same(tmp_path, module):
    path = cifar100(tmp_path) / "train"
    before = read_part(DATASETS["cifar100"], "train", tmp_path)
    content = rewritten(path).replace(b"numpy._core.multiarray", module.encode())
    assert content != path.read_bytes()
    path.write_bytes(content)
    after = read_part(DATASETS["cifar100"], "train", tmp_path)
    assert np.array_equal(before.pixels, after.pixels)
    assert before.labels.tolist() == after.labels.tolist() == [99, 0, 50, 7]


class Hostile:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "name", ["posix.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile"]
)
def test_nothing_in_a_pickle_is_executed(tmp_path, protocol, name):
    path = cifar10(tmp_path) / "data_batch_3"
    proof = tmp_path / "executed"
    if name == "posix.system":
        attack = pickle.dumps({b"data": Hostile(os.system, f"touch {proof}")}, protocol)
    elif name == "builtins.eval":
        attack = pickle.dumps(Hostile(eval, f"open({str(proof)!r}, 'w')"), protocol)
    else:
        module, _, function = name.rpartition(".")
        attack = f"c{module}\n{function}\n(V{tmp_path}\ntR.".encode()
    path.write_bytes(attack)
    with pytest.raises(RunError) as caught:
        read_part(DATASETS["cifar10"], "train", tmp_path)
    assert not proof.exists()
    asked = name.replace("posix", os.system.__module__)
    told = f"{path}: is not a batch of CIFAR (it asks for {asked}); run 'crate data prepare cifar10"
    assert str(caught.value).replace("__builtin__", "builtins").startswith(told)


def test_what_is_not_a_batch_is_told_in_one_line(tmp_path):
    path = cifar10(tmp_path) / "data_batch_2"
    good = path.read_bytes()
    bad = {
        "cut off": good[: len(good) // 2],
        "empty": b"",
        "a page": b"<!DOCTYPE html><title>404 Not Found</title>",
        "no dictionary": pickle.dumps([1, 2], 2),
        "no data": rewritten(path, data=None),
        "fewer labels": rewritten(path, labels=[1]),
        "other labels": rewritten(path, labels=["a", "b", "c"]),
        "nested": rewritten(path, labels=[[1], [2], [3]]),
        "other pictures": rewritten(path, data=noise(3, 28 * 28)),
        "no array": rewritten(path, data=b"pixels"),
    }
    for name, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(RunError) as caught:
            read_part(DATASETS["cifar10"], "train", tmp_path)
        assert str(caught.value).startswith(f"{path}: is not a batch of CIFAR ("), name
        assert "\n" not in str(caught.value)
    path.write_bytes(good)
    path.write_bytes(rewritten(path, labels=[1, 10, 2]))
    with pytest.raises(RunError, match="a label is 10, those of CIFAR-10 are 0 to 9"):
        read_part(DATASETS["cifar10"], "train", tmp_path)
    path.write_bytes(good)
    path.write_bytes(rewritten(path, labels=[1, -1, 2]))
    with pytest.raises(RunError, match="a label is -1"):
        read_part(DATASETS["cifar10"], "train", tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"data_batch_2: cannot be read \(No such file"):
        read_part(DATASETS["cifar10"], "train", tmp_path)


# --- flowers and pets -----------------------------------------------------------


def refused(name: str, part: str, root: Path) -> str:
    with pytest.raises(RunError) as caught:
        read_part(DATASETS[name], part, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", ["setid.mat", "imagelabels.mat"])
def test_flowers_whose_lists_cannot_be_read(tmp_path, file):
    path = flowers102(tmp_path) / file
    good = path.read_bytes()
    other = io.BytesIO()
    savemat(other, {"something": np.arange(3)})
    for content in (good[:140], b"", b"<html>404</html>", os.urandom(300), other.getvalue()):
        path.write_bytes(content)
        assert refused("flowers102", "train", tmp_path).startswith(
            f"{path}: is damaged, or not a MATLAB file with '"
        )
    path.unlink()
    assert refused("flowers102", "val", tmp_path).startswith(
        f"{path}: cannot be read (No such file"
    )


def test_flowers_whose_lists_do_not_fit(tmp_path):
    folder = flowers102(tmp_path)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(7)})  # the first is 0
    assert "setid.mat: names picture 8, imagelabels.mat labels 7" in refused(
        "flowers102", "train", tmp_path
    )
    savemat(folder / "imagelabels.mat", {"labels": np.arange(9)})
    assert "a label is -1, those of Oxford Flowers-102 are 0 to 101" in refused(
        "flowers102", "train", tmp_path
    )
    flowers_missing = flowers102(tmp_path)
    (flowers_missing / "jpg/image_00003.jpg").unlink()
    assert refused("flowers102", "train", tmp_path).startswith(
        f"{folder}/jpg: lacks 1 of the 3 files that {folder}/setid.mat names, first "
        "image_00003.jpg; run 'crate data prepare flowers102"
    )


def test_pets_whose_lists_do_not_fit(tmp_path):
    folder = pets(tmp_path)
    path = folder / "annotations/trainval.txt"
    good = path.read_text()
    path.write_text(good + "Birman_1 7 1 5\n" + "../images/Abyssinian_100 1 1 1\n")
    assert refused("pets", "trainval", tmp_path).startswith(
        f"{folder}/images: lacks 2 of the 5 files that {path} names, first Birman_1.jpg; run"
    )
    for line in ("Abyssinian_100 1 1", "Abyssinian_100 one 1 1", "\x00\x01"):
        path.write_text(good + line)
        assert f"{path}, line 4: is not 'name breed species" in refused(
            "pets", "trainval", tmp_path
        )
    for breed in (0, 38, -1, 12345678901234567890):
        path.write_text(f"Abyssinian_100 {breed} 1 1\n")
        told = f"{path}, line 1: the breed is {breed}, those of Oxford-IIIT Pets are 1 to 37"
        assert told in refused("pets", "trainval", tmp_path)
    path.write_text(f"Abyssinian_100 {'9' * 4_000} 1 1\n")
    assert "the breed is 99999999999999999999… (4,000 characters), " in refused(
        "pets", "trainval", tmp_path
    )
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: cannot be read" in refused("pets", "trainval", tmp_path)
    path.unlink()
    assert f"{path}: cannot be read" in refused("pets", "trainval", tmp_path)
    assert len(read_part(DATASETS["pets"], "test", tmp_path)) == 2


# --- ReaL -----------------------------------------------------------


@pytest.fixture
def real(tmp_path) -> Path:
    """Five validation pictures in two classes; the fourth has no label."""
    root = tmp_path / "imagenet1k"
    classes = {1: "n01440764", 2: "n02084071", 3: "n01440764", 4: "n02084071", 50_000: "n02084071"}
    for number, name in classes.items():
        save(root / f"val/{name}/ILSVRC2012_val_{number:08d}.JPEG", number)
    labels = [[0], [7, 999, 3], [5, 0], [], *([[]] * 49_995), [1]]
    (root / "real.json").write_text(json.dumps(labels))
    return root


def test_real_labels_belong_to_the_pictures_numbers(real, tmp_path):
    dataset = DATASETS["imagenet1k_real"]
    check_available(dataset, tmp_path)
    opened = open_split(dataset, "test", size=8, runtime=CPU, data_root=tmp_path)
    names = [Path(opened.pictures.name(k)).stem[-8:] for k in range(len(opened))]
    assert names == ["00000001", "00000003", "00000002", "00050000"]  # by class, as the tree
    recipe = Classification(dataset=dataset.name, follows=[], batch_size=2, epochs=0, lr=1e-3)
    batches = list(opened.evaluation(recipe, 3))
    assert [len(pixels) for pixels, _ in batches] == [3, 1]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [[0, -1, -1], [5, 0, -1], [7, 999, 3], [1, -1, -1]]
    # the same pictures with one label each are untouched by this
    plain = dataclasses.replace(DATASETS["imagenet1k"], classes=2, folders={"train": "val"})
    assert read_part(plain, "val", tmp_path).labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[[1], ", "is not JSON (Expecting value"),
        ("<html>", "is not JSON (Expecting value"),
        ("[[1], [2]]", "is not a list of 50,000 lists of labels"),
        (json.dumps({"1": [2]}), "is not a list of 50,000 lists of labels"),
        (json.dumps([1] * 50_000), "is not a list of 50,000 lists of labels"),
        (json.dumps([["1"]] * 50_000), "is not a list of 50,000 lists of labels"),
        (json.dumps([[-1]] * 50_000), "is not a list of 50,000 lists of labels"),
    ],
)
def test_real_labels_that_are_none(real, tmp_path, content, told):
    (real / "real.json").write_text(content)
    line = refused("imagenet1k_real", "val", tmp_path)
    assert line.startswith(f"{real}/real.json: {told}")
    assert f"'crate data prepare imagenet1k_real --data-root {tmp_path}'" in line


@pytest.mark.slow
def test_real_labels_need_the_official_names_and_classes(real, tmp_path):
    (real / "real.json").write_text(json.dumps([[1000]] * 50_000))
    assert "a label is 1000, those of ImageNet-1K" in refused("imagenet1k_real", "val", tmp_path)
    for digits in (20, 4_000):
        (real / "real.json").write_text(json.dumps([[10 ** (digits - 1)]] * 50_000))
        line = refused("imagenet1k_real", "val", tmp_path)
        assert "real.json: a label is 1000000000000000000" in line
        assert len(line) < 700
    (real / "real.json").unlink()
    assert "real.json: cannot be read (No such" in refused("imagenet1k_real", "val", tmp_path)


def test_a_validation_picture_of_another_name(real, tmp_path):
    save(real / "val/n01440764/mine.JPEG", 1)
    assert "mine.JPEG: is not named like a validation picture" in refused(
        "imagenet1k_real", "val", tmp_path
    )
