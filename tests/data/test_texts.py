"""Token files are nanoGPT's, splits share nothing, and what cannot be read is told in one line."""

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from crate.data import prepare_texts as preparing
from crate.data import texts, token_files
from crate.data.catalogue import DATASETS
from crate.data.check import check
from crate.data.datasets import TextSet, check_available, data_identity
from crate.data.prepare import prepare
from crate.data.prepare_texts import articles
from crate.data.texts import open_tokens, read_texts, speech_splits
from crate.data.token_files import adopt_tokens, header_path, read_header, write_tokens
from crate.data.tokenizer import get_tokenizer
from crate.errors import RunError, UsageError
from crate.records import lock

AGAIN = (
    "(delete it, put all files of the set into source/, or none for the hub's, "
    "and prepare it again)"
)

BYTES = get_tokenizer("bytes")
EMBEDDED = [d for d in DATASETS.values() if isinstance(d, TextSet) and d.embedded]
DOCUMENTS = [f"Document {i}: naïve 日本語\r\n" * (i % 4) for i in range(40)]  # 10 are empty

# Of bytes, with a test part of its own and a validation part held out of train.
TOY = TextSet(
    name="toy",
    title="Toy",
    splits={"train": 5, "validation": 2, "test": 1},
    form="tokens",
    source="this test",
    tokenizer="bytes",
    folders={"train": "train", "test": "val"},
    holdout=2,
)


def decoded(tokens: texts.Tokens) -> list[str]:
    """The documents again."""
    text = tokens.tokenizer.decode(tokens.ids).split("<|endoftext|>")
    assert text.pop() == ""
    assert len(text) == tokens.documents
    return text


@pytest.fixture
def toy(tmp_path):
    """The data root with the toy's token files."""
    folder = tmp_path / "toy"
    write_tokens(folder / "train.bin", ["one", "two", "3", "fo ur", "5"], BYTES, source="a test")
    write_tokens(folder / "val.bin", ["6"], BYTES, source="a test")
    return tmp_path


# --- token files -----------------------------------------------------------


def test_token_files_are_nanogpts(tmp_path):
    """Against its prepare.py, literally: encode_ordinary, the end of text, uint16 in a row."""
    import tiktoken

    gpt2 = get_tokenizer("gpt2")
    pieces = {gpt2.decode_bytes([i]): i for i in range(50_256)}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    reference = tiktoken.Encoding(
        "gpt2",
        pat_str=pattern,
        mergeable_ranks=pieces,
        special_tokens={"<|endoftext|>": 50_256},
    )
    kept = [document for document in DOCUMENTS if document]
    ids = [[*reference.encode_ordinary(text), reference.eot_token] for text in kept]
    np.concatenate(ids).astype(np.uint16).tofile(tmp_path / "theirs.bin")
    header = write_tokens(
        tmp_path / "ours.bin", iter(DOCUMENTS), gpt2, source="a test", sources=[("a.txt", 9)]
    )
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()
    assert (header["documents"], header["empty"]) == (30, 10)
    assert header["tokens"] == sum(map(len, ids))
    assert header["bytes"] == sum(len(text.encode()) for text in kept)
    assert header == read_header(tmp_path / "ours.bin", gpt2)

    adopted = adopt_tokens(tmp_path / "theirs.bin", gpt2, source="nanoGPT")
    assert adopted == header | {"empty": 0, "source": "nanoGPT", "sources": None}
    assert header["sources"] == [["a.txt", 9]]


def test_documents_are_written_as_they_come(monkeypatch):
    first = next(token_files._batches(itertools.repeat("x" * 999)))
    assert 100 < len(first) < 2_000
    assert len(next(token_files._batches(itertools.repeat("")))) < 20_000


