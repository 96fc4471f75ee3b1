"""Data sets of one's own: the entries of `experiments/datasets.yaml`, and those of `plugins`.

The pictures of the former are counted where they lie, when a set is first asked for: the number of
classes, the sizes of the splits, and a digest of the names of all pictures, which is part of the
identity of runs on them. An index (`crate data prepare`) makes that quick. Nothing here imports
torch.
"""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pydantic

from crate.data import readers
from crate.data.datasets import IMAGENET_MEAN, IMAGENET_STD, Dataset, ImageSet
from crate.data.files import Unusable
from crate.data.listing import index_path, read_index, scan
from crate.data.readers import maps
from crate.errors import RunError, UsageError
from crate.registry import add
from crate.schema import Strict, blame, parse
from crate.sources import Mapping, expand_path

# Name → the function that makes the entry.
ENTRIES: dict[str, Callable[[], Dataset]] = {}
_declared: list[str] = []  # those of the file


class OwnSet(Strict):
    """One entry of the file; docs/own_data.md explains the keys."""

    folder: str
    title: str = ""
    layout: Literal["class_folders", "maps"] = "class_folders"
    splits: dict[Literal["train", "validation", "test"], str] = pydantic.Field(
        {"train": "."}, min_length=1
    )
    held_out: float = pydantic.Field(0.1, gt=0, lt=0.5)  # of train, for each split without a folder
    classes: pydantic.PositiveInt | None = None  # of maps; class folders are counted
    mean: list[float] = pydantic.Field(list(IMAGENET_MEAN), min_length=1, max_length=3)
    std: list[pydantic.PositiveFloat] = pydantic.Field(
        list(IMAGENET_STD), min_length=1, max_length=3
    )

    @pydantic.model_validator(mode="after")
    def _fits_layout(self) -> "OwnSet":
        if self.layout == "maps" and not 2 <= (self.classes or 0) <= 255:
            raise ValueError("'layout' maps needs 'classes', 2 to 255, the background among them")
        if self.layout == "class_folders" and self.classes is not None:
            raise ValueError("'classes' is for maps; class folders are counted")
        if self.layout == "class_folders" and "train" not in self.splits:
            raise ValueError("'splits' needs train, whose folders are the classes")
        if len(self.mean) != len(self.std):
            raise ValueError("'mean' and 'std' should have as many numbers as each other")
        return self


def declare(content: Mapping, path: Path) -> None:
    """Make the entries of a file those that `get_dataset` finds. Nothing is counted yet.

    Raises:
        UsageError: a wrong key or value; names the line.
    """
    for name in _declared:
        ENTRIES.pop(name, None)
    _declared.clear()
    for name in content:
        if not isinstance(content[name], dict):
            told = f"{name}: should have keys, at least 'folder'"
            raise blame(content, [name], path, told)
        entry = parse(OwnSet, content[name], f"{path}: {name}")
        refuse = functools.partial(blame, content[name], where=f"{path}: {name}")
        if name in ENTRIES:
            raise refuse([], message="a file of 'plugins' has a data set of this name")
        ENTRIES[name] = functools.cache(functools.partial(_counted, name, entry, path, refuse))
        _declared.append(name)


def register(dataset: ImageSet) -> Callable[[Callable], Callable]:
    """Adds a data set, in a file of one's own, whose pictures the function `read` below it reads.

    `labels` of the entry, or `scenes`, is the name of the file, as that of a module of
    `crate/data/readers`, which says what `read` takes and returns.

    Raises:
        UsageError: a name is taken, or is not that of the file or function.
    """

    def decorate(read: Callable) -> Callable:
        module, told = sys.modules[read.__module__], f"data set '{dataset.name}'"
        file = read.__module__.rpartition(".")[2]
        if dataset.reader != file or not (dataset.labels or dataset.scenes):
            raise UsageError(f"{told}: 'labels', or 'scenes', should be the file's name, '{file}'")
        if read.__name__ != "read":
            raise UsageError(f"{told}: the function '{read.__name__}' should be called 'read'")
        if Path(readers.__file__).with_name(f"{file}.py").is_file():
            raise UsageError(f"{told}: the suite has a reader '{file}'; rename the file")
        add(ENTRIES, "data set", dataset.name, lambda: dataset, read.__module__)
        # one module under two names, else the file would be run, and its entry added, twice
        vars(module).setdefault("ARCHIVES", {})
        sys.modules[f"{readers.__name__}.{file}"] = module
        readers.__path__.append(str(Path(module.__file__).parent))
        return read

    return decorate


