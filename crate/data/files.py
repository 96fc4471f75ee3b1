"""Files and folders of real data sets: their names, their order, and the pictures in them."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np

from crate.errors import RunError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")


class Unusable(Exception):
    """What is wrong with a set; `readers.read_part` adds what to do about it."""


# --- reading -----------------------------------------------------------


def read_file(path: Path) -> bytes:
    """The content of a file of a set. Raises `Unusable`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """The content of a UTF-8 file of a set. Raises `Unusable`."""
    try:
        return read_file(path).decode()
    except UnicodeDecodeError:
        raise Unusable(f"{path}: cannot be read (it is not UTF-8 text)") from None


def load_json(path: Path) -> object:
    """The value in a JSON file of a set. Raises `Unusable`."""
    try:
        return json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None


def decode_image(source: Path | io.BytesIO, mode: str | None = None):
    """The PIL image in a file, converted to `mode`.

    Raises:
        RunError: it cannot be decoded; the message lacks the name of the file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pictures of 90 megapixels are not an attack; odd EXIF
            with Image.open(source) as image:
                image.load()
                return image.convert(mode) if mode else image
    except UnidentifiedImageError:
        reason = "its format is unknown"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        reason = reason or type(error).__name__
    raise RunError(f"cannot be read as an image ({reason})")


def open_image(path: Path, mode: str | None = None):
    """The PIL image in a file, converted to `mode`. Raises `RunError` naming the file."""
    try:
        return decode_image(path, mode)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a file. Raises `RunError` naming the file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.size
    except Exception:
        return open_image(path).size  # says what is wrong


# --- names -----------------------------------------------------------


def file_names(folder: Path) -> list[str]:
    """Names of the files and folders in a folder; hidden ones are ignored. Raises `Unusable`."""
    try:
        return [path.name for path in folder.iterdir() if path.name[0] != "."]
    except OSError as error:
        raise Unusable(f"{folder}: cannot be read ({error.strerror})") from None


def require_files(folder: Path, names: list[str], listed_in: Path) -> None:
    """Raise `Unusable` unless all files that are named in `listed_in` are in `folder`."""
    there = set(file_names(folder))
    missing = [name for name in names if name not in there]
    if missing:
        raise Unusable(
            f"{folder}: lacks {len(missing):,} of the {len(names):,} files that {listed_in} "
            f"names, first {missing[0]}"
        )


def to_bytes(texts: list[str]) -> np.ndarray:
    """File names as one array, which costs loader processes no memory."""
    return np.array([os.fsencode(text) for text in texts], dtype=np.bytes_)


def to_texts(names: np.ndarray) -> list[str]:
    """The inverse of `to_bytes`."""
    return [os.fsdecode(name) for name in names.tolist()]


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
    """Pictures of one class folder and of the folders inside it, sorted.

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