def test_a_failure_leaves_what_was_there(toy):
    path = toy / "toy" / "train.bin"
    before = path.read_bytes(), header_path(path).read_bytes()

    def broken():
        yield from ["x" * 1_000] * 3_000
        raise RunError("the network is gone")

    with pytest.raises(RunError, match="the network is gone"):
        write_tokens(path, broken(), BYTES, source="a test")
    assert (path.read_bytes(), header_path(path).read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 4
    for documents in ([], ["", ""]):
        with pytest.raises(RunError, match=r"^a test: there is no text in it$"):
            write_tokens(path, documents, BYTES, source="a test")
    with pytest.raises(RunError, match=r"^a test: character 1 of the text is half a surrogate"):
        write_tokens(path, ["a\ud800"], BYTES, source="a test")
    assert (path.read_bytes(), header_path(path).read_bytes()) == before


def test_a_killed_write_leaves_no_old_header_on_a_new_file(toy, monkeypatch):
    path = toy / "toy" / "train.bin"

    def killed(*_):
        assert np.fromfile(path, np.uint16).tolist() == [*BYTES.encode("new"), 256]
        raise KeyboardInterrupt

    monkeypatch.setattr(token_files, "_write_header", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, ["new"], BYTES, source="a test")
    assert not header_path(path).exists()


@pytest.mark.parametrize("name", ["train.bin", "train.json"])
def test_a_folder_in_the_way_is_told_before_anything_is_tokenised(tmp_path, name):
    (tmp_path / name).mkdir()
    documents = iter(["one"])
    with pytest.raises(RunError, match=rf"/{name}: is a folder; move it away$"):
        write_tokens(tmp_path / "train.bin", documents, BYTES, source="a test")
    assert next(documents) == "one"


def test_a_document_that_needs_too_much_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_DOCUMENT", 6)
    write_tokens(tmp_path / "a.bin", ["", "6 byte", "日本"], BYTES, source="a test")
    monkeypatch.setattr(BYTES, "encode_documents", lambda _: pytest.fail("it is encoded"))
    with pytest.raises(RunError) as caught:
        write_tokens(tmp_path / "a.bin", ["", "6 byte", "日本x"], BYTES, source="a test")
    assert str(caught.value) == (
        "a test: document 3 has 7 bytes, and encoding takes 115 times as much memory; cut it into "
        "pieces of at most 6"
    )


def test_empty_documents_count_as_documents(tmp_path):
    """What is published counts them, as check does; held out are documents with text."""
    folder = tmp_path / "toy"
    header = write_tokens(folder / "train.bin", ["a", "", "b", "", "c"], BYTES, source="a test")
    write_tokens(folder / "val.bin", ["", "d"], BYTES, source="a test")
    for split, held_out_for, count, text in (
        ("train", "test", 5, "a|b|c|"),
        ("train", "validation", 3, "a|"),
        ("validation", "test", 2, "b|c|"),
        ("test", "test", 2, "d|"),
    ):
        tokens = open_tokens(TOY, split, tmp_path, held_out_for=held_out_for)
        assert tokens.documents == count
        assert BYTES.decode(tokens.ids).replace("<|endoftext|>", "|") == text
    assert open_tokens(TOY, "validation", tmp_path).sha256 == header["sha256"]
    assert open_tokens(TOY, "train", tmp_path).sha256 == header["sha256"]
    assert open_tokens(TOY, "test", tmp_path).sha256 == sha256(folder / "val.bin")
    assert open_tokens(DATASETS["moby_dick_tiny"], "test", "/nowhere").sha256 is None
    published = dataclasses.replace(TOY, splits=TOY.splits | {"test": 2}, tokens={"train": 8})
    assert check(published, tmp_path)[1] == []  # an empty one has an end of text there
    assert check(TOY, tmp_path)[1] == [f"{folder}/val.bin: 2 documents, Toy has 1 {AGAIN}"]
    write_tokens(folder / "train.bin", ["a"], BYTES, source="a test")
    assert check(TOY, tmp_path)[1][0] == f"{folder}/train.bin: 1 document, Toy has 5 {AGAIN}"


@pytest.mark.parametrize("blank", ["\n\n\n", " \t\r\n", "\u3000\x0c"])
def test_a_text_of_white_space_is_no_document(tmp_path, blank):
    path = tmp_path / "a.bin"
    with pytest.raises(RunError, match=r"^a test: there is no text in it$"):
        write_tokens(path, [blank, blank], BYTES, source="a test")
    header = write_tokens(path, [blank, "text", blank], BYTES, source="a test")
    assert (header["documents"], header["empty"], header["tokens"]) == (1, 2, 5)
    ids = [*BYTES.encode(blank.replace("\u3000", " ")), BYTES.end_of_text]
    np.array(ids * 3, np.uint16).tofile(path)  # found without a header
    with pytest.raises(RunError, match=r"a\.bin: there is no text in it$"):
        adopt_tokens(path, BYTES, source="a test")


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_held_out(toy, monkeypatch):
    def found(split: str, **options) -> list[str]:
        return decoded(open_tokens(TOY, split, toy, **options))

    for chunk in (1, 3, 1 << 22):  # ids that are searched for ends of text at once
        monkeypatch.setattr(texts, "_CHUNK", chunk)
        assert found("train") == ["one", "two", "3", "fo ur", "5"]
        assert found("train", held_out_for="validation") == ["one", "two", "3"]
        assert found("validation") == ["fo ur", "5"]
        assert found("test") == found("test", held_out_for="validation") == ["6"]
    assert TOY.training_size == 5

    # without a test part of its own, the last documents are the test's, for good
    no_test = dataclasses.replace(TOY, folders={"train": "train"})
    own = {name: decoded(open_tokens(no_test, name, toy)) for name in TOY.splits}
    assert own == {"train": ["one", "two", "3"], "validation": ["two", "3"], "test": ["fo ur", "5"]}
    assert decoded(open_tokens(no_test, "train", toy, held_out_for="validation")) == ["one"]


def test_what_cannot_be_held_out(toy):
    write_tokens(toy / "toy" / "train.bin", ["all in one"], BYTES, source="a test")
    assert decoded(open_tokens(TOY, "train", toy)) == ["all in one"]
    for split, held_out_for in (("validation", "test"), ("train", "validation")):
        with pytest.raises(RunError, match=r"train\.bin: 1 document, of which the last 2 are held"):
            open_tokens(TOY, split, toy, held_out_for=held_out_for)
    header = read_header(toy / "toy" / "train.bin", BYTES)
    header_path(toy / "toy" / "train.bin").write_text(json.dumps(header | {"documents": 9}))
    with pytest.raises(RunError, match=r"train\.bin: has fewer documents than its header says$"):
        open_tokens(TOY, "validation", toy)
    with pytest.raises(UsageError, match="Toy: unknown split 'tset'; did you mean 'test'"):
        open_tokens(TOY, "tset", toy)


def cut(path, header):
    path.write_bytes(path.read_bytes()[:-2])


def lengthened(path, header):
    path.write_bytes(path.read_bytes() * 2)


def odd(path, header):
    path.write_bytes(path.read_bytes() + b"x")


def emptied(path, header):
    path.write_bytes(b"")
    header["tokens"] = 0


def no_file(path, header):
    path.unlink()


def other_tokenizer(path, header):
    header["tokenizer"] = "gpt2"


def other_merges(path, header):
    header["tokenizer_sha256"] = "0" * 64


def other_format(path, header):
    header["format"] = "crate-tokens-9"


def no_sum(path, header):
    del header["sha256"]


def wrong_ids(path, header):
    ids = np.fromfile(path, np.uint16)
    ids[2] = 257
    ids.tofile(path)


def no_end(path, header):
    np.fromfile(path, np.uint16)[:-1].tofile(path)
    header["tokens"] -= 1


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "train.bin: is cut short: 34 bytes, its header says 36"),
        (lengthened, "train.bin: is too long: 72 bytes, its header says 36"),
        (odd, "train.bin: has 37 bytes, no whole number of ids of 2 bytes"),
        (emptied, "train.bin: is empty"),
        (no_file, "train.bin: no such file"),
        (other_tokenizer, "train.bin: has ids of the tokenizer 'gpt2', not of 'bytes'"),
        (other_merges, "train.bin: has ids of the tokenizer 'bytes' of other merges, not of"),
        (other_format, "train.json: is not a header of the format crate-tokens-1"),
        (no_sum, "train.json: is not a header of the format crate-tokens-1"),
        (wrong_ids, "train.bin: id 257 of token 2 is not one of the 257 of the tokenizer 'bytes'"),
        (no_end, "train.bin: does not end with an end of text; it is damaged"),
    ],
)
def test_damaged_token_files(toy, damage, told):
    path = toy / "toy" / "train.bin"
    header = json.loads(header_path(path).read_text())
    damage(path, header)
    header_path(path).write_text(json.dumps(header))
    with pytest.raises(RunError) as caught:
        open_tokens(TOY, "train", toy)
    line = str(caught.value)
    assert line.startswith(f"{toy}/toy/{told}")
    assert line.endswith(f"; run 'crate data prepare toy --data-root {toy}'")
    assert "\n" not in line
    wrong = check(TOY, toy)[1]
    assert wrong == [line.rpartition("; ")[0]]


