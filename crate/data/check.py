"""Compare a data set on disk with what was published (`crate data check`)."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from crate.data.captions import BERT_SHA256, bert_vocabulary, read_vocabulary
from crate.data.datasets import Dataset, ImageSet, PairSet, TextSet, advice, check_available, home
from crate.data.ilsvrc import next_step
from crate.data.listing import index_path, read_index, scan, unpacked
from crate.data.pair_shards import list_pairs, read_pair_index
from crate.data.pictures import Pictures
from crate.data.readers import reader
from crate.data.scenes import Scenes
from crate.data.sources import read_part
from crate.data.texts import open_tokens
from crate.data.token_files import map_ids, read_header
from crate.data.tokenizer import get_tokenizer
from crate.data.trouble import say
from crate.environment import import_torchvision
from crate.errors import RunError
from crate.records import file_sha256

SMALL = 1_000  # pictures of a part that are always decoded
HEADERS = 20_000  # pictures of a part whose headers are read: a minute on a network file system
PROGRESS = 50_000  # pictures between two lines of progress
NAMED = 3  # pictures that a line names


def check(
    dataset: Dataset, data_root: str | Path, *, thorough: bool = False
) -> tuple[list[str], list[str]]:
    """Count classes and images of every part, and compare files with their published md5 sums.

    Of pictures, the size of each and the headers of at most `HEADERS` are looked at; `thorough`
    decodes all of them, and maps, as those of a part of at most `SMALL` are. Of sets with objects,
    annotations are tried.
    Token files are compared with the sha256 of their headers, in full. Of shards of pairs the
    headers are read; a key that is not a pair is left out, and that is not a problem.

    Returns:
        Lines that say what is there, and lines that say what is wrong or missing.

    Raises:
        RunError: there is nothing at all, or the assets of an embedded set are damaged.
    """
    if isinstance(dataset, TextSet):
        return _texts(dataset, data_root)
    if dataset.embedded:
        check_available(dataset, data_root)
        counts = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
        classes = f"{dataset.classes} classes; " if isinstance(dataset, ImageSet) else ""
        return [f"{dataset.name}: embedded, complete ({classes}{counts})"], []
    root = home(dataset, data_root)
    if isinstance(dataset, PairSet):
        return _pairs(dataset, data_root)
    if not root.is_dir():
        check_available(dataset, data_root)
    there, wrong, classes = [], [], {}
    if dataset.names_sha256:
        there.append(_counted_set(dataset))
    for split, part in dataset.folders.items():
        where = root / part if dataset.form == "class_folders" else f"{root}, {part}"
        try:
            if dataset.scenes:
                pictures = read_part(dataset, part, data_root)
                line, unusable = _scenes(dataset, part, pictures, data_root)
                there.append(f"{where}: {line}")
                wrong += unusable
            elif dataset.labels:
                pictures = read_part(dataset, part, data_root)
                there.append(f"{where}: {len(pictures):,} images")
            else:
                step = next_step(dataset, root, part)
                wrong += [step] if step else []
                found = scan(root / part)  # the folder itself, not its index
                if step and not len(found["labels"]):
                    continue
                names, pictures = unpacked(root / part, found)
                classes[part] = [os.fsencode(name) for name in names]
                there.append(_counted(root / part, found))
                wrong += _wrong_classes(dataset, root / part, found)
            wrong += bad_pictures(where, pictures, thorough=thorough)
        except RunError as error:
            wrong.append(str(error).removesuffix(f"; {advice(dataset, data_root)}"))
            continue
        if len(pictures) != dataset.splits[split] and not dataset.approximate:
            wrong.append(
                f"{where}: {len(pictures):,} images, {dataset.title} has {dataset.splits[split]:,}"
            )
    train = set(classes.get(dataset.folders.get("train"), ()))
    for part, names in classes.items():
        odd = sorted(set(names) ^ train)
        if odd and names and train:  # WebDataset shards name no classes
            first = odd[0].decode()
            wrong.append(f"{root / part}: its classes are not those of train, first {first}")
    wrong += _other_files(dataset, root)
    return there, wrong


def _counted_set(dataset: ImageSet) -> str:
    """The classes and splits of a set of one's own, as runs use them."""
    splits = [f"{dataset.training_size:,} to train on"] if "train" in dataset.splits else []
    for split in ("validation", "test"):
        if split in dataset.splits:
            held = " held out of train" if dataset.held_out(split) else ""
            splits.append(f"{split} {dataset.splits[split]:,}{held}")
    return f"{dataset.name}: {dataset.classes:,} classes; {', '.join(splits)}"


