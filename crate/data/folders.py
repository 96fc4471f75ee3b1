"""Image folders (root/class/picture) as names: which classes, which pictures, in which order."""

import os
from pathlib import Path

from crate.errors import RunError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in label order (sorted, as torchvision's ImageFolder)."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror})") from None


def shard_files(folder: Path) -> list[str]:
    """Names of the tar files of a folder, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".tar"))
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror})") from None


def image_files(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Pictures of one class folder, sorted, those in folders inside it too.

    Returns:
        Names relative to `folder`; each folder looked into ("" is `folder` itself) with its time
        of modification, in ns, taken before it was read.
    """
    found, times, waiting = [], {}, [""]
    while waiting:
        inside = waiting.pop()
        path = folder / inside
        try:
            times[inside] = path.stat().st_mtime_ns
            with os.scandir(path) as entries:
                for entry in entries:
                    name = os.path.join(inside, entry.name)
                    if entry.is_dir():
                        waiting += [] if entry.is_symlink() else [name]
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        found.append(name)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    return sorted(found), times
