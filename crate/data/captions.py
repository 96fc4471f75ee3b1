"""Captions as token ids, and the phrases and class names for zero-shot classification.

    bert       CLIPA's: BERT's uncased WordPiece (Devlin et al. 2019), from a file of the model hub,
               as open_clip has it for the released models: the last place holds no piece
    bert_full  the same, as CLIPA's training has it: the last place may hold a piece
    clip       CLIP's byte-pair encoding (Radford et al. 2021), which open_clip has with it

Cleaning, CLIP's tokenizer, phrases and ImageNet's names are open_clip's. Nothing here imports torch
before a tokenizer is made.
"""

import os
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from crate.data.captioned import FASHION_MNIST_NAMES, folder_name
from crate.data.datasets import ImageSet
from crate.data.embedded import open_clip_art
from crate.data.stand_ins import CLIP_ART, clip_art_classes
from crate.environment import open_clip_part
from crate.errors import RunError, UsageError, unknown
from crate.registry import Registry

# Tokenizer → rows of the embedding that its ids need: CLIPA's BERT vocabulary, which has 30,522
# entries in an embedding of 32,000; CLIP's byte-pair encoding.
VOCABULARIES = {"bert": 32_000, "bert_full": 32_000, "clip": 49_408}

# The published vocab.txt of bert-base-uncased, one entry a line.
BERT_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

# Sets of zero-shot phrases: CLIP's 80, and the 7 that its authors found best.
PHRASES = ("openai", "simple")


# --- tokenizers -----------------------------------------------------------


def caption_tokenizer(name: str, context_length: int, data_root: str | Path) -> "CaptionTokenizer":
    """The tokenizer called `name`: called with n texts, it gives ids int64 (n, context_length).

    Raises:
        UsageError: no tokenizer has this name, or open_clip is not installed.
        RunError: its vocabulary is not below `data_root`, or is damaged.
    """
    return TOKENIZERS[name](name, context_length, data_root)


