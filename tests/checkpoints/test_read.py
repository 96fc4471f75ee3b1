"""Checkpoint files are read safely: damage is one line, and code in a file never runs."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

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
    file("half.pth", whole[: len(whole) // 2])
    middle = len(whole) // 2
    file("flipped.pth", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    torch.save([1, 2], file("list.pth"))
    torch.save(torch.nn.Linear(2, 2), file("module.pth"))
    torch.save({"w": Code(folder / "ran")}, file("code.pth"))
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


MESSAGES = {
    "empty.pth": "is empty",
    "empty.npz": "is empty",
    "page.pth": "is a web page, not weights",
    "page.npz": "is a web page, not weights",
    "pointer.pth": "git lfs pull",
    "text.pth": "is damaged",
    "text.npz": "is not a .npz file",
    "text.safetensors": "is damaged, or not a .safetensors file",
    "half.pth": "is cut short",
    "flipped.pth": "checksum",
    "list.pth": "holds no weights",
    "module.pth": "a pickle of more than tensors, whose code is not run",
    "code.pth": "a pickle of more than tensors, whose code is not run",
    "code_old.pth": "a pickle of more than tensors, whose code is not run",
    "code.bin": "a pickle of more than tensors, whose code is not run",
    "code.npz": "is not a .npz file",
    "objects.npz": "Object arrays cannot be loaded",
    "other.npz": "has nothing under params/",
    "cut.npz": "is cut short",
    "wrong.npz": "Bad CRC-32",
    "cut.safetensors": "is damaged, or not a .safetensors file",
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


def test_a_missing_file_and_another_suffix_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.pth: no such file"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.zip").touch()
    with pytest.raises(UsageError, match=r"a\.zip: not a checkpoint, whose name ends in \.pth, "):
        read_checkpoint(tmp_path / "a.zip")


def test_all_kinds_of_good_files_are_read(tmp_path):
    official = {"w": torch.randn(3, 4), "half": torch.randn(5).half()}
    torch.save(official, tmp_path / "a.pth")
    torch.save(official, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    torch.save(official, tmp_path / "a.bin")
    safetensors.torch.save_file(official, tmp_path / "a.safetensors")
    for suffix in ("pth", "pt", "bin", "safetensors"):
        weights = read_checkpoint(tmp_path / f"a.{suffix}")
        assert set(weights) == set(official)
        assert all(torch.equal(weights[key], official[key]) for key in official)


def test_what_is_not_under_params_is_left_on_the_disk(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **{"params/w": np.zeros(3), "opt/w": np.array([{}], dtype=object)})
    assert set(read_checkpoint(path)) == {"params/w"}  # the object array would have been refused
