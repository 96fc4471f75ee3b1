"""The types of data sets, and what is asked of an entry: where it lies, and whether it is there.

The entries are in `crate/data/catalogue.py`. Nothing here imports torch: planning needs sizes and
class counts only.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from crate.data.files import is_empty
from crate.errors import RunError, UsageError, unknown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """What every data set has; `ImageSet`, `TextSet` and `PairSet` add what it is a set of.

    `splits` maps train / validation / test to their number of `unit`: for real sets as published,
    used for estimates and by `crate data check`; loading does not check them.

    `form` is one of
        "class_folders"  <data_root>/<name>/<part>/<class>/<picture>, or tar shards in <part>
        "torchvision"    the folders that torchvision makes when its root is <data_root>/<name>
        "archive"        the official archives, unpacked in <data_root>/<name>
        "tokens"         <data_root>/<name>/<part>.bin with its header <part>.json
        "pairs"          <data_root>/<name>/<part>/*.tar, WebDataset shards of pictures and captions
        "embedded"       committed with the package
    """

    unit: ClassVar[str]
    decisive: ClassVar[tuple[str, ...]]  # fields that decide a run's result

    name: str
    title: str
    splits: dict[str, int]
    form: str
    source: str
    folders: dict[str, str] = dataclasses.field(default_factory=dict)  # split → part on disk
    holdout: int = 0  # taken from train for a split that has no part of its own
    subdir: str = ""  # the set's folder in data_root, if not its name; or an absolute path
    needs: tuple[str, ...] = ()  # required files and folders, besides the parts
    parts_need: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # one part's
    approximate: bool = False  # copies differ in size; the count is not enforced
    assets: tuple[str, ...] = ()  # files of crate/data/assets
    instructions: str = ""  # what a person must do before `crate data prepare`, if anything
    names_sha256: str = ""  # of the names of its files, for a set of one's own (own.py)

    @property
    def embedded(self) -> bool:
        return self.form == "embedded"

    @property
    def training_size(self) -> int:
        """Number of `unit` trained on: those of `train`, less those held out of it for the test."""
        return self.splits.get("train", 0) - (self.holdout if self.held_out("test") else 0)

    def held_out(self, split: str) -> bool:
        """Whether a split has no part of its own and is cut out of the training part."""
        return not self.embedded and split not in self.folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet(Dataset):
    """Pictures, each with a label, or with a map or the objects of what is in it.

    `mean` and `std` are of pixel values in [0, 1], by channel.
    """

    unit: ClassVar[str] = "images"
    decisive: ClassVar[tuple[str, ...]] = (
        "classes", "mean", "std", "folders", "holdout", "labels", "scenes", "names_sha256",
    )  # fmt: skip

    classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # the module of crate/data/readers that reads it:
    labels: str = ""  # pictures with labels; "": labels are the class folders
    scenes: str = ""  # pictures with maps or objects

    @property
    def reader(self) -> str:
        """The module of `crate/data/readers` that reads it; "" for `crate/data/stand_ins.py`."""
        return self.scenes or self.labels or ("" if self.embedded else self.form)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSet(Dataset):
    """Documents, cut into the tokens of one tokenizer (crate/data/tokenizer.py).

    `holdout` counts documents. `tokens` maps splits to their number of tokens, where known.
    """

    unit: ClassVar[str] = "documents"
    decisive: ClassVar[tuple[str, ...]] = ("name", "tokenizer", "folders", "holdout")

    tokenizer: str
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet(Dataset):
    """Pictures with a caption each. `mean` and `std` as an `ImageSet`'s.

    Whole shards are held out of the training part: as few as contain `holdout` pairs.
    """

    unit: ClassVar[str] = "pairs"
    decisive: ClassVar[tuple[str, ...]] = ("mean", "std", "folders", "holdout")

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def data_identity(dataset: Dataset) -> dict:
    """The fields of an entry that decide a run's result, for its canonical configuration."""
    values = {key: getattr(dataset, key) for key in dataset.decisive if getattr(dataset, key)}
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}  # as JSON
    if dataset.embedded:
        from crate.data.embedded import asset_digest

        identity["splits"] = dataset.splits
        identity["sha256"] = asset_digest(*dataset.assets)
    return identity


def home(dataset: Dataset, data_root: str | Path) -> Path:
    """The folder of a set that is not embedded, `<data_root>/<subdir or name>`."""
    return Path(data_root) / (dataset.subdir or dataset.name)


def split_part(dataset: Dataset, split: str) -> str:
    """The part on disk that a split is read from: its own, or the training part.

    Raises:
        UsageError: the set has no such split.
    """
    if split not in dataset.splits:
        raise unknown("split", split, dataset.splits, where=dataset.title)
    return dataset.folders.get(split) or dataset.folders["train"]


def odd_count(dataset: Dataset, count: int) -> str:
    """A warning if the training part is not whole (`count` is more than 1 % off), else "".

    A table gives no verdict on what was measured on such a set.
    """
    published = dataset.training_size
    if dataset.embedded or abs(count / published - 1) <= 0.01:
        return ""
    return (
        f"{count:,} training {dataset.unit}, {dataset.title} has {published:,}; see "
        f"'crate data check {dataset.name}'"
    )


def check_available(
    dataset: Dataset, data_root: str | Path, splits: Iterable[str] | None = None
) -> None:
    """Check, before anything is trained, that the files of a data set are there.

    splits: those that are read; None for all. A folder with nothing in it is not there.

    Raises:
        RunError: one line that names the first missing file and how to get it.
    """
    if dataset.embedded:
        from crate.data.embedded import verify_assets

        problems = verify_assets(*dataset.assets)
        if problems:
            raise RunError(f"{dataset.title}: {problems[0]}")
        return
    root = home(dataset, data_root)
    read = dataset.folders if splits is None else splits
    parts = list(dict.fromkeys(split_part(dataset, split) for split in read))
    needs = [*parts] if dataset.form in ("class_folders", "pairs") else []
    needs += [
        *dataset.needs,
        *(name for part in parts for name in dataset.parts_need.get(part, ())),
    ]
    if dataset.form == "tokens":
        needs += [f"{part}{end}" for part in parts for end in (".bin", ".json")]
    for path in (root / name for name in needs):
        if not path.exists():
            raise RunError(f"{dataset.title} is not at {path}: {advice(dataset, data_root)}")
        if is_empty(path):
            raise RunError(
                f"{dataset.title} is not at {path}, which is empty: {advice(dataset, data_root)}"
            )


def advice(dataset: Dataset, data_root: str | Path) -> str:
    """What a person should do if a set is missing or not whole."""
    if dataset.names_sha256:
        return f"mend it, or its entry in {dataset.source}"
    first = (
        dataset.instructions.format(home=home(dataset, data_root)) + "then "
        if dataset.instructions
        else ""
    )
    return f"{first}run 'crate data prepare {dataset.name} --data-root {data_root}'"


def require_available(
    datasets: Iterable[tuple[Dataset, Iterable[str] | None]], data_root: str | Path
) -> None:
    """Check the splits that a command reads. Raises `UsageError` listing what is missing."""
    missing = []
    for dataset, splits in datasets:
        try:
            check_available(dataset, data_root, splits)
        except RunError as error:
            missing.append(str(error))
    if missing:
        raise UsageError("; ".join(missing))


def with_sizes(dataset: Dataset) -> str:
    """The title of a data set, and in brackets how large its parts are."""
    trained = dataset.training_size
    train = [f"{trained:,} training {dataset.unit}"] if trained else []
    whole = not isinstance(dataset, ImageSet) or dataset.scenes
    test = [f"{dataset.splits['test']:,} test {dataset.unit}"] if whole or not train else []
    return f"{dataset.title} ({', '.join(train + test)})"
