"""Bring a real data set into its layout (`crate data prepare`): download, unpack, write indexes.

This is the one place that uses the network, and only for CIFAR, Flowers-102, Pets, the ReaL labels
and texts. Addresses, md5 sums and the unpacking of ImageNet's archives are torchvision's. The
archives of ADE20K, VOC and COCO are unpacked where a person has put them. Texts are read from files
or from the Hugging Face hub, by its library `datasets`, and tokenised once.
"""

import contextlib
import errno
import glob
import http.client
import itertools
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from crate.data.check import check, odd_counts, told, torchvision_class
from crate.data.layouts import open_pictures
from crate.data.listing import index_path, write_index
from crate.data.registry import Dataset, ImageSet, TextSet, advice, home, require
from crate.data.texts import adopt_tokens, header_path, map_ids, read_header, write_tokens
from crate.data.tokenizer import Tokenizer, get_tokenizer
from crate.environment import import_torchvision
from crate.errors import RunError
from crate.records import lock, read_json

REAL_URL = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"


def prepare(dataset: Dataset, data_root: str | Path) -> list[str]:
    """Do what can be done without a person; returns lines that say what was done.

    Raises:
        RunError: something is missing that a person must get, or there is no network.
    """
    root = home(dataset, data_root)
    if dataset.embedded:
        return [f"{dataset.name}: embedded, nothing to prepare"]
    if isinstance(dataset, TextSet):
        return _prepare_texts(dataset, root)
    if dataset.form == "torchvision":
        return _download(dataset, data_root)
    if dataset.form == "archive":
        return _unpack_archives(dataset, data_root)
    if root.name == "imagenet1k":
        for part in dataset.folders.values():
            _unpack(root, part)
    if dataset.labels == "real" and not (root / "real.json").is_file():
        _fetch(REAL_URL, root, None)
    require(dataset, data_root)
    lines = []
    for part in dataset.folders.values():
        _say(f"listing {root / part}")
        count = write_index(root / part)
        if not count:
            raise RunError(f"{root / part}: no images; {advice(dataset, data_root)}")
        lines.append(f"{index_path(root / part)}: {count:,} images")
    if dataset.labels:
        for part in dataset.folders.values():
            count = len(open_pictures(dataset, part, data_root))
            lines.append(f"{root / part}: {count:,} images with labels")
    return lines


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- torchvision's sets -----------------------------------------------------------


def sources(dataset: ImageSet) -> list[tuple[str, str, str]]:
    """Address, folder it goes to (relative to the set's) and md5 of each file to download."""
    known = torchvision_class(dataset)
    if dataset.labels == "flowers102":
        prefix = known._download_url_prefix
        return [(prefix + file, "flowers-102", md5) for file, md5 in known._file_dict.values()]
    if dataset.labels == "pets":
        return [(url, "oxford-iiit-pet", md5) for url, md5 in known._RESOURCES]
    return [(known.url, "", known.tgz_md5)]


def _download(dataset: ImageSet, data_root: str | Path) -> list[str]:
    """Download and unpack, unless all is there; archives already in place are not loaded again."""
    nothing = not home(dataset, data_root).is_dir()
    there, wrong = ([], []) if nothing else check(dataset, data_root)
    if nothing or wrong:
        for url, folder, md5 in sources(dataset):
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
    with _told(folder / name, f"to go without a network, put {url} there and run this again"):
        _say(f"{folder / name} from {url}")
        if md5 is None:  # nothing would tell a half-downloaded file later
            unfinished = folder / f".{name}.unfinished"
            unfinished.unlink(missing_ok=True)
            download_url(url, folder, filename=unfinished.name)
            unfinished.rename(folder / name)
        else:
            download_url(url, folder, md5=md5)
        if tarfile.is_tarfile(folder / name):
            extract_archive(folder / name, folder)


_TROUBLE = (
    OSError,
    RuntimeError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    http.client.HTTPException,
)