def test_a_header_that_is_missing(toy):
    header_path(toy / "toy" / "val.bin").unlink()
    with pytest.raises(
        RunError, match=r"val\.bin: its header val\.json is missing or damaged; run"
    ):
        open_tokens(TOY, "test", toy)
    with pytest.raises(RunError, match=rf"^Toy is not at {toy}/toy/val\.json: run 'crate data pre"):
        check_available(TOY, toy)
    with pytest.raises(RunError, match=rf"^Toy is not at {toy}/x/toy/train\.bin: run 'crate data"):
        check(TOY, toy / "x")


def test_check_counts_and_compares_everything(toy):
    there, wrong = check(TOY, toy)
    assert wrong == []
    assert there == [
        f"{toy}/toy/train.bin: 5 documents, 18 tokens (13 bytes of text)",
        f"{toy}/toy/val.bin: 1 document, 2 tokens (1 byte of text)",
    ]
    path = toy / "toy" / "train.bin"
    ids = np.fromfile(path, np.uint16)
    ids[0] += 1  # a word like any other
    ids.tofile(path)
    more = dataclasses.replace(TOY, splits=TOY.splits | {"train": 6}, tokens={"test": 9})
    assert check(more, toy)[1] == [
        f"{path}: is not the file that its header describes (its sha256 is another)",
        f"{path}: 5 documents, Toy has 6 {AGAIN}",
        f"{toy}/toy/val.bin: 2 tokens, Toy has 9 {AGAIN}",
    ]


# --- embedded texts -----------------------------------------------------------


def test_speeches_are_all_there_and_cut_by_speech():
    names, speeches = read_texts("speeches")
    assert (len(names), len(set(speeches)), sum(len(s.encode()) for s in speeches)) == (
        233, 233, 10_761_413,
    )  # fmt: skip
    assert (names[0], names[-1]) == ("1790_george_washington_n", "2021_joseph_r_biden_d")
    assert speeches[names.index("1962_john_f_kennedy_d")].startswith("Mr. Vice President")
    places = speech_splits(len(names))
    assert {split: len(part) for split, part in places.items()} == DATASETS["speeches"].splits
    assert sorted(np.concatenate([*places.values()])) == list(range(233))
    # written down: other parts would change every result
    assert places["test"].tolist() == [0, 79, 98, 99, 184, 219]


