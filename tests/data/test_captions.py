"""Captions as ids, against open_clip's own tokenizers; phrases and names of classes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crate.data import stand_ins
from crate.data.captioned import FASHION_MNIST_NAMES, folder_name
from crate.data.captions import (
    VOCABULARIES,
    ClipTokenizer,
    bert_vocabulary,
    caption_tokenizer,
    class_names,
    phrases,
)
from crate.data.catalogue import DATASETS
from crate.data.datasets import ImageSet
from crate.data.embedded import FASHION_MNIST_CLASSES, folder_of, topic_of
from crate.environment import open_clip_part
from crate.errors import RunError, UsageError

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
ENTRIES = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *LETTERS,
    *(".", ",", "!", "'", '"', "-", "(", ")", "$", "%", "&", "<", ">", "#"),
    *(f"##{letter}" for letter in LETTERS),
    *("photo", "of", "the", "cat", "cafe", "draw", "##ing", "中", "文"),
]
TEXTS = [
    "a photo of the cat",
    "Café NAÏVE, cats!",
    "中文 photo 日本, 한국어, عربى",
    "😀 smile 👍🏽",
    "",
    " \n\t ",
    "x" * 200,
    "drawing " * 100,
    "[SEP] [MASK] [CLS] cat <end_of_text>",
    "tab\tnew\nline\u00a0space\u200bwidth",
    "&amp;amp; &lt;b&gt; &eacute;",
    "it's $5.00 -- (50%) #1",
    "ﬁne ﬂuff Ⅷ Ｆｕｌｌ",
    "nul\x00bell\x07",
    "ÅÄÖ ß İ ı",
    "a" * 101,
    "L’été — “quoted”",
    "mojibake Ã©tÃ©",
    "\ufeffcat",
]


@pytest.fixture
def root(tmp_path) -> Path:
    """A data_root with a small vocabulary, in a folder as the model hub has it."""
    path = bert_vocabulary(tmp_path)
    path.parent.mkdir()
    path.write_text("\n".join(ENTRIES) + "\n", encoding="utf-8")
    (path.parent / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return tmp_path


# --- tokenizers -----------------------------------------------------------


@pytest.mark.parametrize("length", [32, 7])
def test_bert_is_open_clips(root, length):
    theirs = open_clip_part("tokenizer").HFTokenizer(
        str(bert_vocabulary(root).parent), context_length=length, strip_sep_token=True
    )
    ours = caption_tokenizer("bert", length, root)(TEXTS)
    assert (ours.dtype, ours.shape) == (np.int64, (len(TEXTS), length))
    assert ours.tolist() == theirs(TEXTS).tolist()


def test_bert_by_hand(root):
    tokenizer = caption_tokenizer("bert", 8, root)
    assert tokenizer.vocab_size == VOCABULARIES["bert"] == 32_000
    known = {entry: number for number, entry in enumerate(ENTRIES)}
    words = [known[x] for x in ("[CLS]", "photo", "of", "the", "cat", "##s")]
    assert tokenizer(["Photo of  THE\ncáts"]).tolist() == [[*words, 0, 0]]  # and no [SEP]
    assert tokenizer(["cat " * 30]).tolist() == [[known["[CLS]"]] + [known["cat"]] * 6 + [0]]
    assert tokenizer([]).shape == (0, 8)


def test_bert_of_training_fills_the_last_place(root):
    """CLIPA trains with [CLS] and up to 31 pieces; the place that is pooled may hold a word."""
    known = {entry: number for number, entry in enumerate(ENTRIES)}
    full, cut = (caption_tokenizer(name, 32, root) for name in ("bert_full", "bert"))
    long, short = "cat " * 40, "photo of the cats"
    assert full([long]).tolist() == [[known["[CLS]"]] + [known["cat"]] * 31]
    assert cut([long]).tolist() == [[known["[CLS]"]] + [known["cat"]] * 30 + [0]]
    assert full([short]).tolist() == cut([short]).tolist()
    exactly = "cat " * 31
    assert full([exactly]).tolist() == [[known["[CLS]"]] + [known["cat"]] * 31]


def test_clip_is_open_clips(monkeypatch):
    open_clip = open_clip_part("tokenizer")
    ours = caption_tokenizer("clip", 32, "nowhere")
    ids = ours(TEXTS)
    assert ids.dtype == np.int64
    assert ids.tolist() == open_clip.tokenize(TEXTS, 32).tolist()
    assert ours.vocab_size == VOCABULARIES["clip"] == 49_408
    assert ids.max() == 49_407
    assert ours(["a photo of a cat."])[0, :9].tolist() == [
        *(49406, 320, 1125, 539, 320, 2368, 269, 49407, 0)
    ]  # fmt: skip
    # it forgets words before they fill the memory, which changes nothing
    monkeypatch.setattr(ClipTokenizer, "CACHED", 3)
    for _ in range(2):
        assert [ours([text])[0].tolist() for text in TEXTS] == ids.tolist()
        assert len(ours.encoder.cache) < 20


def test_a_tokenizer_travels_as_its_name(root):
    for name in VOCABULARIES:
        tokenizer = caption_tokenizer(name, 9, root)
        content = pickle.dumps(tokenizer)
        assert len(content) < 1_000
        other = pickle.loads(content)
        assert other(TEXTS).tolist() == tokenizer(TEXTS).tolist()


def test_the_environments_wish_for_threads_stays(root, monkeypatch):
    for wish, left in (("true", "true"), (None, "false")):
        open_clip_part.cache_clear()
        if wish:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", wish)
        else:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM")
        caption_tokenizer("bert", 8, root)
        assert os.environ["TOKENIZERS_PARALLELISM"] == left


def test_requests_that_make_no_sense(root):
    with pytest.raises(UsageError, match="unknown tokenizer 'brt'; did you mean 'bert'"):
        caption_tokenizer("brt", 32, root)
    with pytest.raises(UsageError, match="unknown set of phrases 'opnai'; did you mean 'openai'"):
        phrases("opnai")
    with pytest.raises(RunError) as caught:
        caption_tokenizer("bert", 32, root / "elsewhere")
    assert str(caught.value) == (
        f"BERT's vocabulary is not at {root}/elsewhere/bert-base-uncased/vocab.txt: put vocab.txt "
        "of the model hub's bert-base-uncased there"
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "it has no [PAD]"),
        ("<html>404</html>", "it has no [PAD]"),
        ("\n".join(entry for entry in ENTRIES if entry != "[CLS]"), "it has no [CLS]"),
        ("\n".join(["first", *ENTRIES]), "[PAD] is not its first entry"),
        ("\n".join([*ENTRIES, "cat"]), "an entry is there twice"),
        ("\n".join([*ENTRIES, *map(str, range(10, 33_000))]), "the embedding 32,000 rows"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_what_is_no_vocabulary_is_told(root, content, told):
    path = bert_vocabulary(root)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError) as caught:
        caption_tokenizer("bert", 32, root)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_planning_imports_no_torch():
    code = "import sys, crate.data.captions, crate.data.captioned; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- zero-shot classification -----------------------------------------------------------


def test_phrases_are_open_clips():
    theirs = open_clip_part("zero_shot_metadata")
    for name, templates, count in (
        ("openai", theirs.OPENAI_IMAGENET_TEMPLATES, 80),
        ("simple", theirs.SIMPLE_IMAGENET_TEMPLATES, 7),
    ):
        ours = phrases(name)
        assert len(ours) == count
        assert [each.format("lamp") for each in ours] == [each("lamp") for each in templates]


def test_classes_have_a_name_each():
    sets = {
        *("imagenet1k", "imagenet1k_real", "cifar10", "cifar100", "pets", "handwritten_digits"),
        *("fashion_mnist_pretrain", "fashion_mnist_finetune", "fashion_mnist_tiny"),
        *stand_ins.CLIP_ART,
    }
    named = {name: class_names(DATASETS[name]) for name in sets}
    for name, names in named.items():
        assert len(names) == DATASETS[name].classes
        assert all(each == each.strip() != "" for each in names)
    for dataset in DATASETS.values():
        if isinstance(dataset, ImageSet) and dataset.name not in sets:
            with pytest.raises(UsageError, match="have no names here, only numbers"):
                class_names(dataset)
    for name, names in named.items():  # open_clip's ImageNet has two of two names
        assert len(set(names)) == len(names) - 2 * name.startswith("imagenet")
    # the first, the last and one between of ILSVRC 2012, by WordNet id
    assert [named["imagenet1k"][k] for k in (0, 207, 999)] == [
        *("tench", "Golden Retriever", "toilet paper")
    ]  # fmt: skip
    for name in ("cifar10", "cifar100", "pets"):  # all three count their classes by the alphabet
        assert list(map(str.lower, named[name])) == sorted(map(str.lower, named[name]))


def test_names_of_embedded_classes_are_in_the_order_of_the_labels():
    for name, label_of in (
        ("clip_art_topics", topic_of),
        ("clip_art_folders", folder_of),
        ("clip_art_symbols", folder_of),
    ):
        names = class_names(DATASETS[name])
        _, labels, families = stand_ins._clip_art(name)
        for label, family in zip(labels, families, strict=True):
            assert names[label] == folder_name(label_of(f"{family}.png"))
    for ours, theirs in zip(FASHION_MNIST_NAMES, FASHION_MNIST_CLASSES, strict=True):
        assert theirs.lower().split("/")[0] in ours