def _texts(dataset: TextSet, data_root: str | Path) -> tuple[list[str], list[str]]:
    """Lines about what is there of a set of texts, and about what is wrong with it."""
    root = home(dataset, data_root)
    if dataset.embedded or not root.is_dir():
        check_available(dataset, data_root)
    there, wrong = [], []
    if dataset.embedded:
        for split, published in dataset.splits.items():
            found = open_tokens(dataset, split, data_root)
            text = int(found.tokenizer.lengths[found.ids].sum())
            counts = {"documents": found.documents, "tokens": len(found.ids), "bytes": text}
            there.append(f"{dataset.name}, {split}: embedded, {counts_text(counts)}")
            if found.documents != published:
                wrong.append(f"{there[-1]}; {dataset.title} has {_number(published, 'documents')}")
        return there, wrong
    tokenizer = get_tokenizer(dataset.tokenizer)
    for split, part in dataset.folders.items():
        path = root / f"{part}.bin"
        try:
            header = read_header(path, tokenizer)
            map_ids(path, header, tokenizer)
        except RunError as error:
            wrong.append(str(error))
            continue
        there.append(f"{path}: {counts_text(header)}")
        if file_sha256(path) != header.get("sha256"):
            wrong.append(
                f"{path}: is not the file that its header describes (its sha256 is another)"
            )
        wrong += odd_counts(dataset, split, path, header)
    return there, wrong


def counts_text(counts: dict) -> str:
    """The counts in the header of a token file, in words."""
    documents, empty = counts["documents"], counts.get("empty", 0)
    left_out = f", {empty:,} empty left out" if empty else ""
    return (
        f"{_number(documents, 'documents')}{left_out}, {_number(counts['tokens'], 'tokens')} "
        f"({_number(counts['bytes'], 'bytes')} of text)"
    )


def _number(count: int, units: str) -> str:
    return f"{count:,} {units.removesuffix('s') if count == 1 else units}"


def odd_counts(dataset: TextSet, split: str, path: Path, header: dict) -> list[str]:
    """Lines about numbers of documents or tokens that differ from the published ones."""
    empty = header.get("empty", 0)  # elsewhere each of them is an end of text
    documents = None if dataset.approximate else dataset.splits[split]
    published = {"documents": documents, "tokens": dataset.tokens.get(split)}
    return [
        f"{path}: {_number(header[unit] + empty, unit)}, {dataset.title} has {count:,} (delete it, "
        "put all files of the set into source/, or none for the hub's, and prepare it again)"
        for unit, count in published.items()
        if count is not None and header[unit] + empty != count
    ]


def _scenes(
    dataset: ImageSet, part: str, scenes: Scenes, data_root: str | Path
) -> tuple[str, list[str]]:
    """A line that counts what a part has, and lines about what of it is unusable."""
    line, wrong = f"{len(scenes):,} images", list(scenes.problems)
    if scenes.has_maps:
        line += ", each with its map"
    if scenes.has_objects:
        objects = scenes.objects()
        categories = len(objects["categories"])
        line += f", {len(objects['annotations']):,} objects of {categories:,} categories"
        if categories != dataset.classes:
            where = home(dataset, data_root)
            wrong.append(
                f"{where}, {part}: {categories:,} categories, {dataset.title} has "
                f"{dataset.classes:,}"
            )
    return line, wrong


def _pairs(dataset: PairSet, data_root: str | Path) -> tuple[list[str], list[str]]:
    """Lines about what is there of a set of pairs, and about what is wrong or missing."""
    check_available(dataset, data_root)
    there, wrong = [], []
    for part in dataset.folders.values():
        folder = home(dataset, data_root) / part
        state = _index_state(folder, read_pair_index)
        try:
            shards = list_pairs(folder)
        except RunError as error:
            wrong.append(str(error))
            continue
        there.append(f"{folder}: {len(shards.names):,} shards, {len(shards):,} pairs; {state}")
        there += [f"{folder}: {line}, left out" for line in shards.left_out()]
        wrong += [f"{folder}: {line}" for line in shards.broken()]
    vocabulary = bert_vocabulary(data_root)
    try:
        read_vocabulary(vocabulary)
    except RunError as error:
        wrong.append(str(error))
    else:
        there.append(f"{vocabulary}: BERT's vocabulary")
        if file_sha256(vocabulary) != BERT_SHA256:
            wrong.append(f"{vocabulary}: is not the published file (its sha256 is another)")
    return there, wrong