def test_books_are_plain_text_of_their_size():
    for asset, count, size, start in (
        ("moby-dick", 33, 299_567, "CHAPTER 7. The Chapel.\n\nIn this same New Bedford there"),
        ("king-james-bible", 11, 298_352, "The Song of Solomon\n\nThe song of songs, which is"),
        ("shakespeare", 2, 224_996, "Love's Labours Lost\n\nACT I\n\nSCENE I. The king of"),
    ):
        names, documents = read_texts(asset)
        assert len(names) == len(documents) == count
        assert sum(len(document.encode()) for document in documents) == size <= 300_000
        assert documents[0].startswith(start)
        assert asset == "moby-dick" or not any(set(text) & set("*_#\\0123456789")
                                               for text in documents)  # fmt: skip


@pytest.mark.parametrize("dataset", EMBEDDED, ids=lambda dataset: dataset.name)
def test_embedded_sets_have_the_documents_the_registry_says(dataset, tmp_path):
    if not dataset.name.endswith("_tiny") and "train" in dataset.splits:
        splits = ("validation", "test")  # its training part takes seconds
    else:
        splits = tuple(dataset.splits)
    for split in splits:
        tokens = open_tokens(dataset, split, "/nowhere")
        documents = texts.embedded_documents(dataset, split)
        assert decoded(tokens) == documents
        assert len(documents) == dataset.splits[split]
        # the same from a file
        path = tmp_path / f"{split}.bin"
        write_tokens(path, documents, tokens.tokenizer, source="a test")
        assert np.array_equal(np.fromfile(path, np.uint16), tokens.ids)
        assert len(tokens.ids) == dataset.tokens[split]
    assert data_identity(dataset)["tokenizer"] == "bytes"
    with pytest.raises(UsageError, match="unknown split 'all'"):
        open_tokens(dataset, "all", "/nowhere")


def test_tiny_sets_are_cut_out_of_the_whole_ones():
    whole, tiny = DATASETS["speeches"], DATASETS["speeches_tiny"]
    sizes = {}
    for split in whole.splits:
        documents = texts.embedded_documents(tiny, split)
        assert set(documents) <= set(texts.embedded_documents(whole, split))
        sizes[split] = sum(map(len, documents))
    assert 80_000 < sizes["train"] < 130_000
    assert 15_000 < sizes["test"] < sizes["validation"] < 35_000
    (play,) = texts.embedded_documents(DATASETS["shakespeare_tiny"], "test")
    assert len(play) == 20_000
    there, wrong = check(tiny, "/nowhere")
    assert wrong == []
    assert there[0].startswith("speeches_tiny, train: embedded, 10 documents, 108,104 tokens (")
    assert prepare(tiny, "/nowhere") == ["speeches_tiny: embedded, nothing to prepare"]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"), "the test"),
        (("anything.txt",), "the anything"),
    ],
)
def test_of_a_set_of_all_parts_only_the_test_part_is_read(tmp_path, names, read):
    source = tmp_path / "ptb" / "source"
    source.mkdir(parents=True)
    for name in names:
        (source / name).write_text(f"the {name.split('.')[-2]}\n")
    prepare(DATASETS["ptb"], tmp_path)
    assert decoded(open_tokens(DATASETS["ptb"], "test", tmp_path)) == [read]


def test_another_part_is_no_test_part(tmp_path):
    source = tmp_path / "ptb" / "source"
    source.mkdir(parents=True)
    (source / "ptb.train.txt").write_text("hi there\n")
    with pytest.raises(RunError, match=r"ptb\.train\.txt: not the test part"):
        prepare(DATASETS["ptb"], tmp_path)


