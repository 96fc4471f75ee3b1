"""Image folders (root/class/picture) as names: which classes, which pictures, in which order."""

import os
from pathlib import Path

from crate.errors import RunError


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in label order (sorted, as torchvision's ImageFolder)."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror})") from None


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[str]:
    """Names of the images of one class folder, sorted; folders inside it count too."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [
            os.path.relpath(os.path.join(parent, name), folder)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return sorted(found)
