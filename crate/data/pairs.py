"""Pictures with captions as batches of tensors.

    pixels (B, C, S, S) uint8; ids (B, T) int64, what a tokenizer makes of the captions

Embedded pairs live in memory. Real ones are read from shards (`pair_shards`), in an order that is
the same for any number of ranks and workers and from wherever training goes on: shards are shuffled
and taken in groups, the pairs of a group are shuffled. No two groups are in memory for it.

What is no pair is skipped and counted, and training goes on: keys without a picture or a caption
are in no order at all; an empty or garbled caption, a picture that cannot be decoded or is too
large, a member that cannot be read are found when they are due, and another pair of the same group
comes in their place, always the same one. Only so a pair may be seen twice in an epoch.
"""

import codecs
import collections
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from crate.data.captioned import captioned
from crate.data.catalogue import PairSet, advice, home, split_part
from crate.data.images import (
    SPLIT_SEED,
    MemoryImages,
    centre_view,
    load_batches,
    resized,
    training_view,
)
from crate.data.pair_shards import PairShards, Shard, list_pairs
from crate.errors import RunError, unknown
from crate.runtime import Runtime, generator_for, seed_for
from crate.tasks.contrastive.recipe import Contrastive

Encode = Callable[[list[str]], np.ndarray]  # captions → ids int64 (n, T)

GROUP = 25  # shards shuffled together: 250,000 pairs, as many as the official shuffle buffer
OPEN = 64  # shards a process keeps open: those of two groups, and some
TRIES = 100  # unusable pairs in a row
CAPTION_BYTES = 8_192  # of longer captions the beginning does
LONGEST = 500  # sides to one another; a longer line would take gigabytes when it is scaled
TOLD = 3  # unusable pairs of a kind that get a line each


def open_pairs(
    dataset: PairSet,
    split: str,
    *,
    size: int,
    encode: Encode,
    runtime: Runtime,
    data_root: str | Path,
    held_out_for: str = "test",
    bad_pairs: float = 0.1,
) -> "Pairs":
    """Open a split (train, validation, test) with pictures of `size` pixels.

    What is held out of a training part is whole shards: the first of a fixed permutation, as few as
    have `dataset.holdout` pairs. The validation part is trained on unless a run is judged on it
    (`spare`), as `images.open_split` has it.

    Args:
        bad_pairs: share of unusable pairs, of those read so far, that is borne.

    Raises:
        UsageError: the set has no such split.
        RunError: it cannot be read, is too small to hold anything out, or more of it is unusable.
    """
    if dataset.embedded:
        return _embedded_pairs(dataset, split, size=size, encode=encode, runtime=runtime)
    root = home(dataset, data_root) / split_part(dataset, split)
    try:
        shards = list_pairs(root)
    except RunError as error:
        raise RunError(f"{error}; {advice(dataset, data_root)}") from None
    if split not in dataset.folders or split == "train":
        parts = held_out(shards.pairs, dataset, root)
        if split == "train":
            others = [parts[name] for name in {"test", held_out_for} & set(parts)]
            chosen = np.setdiff1d(np.arange(len(shards.names)), np.concatenate([[], *others]))
        else:
            chosen = np.sort(parts[split])
        shards = shards.select(chosen.astype(np.int64))
    if runtime.main:
        for line in (*shards.broken(), *shards.left_out()):
            print(f"warning: {root}, {split}: {line}", file=sys.stderr, flush=True)
    return ShardedPairs(shards, size=size, encode=encode, runtime=runtime, bad_pairs=bad_pairs)


