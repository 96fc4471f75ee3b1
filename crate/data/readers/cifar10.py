"""CIFAR-10 as torchvision unpacks it (Krizhevsky 2009)."""

from pathlib import Path

from crate.data.datasets import ImageSet
from crate.data.pictures import Pictures
from crate.data.readers.cifar import published_checksums, read_batches
from crate.environment import import_torchvision

FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The pictures of "train" or "test"."""
    return read_batches(root / FOLDER, FILES[part], "labels")


def downloads() -> list[tuple[str, str, str | None]]:
    """The published archive."""
    import_torchvision()
    from torchvision.datasets import CIFAR10

    return [(CIFAR10.url, "", CIFAR10.tgz_md5)]


def checksums() -> dict[str, str]:
    """The md5 of each batch."""
    import_torchvision()
    from torchvision.datasets import CIFAR10

    return published_checksums(CIFAR10)