def test_planning_and_reading_need_no_torch():
    code = (
        "import sys; from crate.data.catalogue import DATASETS; "
        "from crate.data import check, prepare, texts; "
        "texts.open_tokens(DATASETS['moby_dick_tiny'], 'test', '');"
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- preparing -----------------------------------------------------------


def write_source(folder, name: str, rows: list, column: str = "text"):
    """A file of rows in one of the forms that `crate data prepare` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({column: rows}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    else:
        path.write_bytes("\n".join(rows).encode())
    return path


def entries(folder) -> list[str]:
    """What is in a set's folder, beside the lock that `crate data prepare` holds."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_openwebtext_is_split_as_nanogpt_splits_it(tmp_path, capsys):
    """Against `datasets` itself, as nanoGPT's prepare.py calls it: rows, order and ids."""
    import datasets

    rows = [f"row {i} " + "x" * (i % 11) for i in range(4_100)]
    home = tmp_path / "openwebtext"
    write_source(home / "source", "a.parquet", rows[:2_000])
    write_source(home / "source", "b.parquet", rows[2_000:])
    lines = prepare(DATASETS["openwebtext"], tmp_path)
    assert lines[1] == f"{home}/train.bin: 4,097 documents, OpenWebText has 8,009,762 " + AGAIN
    assert entries(home) == ["source", "train.bin", "train.json", "val.bin", "val.json"]

    parts = datasets.Dataset.from_dict({"text": rows}).train_test_split(
        test_size=0.0005, seed=2357, shuffle=True
    )
    for split, name in (("train", "train"), ("test", "test")):
        tokens = open_tokens(DATASETS["openwebtext"], split, tmp_path)
        assert decoded(tokens) == parts[name]["text"]
        assert tokens.tokenizer.name == "gpt2"
    assert open_tokens(DATASETS["openwebtext"], "test", tmp_path).documents == 3

    # done once; a file that is cut short is made again, and one without a header adopted
    before = (home / "val.bin").read_bytes()
    (home / "source" / "a.parquet").unlink()
    (home / "source" / "b.parquet").unlink()
    header = json.loads((home / "val.json").read_text())
    (home / "val.json").unlink()
    capsys.readouterr()
    assert prepare(DATASETS["openwebtext"], tmp_path) == lines
    assert (
        f"{home}/val.bin: its header val.json is missing or damaged; reading all of val.bin to "
        "write one\n"
    ) in capsys.readouterr().err
    found = json.loads((home / "val.json").read_text())
    assert found == header | {"source": "val.bin, found without a header", "sources": None}
    (home / "val.bin").write_bytes(before[:-2])
    for name in ("a", "b"):
        part = rows[:2_000] if name == "a" else rows[2_000:]
        write_source(home / "source", f"{name}.jsonl", part)
    assert prepare(DATASETS["openwebtext"], tmp_path) == lines
    assert (home / "val.bin").read_bytes() == before
    assert "val.bin: is cut short" in capsys.readouterr().err


def test_a_found_file_that_is_none_of_ours_stays(tmp_path):
    home = tmp_path / "openwebtext"
    home.mkdir()
    for content, told in (
        (
            np.array([5, 60_000, 50_256]),
            "id 60000 of token 1 is not one of the 50,257 of the token",
        ),
        (
            np.array([5, 6]),
            "does not end with an end of text, so it is not whole (uint16, little-endian, as "
            "nanoGPT's?)",
        ),
        (np.array([50_256, 50_256]), "there is no text in it"),
        (np.array([], int), "is empty"),
    ):
        content.astype(np.uint16).tofile(home / "train.bin")
        with pytest.raises(RunError) as caught:
            prepare(DATASETS["openwebtext"], tmp_path)
        assert str(caught.value).startswith(f"{home}/train.bin: {told}")
        assert str(caught.value).endswith("; move it away and run this again")
        assert entries(home) == ["train.bin"]


@pytest.mark.parametrize("damage", [b"{", b'{"format": "crate-tokens-0"}', b"\xff"])
def test_a_damaged_header_is_written_again(toy, capsys, damage):
    path = header_path(toy / "toy" / "train.bin")
    header = json.loads(path.read_text())
    path.write_bytes(damage)
    prepare(TOY, toy)
    assert "; reading all of train.bin to write one\n" in capsys.readouterr().err
    found = read_header(toy / "toy" / "train.bin", BYTES)
    assert found == header | {"source": "train.bin, found without a header", "sources": None}


def test_a_file_of_another_tokenizer_stays(tmp_path):
    path = tmp_path / "lambada" / "test.bin"
    write_source(tmp_path / "lambada" / "source", "a.txt", ["a"])
    write_tokens(path, ["another"], BYTES, source="a test")
    before = path.read_bytes(), header_path(path).read_bytes()
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["lambada"], tmp_path)
    assert str(caught.value) == (
        f"{path}: has ids of the tokenizer 'bytes', not of 'gpt2'; delete it to make it again"
    )
    assert (path.read_bytes(), header_path(path).read_bytes()) == before


def test_a_found_part_is_not_completed_with_another_split(tmp_path):
    home = tmp_path / "openwebtext"
    write_source(home / "source", "a.jsonl", ["a", "b"])
    np.array([5, 50_256], np.uint16).tofile(home / "train.bin")
    for _ in range(2):  # also once it has a header
        with pytest.raises(RunError) as caught:
            prepare(DATASETS["openwebtext"], tmp_path)
        assert str(caught.value) == (
            f"{home}/train.bin: was found without a header, and {home}/val.bin must come from the "
            "same split: put that there too, or delete the first"
        )
    np.array([6, 50_256], np.uint16).tofile(home / "val.bin")
    assert prepare(DATASETS["openwebtext"], tmp_path)[0].startswith(f"{home}/train.bin: 1 document")
    assert np.fromfile(home / "train.bin", np.uint16).tolist() == [5, 50_256]
    (home / "train.bin").unlink()
    (home / "val.bin").unlink()
    prepare(DATASETS["openwebtext"], tmp_path)
    split = [decoded(open_tokens(DATASETS["openwebtext"], s, tmp_path)) for s in ("train", "test")]
    assert sorted(split) == [["a"], ["b"]]


