"""Every data set of the suite: its name, its form, its splits and where it comes from.

Real sets live in `data_root`; embedded ones are committed with the package and stand in for real
ones at the small scales. This module imports no torch: planning needs sizes and class counts only.
"""

import dataclasses
from pathlib import Path

from crate.data.folders import class_folders, image_files
from crate.errors import RunError, UsageError, unknown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One classification data set.

    `splits` maps train / validation / test to their number of images (for real sets as published,
    used for estimates only; `crate data check` counts). `mean` and `std` are of pixel values in
    [0, 1], by channel.
    """

    name: str
    title: str
    classes: int
    splits: dict[str, int]
    form: str  # "folder": an ImageFolder tree under data_root; "embedded": in the package
    source: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    folders: dict[str, str] = dataclasses.field(default_factory=dict)  # split → subfolder
    holdout: int = 0  # images taken from train for a split that has no folder of its own
    assets: tuple[str, ...] = ()  # files of crate/data/assets
    get: str = ""  # how a person gets it

    @property
    def embedded(self) -> bool:
        return self.form == "embedded"


_FASHION = {
    "title": "Fashion-MNIST",
    "classes": 10,
    "form": "embedded",
    "source": "Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747",
    "mean": (0.2860,),
    "std": (0.3530,),
    "assets": ("fashion-mnist-train", "fashion-mnist-test"),
}
_IMAGENET_GET = (
    "download the archives from image-net.org (an account is needed) and unpack them to "
    "one folder a class"
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="imagenet1k",
            title="ImageNet-1K",
            classes=1000,
            splits={"train": 1_281_167, "validation": 10_000, "test": 50_000},
            form="folder",
            source="Russakovsky et al. 2015, ILSVRC 2012",
            folders={"train": "train", "test": "val"},
            holdout=10_000,
            get=_IMAGENET_GET,
        ),
        Dataset(
            name="imagenet21k",
            title="ImageNet-21K (winter 2021, 19,167 classes)",
            classes=19_167,
            splits={"train": 13_151_276, "validation": 51_200, "test": 51_200},
            form="folder",
            source="Deng et al. 2009; classes as in CRATE-alpha's configuration",
            folders={"train": "train"},
            holdout=51_200,
            get=_IMAGENET_GET,
        ),
        # The 60,000 training images cut into three parts that share none; one standard test set.
        Dataset(
            name="fashion_mnist_pretrain",
            splits={"train": 45_000, "validation": 5_000, "test": 10_000},
            **_FASHION,
        ),
        Dataset(
            name="fashion_mnist_finetune",
            splits={"train": 10_000, "validation": 5_000, "test": 10_000},
            **_FASHION,
        ),
        Dataset(
            name="fashion_mnist_tiny",  # the first images of each part: seconds a run, for tests
            splits={"train": 1_024, "validation": 256, "test": 512},
            **_FASHION,
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
    decisive = ("classes", "mean", "std", "folders", "holdout")
    values = {key: getattr(dataset, key) for key in decisive if getattr(dataset, key)}
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}  # as JSON
    if dataset.embedded:
        from crate.data.embedded import asset_digest

        identity["splits"] = dataset.splits
        identity["sha256"] = asset_digest(*dataset.assets)
    return identity


def split_folder(dataset: Dataset, split: str, data_root: str | Path) -> Path:
    """The folder an image-folder split is read from (`train` where it is held out of it)."""
    return Path(data_root) / dataset.name / dataset.folders.get(split, dataset.folders["train"])


def require(dataset: Dataset, data_root: str | Path) -> None:
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
    for split in dataset.folders:
        folder = split_folder(dataset, split, data_root)
        if not folder.is_dir():
            raise RunError(
                f"{dataset.title} is not at {folder}: {dataset.get}; then see "
                f"'crate data check {dataset.name} --data-root {data_root}'"
            )


def check(dataset: Dataset, data_root: str | Path) -> list[str]:
    """Lines that say what is there, class and image counts against the published ones.

    Raises:
        RunError: something is missing or the number of classes is wrong.
    """
    require(dataset, data_root)
    if dataset.embedded:
        counts = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
        return [f"{dataset.name}: embedded, complete ({dataset.classes} classes; {counts})"]
    lines = []
    for split in dataset.folders:
        folder = split_folder(dataset, split, data_root)
        classes = class_folders(folder)
        images = sum(len(image_files(folder / name)) for name in classes)
        lines.append(f"{folder}: {len(classes):,} classes, {images:,} images")
        empty = [name for name in classes if not image_files(folder / name)]
        if len(classes) != dataset.classes:
            raise RunError(
                f"{folder}: has {len(classes):,} class folders, {dataset.title} has "
                f"{dataset.classes:,}"
            )
        if empty:
            raise RunError(f"{folder}: no images in {len(empty)} class folders, first {empty[0]}")
    return lines


def usage_of(data_root: str | Path, names: set[str]) -> None:
    """Check all data sets a command needs; raises `UsageError` listing what is missing."""
    missing = []
    for name in sorted(names):
        try:
            require(get_dataset(name), data_root)
        except RunError as error:
            missing.append(str(error))
    if missing:
        raise UsageError("; ".join(missing))
