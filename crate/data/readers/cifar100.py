"""CIFAR-100 as torchvision unpacks it (Krizhevsky 2009)."""

from pathlib import Path

from crate.data.datasets import ImageSet
from crate.data.pictures import Pictures
from crate.data.readers.cifar import published_checksums, read_batches
from crate.environment import import_torchvision

FOLDER = "cifar-100-python"
FILES = {"train": ("train",), "test": ("test",)}


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The pictures of "train" or "test"."""
    return read_batches(root / FOLDER, FILES[part], "fine_labels")


def downloads() -> list[tuple[str, str, str | None]]:
    """The published archive."""
    import_torchvision()
    from torchvision.datasets import CIFAR100

    return [(CIFAR100.url, "", CIFAR100.tgz_md5)]


def checksums() -> dict[str, str]:
    """The md5 of each batch."""
    import_torchvision()
    from torchvision.datasets import CIFAR100

    return published_checksums(CIFAR100)