def test_a_folder_in_the_way_of_a_part_is_told_first(tmp_path):
    write_source(tmp_path / "openwebtext" / "source", "a.jsonl", ["a", "b"])
    (tmp_path / "openwebtext" / "train.bin").mkdir()
    with pytest.raises(RunError, match=r"/train\.bin: is a folder; move it away$"):
        prepare(DATASETS["openwebtext"], tmp_path)
    assert entries(tmp_path / "openwebtext") == ["source", "train.bin"]


@pytest.mark.parametrize("name", ["lambada", "wikitext"])  # the second's counts are about right
def test_parts_made_of_other_files_are_made_again(tmp_path, name, capsys):
    def prepared() -> tuple[str, bool]:
        prepare(DATASETS[name], tmp_path)
        again = f"{path}: was made of other files; writing it again\n" in capsys.readouterr().err
        return "|".join(decoded(open_tokens(DATASETS[name], "test", tmp_path))), again

    path, source = tmp_path / name / "test.bin", tmp_path / name / "source"
    file = write_source(source, "a.txt", ["one"])
    assert prepared() == ("one", False)
    assert read_header(path, get_tokenizer("gpt2"))["sources"] == [["a.txt", 3]]
    assert prepared() == ("one", False)
    write_source(source, "a.txt", ["another"])
    assert prepared() == ("another", True)
    file.rename(source / "b.txt")
    assert prepared() == ("another", True)
    (source / "b.txt").unlink()
    assert prepared() == ("another", False)  # what is there needs no source


