"""The documents of a split as token ids: from token files, or of the embedded texts.

Embedded texts are read from crate/data/assets and tokenised when they are opened. Nothing here
needs torch.
"""

import dataclasses
from pathlib import Path

import numpy as np

from crate.data import splits
from crate.data.datasets import TextSet, advice, home, split_part
from crate.data.embedded import open_asset
from crate.data.token_files import map_ids, read_header
from crate.data.tokenizer import Tokenizer, get_tokenizer
from crate.errors import RunError, unknown

_CHUNK = 1 << 22  # ids that are searched for ends of text at once
TEST, VALIDATION = 6, 5  # of the 233 speeches
TINY = 20_000  # most characters of a document of a `_tiny` set


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """A split's documents in one row, each ended by `tokenizer.end_of_text`.

    `ids` is uint16 (T,), in memory or mapped from a file; `title` is the data set's. `documents`
    counts the empty ones too, which have no place in `ids`: it is compared with what is published.
    `sha256` is the whole token file's, as its header has it; None of embedded texts.
    """

    ids: np.ndarray
    tokenizer: Tokenizer
    documents: int
    title: str
    sha256: str | None = None


def open_tokens(
    dataset: TextSet, split: str, data_root: str | Path, *, held_out_for: str = "test"
) -> Tokens:
    """Open a split (train, validation, test) of a set of texts.

    Args:
        held_out_for: the split that the run is evaluated on (see `crate/data/splits.py`).

    Raises:
        UsageError: the set has no such split. RunError: it cannot be read.
    """
    tokenizer = get_tokenizer(dataset.tokenizer)
    if dataset.embedded:
        documents = embedded_documents(dataset, split)
        ids = np.concatenate(tokenizer.encode_documents(documents))
        return Tokens(ids, tokenizer, len(documents), dataset.title)
    part = split_part(dataset, split)
    path = home(dataset, data_root) / f"{part}.bin"
    try:
        header = read_header(path, tokenizer)
        ids = map_ids(path, header, tokenizer)
    except RunError as error:
        raise RunError(f"{error}; {advice(dataset, data_root)}") from None
    documents, empty, sha256 = header["documents"], header["empty"], header["sha256"]
    held = splits.documents(dataset, split, held_out_for)
    if held is None:
        return Tokens(ids, tokenizer, documents + empty, dataset.title, sha256)
    behind, count = held
    missing = behind + (count or 0)
    if documents <= missing:
        raise RunError(
            f"{path}: {documents:,} document{'s' * (documents != 1)}, of which the last "
            f"{missing:,} are held out: nothing is left to train on; {advice(dataset, data_root)}"
        )
    ids = ids[: _last_documents(path, ids, behind, tokenizer)]
    if count is not None:
        ids = ids[_last_documents(path, ids, count, tokenizer) :]
    return Tokens(ids, tokenizer, count or documents + empty - behind, dataset.title, sha256)


def _last_documents(path: Path, ids: np.ndarray, count: int, tokenizer: Tokenizer) -> int:
    """The index of the first id of the last `count` documents; the header says there are more."""
    end, missing = len(ids), count + 1  # the end of text before them is one more
    if not count:
        return end
    while end:
        start = max(0, end - _CHUNK)
        ends = np.flatnonzero(ids[start:end] == tokenizer.end_of_text)
        if len(ends) >= missing:
            return start + int(ends[-missing]) + 1
        missing, end = missing - len(ends), start
    raise RunError(f"{path}: has fewer documents than its header says")


# --- embedded texts -----------------------------------------------------------


def read_texts(asset: str) -> tuple[list[str], list[str]]:
    """Names and texts of an asset's documents, exactly as they were packed."""
    archive = open_asset(asset)
    names = archive.read("names.txt").decode().splitlines()
    return names, archive.read("texts.txt").decode().split("\0")


def speech_splits(count: int) -> dict[str, np.ndarray]:
    """Split → places of the speeches, ascending."""
    return splits.by_size(count, {"test": TEST, "validation": VALIDATION})


def embedded_documents(dataset: TextSet, split: str) -> list[str]:
    """The documents of a split of an embedded set.

    A `_tiny` set has the shortest of them, as many as its entry states, cut to `TINY` characters.

    Raises:
        UsageError: the set has no such split. RunError: the asset is missing or damaged.
    """
    if split not in dataset.splits:
        raise unknown("split", split, dataset.splits, where=dataset.title)
    names, texts = read_texts(dataset.assets[0])
    if "train" in dataset.splits:
        texts = [texts[place] for place in speech_splits(len(names))[split]]
    if dataset.name.endswith("_tiny"):
        shortest = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        texts = [texts[place][:TINY] for place in sorted(shortest[: dataset.splits[split]])]
    return texts
