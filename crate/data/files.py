"""Files and folders of real data sets: their names, their order, and the pictures in them.

Hidden files, and what file systems and archivers leave beside the data, are no part of a set. The
one rule is `hidden`; trees, tars, shards, scenes and texts are all read by it.
"""

import collections
import functools
import io
import json
import os
import stat
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from crate.errors import RunError, reason_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")
# Left by macOS, Synology, Linux and Windows; else a hidden name begins with a dot.
LITTER = {
    "__MACOSX", "Icon\r", "@eaDir", "lost+found", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN",
    "System Volume Information",
}  # fmt: skip


class Unusable(Exception):
    """What is wrong with a set; `readers.read_part` adds what to do about it."""


# --- reading -----------------------------------------------------------


def read_file(path: Path) -> bytes:
    """The content of a file of a set. Raises `Unusable`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path}: cannot be read ({reason_of(error)})") from None


def read_text(path: Path) -> str:
    """The content of a UTF-8 file of a set. Raises `Unusable`."""
    try:
        return read_file(path).decode()
    except UnicodeDecodeError:
        raise Unusable(f"{path}: cannot be read (it is not UTF-8 text)") from None


def shortened(value: object, most: int = 24) -> str:
    """A value as a message shows it, which may be a number or a text of any length."""
    text = str(value)
    return text if len(text) <= most else f"{text[:20]}… ({len(text):,} characters)"


def load_json(path: Path) -> object:
    """The value in a JSON file of a set. Raises `Unusable`."""
    try:
        return json.loads(read_file(path))
    except RecursionError:
        raise Unusable(f"{path}: is not read: it nests lists or objects too deep") from None
    except ValueError as error:
        reason = "a number of too many digits" if "digits" in str(error) else reason_of(error)
        raise Unusable(f"{path}: is not JSON ({reason})") from None


def decode_image(source: Path | io.BytesIO, mode: str | None = None):
    """The PIL image in a file; in `mode` "RGB" as `colours.to_rgb` makes it.

    Raises:
        RunError: it cannot be decoded; the message lacks the name of the file.
    """
    from PIL import Image, UnidentifiedImageError

    from crate.data.colours import to_rgb

    if isinstance(source, Path):
        require_regular(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pictures of 90 megapixels are not an attack; odd EXIF
            with Image.open(source) as image:
                image.load()
                return to_rgb(image) if mode == "RGB" else image
    except UnidentifiedImageError:
        reason = "its format is unknown"
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = reason_of(error)
    raise RunError(f"cannot be read as an image ({reason})")


def require_regular(path: Path) -> None:
    """Raise `RunError`, without the name, unless a file has content: a pipe would be waited for."""
    try:
        found = path.stat()
    except OSError as error:
        raise RunError(f"cannot be read as an image ({reason_of(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise RunError("cannot be read as an image (it is not a regular file)")
    if not found.st_size:
        raise RunError("cannot be read as an image (it is empty)")


def open_image(path: Path, mode: str | None = None):
    """The PIL image in a file, converted to `mode`. Raises `RunError` naming the file."""
    try:
        return decode_image(path, mode)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def look_at(source: Path | io.BytesIO) -> tuple[int, int]:
    """Width and height in a picture's header. Raises `RunError` without the name of the file."""
    from PIL import Image

    if isinstance(source, Path):
        require_regular(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                return image.size
    except Exception:  # of some formats, the header is not enough
        return decode_image(source).size  # says what is wrong


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a file. Raises `RunError` naming the file."""
    try:
        return look_at(path)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def without_content(paths: Iterable[Path]) -> list[int]:
    """Which of some files are empty or not there."""
    found = []
    for index, path in enumerate(paths):
        try:
            empty = not os.stat(path).st_size
        except OSError:
            empty = True
        found += [index] * empty
    return found


# --- names -----------------------------------------------------------


def hidden(name: str) -> bool:
    """Whether a file, folder or member of a tar, or a folder before it, is no part of a set."""
    parts = name.split("/")
    return any(part in LITTER or (part[:1] == "." and part not in (".", "..")) for part in parts)


def note_skipped(where: Path, skipped: collections.Counter) -> None:
    """Say how many files were skipped, by kind: "note: train: 3 hidden files skipped"."""
    counted = [
        f"{count:,} {kind} file{'s' * (count != 1)}"
        for kind, count in sorted(skipped.items())
        if count
    ]
    if counted:
        say_once(f"note: {where}: {' and '.join(counted)} skipped")


@functools.cache
def say_once(text: str) -> None:
    """Print a line on stderr; of the processes of a run the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def file_names(folder: Path) -> list[str]:
    """Names of the files and folders in a folder, without hidden ones. Raises `Unusable`."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise Unusable(f"{folder}: cannot be read ({reason_of(error)})") from None
    found = [name for name in names if not hidden(name)]
    note_skipped(folder, collections.Counter({"hidden": len(names) - len(found)}))
    return found


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing in it but hidden files; False where it cannot be read."""
    try:
        return all(map(hidden, os.listdir(folder)))
    except OSError:
        return False


def require_files(folder: Path, names: list[str], listed_in: Path) -> None:
    """Raise `Unusable` unless all files that are named in `listed_in` are in `folder`."""
    there = set(file_names(folder))
    missing = [name for name in names if name not in there]
    if missing:
        raise Unusable(
            f"{folder}: lacks {len(missing):,} of the {len(names):,} files that {listed_in} "
            f"names, first {shortened(missing[0], most=255)}"
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
            return sorted(e.name for e in entries if not hidden(e.name) and _is_folder(e))
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({reason_of(error)})") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops
        return False


def shard_files(folder: Path) -> list[str]:
    """Names of the tar files of a folder, sorted."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({reason_of(error)})") from None
    return sorted(name for name in names if name.endswith(".tar") and not hidden(name))


def image_files(folder: Path) -> tuple[list[str], dict[str, int], collections.Counter]:
    """Pictures of one class folder and of the folders inside it, sorted.

    Returns:
        Names relative to `folder`; each folder looked into ("" is `folder` itself) with its time
        of modification, in ns, taken before it was read; how many files were skipped, by kind.
    """
    found, times, waiting = [], {}, [""]
    skipped: collections.Counter[str] = collections.Counter()
    while waiting:
        inside = waiting.pop()
        path = folder / inside
        try:
            times[inside] = path.stat().st_mtime_ns
            with os.scandir(path) as entries:
                for entry in entries:
                    name = os.path.join(inside, entry.name)
                    if hidden(entry.name):
                        skipped["hidden"] += 1
                    elif _is_folder(entry):
                        waiting += [] if entry.is_symlink() else [name]
                    elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                        skipped["special"] += 1  # a pipe, a socket or a device
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        found.append(name)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({reason_of(error)})") from None
    return sorted(found), times, skipped
