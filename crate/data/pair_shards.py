"""Shards of pictures with captions: which pairs they hold, and where the bytes of each are.

WebDataset shards as img2dataset writes them: tar files, of a pair `key.jpg`, `key.txt`, `key.json`.

- a pair is a key with a picture (.jpg, .jpeg, .png, .webp …) and a caption (.txt), in any order and
  at any distance; upper case is the same; what else a key has is ignored, as WebDataset does;
- a key is all of a name up to the first dot, with the folders before it; hidden files are ignored;
- of a picture or a caption that a key has twice, the first counts;
- folders and links are skipped, as are members without a byte or beyond the end of the file;
- of a shard that is cut short or damaged, what comes before the damage is used.

1.4 billion pairs do not fit in memory: it holds a few numbers a shard, and the places of the pairs
of the open shards. `crate data prepare` reads all headers once and keeps what it found in
`index-<part>.npz` (by shard; used as `listing.py` says) and `places-<part>.bin` (by pair, 32
bytes each, read a shard at a time). Without them the headers are read at each start, and again when
a shard is opened: only slower. Nothing here needs torch.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crate.data.files import IMAGE_SUFFIXES, note_skipped, shard_files, to_bytes, to_texts
from crate.data.listing import (
    INDEX_VERSION,
    changed_shard,
    endings_text,
    index_or_scan,
    index_path,
    key_of,
    load_index,
    members,
    refuse_if_changed,
)
from crate.data.pictures import ShardPictures
from crate.errors import RunError, reason_of
from crate.records import atomic_path

# Kinds of keys that are not pairs, by the headers, as messages name them.
FAULTS = ("without a caption", "without a picture", "there twice")
NAMED = 3  # keys of each kind that a line names
BLOCK = 1_000  # shards between two lines of progress
ROW = 4  # numbers a pair: offset and size of its picture, offset and size of its caption


@dataclasses.dataclass(frozen=True)
class PairShards:
    """Shards in the order of their names. No array has a row for each pair.

    Attributes:
        root: their folder.
        names: (S,) bytes.
        pairs: (S,) int64, whole pairs.
        bad: (S, len(FAULTS)) int64, keys that are not pairs.
        firsts: (S, len(FAULTS)) bytes, the first such key.
        troubles: (S,) bytes, what is wrong with the file itself; mostly empty.
        starts: (S,) int64, rows of `places-<part>.bin` before each shard's; None without the file.
    """

    root: Path
    names: np.ndarray
    pairs: np.ndarray
    bad: np.ndarray
    firsts: np.ndarray
    troubles: np.ndarray
    starts: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.pairs.sum())

    def select(self, chosen: np.ndarray) -> "PairShards":
        """Some of the shards, in the order of `chosen`."""
        return PairShards(
            self.root,
            self.names[chosen],
            self.pairs[chosen],
            self.bad[chosen],
            self.firsts[chosen],
            self.troubles[chosen],
            None if self.starts is None else self.starts[chosen],
        )

    def path(self, shard: int) -> Path:
        return self.root / os.fsdecode(self.names[shard])

    def open(self, shard: int) -> "Shard":
        """Raises `RunError` where it has changed, or is not there any more."""
        path, count = self.path(shard), int(self.pairs[shard])
        if self.starts is None:
            places = read_shard(path)[0]
        else:
            offset = int(self.starts[shard]) * ROW * 8
            places = np.fromfile(places_path(self.root), np.int64, count * ROW, offset=offset)
            places = places.reshape(-1, ROW)
        if len(places) != count:
            raise RunError(f"{path}: is not as it was when it was listed")
        return Shard(path, places)

    def left_out(self) -> list[str]:
        """A line for each kind of key that is not a pair, with their number."""
        lines = []
        for kind, text in enumerate(FAULTS):
            shards = np.flatnonzero(self.bad[:, kind])
            if len(shards):
                first = [f"{name}/{key}" for name, key in self._named(shards, self.firsts[:, kind])]
                count = int(self.bad[:, kind].sum())
                lines.append(f"{count:,} {'key' if count == 1 else 'keys'} {text}{_list(first)}")
        return lines

    def broken(self) -> list[str]:
        """A line for shards that cannot be read, and one for those that are not whole."""
        lines = []
        for some, text in ((False, "cannot be read"), (True, "not whole, used before the damage")):
            shards = np.flatnonzero((self.troubles != b"") & ((self.pairs > 0) == some))
            if len(shards):
                first = [f"{name} {why}" for name, why in self._named(shards, self.troubles)]
                count = f"{len(shards):,} {'shard' if len(shards) == 1 else 'shards'}"
                lines.append(f"{count} {text}{_list(first)}")
        return lines

    def _named(self, shards: np.ndarray, texts: np.ndarray) -> Iterable[tuple[str, str]]:
        some = shards[: NAMED + 1]
        return zip(to_texts(self.names[some]), to_texts(texts[some]), strict=True)


def _list(items: list[str]) -> str:
    return f" ({', '.join(items[:NAMED])}{', …' if len(items) > NAMED else ''})"


class Shard(ShardPictures):
    """The pairs of one shard; `places` (n, 4) as in `ROW`. `read` also gives a caption's place."""

    def __init__(self, path: Path, places: np.ndarray):
        where = np.column_stack([np.zeros(len(places), np.int64), places[:, :2]])
        super().__init__(path.parent, to_bytes([path.name]), where, labels=places[:, 2:])

    def caption(self, index: int, most: int) -> bytes:
        """The caption, or its first `most` bytes. Raises `OSError`."""
        offset, size = self.labels[index].tolist()
        return self._pread(0, min(size, most), offset)