class CaptionTokenizer:
    """What both have: ids are padded with 0, and cut to `context_length`.

    Attributes:
        vocab_size: rows of the embedding, as in `VOCABULARIES`.
    """

    def __init__(self, name: str, context_length: int, data_root: str | Path):
        self._made_of = (name, context_length, data_root)
        self.context_length, self.vocab_size = context_length, VOCABULARIES[name]

    def __reduce__(self) -> tuple:
        """Travels to loader processes as its name."""
        return caption_tokenizer, self._made_of

    def __call__(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError


class ClipTokenizer(CaptionTokenizer):
    """Start of text, pieces, end of text (the last id; where a text is cut, it is the last)."""

    CACHED = 500_000  # words; it would remember every one it has ever met

    def __init__(self, name: str, context_length: int, data_root: str | Path):
        super().__init__(name, context_length, data_root)
        self.encoder = _open_clip("tokenizer").SimpleTokenizer(context_length=context_length)

    def __call__(self, texts: list[str]) -> np.ndarray:
        if len(self.encoder.cache) > self.CACHED:
            self.encoder.cache = {token: token for token in ("<start_of_text>", "<end_of_text>")}
        return self.encoder(list(texts)).numpy()


class BertTokenizer(CaptionTokenizer):
    """[CLS], then pieces of words; no [SEP], as CLIPA has it (open_clip's `strip_sep_token`).

    open_clip cuts a text before it takes [SEP] away, so the last place, which is pooled, is empty.
    """

    MORE = 0  # pieces more than open_clip keeps

    def __init__(self, name: str, context_length: int, data_root: str | Path):
        super().__init__(name, context_length, data_root)
        self.clean = _open_clip("tokenizer").get_clean_fn("whitespace")
        vocabulary = read_vocabulary(bert_vocabulary(data_root))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else as many threads as cores
        from tokenizers import BertWordPieceTokenizer

        self.separator = vocabulary["[SEP]"]
        self.encoder = BertWordPieceTokenizer(vocabulary, lowercase=True)
        self.encoder.enable_truncation(context_length + self.MORE)
        self.encoder.enable_padding(length=context_length + self.MORE, pad_id=vocabulary["[PAD]"])

    def __call__(self, texts: list[str]) -> np.ndarray:
        found = self.encoder.encode_batch([self.clean(text) for text in texts])
        ids = np.array([text.ids for text in found], np.int64)
        ids = ids.reshape(-1, self.context_length + self.MORE)[:, : self.context_length]
        return np.where(ids == self.separator, 0, ids)


class FullBertTokenizer(BertTokenizer):
    """As CLIPA's training has it: [CLS] and up to `context_length` - 1 pieces."""

    MORE = 1


TOKENIZERS = Registry(
    "tokenizer",
    {"bert": BertTokenizer, "bert_full": FullBertTokenizer, "clip": ClipTokenizer},
)


def bert_vocabulary(data_root: str | Path) -> Path:
    """The path of BERT's vocabulary."""
    return Path(data_root) / "bert-base-uncased" / "vocab.txt"


def read_vocabulary(path: Path) -> dict[str, int]:
    """Entry → id. Raises `RunError` if the file is missing or not the vocabulary of BERT."""
    try:
        entries = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise RunError(
            f"BERT's vocabulary is not at {path}: put vocab.txt of the model hub's "
            "bert-base-uncased there"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RunError(f"{path}: cannot be read ({reason})") from None
    vocabulary, most = {entry: i for i, entry in enumerate(entries)}, VOCABULARIES["bert"]
    lacks = [entry for entry in BERT_SPECIAL if entry not in vocabulary]
    if lacks:
        problem = f"it has no {lacks[0]}"
    elif vocabulary["[PAD]"] != 0:
        problem = "[PAD] is not its first entry"
    elif len(vocabulary) != len(entries):
        problem = "an entry is there twice"
    elif len(entries) > most:
        problem = f"it has {len(entries):,} entries, the embedding {most:,} rows"
    else:
        return vocabulary
    raise RunError(f"{path}: is not the vocabulary of bert-base-uncased ({problem})")


def _open_clip(name: str) -> ModuleType:
    """A module of open_clip, without its change of the environment."""
    setting = os.environ.get("TOKENIZERS_PARALLELISM")
    module = open_clip_part(name)
    if setting is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = setting
    return module


# --- zero-shot classification -----------------------------------------------------------


def phrases(name: str) -> list[str]:
    """Phrases with "{}" for the name of a class. Raises `UsageError` with the nearest name."""
    if name not in PHRASES:
        raise unknown("set of phrases", name, PHRASES)
    known = _open_clip("zero_shot_metadata")
    openai, simple = known.OPENAI_IMAGENET_TEMPLATES, known.SIMPLE_IMAGENET_TEMPLATES
    return [phrase("{}") for phrase in (openai if name == "openai" else simple)]


def class_names(dataset: ImageSet) -> list[str]:
    """The names of the classes of a set, in the order of its labels.

    ImageNet's as open_clip has them, in the order of the WordNet ids; CIFAR's and Pets' as
    published, in words.

    Raises:
        UsageError: its classes have no names here.
    """
    if dataset.name in ("imagenet1k", "imagenet1k_real"):
        return list(_open_clip("zero_shot_metadata").IMAGENET_CLASSNAMES)
    if dataset.name.startswith("fashion_mnist"):
        return list(FASHION_MNIST_NAMES)
    if dataset.name in CLIP_ART:
        return [folder_name(label) for label in _clip_art_labels(dataset.name)]
    if dataset.name not in CLASS_NAMES:
        raise UsageError(f"the classes of {dataset.title} have no names here, only numbers")
    return CLASS_NAMES[dataset.name].split(", ")


@cache
def _clip_art_labels(name: str) -> tuple[str, ...]:
    return tuple(clip_art_classes(name, open_clip_art(32)[1]))


CLASS_NAMES = {
    "handwritten_digits": "digit zero, digit one, digit two, digit three, digit four, digit five, "
    "digit six, digit seven, digit eight, digit nine",
    "cifar10": "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
    "cifar100": "apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, "
    "bowl, boy, bridge, bus, butterfly, camel, can, castle, caterpillar, cattle, chair, "
    "chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup, dinosaur, dolphin, "
    "elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, "
    "leopard, lion, lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, "
    "oak tree, orange, orchid, otter, palm tree, pear, pickup truck, pine tree, plain, plate, "
    "poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, "
    "skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet pepper, "
    "table, tank, telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, "
    "whale, willow tree, wolf, woman, worm",
    "pets": "Abyssinian, American bulldog, American pit bull terrier, basset hound, beagle, "
    "Bengal, Birman, Bombay, boxer, British Shorthair, chihuahua, Egyptian Mau, "
    "English cocker spaniel, English setter, German shorthaired, Great Pyrenees, Havanese, "
    "Japanese Chin, keeshond, Leonberger, Maine Coon, miniature pinscher, Newfoundland, Persian, "
    "Pomeranian, pug, Ragdoll, Russian Blue, Saint Bernard, Samoyed, Scottish terrier, "
    "Shiba Inu, Siamese, Sphynx, Staffordshire bull terrier, wheaten terrier, Yorkshire terrier",
}
