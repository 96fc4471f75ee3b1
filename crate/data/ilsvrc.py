"""ImageNet's parts between archive and class folders: the state they are in, and the next step.

Archives are unpacked by torchvision, in a folder of another name, so that a part is whole or not
there at all. Pictures without class folders are sorted where a list, or their names, say the class.
"""

import re
import shutil
from pathlib import Path

from crate.data.datasets import ImageSet
from crate.data.files import IMAGE_SUFFIXES, class_folders, file_names, is_empty, shard_files
from crate.data.trouble import in_own_words, say
from crate.environment import import_torchvision
from crate.errors import RunError, reason_of

NAME = "imagenet1k"  # the folder whose archives are known
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LIST = "meta.bin"  # what torchvision makes of the devkit
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
OF_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
OF_TRAIN = re.compile(r"(n\d{8})_\w+\.\w+")  # the class, and the picture's number in it
SHOWS_CLASSES = "it says which class each picture is of"


def next_step(dataset: ImageSet, root: Path, part: str) -> str:
    """What is unfinished about a part of a set of class folders, and what to do; "" if nothing."""
    folder, again = root / part, f"run 'crate data prepare {dataset.name}'"
    if not folder.is_dir() or is_empty(folder):
        archive = root / ARCHIVES.get(part, "") if root.name == NAME else root
        return f"{archive}: is not unpacked yet; {again}" if archive.is_file() else ""
    classes, shards, flat = class_folders(folder), shard_files(folder), _flat(folder)
    if flat:
        what = f"{folder}: has {len(flat):,} pictures outside class folders"
        if _sortable(root, flat):
            return f"{what}; {again}, which sorts them"
        if all(map(OF_VAL.fullmatch, flat)):
            return f"{what}; put {DEVKIT} into {root} ({SHOWS_CLASSES}) and {again}"
        return f"{what}, and their names do not say their class; put them into class folders"
    misplaced = [name for name in shards if name in ARCHIVES.values()]
    if misplaced:
        return f"{folder / misplaced[0]}: is the whole archive; move it to {root} and {again}"
    if classes and shards:
        return (
            f"{folder}: has class folders and tars, first {shards[0]}; unpack the tars into class "
            "folders and move them away"
        )
    if len(classes) == 1 and class_folders(folder / classes[0]):
        return f"{folder / classes[0]}: has the class folders; move them one level up, to {folder}"
    if classes and not any(_has_picture(folder / name) for name in classes):
        archive = root / ARCHIVES.get(part, "-")
        first = "" if archive.is_file() else f"put the pictures' archive into {root}, "
        return f"{folder}: no pictures in its class folders; {first}delete {folder} and {again}"
    return ""


def _flat(folder: Path) -> list[str]:
    """Names of the pictures that stand directly in a part."""
    names = [name for name in file_names(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(name for name in names if (folder / name).is_file())


def _sortable(root: Path, flat: list[str]) -> bool:
    """Whether the classes of pictures are known, by their names or the official list."""
    listed = (root / LIST).is_file() or (root / DEVKIT).is_file()
    of_val = all(map(OF_VAL.fullmatch, flat)) and root.name == NAME and listed
    return of_val or all(map(OF_TRAIN.fullmatch, flat))


def _has_picture(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def sort_flat(dataset: ImageSet, root: Path, part: str) -> None:
    """Move pictures that stand directly in a part into their class folders.

    One at a time, so that a run that is stopped is continued by the next.

    Raises:
        RunError: their classes are not known; nothing is moved.
    """
    folder = root / part
    flat = _flat(folder) if folder.is_dir() else []
    if not flat:
        return
    if not _sortable(root, flat):
        raise RunError(next_step(dataset, root, part))
    if OF_TRAIN.fullmatch(flat[0]):
        classes = [OF_TRAIN.fullmatch(name)[1] for name in flat]
    else:
        listed = _validation_classes(root)
        numbers = [int(OF_VAL.fullmatch(name)[1]) for name in flat]
        if not 1 <= min(numbers) <= max(numbers) <= len(listed):
            raise RunError(
                f"{folder}: has a picture {max(numbers)}; {DEVKIT} lists {len(listed):,}"
            )
        classes = [listed[number - 1] for number in numbers]
    say(f"sorting the {len(flat):,} pictures of {folder} into class folders")
    for name, wnid in zip(flat, classes, strict=True):
        try:
            (folder / wnid).mkdir(exist_ok=True)
            (folder / name).rename(folder / wnid / name)
        except OSError as error:
            raise RunError(f"{folder / name}: cannot be moved ({reason_of(error)})") from None


def _validation_classes(root: Path) -> list[str]:
    """The class of each validation picture, from the devkit.

    Raises:
        RunError: the devkit is missing or damaged.
    """
    import_torchvision()
    from torchvision.datasets import imagenet

    if not (root / LIST).is_file():
        if not (root / DEVKIT).is_file():
            raise RunError(f"{root / DEVKIT}: is missing, and {SHOWS_CLASSES}; put it there")
        with in_own_words(root / DEVKIT):
            imagenet.parse_devkit_archive(root)
    with in_own_words(root / LIST):
        return list(imagenet.load_meta_file(root)[1])


def unpack(root: Path, part: str) -> None:
    """Unpack the archive of a part to one folder a class, if only the archive is there."""
    archive, folder = root / ARCHIVES.get(part, "-"), root / part
    if not archive.is_file() or (folder.is_dir() and not is_empty(folder)):
        return
    import_torchvision()
    from torchvision.datasets import imagenet

    unfinished = root / f".{part}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    if part == "val":
        _validation_classes(root)  # first: what is wrong with the devkit is not the archive's fault
    with in_own_words(archive):
        say(f"unpacking {archive} (its md5 is compared first)")
        if part == "val":
            imagenet.parse_val_archive(root, folder=unfinished.name)
        else:
            imagenet.parse_train_archive(root, folder=unfinished.name)
        shutil.rmtree(folder, ignore_errors=True)  # it was empty
        unfinished.rename(folder)