@contextlib.contextmanager
def _told(path: Path, advice: str) -> Iterator[None]:
    """Whatever goes wrong with a file becomes one line."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # urllib would wait for ever
    try:
        yield
    except _TROUBLE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise RunError(f"{path}: {reason}; {advice}") from None
    finally:
        socket.setdefaulttimeout(before)


# --- ImageNet's archives -----------------------------------------------------------


def _unpack(root: Path, part: str) -> None:
    """Unpack the ILSVRC 2012 archive of a part to one folder a class, if only the archive is there.

    It happens in a folder of another name, so that a part is whole or not there at all.
    """
    import_torchvision()
    from torchvision.datasets import imagenet

    archive = root / imagenet.ARCHIVE_META[part][0]
    if not archive.is_file() or ((root / part).is_dir() and any((root / part).iterdir())):
        return
    unfinished = root / f".{part}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with _told(archive, "download it again, or make room for what is in it"):
        _say(f"unpacking {archive} (its md5 is compared first)")
        if part == "val":  # its labels are in the devkit
            if not (root / imagenet.META_FILE).is_file():
                imagenet.parse_devkit_archive(root)
            imagenet.parse_val_archive(root, folder=unfinished.name)
        else:
            imagenet.parse_train_archive(root, folder=unfinished.name)
        if (root / part).is_dir():
            (root / part).rmdir()  # it was empty
        unfinished.rename(root / part)


# --- sets with maps or objects -----------------------------------------------------------

# What is taken out of each, and where it belongs below the set's folder.
ARCHIVES = {
    "ade20k": {"ADEChallengeData2016.zip": "ADEChallengeData2016"},
    "voc2012": {"VOCtrainval_11-May-2012.tar": "VOCdevkit/VOC2012"},
    "coco": {
        "val2017.zip": "val2017",
        "annotations_trainval2017.zip": "annotations/instances_val2017.json",
    },
}


def _unpack_archives(dataset: ImageSet, data_root: str | Path) -> list[str]:
    """Unpack what is not there yet, then check all of it."""
    root = home(dataset, data_root)
    archives = ARCHIVES[dataset.scenes]
    for archive, inside in archives.items():
        if (root / archive).is_file() and not (root / inside).exists():
            _take_out(root / archive, inside)
    require(dataset, data_root)
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
        with _told(archive, "download it again, or make room for what is in it"):
            _say(f"unpacking {archive}")
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
                raise zipfile.BadZipFile(f"'{name}' would leave the folder")
        wanted = [name for name in names if name == inside or name.startswith(f"{inside}/")]
        file.extractall(to, wanted)  # compares checksums


def _untar(archive: Path, to: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")  # refuses what would leave the folder
        # a tar that was cut between two members ends quietly
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut off")


# --- texts -----------------------------------------------------------


class Hub(NamedTuple):
    """Where the hub has a set; `folder` is that of the parquet files it makes of every set."""

    repository: str
    configuration: str | None
    folder: str  # in revision refs/convert/parquet
    split: str
    column: str = "text"


# EleutherAI/lambada_openai has the passages as OpenAI detokenised them for GPT-2.
HUB = {
    "openwebtext": Hub("Skylion007/openwebtext", None, "plain_text", "train"),
    "lambada": Hub("EleutherAI/lambada_openai", "default", "default", "test"),
    "wikitext": Hub("Salesforce/wikitext", "wikitext-103-raw-v1", "wikitext-103-raw-v1", "test"),
    "ptb": Hub("ptb-text-only/ptb_text_only", None, "penn_treebank", "test", "sentence"),
}

# nanoGPT's data/openwebtext/prepare.py: what makes its `val` of the one part on the hub.
OPENWEBTEXT_SPLIT = {"test_size": 0.0005, "seed": 2357, "shuffle": True}

# Suffix of a file → what reads it in `datasets`.
READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}

_CACHE = ".cache.unfinished"  # what `datasets` makes of a set's files


def _prepare_texts(dataset: TextSet, root: Path) -> list[str]:
    """Write the token files that are missing or were made of other files; returns what each has.

    One process does it at a time; what a killed one left behind is removed.
    """
    tokenizer = get_tokenizer(dataset.tokenizer)
    with lock(root / ".lock", waiting=f"{root}: waiting for another 'crate data prepare'"):
        try:
            for leftover in root.glob(".*.tmp"):
                leftover.unlink()
            shutil.rmtree(root / _CACHE, ignore_errors=True)
            _write_parts(dataset, root, tokenizer)
        except OSError as error:
            raise RunError(f"{error.filename or root}: {error.strerror or error}") from None
    lines = []
    for split, part in dataset.folders.items():
        path = root / f"{part}.bin"
        header = read_header(path, tokenizer)
        lines += [f"{path}: {told(header)}", *odd_counts(dataset, split, path, header)]
    return lines


def _write_parts(dataset: TextSet, root: Path, tokenizer: Tokenizer) -> None:
    files = _of_split(_source_files(root / "source"), dataset.splits)
    sources = [[path.name, path.stat().st_size] for path in files]
    paths = {split: root / f"{part}.bin" for split, part in dataset.folders.items()}
    headers = {split: _found(path, tokenizer) for split, path in paths.items()}
    missing = [split for split, header in headers.items() if header is None]
    for split, header in headers.items():
        made_of = header and header.get("sources")
        if made_of is not None and made_of != sources and (sources or missing):
            _say(f"{paths[split]}: was made of other files; writing it again")
            missing.append(split)
    for split, header in headers.items():
        if missing and header and header.get("sources") is None:
            raise RunError(
                f"{paths[split]}: was found without a header, and {paths[missing[0]]} must come "
                "from the same split: put that there too, or delete the first"
            )
    if missing:
        with _rows(dataset, root, files) as (rows, column, source):
            for split in sorted(missing):  # the small one, test, first
                _say(f"{paths[split]}: tokenising {source}")
                documents = _documents(dataset, rows, split, column, source)
                with _all_cores():
                    write_tokens(paths[split], documents, tokenizer, source=source, sources=sources)


def _source_files(here: Path) -> list[Path]:
    """The files that a person has put into `source/`; none where that is missing or empty.

    Raises:
        RunError: something in it cannot be read.
    """
    if not os.path.lexists(here):
        return []
    path = here
    try:
        files = sorted(file for file in here.iterdir() if not file.name.startswith("."))
        for path in files:
            if path.suffix.lower() not in READERS:
                raise RunError(
                    f"{path}: is none of {', '.join(READERS)}; unpack it there, or move it away"
                )
            path.open("rb").close()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    return files


def _of_split(files: list[Path], splits: Collection[str]) -> list[Path]:
    """Of a set that is only tested on: the files whose names say so, where names tell splits."""
    if set(splits) != {"test"}:
        return files
    others = [file for file in files if re.search("train|valid|dev", file.name.lower())]
    chosen = [file for file in files if "test" in file.name.lower()] if others else files
    if files and not chosen:
        raise RunError(f"{others[0]}: is another part than the test part that is needed")
    return chosen


def _found(path: Path, tokenizer: Tokenizer) -> dict | None:
    """The header of a token file, written where it has none; None where the file must be made.

    Raises:
        RunError: something is in its place that nobody asked to replace.
    """
    if path.is_dir():
        raise RunError(f"{path}: is a folder; move it away")
    if not path.exists():
        return None
    try:
        header = read_header(path, tokenizer)
    except RunError as error:
        of = (read_json(header_path(path)) or {}).get("tokenizer_sha256", tokenizer.sha256)
        if of != tokenizer.sha256:
            raise RunError(f"{error}; delete it to make it anew") from None
        _say(f"{error}; reading all of {path.name} to write one")
        return _adopt(path, tokenizer)
    try:
        map_ids(path, header, tokenizer)
    except RunError as error:
        _say(f"{error}; writing it again")
        return None
    return header


def _adopt(path: Path, tokenizer: Tokenizer) -> dict:
    try:
        return adopt_tokens(path, tokenizer, source=f"{path.name}, found without a header")
    except RunError as error:
        raise RunError(f"{error}; move it away and run this again") from None


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Tokenise with as many threads as there are cores (or as RAYON_NUM_THREADS says)."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before or "false"


@contextlib.contextmanager
def _rows(dataset: TextSet, root: Path, files: list[Path]) -> Iterator[tuple]:
    """The rows of a set (`datasets.Dataset`), their column with text, and where they come from.

    They are read from `files`; from the hub where there are none.

    Raises:
        RunError: `datasets` is not installed, files cannot be read, or there is no network.
    """
    try:
        import datasets
    except ImportError:
        raise RunError(
            f"preparing {dataset.title} needs the package datasets: "
            "pip install --editable '.[text]'"
        ) from None
    hub = HUB[dataset.name]
    column = hub.column
    here = root / "source"
    if not files:
        rows = _from_hub(datasets, dataset, here)
        _require_column(rows.features, column, hub.repository)
        yield rows, column, hub.repository
        return
    readers = {READERS[path.suffix.lower()] for path in files}
    if len(readers) > 1:
        raise RunError(f"{here}: has files of several kinds ({', '.join(sorted(readers))})")
    (reader,) = readers
    options = {}
    if reader == "text":
        column = "text"
        options["sample_by"] = "document" if dataset.name == "openwebtext" else "line"
        options["encoding"] = "utf-8-sig"
    elif reader == "parquet":
        options["columns"] = [column]
        for path in files:
            _require_parquet(path, column)
    cache = root / _CACHE
    try:
        cache.mkdir()
        try:
            rows = datasets.load_dataset(
                reader,
                data_files=[glob.escape(str(path)) for path in files],
                split="train",
                cache_dir=str(cache),
                **options,
            )
        except Exception as error:
            _raise_if_full(error)
            if isinstance(_cause(error), datasets.table.CastError):
                raise RunError(f"{here}: its files have different columns") from None
            raise RunError(_what_is_wrong(files) or f"{here}: {_reason(error)}") from None
        _require_column(rows.features, column, here)
        try:
            yield rows, column, f"{here.name}/{files[0].name}" + (" …" if files[1:] else "")
        except UnicodeDecodeError:
            raise RunError(_what_is_wrong(files) or f"{here}: has text that is not UTF-8") from None
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _require_parquet(path: Path, column: str) -> None:
    from datasets import Features
    from pyarrow.parquet import read_schema

    try:
        features = Features.from_arrow_schema(read_schema(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: is no parquet file ({_reason(error)})") from None
    _require_column(features, column, path)


def _require_column(features: Mapping, column: str, where: object) -> None:
    kind = getattr(features.get(column), "dtype", None)
    if kind == "null":
        raise RunError(f"{where}: its column '{column}' has only nulls: there is no text in it")
    if kind not in ("string", "large_string"):
        found = ", ".join(
            f"'{name}' ({getattr(kind, 'dtype', 'nested')})" for name, kind in features.items()
        )
        raise RunError(f"{where}: has no column '{column}' (string), only {found}")


def _from_hub(datasets, dataset: TextSet, here: Path):
    """The set's rows from the hub: as they are there, or as the hub converted them to parquet."""
    hub = HUB[dataset.name]
    parquet = f"hf://datasets/{hub.repository}@refs/convert/parquet/{hub.folder}/{hub.split}"
    _say(f"{dataset.title} from the hub: {hub.repository}")
    try:
        return datasets.load_dataset(hub.repository, hub.configuration, split=hub.split)
    except Exception as error:
        _raise_if_full(error)
        first = error
    try:
        return datasets.load_dataset("parquet", data_files=f"{parquet}/*.parquet", split="train")
    except Exception as error:
        _raise_if_full(error)
        # sets that are still a script are refused; then only the second failure tells anything
        reason = _reason(error if "script" in str(first) else first)
    raise RunError(
        f"{dataset.title} cannot be had from the hub ({reason}); to go without a network, put its "
        f"files (parquet, jsonl or txt) into {here} and run this again"
    )


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _raise_if_full(error: Exception) -> None:
    """A full disk is neither the files' fault nor the network's."""
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        raise cause from None