def _counted(name: str, entry: OwnSet, path: Path, refuse: Callable[..., UsageError]) -> ImageSet:
    """The entry with its classes and pictures counted."""
    try:
        base = path.resolve().parents[1]  # that of experiments/
        root = Path(os.path.abspath(base / expand_path(entry.folder)))
    except ValueError as error:
        raise refuse(["folder"], message=f"folder: {error}") from None
    if not root.is_dir():
        raise refuse(["folder"], message=f"folder: {root} is not there")
    count = _count_maps if entry.layout == "maps" else _count_classes
    # Only names: to look at the content of all pictures before each command would take too long.
    digest, sizes, classes = hashlib.sha256(), {}, entry.classes or 0
    for split, part in entry.splits.items():
        try:
            sizes[split], found = count(name, root, part, digest)
        except (RunError, Unusable) as error:
            raise refuse(["splits", split], message=f"splits: {split}: {error}") from None
        if not sizes[split]:
            told = f"splits: {split}: {root / part}: has no pictures in the layout {entry.layout}"
            raise refuse(["splits", split], message=told)
        classes = found if split == "train" and found else classes
    holdout = 0
    without = [split for split in ("validation", "test") if split not in sizes]
    if without and "train" in sizes:
        holdout = max(1, round(entry.held_out * sizes["train"]))
        if len(without) * holdout >= sizes["train"]:
            told = f"held_out: of {sizes['train']} pictures nothing is left to train on"
            raise refuse(["held_out"], message=told)
        sizes |= dict.fromkeys(without, holdout)
    parts = dict.fromkeys(entry.splits.values())
    of_maps = {"form": "archive", "scenes": "maps", "parts_need": {p: maps.needs(p) for p in parts}}
    return ImageSet(
        name=name,
        title=entry.title or name,
        classes=classes,
        splits=sizes,
        source="experiments/datasets.yaml",
        folders=dict(entry.splits),
        holdout=holdout,
        subdir=str(root),
        mean=tuple(entry.mean),
        std=tuple(entry.std),
        names_sha256=digest.hexdigest(),
        **(of_maps if entry.layout == "maps" else {"form": "class_folders"}),
    )


def _listed(root: Path, name: str) -> dict:
    """The pictures of a part, from its index if that is up to date; else the index is deleted."""
    if index_path(root).is_file():
        try:
            return read_index(root)
        except RunError as error:
            again = f"'crate data prepare {name}' makes it anew"
            print(f"warning: {error}; deleted ({again})", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):  # it may lie where only others write
                index_path(root).unlink()
    return scan(root)


def _count_classes(name: str, root: Path, part: str, digest) -> tuple[int, int]:
    """Pictures and classes of a part; what is listed of it goes into `digest`."""
    found = _listed(root / part, name)
    labels = found["labels"].astype("int64")
    listed = [found[key].tolist() for key in ("classes", "shards", "files") if key in found]
    for names in [[os.fsencode(part)], *listed]:
        digest.update(b"\0".join(names) + b"\0\0")
    for numbers in [labels, *([found["places"]] if "places" in found else [])]:
        digest.update(numbers.tobytes())
    classes = len(found["classes"]) or (int(labels.max()) + 1 if len(labels) else 0)
    return len(labels), classes


def _count_maps(name: str, root: Path, part: str, digest) -> tuple[int, int]:
    """Pictures of a part, and 0: the number of classes is not counted but stated."""
    files = maps.files(root, part)
    names = [part, *(name for stem in sorted(files) for name in (stem, files[stem]))]
    digest.update(b"\0".join(map(os.fsencode, names)) + b"\0\0")
    return len(files), 0
