"""Real data sets, written small in their exact layouts (tests import this as `writers`)."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def save(path: Path, seed: int, size=(20, 15), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size[1], size[0], 3, seed=seed)).convert(mode).save(path, "JPEG")


def text(content: bytes) -> bytes:
    """A text of Python 2 in a pickle (opcodes U and T), which Python 3 has no way to write."""
    if len(content) < 256:
        return b"U" + struct.pack("<B", len(content)) + content
    return b"T" + struct.pack("<I", len(content)) + content


def cifar_batch(path: Path, key: str, labels: list[int], rows: np.ndarray) -> None:
    """A batch of `rows` (n, 3072) as Python 2's cPickle wrote the published ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    shape = b"M" + struct.pack("<H", len(labels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    pixels = text(rows.tobytes())
    array += b"\x87R(K\x01" + shape + kind + b"\x89" + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    content = text(b"batch_label") + text(b"training batch 1 of 5")
    content += text(b"data") + array + text(key.encode()) + numbers
    path.write_bytes(b"\x80\x02}(" + content + b"u.")


def cifar_names(path: Path, key: bytes, count: int) -> None:
    names = b"".join(text(b"class %d" % k) for k in range(count))
    path.write_bytes(b"\x80\x02}" + text(key) + b"](" + names + b"es.")


def cifar10(root: Path) -> Path:
    folder = root / "cifar10/cifar-10-batches-py"
    for k in range(1, 6):
        cifar_batch(folder / f"data_batch_{k}", "labels", [k, 9, 0], noise(3, 3072, seed=k))
    cifar_batch(folder / "test_batch", "labels", [5, 6], noise(2, 3072, seed=9))
    cifar_names(folder / "batches.meta", b"label_names", 10)
    return folder


def cifar100(root: Path) -> Path:
    folder = root / "cifar100/cifar-100-python"
    cifar_batch(folder / "train", "fine_labels", [99, 0, 50, 7], noise(4, 3072, seed=1))
    cifar_batch(folder / "test", "fine_labels", [3], noise(1, 3072, seed=2))
    cifar_names(folder / "meta", b"fine_label_names", 100)
    return folder


def flowers102(root: Path) -> Path:
    folder = root / "flowers102/flowers-102"
    for number in range(1, 10):
        save(folder / f"jpg/image_{number:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 5, 9, 2, 3, 4]])})
    ids = {"trnid": [[8, 1, 3]], "valid": [[2, 7]], "tstid": [[9, 4, 5, 6]]}
    savemat(folder / "setid.mat", {key: np.array(v, dtype=np.uint16) for key, v in ids.items()})
    return folder


def pets(root: Path) -> Path:
    folder = root / "pets/oxford-iiit-pet"
    lines = {
        "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_2 2 2 1", "pug_9 37 2 25"],
        "test": ["Abyssinian_201 1 1 1", "shiba_inu_3 34 2 23"],
    }  # fmt: skip
    (folder / "annotations").mkdir(parents=True)
    for part, content in lines.items():
        (folder / f"annotations/{part}.txt").write_text("\n".join(content) + "\n")
        for seed, line in enumerate(content):  # a few of the real ones are no RGB
            save(
                folder / f"images/{line.split()[0]}.jpg",
                seed + len(content),
                mode=("RGB", "L", "CMYK")[seed],
            )
    return folder


WRITERS = {"cifar10": cifar10, "cifar100": cifar100, "flowers102": flowers102, "pets": pets}
