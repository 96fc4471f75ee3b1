"""Arrays that are made once and kept on this machine."""

import numpy as np
import pytest

from crate.data import embedded
from crate.data.kept import kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(value: int, calls: list):
    def array():
        calls.append(value)
        return np.full((3, 4), value, np.uint8)

    return array


def test_an_array_is_made_once_for_each_version(cache):
    calls = []
    for _ in range(3):
        assert (kept("drawings", "a" * 64, make(7, calls)) == 7).all()
    assert (kept("drawings", "b" * 64, make(8, calls)) == 8).all()
    assert calls == [7, 8]
    found = kept("drawings", "a" * 64, make(9, calls))
    assert found.dtype == np.uint8
    assert found.shape == (3, 4)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_file_is_made_again(cache, damage):
    calls = []
    kept("drawings", "a" * 64, make(7, calls))
    (path,) = cache.iterdir()
    content = path.read_bytes()
    damaged = {
        "cut": content[:-3],
        "changed": content[:-1] + b"\x08",
        "empty": b"",
        "other": b"no array" * 20,
    }
    path.write_bytes(damaged[damage])
    assert (kept("drawings", "a" * 64, make(7, calls)) == 7).all()
    assert (kept("drawings", "a" * 64, make(7, calls)) == 7).all()
    assert calls == [7, 7]


def test_without_a_folder_to_write_to_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "file/cache"))
    calls = []
    for _ in range(2):
        assert (kept("drawings", "a" * 64, make(7, calls)) == 7).all()
    assert calls == [7, 7]


def test_embedded_pictures_are_the_same_decoded_and_kept(cache, monkeypatch):
    first = [embedded.handwritten_digits(), embedded.open_clip_art(64)]
    monkeypatch.setattr(embedded, "open_asset", None)  # nothing is read again
    second = [embedded.handwritten_digits(), embedded.open_clip_art(64)]
    for (pictures, labels), (again, also) in zip(first, second, strict=True):
        np.testing.assert_array_equal(pictures, again)
        np.testing.assert_array_equal(labels, also)
