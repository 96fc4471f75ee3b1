"""Checkpoint files are read safely: damage is one line, and code in a file never runs."""

import argparse
import collections
import datetime
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from crate.checkpoints.pickles import Inert
from crate.checkpoints.read import read_checkpoint
from crate.errors import RunError, UsageError


class Code:
    """What a pickle can do to a reader that trusts it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damaged_files(folder: Path) -> dict[str, Path]:
    """One file for each way in which a download or an attacker can go wrong."""
    files = {}

    def file(name: str, content: bytes = b"") -> Path:
        files[name] = folder / name
        files[name].write_bytes(content)
        return files[name]

    tensors = {"w": torch.arange(4000, dtype=torch.float32)}
    torch.save(tensors, file("whole.pth"))
    whole = files.pop("whole.pth").read_bytes()
    file("empty.pth")
    file("empty.npz")
    file("page.pth", b"<!DOCTYPE html><html><body>404</body></html>")
    file("page.npz", b"\n<html>Sign in</html>")
    file("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    file("text.pth", b"Entry not found")
    file("text.npz", b"Entry not found")
    file("text.safetensors", b"Entry not found")
    file("index.json", b'{"metadata": {}}')
    file("zeros.pth", bytes(3000))
    file("noise.pth", bytes(range(255, 0, -1)) * 4)
    with tarfile.open(file("archive.pth.tar"), "w") as archive:
        archive.add(files["text.pth"], "text.pth")
    with tarfile.open(file("archive.tar.gz"), "w:gz") as archive:
        archive.add(files["text.pth"], "text.pth")
    with zipfile.ZipFile(file("archive.zip"), "w") as archive:
        archive.write(files["text.pth"], "text.pth")
    file("keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(600))
    np.save(file("array.npy"), np.zeros(3))
    with zipfile.ZipFile(file("script.pt"), "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    file("half.pth", whole[: len(whole) // 2])
    middle = len(whole) // 2
    file("flipped.pth", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    torch.save([1, 2], file("list.pth"))
    torch.save(torch.nn.Linear(2, 2), file("module.pth"))
    torch.save(torch.nn.DataParallel(torch.nn.Linear(2, 2)), file("parallel.pth"))
    torch.save({"w": Code(folder / "ran")}, file("code.pth"))
    torch.save({**tensors, "args": {"x": [Code(folder / "ran")]}}, file("code_nested.pth"))
    file("code_old.pth", pickle.dumps({"w": Code(folder / "ran")}))
    file("code.bin", pickle.dumps(Code(folder / "ran")))
    file("code.npz", pickle.dumps(Code(folder / "ran")))
    np.savez(file("objects.npz"), **{"params/w": np.array([Code(folder / "ran")], dtype=object)})
    np.savez(file("other.npz"), w=np.zeros(3))
    np.savez(file("cut.npz"), **{"params/w": np.arange(4000.0)})
    content = files["cut.npz"].read_bytes()
    file("cut.npz", content[: len(content) // 2])
    file("wrong.npz", content.replace(np.float64(2000).tobytes(), np.float64(1).tobytes()))
    safetensors.torch.save_file(tensors, file("cut.safetensors"))
    file("cut.safetensors", files["cut.safetensors"].read_bytes()[:-100])
    return files


ASKS = "asks for posix.mkdir, and code of a file is not run here"
PICKLE = "is a pickle that torch.save did not write, and code of a pickle is not run here"
MESSAGES = {
    "empty.pth": "is empty",
    "empty.npz": "is empty",
    "page.pth": "is a web page, not weights",
    "page.npz": "is a web page, not weights",
    "pointer.pth": "git lfs pull",
    "text.pth": "is text ('Entry not found'), not weights; download it again",
    "text.npz": "is text ('Entry not found'), not weights; download it again",
    "text.safetensors": "is text ('Entry not found'), not weights; download it again",
    "index.json": "is text ('{\"metadata\": {}}'), not weights; download it again",
    "zeros.pth": "begins with zeros: its download did not finish; download it again",
    "noise.pth": "is damaged, or not a file of weights",
    "archive.pth.tar": "is a tar archive, not weights; unpack it",
    "archive.tar.gz": "is a gzip archive, not weights; unpack it",
    "archive.zip": "is a zip archive, not weights; unpack it",
    "keras.h5": "is an HDF5 file",
    "array.npy": "is one array (.npy), not a file of weights",
    "script.pt": "is a TorchScript program, whose code is not run here; have the model's state_d",
    "half.pth": "is cut short or damaged; download it again",
    "flipped.pth": "is damaged (checksum of",
    "list.pth": "holds no weights, but a list",
    "module.pth": "is a whole module (torch.nn.modules.linear.Linear), which only its own code",
    "parallel.pth": "is a whole module (torch.nn.parallel.data_parallel.DataParallel), which only",
    "code.pth": ASKS,
    "code_nested.pth": ASKS,
    "code_old.pth": PICKLE,
    "code.bin": PICKLE,
    "code.npz": PICKLE,
    "objects.npz": "is damaged, or holds arrays of objects",
    "other.npz": "has nothing under params/",
    "cut.npz": "is cut short or damaged",
    "wrong.npz": "is damaged, or holds arrays of objects",
    "cut.safetensors": "is cut short or damaged",
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return damaged_files(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_damaged_or_foreign_file_is_one_line_and_its_code_never_runs(damaged, name):
    with pytest.raises(RunError) as caught:
        read_checkpoint(damaged[name])
    message = str(caught.value)
    assert message.startswith(f"{damaged[name]}: ")
    assert MESSAGES[name] in message
    assert "\n" not in message
    assert "weights_only" not in message  # torch's advice to run the code
    assert not (damaged[name].parent / "ran").exists()


def test_the_list_of_damages_is_whole(damaged):
    assert set(damaged) == set(MESSAGES)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    for name, reason in (
        ("a.pth", "no such file"),
        ("folder", "is a folder; give the file of weights in it"),
        ("loop.pth", "is a link that leads nowhere"),
        ("pipe.pth", "is not a regular file"),
    ):
        with pytest.raises(UsageError) as caught:
            read_checkpoint(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {reason}"


NAMES = ("a.pth", "model_best.pth.tar", "epoch=3.ckpt", "weights", "a.npz")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_known_by_its_content_whatever_its_name(tmp_path, name):
    official = {"w": torch.randn(3, 4), "half": torch.randn(5).half()}
    path = tmp_path / name
    for write in (
        lambda: torch.save(official, path),
        lambda: torch.save(official, path, _use_new_zipfile_serialization=False),
        lambda: safetensors.torch.save_file(official, path),
    ):
        write()
        weights = read_checkpoint(path)
        assert set(weights) == set(official)
        assert all(torch.equal(weights[key], official[key]) for key in official)
    with path.open("wb") as file:
        np.savez(file, **{"params/w": np.ones(3)})
    assert read_checkpoint(path)["params/w"].tolist() == [1, 1, 1]


class Settings(dict):
    """A class of an author's own, of the kind that configurations extend."""


