"""Open the pictures of a split, or of one part on disk; none is read yet. Nothing needs torch.

Pictures   (crate/data/pictures.py) with a label each
Scenes     (crate/data/scenes.py) with maps or objects
"""

from pathlib import Path

from crate.data import splits
from crate.data.datasets import ImageSet, advice, home, split_part
from crate.data.files import Unusable
from crate.data.pictures import Pictures
from crate.data.readers import reader
from crate.data.scenes import Scenes
from crate.errors import RunError, UsageError, unknown


def read_part(dataset: ImageSet, part: str, data_root: str | Path) -> Pictures | Scenes:
    """All pictures of one part on disk (a value of `dataset.folders`).

    Raises:
        RunError: something is missing, unreadable or not of this set; nothing is read in part.
    """
    root = home(dataset, data_root)
    try:
        found = reader(dataset.reader).read(dataset, root, part)
    except Unusable as error:
        raise RunError(f"{error}; {advice(dataset, data_root)}") from None
    if isinstance(found, Pictures):
        labels = found.labels
        lowest = -1 if labels.ndim == 2 else 0  # -1 pads
        wrong = labels[(labels < lowest) | (labels >= dataset.classes)]
        if len(wrong):
            raise RunError(
                f"{root / part}: a label is {wrong[0]}, those of {dataset.title} are 0 to "
                f"{dataset.classes - 1:,}"
            )
    return found


def open_pictures(
    dataset: ImageSet, split: str, data_root: str | Path, *, held_out_for: str = "test"
) -> Pictures | Scenes:
    """The pictures of a split (train, validation, test), less what is held out of it.

    Args:
        held_out_for: the split that the run is evaluated on (see `crate/data/splits.py`).

    Raises:
        UsageError: the set has no such split. RunError: it cannot be read, or not all is there.
    """
    part = split_part(dataset, split)
    found = read_part(dataset, part, data_root)
    if split == "train" or split not in dataset.folders:
        found = found.select(splits.examples(dataset, split, len(found), held_out_for))
    if not len(found):
        where = home(dataset, data_root)
        raise RunError(f"{where}, {part}: no images for the {split} split of {dataset.title}")
    if split != "train":  # evaluated after hours of training
        empty = found.without_content()
        if empty:
            pictures = f"{len(empty):,} picture{'s' * (len(empty) > 1)}"
            raise RunError(
                f"{found.name(empty[0])}: is empty or missing, of {pictures} in the {split} split; "
                f"'crate data check {dataset.name}' names more"
            )
    return found


def open_scenes(
    dataset: ImageSet, split: str, data_root: str | Path, *, held_out_for: str = "test"
) -> Scenes:
    """The pictures of a split with their maps or objects; as `open_pictures`.

    Raises:
        UsageError: the set has no such split, or neither maps nor objects. RunError: it cannot be
            read, or not all of it is there.
    """
    if not dataset.scenes:
        raise UsageError(f"{dataset.title} has labels of whole pictures, no maps and no objects")
    if not dataset.embedded:
        return open_pictures(dataset, split, data_root, held_out_for=held_out_for)
    if split not in dataset.splits:
        raise unknown("split", split, dataset.splits, where=dataset.title)
    return read_part(dataset, split, data_root)
