"""Which pictures an ImageNet-like part holds: a tree root/class/picture, or tar shards in root.

Shards are of one of two kinds:

- one tar a class, called as the class (n01440764.tar), its members pictures;
- WebDataset: members `key.jpg` (jpeg, png …), each with `key.cls`, its label as text.

All three give the same pictures in the same order (by label, then by name), so that a run does not
depend on which of them is on disk; the labels of `key.cls` must count the sorted classes.

Listing 13 million files at every start is slow, so `crate data prepare` keeps what was found in
`index-<part>.npz`, beside the part. An index is used as long as the times of all folders, or
the sizes and times of all shards, are unchanged. Loading without one is only slower.
"""

import collections
import functools
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from crate.data.files import (
    IMAGE_SUFFIXES,
    class_folders,
    hidden,
    image_files,
    note_skipped,
    shard_files,
    to_bytes,
    to_texts,
)
from crate.data.pictures import FilePictures, Pictures, ShardPictures
from crate.errors import RunError, reason_of
from crate.records import atomic_path

INDEX_VERSION = 1
ENDINGS = 4  # that a line names


def index_path(root: Path) -> Path:
    return root.parent / f"index-{root.name}.npz"


@functools.lru_cache(maxsize=2)
def list_part(root: Path) -> tuple[list[str], Pictures]:
    """Class names in label order (none of WebDataset shards), and all pictures.

    They come from the index if it is there and up to date.

    Raises:
        RunError: naming the folder or the shard that cannot be read.
    """
    return unpacked(root, index_or_scan(root, read_index, scan))


def index_or_scan(root: Path, read: Callable[[Path], dict], scan: Callable[[Path], dict]) -> dict:
    """The index of a part by `read`, or what `scan` finds if it is missing or out of date."""
    index = index_path(root)
    if index.is_file():
        try:
            return read(root)
        except RunError as error:
            command = f"'crate data prepare {root.parent.name}' makes it anew"
            print(f"warning: {error}; listing {root} ({command})", file=sys.stderr, flush=True)
    return scan(root)


def scan(root: Path) -> dict[str, np.ndarray]:
    """The pictures on disk, as the arrays of an index.

    classes (C,), labels (N,); of a tree folders (F,), times (F,), files (N,); of shards
    shards (S,), times (S,), sizes (S,), places (N, 3). Names are bytes. Hidden files are skipped,
    and counted on stderr.
    """
    classes, shards = class_folders(root), shard_files(root)
    skipped: collections.Counter[str] = collections.Counter()
    if shards and not classes:
        found = _scan_shards(root, shards, skipped)
    else:
        found = _scan_tree(root, classes, skipped)
    note_skipped(root, skipped)
    return {"version": np.array(INDEX_VERSION), **found}


def write_index(root: Path) -> int:
    """Write the index of a part; returns the number of pictures."""
    found = scan(root)
    with atomic_path(index_path(root)) as temporary, temporary.open("wb") as file:
        np.savez(file, **found)
    return len(found["labels"])


def read_index(root: Path) -> dict[str, np.ndarray]:
    """The arrays of the index of a part. Raises `RunError` where it is damaged or out of date."""

    def whole(found: dict[str, np.ndarray]) -> bool:
        unpacked(root, found)
        rows = found["places"] if "shards" in found else found["files"]
        return len(rows) == len(found["labels"])

    found = load_index(root, whole)
    refuse_if_changed(root, _changed(root, found))
    return found


