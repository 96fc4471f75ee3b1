"""Bring a real data set into its layout (`crate data prepare`): download, unpack, write indexes.

With `prepare_texts.py`, for texts, this is the only place that uses the network, and only for sets
whose reader has `downloads()`: CIFAR, Flowers-102, Pets and the ReaL labels. Archives of other sets
(a reader's `ARCHIVES`) are unpacked, and shards listed, where a person has put them. ImageNet's
archives are unpacked by `ilsvrc.py`.
"""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from crate.data.check import check
from crate.data.datasets import Dataset, ImageSet, PairSet, TextSet, advice, check_available, home
from crate.data.files import shard_files
from crate.data.ilsvrc import NAME, next_step, sort_flat, unpack
from crate.data.listing import index_path, write_index
from crate.data.pair_shards import places_path, write_pair_index
from crate.data.prepare_texts import prepare_texts
from crate.data.readers import reader
from crate.data.sources import read_part
from crate.data.trouble import in_own_words, say
from crate.environment import import_torchvision
from crate.errors import RunError

PROCESSES = 16  # that read shards at a time, where there are as many as FEW_SHARDS
FEW_SHARDS = 64


def prepare(dataset: Dataset, data_root: str | Path) -> list[str]:
    """Do what needs no person; returns lines that say what was done.

    Raises:
        RunError: something is missing that a person must get, or there is no network.
    """
    root = home(dataset, data_root)
    if dataset.embedded:
        return [f"{dataset.name}: embedded, nothing to prepare"]
    if isinstance(dataset, TextSet):
        return prepare_texts(dataset, root)
    if isinstance(dataset, PairSet):
        check_available(dataset, data_root)
        return _index_pairs(dataset, data_root)
    if dataset.form == "torchvision":
        return _download(dataset, data_root)
    if dataset.form == "archive":
        return _unpack_archives(dataset, data_root)
    for part in dataset.folders.values():
        if root.name == NAME:
            unpack(root, part)
        sort_flat(dataset, root, part)
    for url, folder, md5 in downloads(dataset):
        if not (root / folder / url.rsplit("/", 1)[1]).is_file():
            _fetch(url, root / folder, md5)
    check_available(dataset, data_root)
    lines = []
    for part in dataset.folders.values():
        step = next_step(dataset, root, part)
        if step:
            raise RunError(step)
        say(f"listing {root / part}")
        count = write_index(root / part)
        if not count:
            raise RunError(f"{root / part}: no images; {advice(dataset, data_root)}")
        lines.append(f"{index_path(root / part)}: {count:,} images")
    if dataset.labels:
        for part in dataset.folders.values():
            count = len(read_part(dataset, part, data_root))
            lines.append(f"{root / part}: {count:,} images with labels")
    return lines


def _index_pairs(dataset: PairSet, data_root: str | Path) -> list[str]:
    """Read the headers of all shards, several at a time."""
    lines = []
    for part in dataset.folders.values():
        root = home(dataset, data_root) / part
        count = len(shard_files(root))
        say(f"listing the {count:,} shards of {root}")
        processes = min(PROCESSES, os.cpu_count() or 1) if count >= FEW_SHARDS else 1
        shards = write_pair_index(root, processes)
        for line in (*shards.broken(), *shards.left_out()):
            say(f"warning: {root}: {line}")
        if not len(shards):
            raise RunError(f"{root}: no pairs; {advice(dataset, data_root)}")
        lines.append(f"{index_path(root)} and {places_path(root).name}: {len(shards):,} pairs")
    return lines


# --- torchvision's sets -----------------------------------------------------------


def downloads(dataset: ImageSet) -> list[tuple[str, str, str | None]]:
    """Address, folder it goes to (relative to the set's) and md5 of each file to download."""
    module = reader(dataset.reader)
    return module.downloads() if hasattr(module, "downloads") else []


def _download(dataset: ImageSet, data_root: str | Path) -> list[str]:
    """Download and unpack, unless all is there; archives already in place are not loaded again."""
    nothing = not home(dataset, data_root).is_dir()
    there, wrong = ([], []) if nothing else check(dataset, data_root)
    if nothing or wrong:
        for url, folder, md5 in downloads(dataset):
            _fetch(url, home(dataset, data_root) / folder, md5)
        there, wrong = check(dataset, data_root)
    if wrong:
        raise RunError(wrong[0])
    return there


def _fetch(url: str, folder: Path, md5: str | None) -> None:
    """Download a file with torchvision, which compares md5, and unpack it if it is an archive."""
    import_torchvision()
    from torchvision.datasets.utils import download_url, extract_archive

    name = url.rsplit("/", 1)[1]
    with in_own_words(folder / name, url):
        say(f"{folder / name} from {url}")
        if md5 is None:  # a half-downloaded file could not be recognised later
            unfinished = folder / f".{name}.unfinished"
            unfinished.unlink(missing_ok=True)
            download_url(url, folder, filename=unfinished.name)
            unfinished.rename(folder / name)
        else:
            download_url(url, folder, md5=md5)
        if tarfile.is_tarfile(folder / name):
            extract_archive(folder / name, folder)


# --- sets with maps or objects -----------------------------------------------------------


def _unpack_archives(dataset: ImageSet, data_root: str | Path) -> list[str]:
    """Unpack what is not there yet, then check all of it."""
    root = home(dataset, data_root)
    archives = reader(dataset.reader).ARCHIVES
    for archive, inside in archives.items():
        if (root / archive).is_file() and not (root / inside).exists():
            _take_out(root / archive, inside)
    check_available(dataset, data_root)
    there, wrong = check(dataset, data_root)
    if wrong:
        names = " and ".join(str(root / inside) for inside in archives.values())
        raise RunError(f"{wrong[0]}; move {names} away and {advice(dataset, data_root)}")
    return there


def _take_out(archive: Path, inside: str) -> None:
    """Unpack the file or folder `inside` of an archive to its place beside it.

    It happens in a folder of another name, so that it is whole or not there at all.
    """
    root, unfinished = archive.parent, archive.parent / f".{archive.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with in_own_words(archive):
            say(f"unpacking {archive}")
            if archive.suffix == ".zip":
                _unzip(archive, inside, unfinished)
            else:
                _untar(archive, unfinished)
            if not (unfinished / inside).exists():
                raise RunError(f"{archive}: has no {inside} in it; is it the official one?")
            (root / inside).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / inside).rename(root / inside)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unzip(archive: Path, inside: str, to: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        for name in names:
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise RunError(
                    f"{archive}: '{name}' would leave the folder; is it the official archive?"
                )
        wanted = [name for name in names if name == inside or name.startswith(f"{inside}/")]
        file.extractall(to, wanted)  # compares checksums


def _untar(archive: Path, to: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")  # refuses what would leave the folder
        # a tar that was cut between two members ends quietly
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut off")