def _kind(found: dict[str, np.ndarray]) -> str:
    if "shards" not in found:
        return "class folders"
    return "class tars" if len(found["classes"]) else "labels"  # WebDataset names no classes


def _counted(folder: Path, found: dict[str, np.ndarray]) -> str:
    classes = len(found["classes"]) or len(np.unique(found["labels"]))
    index = _index_state(folder, read_index)
    return f"{folder}: {classes:,} {_kind(found)}, {len(found['labels']):,} images; {index}"


def _index_state(folder: Path, read: Callable[[Path], dict]) -> str:
    if not index_path(folder).is_file():
        return "no index"
    try:
        read(folder)
    except RunError as error:
        return f"the index {str(error).partition(': ')[2]}"
    return "indexed"


def _wrong_classes(dataset: ImageSet, folder: Path, found: dict[str, np.ndarray]) -> list[str]:
    labels, names = found["labels"], found["classes"]
    classes = len(names) or len(np.unique(labels))
    if not len(labels):
        return [f"{folder}: no images in its {classes:,} {_kind(found)}"]
    wrong = []
    if classes != dataset.classes:
        wrong.append(
            f"{folder}: has {classes:,} {_kind(found)}, {dataset.title} has {dataset.classes:,}"
        )
    elif labels.max() >= dataset.classes:
        wrong.append(f"{folder}: a label is {labels.max()}, the last is {dataset.classes - 1:,}")
    empty = np.setdiff1d(np.arange(len(names)), labels)
    if len(empty):
        first = names[empty[0]].decode()
        wrong.append(f"{folder}: no images in {len(empty):,} of its classes, first {first}")
    return wrong


def bad_pictures(where: str | Path, pictures: Pictures | Scenes, *, thorough: bool) -> list[str]:
    """A line about pictures that cannot be read: how many there are, and what is wrong with some.

    The sizes of all are looked at, and the headers of some. `thorough` decodes all, and maps; a
    small part is always looked at so.
    """
    count = len(pictures)
    thorough = thorough or count <= SMALL
    looked = range(count) if thorough else evenly(count, HEADERS)
    bad = dict.fromkeys(pictures.without_content(), "")
    for number, index in enumerate(looked, 1):
        if index in bad:
            continue
        try:
            if thorough:
                pictures.decode(index)
            else:
                pictures.look(index)
        except RunError as error:
            bad[index] = str(error)
        if number % PROGRESS == 0:
            say(f"{where}: looked at {number:,} of {len(looked):,} pictures")
    if not bad:
        return []
    first = [
        bad[index] or f"{pictures.name(index)}: is empty or missing"
        for index in sorted(bad)[:NAMED]
    ]
    number = f"{len(bad):,} picture{'s' * (len(bad) > 1)}"
    more = "; …" if len(bad) > NAMED else ""
    return [f"{where}: {number} of {count:,} cannot be read: {'; '.join(first)}{more}"]


def evenly(count: int, wanted: int) -> list[int]:
    """min(wanted, count) evenly spaced indices below `count`."""
    chosen = min(wanted, count)
    return [number * count // chosen for number in range(chosen)]


def published_files(dataset: ImageSet) -> dict[str, str]:
    """Files of the unpacked set whose md5 is known, relative to the set's folder."""
    module = reader(dataset.reader)
    return module.checksums() if hasattr(module, "checksums") else {}


def _other_files(dataset: ImageSet, root: Path) -> list[str]:
    """Files that are there, but not those published."""
    published = published_files(dataset)
    if not published:
        return []
    import_torchvision()
    from torchvision.datasets.utils import check_integrity

    return [
        f"{root / name}: is not the published file (its md5 is another)"
        for name, md5 in published.items()
        if (root / name).is_file() and not check_integrity(root / name, md5)
    ]