def test_parts_of_the_hub_and_of_files_are_not_mixed(tmp_path, monkeypatch):
    import datasets

    def prepared() -> list[str]:
        prepare(DATASETS["openwebtext"], tmp_path)
        parts = [open_tokens(DATASETS["openwebtext"], s, tmp_path) for s in ("train", "test")]
        return sorted(text for part in parts for text in decoded(part))

    rows = datasets.Dataset.from_dict({"text": ["hub 1", "hub 2"]})
    monkeypatch.setattr(preparing, "_from_hub", lambda *_: rows)
    home = tmp_path / "openwebtext"
    source = write_source(home / "source", "a.jsonl", ["file 1", "file 2"])
    assert prepared() == ["file 1", "file 2"]
    source.unlink()
    (home / "val.bin").unlink()
    assert prepared() == ["hub 1", "hub 2"]
    write_source(home / "source", "a.jsonl", ["file 1", "file 2"])
    assert prepared() == ["file 1", "file 2"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    home = tmp_path / "lambada"
    write_source(home / "source", "a.txt", ["one"])
    (home / ".cache.unfinished" / "text").mkdir(parents=True)
    for name in (".test.bin.x1.tmp", ".test.json.y2.tmp"):
        (home / name).write_bytes(b"half")
    prepare(DATASETS["lambada"], tmp_path)
    assert entries(home) == ["source", "test.bin", "test.json"]


def test_one_process_prepares_a_set_at_a_time(tmp_path, monkeypatch):
    write_source(tmp_path / "lambada" / "source", "a.txt", ["one"])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    second = threading.Thread(target=prepare, args=(DATASETS["lambada"], tmp_path))
    with lock(tmp_path / "lambada" / ".lock"):
        second.start()
        while second.is_alive() and not sys.stderr.getvalue():
            time.sleep(0.01)
        told = f"{tmp_path}/lambada: waiting for another 'crate data prepare' (process "
        assert sys.stderr.getvalue().startswith(told)
        assert entries(tmp_path / "lambada") == ["source"]
    second.join()
    assert (tmp_path / "lambada" / "test.bin").is_file()


def test_a_cache_that_cannot_be_made(tmp_path):
    write_source(tmp_path / "lambada" / "source", "a.txt", ["one"])
    (tmp_path / "lambada" / ".cache.unfinished").write_bytes(b"")
    with pytest.raises(RunError, match=r"^[^\n]*/lambada/\.cache\.unfinished: File exists$"):
        prepare(DATASETS["lambada"], tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    import datasets

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    cache = tmp_path / "lambada" / ".cache.unfinished"

    def load(*_, cache_dir=None, **options):
        assert cache_dir in (None, str(cache))
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from full

    monkeypatch.setattr(datasets, "load_dataset", load)
    for _ in ("from the hub", "from files"):
        with pytest.raises(RunError) as caught:
            prepare(DATASETS["lambada"], tmp_path)
        assert str(caught.value) == f"{tmp_path}/lambada: No space left on device"
        write_source(tmp_path / "lambada" / "source", "a.txt", ["one"])
    assert not cache.exists()


def test_a_corpus_that_cannot_be_split(tmp_path):
    write_source(tmp_path / "openwebtext" / "source", "a.txt", ["all of\nit in one file"])
    told = r"^source/a\.txt: 1 document cannot be split into train and test$"
    with pytest.raises(RunError, match=told):
        prepare(DATASETS["openwebtext"], tmp_path)
    write_source(tmp_path / "openwebtext" / "source", "b.txt", ["another\nfile"])
    prepare(DATASETS["openwebtext"], tmp_path)
    split = [decoded(open_tokens(DATASETS["openwebtext"], s, tmp_path)) for s in ("train", "test")]
    assert sorted([*split[0], *split[1]]) == ["all of\nit in one file", "another\nfile"]


WIKI = [
    "", " = First = \n", "", " Text of it . \n", "", " = = Section = = \n", "", " More \n",
    " = not a heading = \n", " = = = Deeper = = = \n", "", "", " = Second ( 1 = 1 ) = \n", "",
    " a = b \n",
]  # fmt: skip


def test_wikitext_articles():
    first, second = articles(WIKI)
    assert first.startswith(" = First = \n\n Text of it . \n\n = = Section = = \n")
    assert " = not a heading = " in first
    assert second == " = Second ( 1 = 1 ) = \n\n a = b "
    assert list(articles(["no heading", "at all"])) == ["no heading\nat all"]
    assert list(articles([])) == list(articles(["", " \n"])) == []


@pytest.mark.parametrize("form", ["parquet", "jsonl", "txt"])
def test_the_other_sets_from_every_form(tmp_path, form):
    def prepared(name: str, rows: list[str], column: str = "text") -> list[str]:
        write_source(tmp_path / name / "source", f"x.{form}", rows, column)
        prepare(DATASETS[name], tmp_path)
        return decoded(open_tokens(DATASETS[name], "test", tmp_path))

    assert prepared("lambada", ["a passage", "än öther"]) == ["a passage", "än öther"]
    assert prepared("ptb", ["a <unk> b", "c N"], "sentence") == ["a <unk> b\nc N"]
    rows = [line.rstrip("\n") for line in WIKI] if form == "txt" else WIKI
    assert prepared("wikitext", rows) == list(articles(WIKI))
    assert check(DATASETS["lambada"], tmp_path)[1] == [
        f"{tmp_path}/lambada/test.bin: 2 documents, LAMBADA has 5,153 {AGAIN}"
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.txt", b"fine\nb\xffd\n", "/x.txt: byte 6 is not UTF-8 (line 2)"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            "/x.jsonl: byte 24 is not UTF-8 (line 2)",
        ),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text" "b"}\n',
            "/x.jsonl: line 2 is not JSON (Expecting ':'",
        ),
        ("x.jsonl", b'{"txt": "a"}\n', ": has no column 'text' (string), only 'txt' (string)"),
        ("x.jsonl", b'{"text": 3}\n', ": has no column 'text' (string), only 'text' (int64)"),
        ("x.txt", b"", "/x.txt: is empty: there is no text in it"),
        ("x.parquet", b"PAR1", "/x.parquet: is not a parquet file ("),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, told):
    folder = tmp_path / "lambada" / "source"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["lambada"], tmp_path)
    assert str(caught.value).startswith(f"{folder}{told}")
    assert "\n" not in str(caught.value)
    assert entries(folder.parent) == ["source"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "x.jsonl.gz",
            "not a .parquet, .jsonl, .json, .txt file; unpack it there, or move it away",
        ),
        ("folder/", "not a .parquet, .jsonl, .json, .txt file; unpack it there, or move it away"),
        ("folder.txt/", "cannot be read (Is a directory)"),
        ("broken.txt@", "cannot be read (No such file or directory)"),
        ("pipe.txt|", "is not a regular file; move it away"),
        ("", "cannot be read (Not a directory)"),
    ],
)
def test_odd_things_in_source(tmp_path, monkeypatch, name, told):
    monkeypatch.setattr(preparing, "_from_hub", lambda *_: pytest.fail("the hub was asked"))
    source = tmp_path / "lambada" / "source"
    odd = source / name.strip("/@|")
    if name:
        write_source(source, "z.txt", ["fine"])
    else:
        source.parent.mkdir()
    if name.endswith("/"):
        odd.mkdir()
    elif name.endswith("@"):
        odd.symlink_to("nowhere")
    elif name.endswith("|"):
        os.mkfifo(odd)
    else:
        odd.write_bytes(b"x")
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["lambada"], tmp_path)
    assert str(caught.value) == f"{odd}: {told}"


def test_hidden_files_are_ignored_and_suffixes_may_be_capitals(tmp_path, monkeypatch):
    import datasets

    source = tmp_path / "lambada" / "source"
    write_source(source, ".hidden.gz", ["x"])
    monkeypatch.setattr(
        preparing, "_from_hub", lambda *_: datasets.Dataset.from_dict({"text": ["hub"]})
    )
    for names, found in (([], ["hub"]), (["B.TXT", "a.txt"], ["B.TXT", "a.txt"])):
        for name in names:
            write_source(source, name, [name])
        prepare(DATASETS["lambada"], tmp_path)
        assert decoded(open_tokens(DATASETS["lambada"], "test", tmp_path)) == found
    for path in source.iterdir():
        path.unlink()
    (source / "X.JSONL").write_text("no JSON")
    with pytest.raises(RunError, match=r"/X\.JSONL: line 1 is not JSON"):
        prepare(DATASETS["lambada"], tmp_path)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "txt"])