def held_out(pairs: np.ndarray, dataset: PairSet, root: Path) -> dict[str, np.ndarray]:
    """Split without a part of its own → its shards. Raises `RunError` where none is left to train.

    pairs: (S,) of each shard, in the order of their names.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(len(pairs))
    ends, parts, start = np.cumsum(pairs[order]), {}, 0
    for name in ("validation", "test"):
        if name not in dataset.folders:
            before = ends[min(start, len(pairs)) - 1] if start else 0
            stop = int(np.searchsorted(ends, before + dataset.holdout)) + 1
            parts[name], start = order[start:stop], stop
    if start and (start > len(pairs) or ends[start - 1] == ends[-1]):
        raise RunError(
            f"{root}: has {len(pairs):,} shards with {ends[-1]:,} pairs, too few: "
            f"{' and '.join(parts)} take whole shards with {dataset.holdout:,} pairs each, and "
            "some must be left to train on"
        )
    return parts


# --- embedded -----------------------------------------------------------


class MemoryPairs(MemoryImages):
    """An embedded split: as `MemoryImages`, with ids (N, T) in place of labels."""

    bad = 0


def _embedded_pairs(
    dataset: PairSet, split: str, *, size: int, encode: Encode, runtime: Runtime
) -> MemoryPairs:
    """Colour and grey together: three channels, all scaled to `size`."""
    if split not in dataset.splits:
        raise unknown("split", split, dataset.splits, where=dataset.title)
    parts = captioned(split, dataset.splits[split])
    scaled = [resized(torch.from_numpy(np.ascontiguousarray(part)), size) for part, _ in parts]
    pixels = torch.cat([part.expand(-1, 3, -1, -1) for part in scaled])
    captions, which = np.unique([text for _, texts in parts for text in texts], return_inverse=True)
    ids = torch.from_numpy(encode(captions.tolist()))[torch.from_numpy(which)]
    return MemoryPairs(pixels, ids, size=size, runtime=runtime)


# --- shards -----------------------------------------------------------

Slot = tuple[int, int, int, int]  # shard, which pair of it; epoch, group (ALL: of all shards)
ALL = -1


class ShardedPairs:
    """One split of pairs that are read as they are needed, in loader processes."""

    def __init__(
        self,
        shards: PairShards,
        *,
        size: int,
        encode: Encode,
        runtime: Runtime,
        bad_pairs: float = 1.0,
    ):
        self.shards, self.size, self.encode, self.runtime = shards, size, encode, runtime
        self.bad_pairs = bad_pairs
        self.left_out = int(shards.bad.sum())  # by what headers tell
        self._met: set[tuple[int, int]] = set()  # unusable pairs that this process read
        self._kinds: collections.Counter[str] = collections.Counter()  # of those
        self._looked_at = self._unusable = 0  # repetitions counted
        self._refuse(least=0)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def bad(self) -> int:
        """Pairs skipped so far by this process; those that headers tell count with rank 0."""
        return len(self._met) + (self.left_out if self.runtime.main else 0)

    def training(
        self, recipe: Contrastive, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`(pixels, ids)` of this rank's part of updates `first` to `last` - 1.

        What does not fill a batch at the end of an epoch is left out.

        Raises:
            RunError: more pairs cannot be used than are borne.
        """
        order = Order(self.shards.pairs, seed)
        per_epoch = len(self) // recipe.batch_size
        mine = self.runtime.shard(torch.arange(recipe.batch_size)).numpy()

        def batches() -> Iterator[list[Slot]]:
            for index in range(first, last):
                epoch, update = divmod(index, per_epoch)
                yield order.slots(epoch, update * recipe.batch_size + mine)

        return self._load(_TrainingReader(self, order, recipe), batches(), recipe)

    def evaluation(
        self, recipe: Contrastive, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's pairs in order, whole and unchanged; others for those that are unusable."""
        order = Order(self.shards.pairs, 0)
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        batches = (
            order.in_order(np.array(mine[start : start + batch_size]))
            for start in range(0, len(mine), batch_size)
        )
        return self._load(_EvaluationReader(self, order, recipe), batches, recipe)

    def _load(self, reader: "_PairReader", batches: Iterator, recipe: Contrastive) -> Iterator:
        given = {"recipe": recipe, "runtime": self.runtime}
        for pixels, ids, notes in load_batches(reader, batches, reader.collate, **given):
            for note in notes:
                self._count(*note)
            self._looked_at += len(pixels) + len(notes)
            self._refuse(least=min(recipe.batch_size, len(self)))
            yield pixels, ids

    def _count(self, kind: str, shard: int, which: int, told: str) -> None:
        """One more unusable pair; the first of a kind are told."""
        self._unusable += 1
        if (shard, which) in self._met:
            return
        self._met.add((shard, which))
        self._kinds[kind] += 1
        number = self._kinds[kind]
        if number <= TOLD:
            print(f"warning: {told}; another pair comes instead", file=sys.stderr, flush=True)
        elif number in (10, 100, 1_000, 10_000, 100_000):
            print(f"warning: {number:,} {kind} so far", file=sys.stderr, flush=True)

    def _refuse(self, least: int) -> None:
        """Raise `RunError` where too many pairs are unusable, of at least `least` looked at.

        What headers tell counts too: to the pairs looked at belong as many as to all of the split.
        """
        looked_at, known = self._looked_at, self.left_out / len(self)
        share = (self._unusable / max(1, looked_at) + known) / (1 + known)
        if looked_at < least or share <= self.bad_pairs:
            return
        why = self.shards.left_out()
        if self._unusable:
            met = ", ".join(f"{count:,} {kind}" for kind, count in self._kinds.items())
            why = [f"{self._unusable:,} of the {looked_at:,} read so far ({met})", *why]
        raise RunError(
            f"{self.shards.root}: {share:.1%} of the pairs cannot be used, and 'bad_pairs' bears "
            f"{self.bad_pairs:.1%}: {'; '.join(why)}"
        )


Pairs = MemoryPairs | ShardedPairs


class Order:
    """Which pair stands where in an epoch; `counts` (S,) are the pairs of each shard.

    What is kept is a few numbers a shard, and the order of the pairs of a few groups.
    """

    def __init__(self, counts: np.ndarray, seed: int):
        self.counts, self.seed = counts, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def slots(self, epoch: int, places: np.ndarray) -> list[Slot]:
        """The pairs at some places of an epoch's order, which ascend."""
        ends = self._epoch(epoch)[1]
        groups, found = np.searchsorted(ends, places, side="right"), []
        for group in np.unique(groups).tolist():
            start = ends[group - 1] if group else 0
            inside = self._group(epoch, group)[places[groups == group] - start]
            found += self._pairs(epoch, group, inside)
        return found

    def in_order(self, places: np.ndarray) -> list[Slot]:
        """The pairs at some places where nothing is shuffled."""
        return self._pairs(0, ALL, places)

    def another(self, slot: Slot, attempt: int) -> Slot:
        """What comes in place of an unusable pair: one of the same group."""
        epoch, group = slot[2:]
        total = int(self.counts[self._shards(epoch, group)].sum())
        place = seed_for(self.seed, "instead", *slot, attempt) % total
        return self._pairs(epoch, group, np.array([place]))[0]

    def _pairs(self, epoch: int, group: int, places: np.ndarray) -> list[Slot]:
        """The pairs at some places of a group, its shards one after the other."""
        shards = self._shards(epoch, group)
        ends = np.cumsum(self.counts[shards])
        which = np.searchsorted(ends, places, side="right")
        inside = places - (ends[which] - self.counts[shards[which]])
        pairs = zip(shards[which].tolist(), inside.tolist(), strict=True)
        return [(shard, pair, epoch, group) for shard, pair in pairs]

    def _shards(self, epoch: int, group: int) -> np.ndarray:
        if group == ALL:
            return np.arange(len(self.counts))
        return self._epoch(epoch)[0][group * GROUP : (group + 1) * GROUP]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shuffled shards (S,), and at which places of the epoch the groups end (G,)."""
        if epoch not in self._epochs:
            generator = generator_for(self.seed, "shards", epoch)
            shards = torch.randperm(len(self.counts), generator=generator).numpy()
            lasts = [*range(GROUP - 1, len(shards) - 1, GROUP), len(shards) - 1]
            self._epochs = {epoch: (shards, np.cumsum(self.counts[shards])[lasts])}
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int) -> np.ndarray:
        """A permutation of the places of a group."""
        key = (epoch, group)
        if key not in self._groups:
            total = int(self.counts[self._shards(epoch, group)].sum())
            generator = generator_for(self.seed, "pairs", epoch, group)
            while len(self._groups) > 1:  # a batch spans two, seldom more
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = torch.randperm(total, generator=generator).numpy()
        return self._groups[key]


class _Unusable(Exception):
    """A pair that is none; `kind` is what several such are called."""

    def __init__(self, kind: str, told: str):
        super().__init__(told)
        self.kind = kind


class _PairReader(torch.utils.data.Dataset):
    """One pair by its slot, in a loader process; an error travels back as its text.

    An item is `(pixels, caption, notes)`: a note `(kind, shard, pair, text)` for each unusable pair
    that was met before the one that is there.
    """

    def __init__(self, pairs: ShardedPairs, order: Order, recipe: Contrastive):
        self.shards, self.order, self.recipe = pairs.shards, order, recipe
        self.size, self.encode = pairs.size, pairs.encode
        self._open: dict[int, Shard] = {}

    def __getitem__(self, slot: Slot) -> tuple[torch.Tensor, str, list[tuple]] | str:
        found, notes = slot, []
        for attempt in range(TRIES):
            try:
                image, caption = self._read(*found[:2])
            except _Unusable as error:
                notes.append((error.kind, *found[:2], str(error)))
                found = self.order.another(slot, attempt)
            else:
                seed = seed_for(self.order.seed, "pair", *slot, attempt)
                return self.prepare(image, seed), caption, notes
        return f"{self.shards.root}: {TRIES} unusable pairs in a row; the last: {notes[-1][-1]}"

    def prepare(self, image, seed: int) -> torch.Tensor:
        raise TypeError("training and evaluation prepare pictures differently")

    def collate(self, items: list) -> tuple[torch.Tensor, torch.Tensor, list[tuple]] | str:
        for item in items:
            if isinstance(item, str):
                return item
        pictures, captions, notes = zip(*items, strict=True)
        ids = torch.from_numpy(self.encode(list(captions)))
        return torch.stack(pictures), ids, list(itertools.chain(*notes))

    def _read(self, shard: int, which: int) -> tuple:
        """Picture and caption. Raises `_Unusable`."""
        name = f"{self.shards.path(shard)}, pair {which}"
        try:
            pair = self._shard(shard)
            name = pair.name(which)
            text = pair.caption(which, CAPTION_BYTES)
        except (RunError, OSError) as error:
            raise _Unusable("unreadable pairs", f"{name}: cannot be read ({error})") from None
        whole = int(pair.labels[which, 1])
        if len(text) < min(whole, CAPTION_BYTES):
            raise _Unusable("unreadable pairs", f"{name}: its caption is cut off")
        try:
            caption = codecs.getincrementaldecoder("utf-8")().decode(text, len(text) == whole)
        except UnicodeDecodeError:
            told = f"{name}: its caption is no UTF-8 text"
            raise _Unusable("captions that are no UTF-8 text", told) from None
        if not caption.strip():
            raise _Unusable("empty captions", f"{name}: its caption is empty")
        try:
            image = pair.read(which)[0]
        except Exception as error:  # whatever a damaged picture makes Pillow say
            told = str(error) if isinstance(error, RunError) else f"{name}: {error!r}"
            raise _Unusable("pictures that cannot be decoded", told) from None
        if max(image.size) > LONGEST * min(image.size):
            told = f"{name}: {image.width:,} × {image.height:,} pixels are a line, no picture"
            raise _Unusable("pictures that are lines", told)
        return image, caption

    def _shard(self, shard: int) -> Shard:
        if shard not in self._open:
            opened = self.shards.open(shard)
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = opened
        self._open[shard] = self._open.pop(shard)  # the last that was used
        return self._open[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


class _TrainingReader(_PairReader):
    def prepare(self, image, seed: int) -> torch.Tensor:
        return training_view(image, self.size, self.recipe, seed)


class _EvaluationReader(_PairReader):
    def prepare(self, image, seed: int) -> torch.Tensor:
        return centre_view(image, self.size, self.recipe.eval_resize)
