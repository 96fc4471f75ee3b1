"""The tokenizer gives tiktoken's ids and loses nothing of a text."""

import random
import subprocess
import sys

import numpy as np
import pytest

from crate.data.embedded import open_asset
from crate.data.tokenizer import (
    END_OF_TEXT,
    TOKENIZERS,
    Tokenizer,
    byte_letters,
    byte_order,
    get_tokenizer,
)
from crate.errors import UsageError

# OpenAI's pattern, as tiktoken publishes it for "gpt2".
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

TEXTS = [
    "",
    " ",
    "\0",
    "Hello, world! It's 2019; they'll've gone. DON'T",
    f"one{END_OF_TEXT}two {END_OF_TEXT}",
    "a\r\nb\r\n\r\n\tc\n\n\n  d   \n",
    "x" + " " * 1_000 + "y" + "\n" * 300,
    "Zażółć gęślą jaźń; Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย, 日本語, 한국어, ქართული",
    "e\u0301 a\u0308\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺 👍🏽 \U0010ffff\ufeff\u2028\x85\u00a0\u3000",
    "def f(x):\n\treturn {k: v ** 2 for k, v in x.items() if v != 0x1F}  # ∑ λ_i\n" * 20,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½ ² Ⅷ ٣ ʼn ﬁ ß ẞ ǅ",
]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return get_tokenizer("gpt2")


def reference(tokenizer: Tokenizer):
    """tiktoken's encoder of the same merges."""
    import tiktoken

    pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.end_of_text)]
    return tiktoken.Encoding(
        tokenizer.name,
        pat_str=PATTERN,
        mergeable_ranks={piece: i for i, piece in enumerate(pieces)},
        special_tokens={END_OF_TEXT: tokenizer.end_of_text},
    )


def every_letter() -> list[str]:
    """All of Unicode's first plane and a tenth of the others, in words, numbers and spaces."""
    points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 10)]
    lines = [f"a{c}b 1{c}{c} {c}\n" for c in map(chr, points)]
    return ["".join(lines[start : start + 500]) for start in range(0, len(lines), 500)]


def random_texts(count: int) -> list[str]:
    rng = random.Random(2024)
    pieces = [" ", "  ", "\r\n", "\n\n", "'s", "'ll", "\u200d", "\ufe0f", "\0", END_OF_TEXT] * 20
    for first, last in ((0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x900, 0x980)):
        pieces += map(chr, range(first, last))
    for first, last in ((0x4E00, 0x4E80), (0xAC00, 0xAC40), (0x1F300, 0x1F700)):
        pieces += map(chr, range(first, last))
    return ["".join(rng.choices(pieces, k=rng.randrange(40))) for _ in range(count)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_tiktokens_and_the_text_comes_back(name):
    tokenizer = get_tokenizer(name)
    texts = TEXTS + random_texts(2_000) + (every_letter() if name == "gpt2" else [])
    expected = reference(tokenizer).encode_ordinary_batch(texts, num_threads=1)
    documents = tokenizer.encode_documents(texts)
    for text, ids, document in zip(texts, expected, documents, strict=True):
        assert document.dtype == np.uint16
        assert document.tolist() == [*ids, tokenizer.end_of_text], ascii(text[:50])
        assert tokenizer.decode_bytes(document[:-1]) == text.encode()
        assert tokenizer.lengths[document].sum() == len(text.encode())
    assert [tokenizer.encode(text).tolist() for text in TEXTS] == expected[: len(TEXTS)]


def test_ids_are_transformers(gpt2):
    from transformers import GPT2Tokenizer

    letters = byte_letters()
    pieces = [gpt2.decode_bytes([i]) for i in range(gpt2.end_of_text)]
    words = ["".join(letters[byte] for byte in piece) for piece in pieces]
    lines = open_asset("gpt2-merges").read("vocab.bpe").decode().split("\n")[1:-1]
    theirs = GPT2Tokenizer(
        vocab={word: i for i, word in enumerate([*words, END_OF_TEXT])},
        merges=[tuple(line.split(" ")) for line in lines],
    )
    texts = [text for text in TEXTS if END_OF_TEXT not in text]
    assert theirs(texts)["input_ids"] == [gpt2.encode(text).tolist() for text in texts]


def test_known_ids(gpt2):
    """Of OpenAI's encoder.json, and of the example in the GPT-2 documentation of transformers."""
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode(" Hello world").tolist() == [18435, 995]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50_257, 50_256)
    assert [gpt2.decode([i]) for i in (0, 187, 220, 256, 50_255)] == ["!", "�", " ", " t", " gazed"]
    assert gpt2.lengths[[0, 256, 50_255, 50_256]].tolist() == [1, 2, 6, 0]