def _reason(error: BaseException) -> str:
    error = _cause(error)
    return str(error).strip().split("\n")[0] or type(error).__name__


def _what_is_wrong(files: list[Path]) -> str:
    """The first file that cannot be read, with the byte or line where that shows; else empty."""
    if not any(path.stat().st_size for path in files):
        return f"{files[0]}: is empty: there is no text in it"
    for path in files:
        if path.suffix.lower() == ".parquet":
            continue
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode()
                    if path.suffix.lower() == ".jsonl" and text.strip():
                        json.loads(text)
                except UnicodeDecodeError as error:
                    return f"{path}: byte {start + error.start:,} is not UTF-8 (line {number:,})"
                except ValueError as error:
                    return f"{path}: line {number:,} is no JSON ({error})"
                start += len(line)
    return ""


def _documents(dataset: TextSet, rows, split: str, column: str, source: str) -> Iterator[str]:
    """The documents of a split, made of a set's rows."""
    if dataset.name == "openwebtext":
        try:
            parts = rows.train_test_split(**OPENWEBTEXT_SPLIT)
        except ValueError:
            raise RunError(
                f"{source}: {len(rows):,} document{'s' * (len(rows) != 1)} cannot be split into "
                f"{' and '.join(dataset.folders)}"
            ) from None
        return _counted(_texts_of(parts[split], column), len(parts[split]))
    texts = _texts_of(rows, column)
    if dataset.name == "wikitext":
        return articles(texts)
    if dataset.name == "ptb":
        return iter(["\n".join(texts)])
    return texts


def _texts_of(rows, column: str) -> Iterator[str]:
    for batch in rows.select_columns([column]).iter(batch_size=1_000):
        for text in batch[column]:
            yield text or ""


def _counted(documents: Iterable[str], total: int) -> Iterator[str]:
    for number, document in enumerate(documents, 1):
        yield document
        if number % 100_000 == 0:
            _say(f"{number:,} of {total:,} documents")


# " = Title = " is an article's heading, " = = Section = = " one inside it.
_HEADING = re.compile(r"\s*= (?!=)(?:.*[^=\s]) =\s*")


def articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's articles, whole: a heading of the first level stands between two empty lines."""
    lines = [line.rstrip("\n") for line in lines]
    blank = [True, *(not line.strip() for line in lines), True]  # of line i: blank[i + 1]
    starts = [
        i for i, line in enumerate(lines) if blank[i] and blank[i + 2] and _HEADING.fullmatch(line)
    ]
    for start, end in itertools.pairwise([0, *starts, len(lines)]):
        article = "\n".join(lines[start:end])
        if article.strip():
            yield article
