"""Hold-out: which examples belong to a split that has no part of its own on disk.

Every choice is a fixed part of a fixed permutation (numpy's legacy generator never changes), so it
depends on the data set alone, not on a run's seed, its ranks or the machine.

    test         held out of the training part for good
    validation   held out only of runs that are evaluated on it (`held_out_for="validation"`):
                 published recipes train on everything

Pictures are held out one by one, pairs by whole shards, and texts by their last documents; embedded
drawings by families, so that variations of one drawing are on one side.
"""

import numpy as np

from crate.data.datasets import Dataset, PairSet
from crate.errors import RunError

SPLIT_SEED = 2024


def permutation(count: int) -> np.ndarray:
    """The fixed permutation of `count` examples: int64 (count,)."""
    return np.random.RandomState(SPLIT_SEED).permutation(count)


def cut_out(dataset: Dataset) -> list[str]:
    """The splits without a part of their own, in the order in which pictures are cut out."""
    return [
        split
        for split in ("validation", "test")
        if split in dataset.splits and dataset.held_out(split)
    ]


def withheld(dataset: Dataset, held_out_for: str) -> list[str]:
    """The splits that a run does not train on, if it is evaluated on `held_out_for`."""
    return [split for split in cut_out(dataset) if split in ("test", held_out_for)]


def examples(dataset: Dataset, split: str, count: int, held_out_for: str = "test") -> np.ndarray:
    """Which of a part's `count` pictures belong to `split`: int64, ascending.

    The part is `datasets.split_part(dataset, split)`.
    """
    if split in dataset.folders and split != "train":
        return np.arange(count)
    order = permutation(count)
    parts = {
        name: order[place * dataset.holdout : (place + 1) * dataset.holdout]
        for place, name in enumerate(cut_out(dataset))
    }
    return _chosen(dataset, split, count, parts, held_out_for)


def shards(
    dataset: PairSet, split: str, pairs: np.ndarray, held_out_for: str = "test"
) -> np.ndarray:
    """Which shards of a part belong to `split`: int64, ascending.

    A split that is cut out gets the first shards of the permutation, as few as contain
    `dataset.holdout` pairs.

    Args:
        pairs: (S,) number of pairs of each shard, in the order of their names.

    Raises:
        RunError: nothing would be left to train on.
    """
    if split in dataset.folders and split != "train":
        return np.arange(len(pairs))
    order = permutation(len(pairs))
    ends, parts, start = np.cumsum(pairs[order]), {}, 0
    for name in cut_out(dataset):
        before = ends[min(start, len(pairs)) - 1] if start else 0
        stop = int(np.searchsorted(ends, before + dataset.holdout)) + 1
        parts[name], start = order[start:stop], stop
    if start and (start > len(pairs) or ends[start - 1] == ends[-1]):
        raise RunError(
            f"has {len(pairs):,} shards with {ends[-1]:,} pairs, too few: "
            f"{' and '.join(parts)} take whole shards with {dataset.holdout:,} pairs each, and "
            "some must be left to train on"
        )
    return _chosen(dataset, split, len(pairs), parts, held_out_for)


def _chosen(
    dataset: Dataset, split: str, count: int, parts: dict[str, np.ndarray], held_out_for: str
) -> np.ndarray:
    if split != "train":
        return np.sort(parts[split])
    lost = [parts[name] for name in withheld(dataset, held_out_for)]
    return np.setdiff1d(np.arange(count), np.concatenate([[], *lost])).astype(np.int64)


def documents(
    dataset: Dataset, split: str, held_out_for: str = "test"
) -> tuple[int, int | None] | None:
    """Which documents of a part of texts belong to `split`, counted from its end.

    The test split has the last documents and the validation split those before, so that what is
    left to train on is one piece.

    Returns:
        (how many documents to leave out at the end, how many to take before those; None: all);
        or None where the split is a whole part.
    """
    if split in dataset.folders and split != "train":
        return None
    if split == "train":
        return len(withheld(dataset, held_out_for)) * dataset.holdout, None
    return cut_out(dataset)[::-1].index(split) * dataset.holdout, dataset.holdout


# --- embedded sets -----------------------------------------------------------


def by_size(count: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Split → places, ascending: the first of the permutation by `sizes`, the rest to train."""
    *parts, rest = np.split(permutation(count), np.cumsum([*sizes.values()]))
    named = zip((*sizes, "train"), (*parts, rest), strict=True)
    return {split: np.sort(part) for split, part in named}


def by_family(families: list[str], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Split → places, ascending: whole families in a fixed random order.

    Each split gets as few families as contain the examples that `sizes` asks for; the rest is
    "train".

    Args:
        families: of each example, the name of its family.
    """
    names, member = np.unique(families, return_inverse=True)
    place = permutation(len(names))[member]
    ends = np.cumsum(np.bincount(place))  # examples of the first families, in their random order
    bounds, taken = [], 0
    for size in sizes.values():
        last = np.searchsorted(ends, taken + size)
        bounds.append(last + 1)
        taken = ends[last]
    part = np.digitize(place, bounds)
    return {split: np.flatnonzero(part == k) for k, split in enumerate((*sizes, "train"))}