def load_index(root: Path, whole: Callable[[dict], bool]) -> dict[str, np.ndarray]:
    """The arrays of an index, if they are `whole`. Raises `RunError` where it is damaged."""
    index = index_path(root)
    try:
        with np.load(index, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        good = int(found["version"]) == INDEX_VERSION and whole(found)
    except Exception as error:  # whatever a damaged file makes numpy and zipfile say
        raise RunError(f"{index}: is damaged ({reason_of(error)})") from None
    if not good:
        raise RunError(f"{index}: is damaged, or of another version")
    return found


def refuse_if_changed(root: Path, changed: str) -> None:
    """Raises `RunError` where a folder or a shard has a name, that of the first changed one."""
    if changed:
        raise RunError(f"{index_path(root)}: is out of date ({changed} changed)")


def _changed(root: Path, found: dict[str, np.ndarray]) -> str:
    """The first folder or shard that is not as it was; empty if none."""
    classes = class_folders(root)
    if "shards" in found:
        return changed_shard(root, found, [] if classes else shard_files(root))
    before, folders = to_texts(found["classes"]), to_texts(found["folders"])
    if before != classes:
        return sorted(set(before) ^ set(classes))[0]
    return _first_changed(root, folders, found["times"].tolist(), lambda now: now.st_mtime_ns)


def changed_shard(root: Path, found: dict[str, np.ndarray], today: list[str]) -> str:
    """The first of an index's shards that is not as it was; empty if none."""
    before = to_texts(found["shards"])
    if before != today:
        return sorted(set(before) ^ set(today))[0]
    state = list(zip(found["sizes"].tolist(), found["times"].tolist(), strict=True))
    return _first_changed(root, before, state, lambda now: (now.st_size, now.st_mtime_ns))


def _first_changed(root: Path, names: list[str], states: list, state_of: Callable) -> str:
    for name, then in zip(names, states, strict=True):
        try:
            now = state_of((root / name).stat())
        except OSError:
            return name
        if then != now:
            return name
    return ""


def unpacked(root: Path, found: dict[str, np.ndarray]) -> tuple[list[str], Pictures]:
    """Class names and pictures, of the arrays of an index."""
    labels = found["labels"].astype(np.int64)
    if "shards" in found:
        pictures = ShardPictures(root, found["shards"], found["places"], labels)
    else:
        pictures = FilePictures(root, found["files"], labels)
    return to_texts(found["classes"]), pictures


# --- trees -----------------------------------------------------------


def _scan_tree(
    root: Path, classes: list[str], skipped: collections.Counter
) -> dict[str, np.ndarray]:
    folders, times, files, counts = [], [], [], []
    for name in classes:
        found, state, hidden_ones = image_files(root / name)
        skipped += hidden_ones
        files += [os.fsencode(f"{name}/{file}") for file in found]
        counts.append(len(found))
        folders += [os.path.normpath(f"{name}/{inside}") for inside in state]
        times += state.values()
    return {
        "classes": to_bytes(classes),
        "folders": to_bytes(folders),
        "times": np.array(times, dtype=np.int64),
        "files": np.array(files, dtype=np.bytes_),
        "labels": np.repeat(np.arange(len(classes), dtype=np.int32), counts),
    }


# --- shards -----------------------------------------------------------


def _scan_shards(
    root: Path, shards: list[str], skipped: collections.Counter
) -> dict[str, np.ndarray]:
    webdataset = any(name.endswith(".cls") for name, *_ in members(root / shards[0]))
    sizes, times, keys, labels, places = [], [], [], [], []
    for shard, name in enumerate(shards):
        state = (root / name).stat()
        sizes.append(state.st_size)
        times.append(state.st_mtime_ns)
        if webdataset:
            found = _labelled(root / name, skipped)
        else:
            found = [
                (os.path.normpath(member), shard, offset, size)
                for member, offset, size in members(root / name, skipped=skipped)
                if member.lower().endswith(IMAGE_SUFFIXES)
            ]
        keys.append(to_bytes([key for key, *_ in found]))
        labels.append(np.array([label for _, label, *_ in found], dtype=np.int32))
        where = [(shard, offset, size) for *_, offset, size in found]
        places.append(np.array(where, dtype=np.int64).reshape(-1, 3))
    keys, labels, places = (np.concatenate(parts) for parts in (keys, labels, places))
    order = np.lexsort((keys, labels))
    classes = [] if webdataset else [name.removesuffix(".tar") for name in shards]
    return {
        "classes": to_bytes(classes),
        "shards": to_bytes(shards),
        "sizes": np.array(sizes, dtype=np.int64),
        "times": np.array(times, dtype=np.int64),
        "places": places[order],
        "labels": labels[order],
    }


def members(
    path: Path, *, skip_links: bool = False, skipped: collections.Counter | None = None
) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of a tar that is not hidden; only headers are read.

    Args:
        skip_links: leave out members that are links, whose bytes are elsewhere.
        skipped: counts the hidden ones.

    Raises:
        RunError: it is not a tar; it is cut short (after its whole members); or it has a link.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # it would keep them all
                if hidden(member.name):
                    if skipped is not None and not member.isdir():
                        skipped["hidden"] += 1
                elif member.isreg():
                    yield member.name, member.offset_data, member.size
                elif (member.islnk() or member.issym()) and not skip_links:
                    raise RunError(f"{path}: '{member.name}' is a link; pack the files themselves")
            # tarfile ends quietly at a bad header, and where a download was cut between members
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise RunError(f"{path}: is cut off or damaged at byte {tar.offset:,}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RunError(f"{path}: cannot be read as a tar ({reason_of(error)})") from None


def _labelled(path: Path, skipped: collections.Counter) -> list[tuple[str, int, int, int]]:
    """Key, label, offset and size of each picture of a WebDataset shard."""
    pictures, labels, endings = {}, {}, collections.Counter()
    with path.open("rb", buffering=0) as file:
        for name, offset, size in members(path, skipped=skipped):
            key, extension = key_of(name)
            endings[extension] += 1
            if extension != "cls" and f".{extension}" not in IMAGE_SUFFIXES:
                continue
            kind = labels if extension == "cls" else pictures
            if key in kind:
                raise RunError(f"{path}: '{name}' is there twice")
            if kind is pictures:
                pictures[key] = (offset, size)
                continue
            text = os.pread(file.fileno(), size, offset)
            if not text.strip().isdigit() or len(text) > 9:
                raise RunError(f"{path}: '{name}' is not a label: {text[:20]!r}")
            labels[key] = int(text)
    odd = sorted(pictures.keys() ^ labels.keys())
    if odd:
        lacks = "label ('.cls')" if odd[0] in pictures else "picture"
        raise RunError(
            f"{path}: '{odd[0]}' has no {lacks}, as {len(odd):,} of {len(pictures | labels):,} "
            f"keys, which end at the first dot; it has {endings_text(endings)}"
        )
    return [(key, labels[key], *place) for key, place in pictures.items()]


def endings_text(endings: collections.Counter) -> str:
    """How many members end in what: "6 members: 3 '.input.jpg', 3 '.json'"."""
    if not endings:
        return "no members"
    first = [f"{count:,} '.{ending}'" for ending, count in endings.most_common(ENDINGS)]
    more = ", …" if len(endings) > ENDINGS else ""
    return f"{endings.total():,} members: {', '.join(first)}{more}"


def key_of(name: str) -> tuple[str, str]:
    """WebDataset's key of a member, all up to the first dot of its base name, and the rest."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension.lower()
