"""Byte-level byte-pair encoding: text to token ids and back, as GPT-2's (Radford et al. 2019).

    gpt2       50,257 tokens, OpenAI's merges: what nanoGPT, CRATE-GPT and the official weights use
    bytes      257 tokens: no merges

One vocabulary for all: the 256 bytes in GPT-2's order, the merges in theirs, then end of text. The
work is done by Hugging Face `tokenizers`; ids equal tiktoken's. Nothing here needs torch.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from crate.data.embedded import open_asset
from crate.errors import UsageError
from crate.registry import Registry

END_OF_TEXT = "<|endoftext|>"
MERGES_HEADER = "#version: 0.2"

# Name → the asset with its merges, in the format of GPT-2's vocab.bpe.
TOKENIZERS = Registry("tokenizer", {"gpt2": "gpt2-merges", "bytes": ""})


def byte_order() -> list[int]:
    """The 256 bytes in the order of GPT-2's first 256 ids: printable Latin-1 first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [byte for byte in range(256) if byte not in printable]


def byte_letters() -> dict[int, str]:
    """Byte → the letter that stands for it in a merges file, where a space cannot (as "Ġ")."""
    order = byte_order()
    printable = order[:188]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(order[188:])}


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        name: as in `TOKENIZERS`, or what the caller calls it.
        vocab_size: number of ids, end of text included.
        end_of_text: the last id; it is never the id of a piece of text.
        lengths: int64 (vocab_size,): bytes that each id stands for, 0 for end of text.
        sha256: of the merges; what a token file's header is compared with.
    """

    def __init__(self, name: str, merges: str):
        """`merges` has the format of GPT-2's vocab.bpe: a header line, then a pair a line."""
        pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
        letters = byte_letters()
        pieces = [letters[byte] for byte in byte_order()]
        pieces += [first + second for first, second in pairs]
        byte_of = {letter: byte for byte, letter in letters.items()}
        self.name = name
        self.sha256 = hashlib.sha256(merges.encode()).hexdigest()
        self.vocab_size = len(pieces) + 1
        self.end_of_text = len(pieces)
        self._bytes = [bytes(byte_of[letter] for letter in piece) for piece in pieces]
        self.lengths = np.array([*map(len, self._bytes), 0], np.int64)
        self._bytes.append(END_OF_TEXT.encode())
        self._encoder = _encoder(pieces, pairs) if pairs else None
        self._id_of_byte = np.argsort(byte_order()).astype(np.uint16)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, uint16 (T,). "<|endoftext|>" in it is text like any other.

        Raises:
            UsageError: it is not a str, or not Unicode text (a lone surrogate).
        """
        return self.encode_documents([text])[0][:-1]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text with end of text appended, uint16.

        One thread, unless the environment's TOKENIZERS_PARALLELISM is "true".
        """
        for text in texts:
            _require_text(text)
        end = [self.end_of_text]
        if self._encoder is None:  # no merges: a table is enough
            found = (self._id_of_byte[np.frombuffer(text.encode(), np.uint8)] for text in texts)
            return [np.append(ids, np.uint16(self.end_of_text)) for ids in found]
        encoded = self._encoder.encode_batch_fast(list(texts))
        return [np.array(document.ids + end, np.uint16) for document in encoded]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; end of text as "<|endoftext|>".

        Raises:
            UsageError: an id is outside the vocabulary.
        """
        pieces, size = self._bytes, self.vocab_size
        ids = np.asarray(list(ids), np.int64)
        outside = ids[(ids < 0) | (ids >= size)]
        if len(outside):
            raise UsageError(
                f"token id {outside[0]} is not one of the {size:,} of the tokenizer '{self.name}'"
            )
        return b"".join([pieces[i] for i in ids.tolist()])

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


@cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`.

    Raises:
        UsageError: no tokenizer has this name. RunError: its merges are damaged.
    """
    asset = TOKENIZERS[name]
    merges = open_asset(asset).read("vocab.bpe").decode() if asset else f"{MERGES_HEADER}\n"
    return Tokenizer(name, merges)


def _encoder(pieces: list[str], pairs: list[tuple[str, str]]):
    """The `tokenizers` object, without end of text, so that it never finds one in a text."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else as many threads as cores
    from tokenizers import Tokenizer as Encoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    encoder = Encoder(BPE(vocab=vocabulary, merges=pairs))
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return encoder


def _require_text(text: object) -> None:
    if not isinstance(text, str):
        raise UsageError(f"only text can be encoded, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {error.start:,} of the text is half a surrogate pair "
            f"(U+{ord(text[error.start]):04X}), which no encoding of Unicode has"
        ) from None