def test_vocabularies():
    assert sorted(byte_order()) == list(range(256))
    letters = byte_letters()
    assert (letters[ord(" ")], letters[0], letters[ord("\n")]) == ("Ġ", "Ā", "Ċ")
    for name, size in {"gpt2": 50_257, "bytes": 257}.items():
        tokenizer = get_tokenizer(name)
        assert (tokenizer.vocab_size, tokenizer.end_of_text) == (size, size - 1)
        pieces = {tokenizer.decode_bytes([i]) for i in range(size)}
        assert len(pieces) == size
        assert {len(tokenizer.decode_bytes([i])) for i in range(256)} == {1}
    assert get_tokenizer("gpt2") is get_tokenizer("gpt2")
    with pytest.raises(UsageError, match="unknown tokenizer 'gpt-2'; did you mean 'gpt2'"):
        get_tokenizer("gpt-2")


def test_hand_worked_merges():
    """ "a b" before "ab c"; "bc" only where no "ab" took the b."""
    tokenizer = Tokenizer("toy", "#version: 0.2\na b\nab c\nb c\n")
    assert tokenizer.vocab_size == 260
    order = byte_order()
    a, b, c = (order.index(ord(letter)) for letter in "abc")
    assert tokenizer.encode("abc").tolist() == [257]
    assert tokenizer.encode("bcab").tolist() == [258, 256]
    assert tokenizer.encode("acb").tolist() == [a, c, b]
    assert tokenizer.decode([257, 259, 258]) == f"abc{END_OF_TEXT}bc"


def test_long_words_and_spaces_take_no_square_of_their_length(gpt2):
    for text in ("qzxv" * 250_000, " " * 1_000_000):
        assert gpt2.decode_bytes(gpt2.encode(text)) == text.encode()


def test_decoding_what_is_no_text(gpt2):
    assert gpt2.decode([]) == ""
    assert gpt2.decode(gpt2.encode("日")[:-1]) == "�"
    assert gpt2.decode([50_256, 15_496]) == f"{END_OF_TEXT}Hello"
    for wrong in (-1, 50_257):
        with pytest.raises(UsageError, match=f"token id {wrong} is not one of the 50,257 of"):
            gpt2.decode([0, wrong])


def test_what_is_no_text_is_refused(gpt2):
    with pytest.raises(UsageError, match=r"character 2 of the text is half .*\(U\+D83D\)"):
        gpt2.encode("ab\ud83d")
    with pytest.raises(UsageError, match="half a surrogate pair"):
        gpt2.encode_documents(["fine", "\udc00"])
    with pytest.raises(UsageError, match="only text can be encoded, not bytes"):
        gpt2.encode(b"ab")


def test_no_torch_and_one_thread():
    code = (
        "import os, sys; from crate.data.tokenizer import get_tokenizer as g; g('gpt2')"
        ".encode_documents(['a'] * 999); print('torch' in sys.modules, len(os.listdir("
        "'/proc/self/task')), os.environ['TOKENIZERS_PARALLELISM'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "1", "false"]