def test_paths_that_look_like_patterns(tmp_path, form):
    root = tmp_path / "[a]*?"
    write_source(root / "lambada" / "source", f"x[12]*?.{form}", ["found"])
    write_source(tmp_path / "a" / "lambada" / "source", f"x1.{form}", ["another set's"])
    prepare(DATASETS["lambada"], root)
    assert decoded(open_tokens(DATASETS["lambada"], "test", root)) == ["found"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_nulls_are_empty_documents(tmp_path, form):
    source = tmp_path / "lambada" / "source"
    path = write_source(source, f"a.{form}", ["one", None, "", "two"])
    (line, odd) = prepare(DATASETS["lambada"], tmp_path)
    assert "test.bin: 2 documents, 2 empty left out, 4 tokens (6 bytes of text)" in line
    assert odd.endswith(f"test.bin: 4 documents, LAMBADA has 5,153 {AGAIN}")
    assert open_tokens(DATASETS["lambada"], "test", tmp_path).documents == 4
    write_source(source, f"a.{form}", [None, None])
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["lambada"], tmp_path)
    where = path if form == "parquet" else source
    assert str(caught.value) == (
        f"{where}: its column 'text' has only nulls: there is no text in it"
    )


def test_files_with_different_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    source = tmp_path / "lambada" / "source"
    write_source(source, "a.parquet", ["one"])
    other = pyarrow.table({"number": [2], "text": ["two"]})
    pyarrow.parquet.write_table(other, source / "b.parquet")
    prepare(DATASETS["lambada"], tmp_path)
    assert decoded(open_tokens(DATASETS["lambada"], "test", tmp_path)) == ["one", "two"]
    pyarrow.parquet.write_table(other.drop_columns("text"), source / "b.parquet")
    told = r"/b\.parquet: has no column 'text' \(string\), only 'number' \(int64\)$"
    with pytest.raises(RunError, match=told):
        prepare(DATASETS["lambada"], tmp_path)
    for path in source.iterdir():
        path.unlink()
    (source / "a.jsonl").write_text('{"text": "one"}\n')
    (source / "b.jsonl").write_text('{"number": 2, "text": "two"}\n')
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["lambada"], tmp_path)
    assert str(caught.value) == f"{source}: its files have different columns"


@pytest.mark.parametrize("name", ["lambada", "openwebtext"])  # a document a line, and a file
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    source = tmp_path / name / "source"
    for part in "ab":
        write_source(source, f"{part}.txt", [f"\ufeff{part}\ufeff"])
    prepare(DATASETS[name], tmp_path)
    parts = DATASETS[name].folders
    found = [text for s in parts for text in decoded(open_tokens(DATASETS[name], s, tmp_path))]
    assert sorted(found) == ["a\ufeff", "b\ufeff"]


def test_other_sources_that_cannot_be_read(tmp_path):
    folder = tmp_path / "lambada" / "source"
    write_source(folder, "x.parquet", ["a"], "passage")
    with pytest.raises(
        RunError, match=r"has no column 'text' \(string\), only 'passage' \(string\)"
    ):
        prepare(DATASETS["lambada"], tmp_path)
    write_source(folder, "x.jsonl", ["a"])
    with pytest.raises(RunError, match=r"source: has files of several kinds \(json, parquet\)$"):
        prepare(DATASETS["lambada"], tmp_path)


def test_the_hub(tmp_path, monkeypatch):
    """What is asked of it: the set as it is, then the parquet files that the hub makes of it."""
    import datasets

    asked = []

    def script(*words, **options):
        asked.append((words, options))
        if words[0] != "parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found x.py")
        return datasets.Dataset.from_dict({"sentence": ["a b", "c"]})

    monkeypatch.setattr(datasets, "load_dataset", script)
    prepare(DATASETS["ptb"], tmp_path)
    assert decoded(open_tokens(DATASETS["ptb"], "test", tmp_path)) == ["a b\nc"]
    header = read_header(tmp_path / "ptb" / "test.bin", get_tokenizer("gpt2"))
    assert header["source"] == "ptb-text-only/ptb_text_only"
    url = "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/test/*.parquet"
    assert asked == [
        (("ptb-text-only/ptb_text_only", None), {"split": "test"}),
        (("parquet",), {"data_files": url, "split": "train"}),
    ]

    def offline(*words, **options):
        raise ConnectionError("Couldn't reach the hub\nand more") from OSError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(RunError) as caught:
        prepare(DATASETS["wikitext"], tmp_path)
    assert str(caught.value) == (
        "WikiText-103 cannot be had from the hub (no route to host); to go without a network, put "
        f"its files (parquet, jsonl or txt) into {tmp_path}/wikitext/source and run this again"
    )
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load_dataset", lambda *_, **__: rows)
        rows = datasets.Dataset.from_dict({"page": ["a"]})
        with pytest.raises(RunError, match=r"^Salesforce/wikitext: has no column 'text'"):
            prepare(DATASETS["wikitext"], tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        RunError, match=r"WikiText-103 needs the package datasets: pip install --ed"
    ):
        prepare(DATASETS["wikitext"], tmp_path)
    assert set(preparing.HUB) == {d.name for d in DATASETS.values() if d.form == "tokens"}
