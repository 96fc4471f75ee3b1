"""Token files: the ids of all documents of a part of a set of texts, and a header.

A token file is nanoGPT's: `<part>.bin` has the ids of all documents, each ended by end of text, as
little-endian uint16. Its header `<part>.json` is written last and says

    format             "crate-tokens-1"
    tokenizer          its name; `vocab_size` and `tokenizer_sha256` (of its merges) with it
    tokens, documents  their numbers; ends of text count as tokens
    empty              number of documents without text, which were left out
    bytes              of the text, as UTF-8
    sha256             of the .bin
    source             where the text came from
    sources            name and bytes of each file it was read from, [] of the hub's; null where the
                       .bin was found without a header
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from crate.data.tokenizer import Tokenizer
from crate.errors import RunError, UsageError
from crate.records import atomic_path, file_sha256, read_json, write_json

FORMAT = "crate-tokens-1"
_ID = np.dtype("<u2")
_BATCH = 1 << 20  # characters that are tokenised at once
_CHUNK = 1 << 22  # ids that are looked at, at once
_DOCUMENT = 64_000_000  # most bytes of a document; encoding takes some 115 times as much memory


def header_path(path: Path) -> Path:
    """The header of a token file: `train.json` of `train.bin`."""
    return path.with_suffix(".json")


def read_header(path: Path, tokenizer: Tokenizer) -> dict:
    """The header of the token file `path`, which must have ids of `tokenizer`.

    Raises:
        RunError: one of the two is missing, or the header is damaged or of another tokenizer.
    """
    header = read_json(header_path(path))
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    if header is None:
        raise RunError(f"{path}: its header {header_path(path).name} is missing or damaged")
    counts = [header.get(key) for key in ("tokens", "documents", "empty", "bytes")]
    known = header.get("format") == FORMAT and isinstance(header.get("sha256"), str)
    if not known or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise RunError(f"{header_path(path)}: is not a header of the format {FORMAT}")
    found = tuple(header.get(key) for key in ("tokenizer", "vocab_size", "tokenizer_sha256"))
    if found != (tokenizer.name, tokenizer.vocab_size, tokenizer.sha256):
        same = " of other merges" if found[0] == tokenizer.name else ""
        raise RunError(
            f"{path}: has ids of the tokenizer '{found[0]}'{same}, not of '{tokenizer.name}'"
        )
    return header


def map_ids(path: Path, header: dict, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a token file, memory-mapped: uint16 (T,). A sample of them is checked.

    Raises:
        RunError: the file has another length than its header says, no ids, or wrong ones.
    """
    _require_length(path, 2 * header["tokens"])
    ids = np.memmap(path, _ID, mode="r")
    if ids[-1] != tokenizer.end_of_text:
        raise RunError(f"{path}: does not end with an end of text; it is damaged")
    for start in np.linspace(0, max(0, len(ids) - 4096), 64).astype(int).tolist():
        _require_ids(path, ids[start : start + 4096], start, tokenizer)
    return ids


def _require_length(path: Path, expected: int | None) -> None:
    size = path.stat().st_size
    if size % 2:
        raise RunError(f"{path}: has {size:,} bytes, no whole number of ids of 2 bytes")
    if expected is not None and size != expected:
        cut = "cut short" if size < expected else "too long"
        raise RunError(f"{path}: is {cut}: {size:,} bytes, its header says {expected:,}")
    if not size:
        raise RunError(f"{path}: is empty")


def _require_ids(path: Path, ids: np.ndarray, start: int, tokenizer: Tokenizer) -> None:
    if ids.max() >= tokenizer.vocab_size:
        place = int(np.argmax(ids >= tokenizer.vocab_size))
        raise RunError(
            f"{path}: id {ids[place]} of token {start + place:,} is not one of the "
            f"{tokenizer.vocab_size:,} of the tokenizer '{tokenizer.name}'"
        )


def write_tokens(
    path: Path,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    source: str,
    sources: Sequence[tuple[str, int]] = (),
) -> dict:
    """Write the token file `path` and its header, document by document; returns the header.

    Documents of white space alone are left out and counted. Until all is written, what was there
    stays.

    Raises:
        RunError: there is no text at all, some of it is not Unicode, a document is too long, or the
            disk is full.
    """
    for place in (path, header_path(path)):
        if place.is_dir():  # else replacing it would fail at the end, after hours
            raise RunError(f"{place}: is a folder; move it away")
    counts = {"tokens": 0, "documents": 0, "empty": 0, "bytes": 0}
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for texts in _batches(documents):
            for number, text in enumerate(texts, counts["documents"] + counts["empty"] + 1):
                size = len(text.encode(errors="surrogatepass"))
                if size > _DOCUMENT:
                    raise RunError(
                        f"{source}: document {number:,} has {size:,} bytes, and encoding takes 115 "
                        f"times as much memory; cut it into pieces of at most {_DOCUMENT:,}"
                    )
            try:
                rows = tokenizer.encode_documents([text for text in texts if text.strip()])
            except UsageError as error:
                raise RunError(f"{source}: {error}") from None
            if rows:
                ids = np.concatenate(rows)
                content = ids.astype(_ID).tobytes()
                digest.update(content)
                file.write(content)
                counts["tokens"] += len(ids)
                counts["bytes"] += int(tokenizer.lengths[ids].sum())
            counts["documents"] += len(rows)
            counts["empty"] += len(texts) - len(rows)
        file.flush()
        if not counts["documents"]:
            raise RunError(f"{source}: there is no text in it")
        header_path(path).unlink(missing_ok=True)  # it belongs to the replaced file
    files = [list(file) for file in sources]
    return _write_header(path, counts, digest.hexdigest(), tokenizer, source, files)


def adopt_tokens(path: Path, tokenizer: Tokenizer, *, source: str) -> dict:
    """Write the header of a token file that has none, as nanoGPT's are; returns the header.

    Raises:
        RunError: it is not a file of this tokenizer's ids, each document ended by end of text, or
            has no text.
    """
    _require_length(path, None)
    ids = np.memmap(path, _ID, mode="r")
    counts = {"tokens": len(ids), "documents": 0, "empty": 0, "bytes": 0}
    used = np.zeros(tokenizer.vocab_size, bool)
    for start in range(0, len(ids), _CHUNK):
        piece = ids[start : start + _CHUNK]
        _require_ids(path, piece, start, tokenizer)
        counts["documents"] += int((piece == tokenizer.end_of_text).sum())
        counts["bytes"] += int(tokenizer.lengths[piece].sum())
        used[piece] = True
    used[tokenizer.end_of_text] = False
    if ids[-1] != tokenizer.end_of_text:
        raise RunError(
            f"{path}: does not end with an end of text, so it is not whole (uint16, little-endian, "
            "as nanoGPT's?)"
        )
    if not any(tokenizer.decode([token]).strip() for token in np.flatnonzero(used).tolist()):
        raise RunError(f"{path}: there is no text in it")
    return _write_header(path, counts, file_sha256(path), tokenizer, source, None)


def _write_header(
    path: Path,
    counts: dict,
    sha256: str,
    tokenizer: Tokenizer,
    source: str,
    sources: list[list] | None,
) -> dict:
    header = {
        "format": FORMAT,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        **counts,
        "sha256": sha256,
        "source": source,
        "sources": sources,
    }
    write_json(header_path(path), header)
    return header


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document) + 100  # also many empty ones make a batch
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