# --- reading headers -----------------------------------------------------------


def read_shard(path: Path) -> tuple[np.ndarray, list[tuple[int, str]], str, collections.Counter]:
    """The pairs of a shard in the order of their keys' first members.

    Returns:
        places int64 (n, 4); for each of `FAULTS`, how many keys and the first of them; what is
        wrong with the file, or nothing; how many files were skipped, by kind.
    """
    found: dict[str, list[int]] = {}  # key → place and size of picture and caption; 0: none
    twice: dict[str, None] = {}
    trouble, skipped = "", collections.Counter()
    try:
        end = path.stat().st_size
        for name, offset, size in members(path, skip_links=True, skipped=skipped):
            key, extension = key_of(os.path.normpath(name))
            first = 2 if extension == "txt" else 0
            if (not first and f".{extension}" not in IMAGE_SUFFIXES) or not os.path.basename(key):
                continue
            place = found.setdefault(key, [0] * ROW)
            if place[first]:
                twice[key] = None
            elif size and offset + size <= end:
                place[first : first + 2] = offset, size
    except RunError as error:
        trouble = str(error).removeprefix(f"{path}: ")
    except OSError as error:
        trouble = f"cannot be read ({reason_of(error)})"
    pairs = [place for place in found.values() if place[0] and place[2]]
    no_caption = [key for key, place in found.items() if place[0] and not place[2]]
    no_picture = [key for key, place in found.items() if not place[0]]
    bad = [(len(keys), keys[0] if keys else "") for keys in (no_caption, no_picture, list(twice))]
    return np.array(pairs, np.int64).reshape(-1, ROW), bad, trouble, skipped