class Meter:
    """A class of an author's own that does something when it is made."""

    made = 0

    def __init__(self):
        Meter.made += 1
        self.value, self.history = 0.0, [torch.zeros(1)]

    def __setstate__(self, state):
        Meter.made += 1


NEIGHBOURS = {
    "MAE's options": {"args": argparse.Namespace(lr=1e-3, output_dir=Path("out"), data=None)},
    "numbers of numpy": {"best_acc1": np.float64(70.0), "curve": np.arange(3), "step": np.int64(3)},
    "an author's dictionary": {"cfg": Settings(lr=1e-3, nested=Settings(depth=2))},
    "an author's object": {"meter": Meter(), "args": argparse.Namespace(meter=Meter())},
    "the standard library's": {
        "when": datetime.datetime(2024, 1, 1),
        "counts": collections.defaultdict(list, a=[1]),
        "last": collections.deque([1, 2], maxlen=2),
        "took": datetime.timedelta(seconds=3),
        "ids": {1, 2},
    },
    "a training's state": {
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict(),
        "scheduler": torch.optim.lr_scheduler.ConstantLR(
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        ),
    },
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_weights_is_read_without_its_class(tmp_path, neighbour, zipped):
    made = Meter.made
    path, weights = tmp_path / "checkpoint-99.pth", {"w": torch.randn(3, 4)}
    content = {"model": weights, "epoch": 99} | NEIGHBOURS[neighbour]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert torch.equal(found["model"]["w"], weights["w"])
    assert found["epoch"] == 99
    assert Meter.made == made
    safe = (dict, list, int, float, str, set, collections.OrderedDict, Inert)
    assert all(isinstance(value, safe) for value in found.values())


def test_what_is_not_under_params_is_left_on_the_disk(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{"params/w": np.zeros(3), "opt/w": np.array([{}], dtype=object)})
    assert set(read_checkpoint(path)) == {"params/w"}  # the object array would have been refused
