"""Labelled pictures of one part of a data set, one by one: files, tar shards, or an array.

All three are a few numpy arrays (13 million Python objects would be copied into every loader
process) and open nothing before a picture is read.

    labels (N,) int64, or (N, M) int64 padded with -1 where a picture may have several
    read(index) → (PIL image in RGB, its label)
"""

import io
import os
import tarfile
from pathlib import Path

import numpy as np

from crate.data.files import decode_image, look_at, without_content
from crate.errors import RunError


class Pictures:
    """The base of the three kinds."""

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Pictures":
        """Some of the pictures, in the order of `indices`."""
        raise NotImplementedError

    def read(self, index: int):
        """PIL image in RGB and its label. Raises `RunError` naming the file."""
        try:
            return decode_image(self.source(index), "RGB"), self.labels[index]
        except OSError as error:  # of a shard
            reason = f"cannot be read as an image ({error.strerror or error})"
        except RunError as error:
            reason = str(error)
        raise RunError(f"{self.name(index)}: {reason}")

    def look(self, index: int) -> None:
        """Read a picture's header. Raises `RunError` naming the file."""
        try:
            look_at(self.source(index))
        except (OSError, RunError) as error:
            raise RunError(f"{self.name(index)}: {error}") from None

    def decode(self, index: int) -> None:
        """Read a picture. Raises `RunError` naming the file."""
        self.read(index)

    def without_content(self) -> list[int]:
        """The pictures that no byte is stored of, by their sizes alone."""
        return []

    def source(self, index: int) -> Path | io.BytesIO:
        """The file or bytes that Pillow reads a picture from."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """The name of a picture in messages."""
        raise NotImplementedError


class FilePictures(Pictures):
    """Files below a folder; `files` (N,) bytes, relative to `root`."""

    def __init__(self, root: Path, files: np.ndarray, labels: np.ndarray):
        self.root, self.files, self.labels = root, files, labels

    def select(self, indices: np.ndarray) -> "FilePictures":
        return FilePictures(self.root, self.files[indices], self.labels[indices])

    def source(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def name(self, index: int) -> str:
        return str(self.source(index))

    def without_content(self) -> list[int]:
        return without_content(map(self.source, range(len(self))))


class ShardPictures(Pictures):
    """Members of tar files, each read by its offset and size.

    Access is random, so order, resume and ranks work as with folders; unlike in WebDataset, nothing
    is shuffled in a buffer. `shards` (S,) bytes, relative to `root`; `places` (N, 3) int64:
    shard, offset, size.
    """

    OPEN = 64  # shards a process keeps open, because network file systems open files slowly

    def __init__(self, root: Path, shards: np.ndarray, places: np.ndarray, labels: np.ndarray):
        self.root, self.shards, self.places, self.labels = root, shards, places, labels
        self._open: dict[int, io.FileIO] = {}

    def select(self, indices: np.ndarray) -> "ShardPictures":
        places, labels = self.places[indices], self.labels[indices]
        return ShardPictures(self.root, self.shards, places, labels)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def source(self, index: int) -> io.BytesIO:
        shard, offset, size = self.places[index].tolist()
        return io.BytesIO(self._pread(shard, size, offset))

    def name(self, index: int) -> str:
        """shard/member; the member's name is in the header before its content."""
        shard, offset, _ = self.places[index].tolist()
        try:
            header = self._pread(shard, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (OSError, tarfile.TarError):
            member = f"byte {offset}"
        return str(self.root / os.fsdecode(self.shards[shard]) / member)

    def without_content(self) -> list[int]:
        return np.flatnonzero(self.places[:, 2] == 0).tolist()

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        if shard not in self._open:
            if len(self._open) >= self.OPEN:
                self._open.pop(next(iter(self._open))).close()
            path = self.root / os.fsdecode(self.shards[shard])
            self._open[shard] = path.open("rb", buffering=0)
        return os.pread(self._open[shard].fileno(), size, offset)


class ArrayPictures(Pictures):
    """Pixels in memory, uint8 (N, H, W, 3)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, labels

    def select(self, indices: np.ndarray) -> "ArrayPictures":
        return ArrayPictures(self.pixels[indices], self.labels[indices])

    def look(self, index: int) -> None:
        pass

    def read(self, index: int):
        from PIL import Image

        return Image.fromarray(self.pixels[index]), self.labels[index]
