"""The committed data sets are the published ones, whole and unchanged."""

import hashlib
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from crate.data import embedded
from crate.errors import RunError, UsageError

NAMES = (
    "fashion-mnist-test",
    "fashion-mnist-train",
    "handwritten-digits",
    "open-clip-art-32",
    "open-clip-art-64",
)


@pytest.fixture(scope="module")
def fashion():
    return {split: embedded.fashion_mnist(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def drawings():
    return {size: embedded.open_clip_art(size) for size in (32, 64)}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A folder of assets to damage, with the small archives only."""
    for name in ("SHA256SUMS", "fashion-mnist-test.zip", "open-clip-art-64.zip"):
        shutil.copy(embedded.ASSETS / name, tmp_path / name)
    monkeypatch.setattr(embedded, "ASSETS", tmp_path)
    monkeypatch.setenv("CRATE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_archive_is_listed_and_has_its_digest():
    lines = (embedded.ASSETS / "SHA256SUMS").read_text().splitlines()
    listed = {file: digest for digest, file in (line.split("  ") for line in lines)}
    assert sorted(listed) == sorted(path.name for path in embedded.ASSETS.glob("*.zip"))
    for file, digest in listed.items():
        assert hashlib.sha256((embedded.ASSETS / file).read_bytes()).hexdigest() == digest
    assert embedded.verify_assets() == []
    assert set(NAMES) <= {file.removesuffix(".zip") for file in listed}


def test_assets_stay_small():
    files = [path for path in embedded.ASSETS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 45e6


def test_every_asset_is_described():
    text = (embedded.ASSETS / "ASSETS.md").read_text()
    for path in embedded.ASSETS.glob("*.zip"):
        assert f"`{path.name}`" in text
        assert f"{path.stat().st_size:,}" in text
    assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in text


@pytest.mark.parametrize(("split", "per_class"), [("train", 6_000), ("test", 1_000)])
def test_fashion_mnist_is_balanced(fashion, split, per_class):
    images, labels = fashion[split]
    assert images.shape == (10 * per_class, 28, 28)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [per_class] * 10
    assert (images.min(), images.max()) == (0, 255)


def test_fashion_mnist_is_the_published_set(fashion):
    images, labels = fashion["train"]
    assert images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert images.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    assert labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert embedded.FASHION_MNIST_CLASSES[labels[0]] == "Ankle boot"
    assert fashion["test"][1][:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


# sha256 of the published files' pixels and labels (unpacked, without the header).
PUBLISHED = {
    "train": (
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    ),
    "test": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_is_lossless(fashion, split):
    images, labels = fashion[split]
    found = (images.tobytes(), labels.astype(np.uint8).tobytes())
    assert tuple(hashlib.sha256(part).hexdigest() for part in found) == PUBLISHED[split]


@pytest.mark.parametrize(("size", "count"), [(32, 5_362), (64, 871)])
def test_open_clip_art_drawings(drawings, size, count):
    images, names = drawings[size]
    assert images.shape == (count, size, size, 4)
    assert images.dtype == np.uint8
    assert names == sorted(set(names))
    alpha = images[..., 3]
    # Every drawing can be seen; some are cut-outs with soft edges, some fill the whole square.
    assert alpha.max((1, 2)).min() >= 64
    assert 0 < alpha.mean() < 255
    assert len(np.unique(alpha)) == 256
    assert not images[alpha == 0].any()
    assert len({image.tobytes() for image in images}) == count
    # Scaled to fit: what is visible reaches across the canvas one way or the other.
    extents = []
    for axis in (1, 2):
        seen = (alpha > 0).any(axis)
        extents.append(size - seen.argmax(1) - seen[:, ::-1].argmax(1))
    assert np.mean(np.maximum(*extents) >= size - 1) > 0.99


def test_open_clip_art_labels(drawings):
    topics = Counter(map(embedded.topic_of, drawings[32][1]))
    assert len(topics) == 22
    assert topics["food"] > 250
    assert topics["animals"] > 250
    folders = Counter(map(embedded.folder_of, drawings[32][1]))
    assert set(embedded.CLIP_ART_FOLDERS) <= set(folders)
    at_64 = Counter(map(embedded.folder_of, drawings[64][1]))
    assert at_64 == {name: min(folders[name], 100) for name in embedded.CLIP_ART_FOLDERS}
    assert set(drawings[64][1]) < set(drawings[32][1])
    assert embedded.topic_of("food/fruit/apple.png") == "food"
    assert embedded.folder_of("animals/birds/penguin/tux.png") == "animals/birds"
    assert embedded.folder_of("office/scissors_01.png") == "office"


def test_both_sizes_show_the_same_drawings(drawings):
    """Averaging 2×2 pixels of the larger size gives nearly the smaller one."""
    index = {name: i for i, name in enumerate(drawings[32][1])}
    large, names = drawings[64]
    small = drawings[32][0][[index[name] for name in names]][..., 3].astype(float)
    halved = large[..., 3].reshape(len(large), 32, 2, 32, 2).mean((2, 4))
    assert np.abs(small - halved).mean() < 8


def test_handwritten_digits_are_the_published_ones():
    images, labels = embedded.handwritten_digits()
    assert images.shape == (1797, 8, 8)
    # classes and the first picture as scikit-learn's documentation of the set prints them
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels[:10].tolist() == list(range(10))
    assert (images[0][:3] / 15).tolist() == [
        [0, 0, 5, 13, 9, 1, 0, 0],
        [0, 0, 13, 15, 10, 15, 5, 0],
        [0, 3, 15, 2, 0, 11, 8, 0],
    ]


def test_digest_names_a_version_of_the_data():
    both = embedded.asset_digest("fashion-mnist-train", "fashion-mnist-test")
    assert both == embedded.asset_digest("fashion-mnist-test", "fashion-mnist-train")
    assert len({both, embedded.asset_digest(), *map(embedded.asset_digest, NAMES)}) == 2 + len(
        NAMES
    )
    with pytest.raises(RunError, match="did you mean 'fashion-mnist-train'"):
        embedded.asset_digest("fashion-mnist-trian")


def test_a_changed_file_is_refused(copied):
    path = copied / "fashion-mnist-test.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"^\S*fashion-mnist-test\.zip: not the file that [^\n]*$"):
        embedded.fashion_mnist("test")
    assert len(embedded.verify_assets("fashion-mnist-test", "open-clip-art-64")) == 1


def test_a_truncated_file_is_refused(copied):
    path = copied / "open-clip-art-64.zip"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"open-clip-art-64\.zip"):
        embedded.open_clip_art(64)


def test_photographs():
    found = embedded.photos()
    assert {name: photo.shape[:2] for name, photo in found.items()} == {
        "astronaut": (512, 512),
        "brick": (512, 512),
        "chelsea": (300, 451),
        "coffee": (400, 600),
        "grass": (512, 512),
        "gravel": (512, 512),
        "rocket": (427, 640),
    }
    # pixels of scikit-image 0.26's own files
    assert found["astronaut"][100, 200].tolist() == [81, 57, 17]
    assert found["rocket"][200, 300].tolist() == [52, 68, 104]
    grey = {name for name, photo in found.items() if (photo == photo[..., :1]).all()}
    assert grey == {"brick", "grass", "gravel"}


def test_missing_files_are_named(copied):
    with pytest.raises(RunError, match=r"open-clip-art-32\.zip: No such file"):
        embedded.open_clip_art(32)
    problems = embedded.verify_assets()
    assert len(problems) == 9
    assert "fashion-mnist-train.zip" in problems[0]
    (copied / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match="SHA256SUMS: No such file"):
        embedded.fashion_mnist("test")
    assert len(embedded.verify_assets()) == 1


def test_requests_that_make_no_sense():
    with pytest.raises(UsageError, match="unknown split 'validation'; valid: test, train"):
        embedded.fashion_mnist("validation")
    with pytest.raises(UsageError, match="unknown size '48'; valid: 32, 64"):
        embedded.open_clip_art(48)


def test_readers_need_no_torch():
    code = "import sys, crate.data.embedded as e; e.asset_digest(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
