"""Bring a set of texts into token files (`crate data prepare`): read, split, tokenise.

Documents are read from files that a person has put into `<root>/source/`, else from the Hugging
Face hub, both by its library `datasets`; each set has its own way of making documents of rows.
"""

import contextlib
import errno
import glob
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from crate.data.check import counts_text, odd_counts
from crate.data.datasets import TextSet
from crate.data.files import Unusable, file_names
from crate.data.token_files import adopt_tokens, header_path, map_ids, read_header, write_tokens
from crate.data.tokenizer import Tokenizer, get_tokenizer
from crate.data.trouble import say
from crate.errors import RunError, cause_of, reason_of
from crate.records import lock, read_json


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

_CACHE = ".cache.unfinished"  # where `datasets` converts a set's files


def prepare_texts(dataset: TextSet, root: Path) -> list[str]:
    """Write the token files that are missing or were made of other files; returns a line for each.

    One process at a time does this; leftovers of a killed one are removed.
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
        lines += [f"{path}: {counts_text(header)}", *odd_counts(dataset, split, path, header)]
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
            say(f"{paths[split]}: was made of other files; writing it again")
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
                say(f"{paths[split]}: tokenising {source}")
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
        files = sorted(here / name for name in file_names(here))
        for path in files:
            if path.suffix.lower() not in READERS:
                raise RunError(
                    f"{path}: not a {', '.join(READERS)} file; unpack it there, or move it away"
                )
            if stat.S_ISFIFO(path.stat().st_mode):  # it would be waited for
                raise RunError(f"{path}: is not a regular file; move it away")
            path.open("rb").close()
    except Unusable as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({reason_of(error)})") from None
    return files


def _of_split(files: list[Path], splits: Collection[str]) -> list[Path]:
    """For a set that is only a test split: the files named so, if names distinguish splits."""
    if set(splits) != {"test"}:
        return files
    others = [file for file in files if re.search("train|valid|dev", file.name.lower())]
    chosen = [file for file in files if "test" in file.name.lower()] if others else files
    if files and not chosen:
        raise RunError(f"{others[0]}: not the test part, which is needed; move it away")
    return chosen


def _found(path: Path, tokenizer: Tokenizer) -> dict | None:
    """The header of a token file, written if it has none; None if the file must be made.

    Raises:
        RunError: something else is in its place.
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
            raise RunError(f"{error}; delete it to make it again") from None
        say(f"{error}; reading all of {path.name} to write one")
        return _adopt(path, tokenizer)
    try:
        map_ids(path, header, tokenizer)
    except RunError as error:
        say(f"{error}; writing it again")
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
            if isinstance(cause_of(error), datasets.table.CastError):
                raise RunError(f"{here}: its files have different columns") from None
            raise RunError(_what_is_wrong(files) or f"{here}: {reason_of(error)}") from None
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
        raise RunError(f"{path}: is not a parquet file ({reason_of(error)})") from None
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
    say(f"{dataset.title} from the hub: {hub.repository}")
    try:
        return datasets.load_dataset(hub.repository, hub.configuration, split=hub.split)
    except Exception as error:
        _raise_if_full(error)
        first = error
    try:
        return datasets.load_dataset("parquet", data_files=f"{parquet}/*.parquet", split="train")
    except Exception as error:
        _raise_if_full(error)
        # sets that are still a script are refused; then only the second failure is informative
        reason = reason_of(error if "script" in str(first) else first)
    raise RunError(
        f"{dataset.title} cannot be had from the hub ({reason}); to go without a network, put its "
        f"files (parquet, jsonl or txt) into {here} and run this again"
    )


def _raise_if_full(error: Exception) -> None:
    """Raise the error of a full disk, which is the fault of neither the files nor the network."""
    cause = cause_of(error)
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        raise cause from None


def _what_is_wrong(files: list[Path]) -> str:
    """The first file that cannot be read, with the byte or line; "" if all can."""
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
                    return f"{path}: line {number:,} is not JSON ({error})"
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
            say(f"{number:,} of {total:,} documents")


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