def scan_pairs(
    root: Path, places: BinaryIO | None = None, processes: int = 1
) -> dict[str, np.ndarray]:
    """What is on disk, as the arrays of an index.

    shards (S,), sizes (S,), times (S,), and `PairShards`'s pairs, bad, firsts, troubles.

    Args:
        places: where the places of all pairs are written to.
        processes: how many read headers at a time.
    """
    shards = shard_files(root)
    paths = [root / name for name in shards]
    state = [path.stat() if path.exists() else os.stat_result([0] * 10) for path in paths]
    found: dict[str, list] = {"pairs": [], "bad": [], "firsts": [], "troubles": []}
    skipped: collections.Counter[str] = collections.Counter()
    for number, (where, bad, trouble, hidden_ones) in enumerate(_read_all(paths, processes), 1):
        skipped += hidden_ones
        if places is not None:
            places.write(where.tobytes())
        found["pairs"].append(len(where))
        found["bad"].append([count for count, _ in bad])
        found["firsts"].append([os.fsencode(key) for _, key in bad])
        found["troubles"].append(trouble)
        if number % BLOCK == 0:
            print(f"{number:,} of {len(paths):,} shards", file=sys.stderr, flush=True)
    note_skipped(root, skipped)
    return {
        "version": np.array(INDEX_VERSION),
        "shards": to_bytes(shards),
        "sizes": np.array([each.st_size for each in state], dtype=np.int64),
        "times": np.array([each.st_mtime_ns for each in state], dtype=np.int64),
        "pairs": np.array(found["pairs"], dtype=np.int64),
        "bad": np.array(found["bad"], dtype=np.int64).reshape(-1, len(FAULTS)),
        "firsts": np.array(found["firsts"], dtype=np.bytes_).reshape(-1, len(FAULTS)),
        "troubles": to_bytes(found["troubles"]),
    }


def _read_all(paths: list[Path], processes: int) -> Iterator[tuple]:
    """`read_shard` of all, in order. In blocks: results wait in memory for those before them."""
    if processes == 1:
        yield from map(read_shard, paths)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(read_shard, paths[start : start + BLOCK], chunksize=4)


# --- the index -----------------------------------------------------------


def places_path(root: Path) -> Path:
    return root.parent / f"places-{root.name}.bin"


def write_pair_index(root: Path, processes: int = 1) -> PairShards:
    """Write the index of a part and the places of its pairs; returns what is there."""
    with atomic_path(places_path(root)) as temporary, temporary.open("wb") as file:
        found = scan_pairs(root, file, processes)
    with atomic_path(index_path(root)) as temporary, temporary.open("wb") as file:
        np.savez(file, **found)
    return _pair_shards(root, found)


def read_pair_index(root: Path) -> dict[str, np.ndarray]:
    """The arrays of the index, and `starts` where the places of all pairs are there too.

    Raises:
        RunError: it is damaged or out of date.
    """

    def whole(found: dict[str, np.ndarray]) -> bool:
        names = ("shards", "sizes", "times", "pairs", "bad", "firsts", "troubles")
        return len({len(found[name]) for name in names}) == 1

    found = load_index(root, whole)
    refuse_if_changed(root, changed_shard(root, found, shard_files(root)))
    ends, path = np.cumsum(found["pairs"]), places_path(root)
    if len(ends) and path.is_file() and path.stat().st_size == ends[-1] * ROW * 8:
        found["starts"] = ends - found["pairs"]
    return found


@functools.lru_cache(maxsize=2)
def list_pairs(root: Path) -> PairShards:
    """The shards of a part, from its index if that is up to date.

    Raises:
        RunError: there are no shards, or no pairs in them.
    """
    shards = _pair_shards(root, index_or_scan(root, read_pair_index, scan_pairs))
    if not len(shards.names):
        raise RunError(f"{root}: has no shards ('*.tar')")
    if not len(shards):
        why = "; ".join([*shards.broken(), *shards.left_out(), *_seen(shards)])
        raise RunError(f"{root}: has no pairs: {why}")
    return shards


def _seen(shards: PairShards) -> list[str]:
    """A line that counts what the first shard that can be read has instead of pairs."""
    for shard in np.flatnonzero(shards.troubles == b"")[:1]:
        path, endings = shards.path(shard), collections.Counter()
        for name, *_ in members(path, skip_links=True):
            endings[key_of(os.path.normpath(name))[1]] += 1
        return [
            f"{path.name} has {endings_text(endings)}; a pair is <key>.jpg (or .png …) and "
            "<key>.txt, and a key ends at the first dot"
        ]
    return []


def _pair_shards(root: Path, found: dict[str, np.ndarray]) -> PairShards:
    names = ("pairs", "bad", "firsts", "troubles")
    return PairShards(
        root, found["shards"], *(found[name] for name in names), starts=found.get("starts")
    )
