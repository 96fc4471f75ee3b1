"""Pictures with captions as batches of tensors.

    pixels (B, C, S, S) uint8; ids (B, T) int64, what a tokenizer makes of the captions

Embedded pairs are in memory. Real ones are read from shards (`pair_shards.py`) in the order of
`pair_order.py`.

Invalid pairs are skipped and counted, and training goes on. Keys without a picture or a caption
are not in the order at all. An empty or garbled caption, a picture that cannot be decoded or is too
long, and a member that cannot be read are found on reading; another pair of the same group replaces
such a pair, always the same one, so only replacements may be seen twice in an epoch.
"""

import codecs
import collections
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from crate.data import splits
from crate.data.augment import centre_view, resized, training_view
from crate.data.batches import load_batches
from crate.data.captioned import captioned
from crate.data.datasets import PairSet, advice, home, split_part
from crate.data.images import MemoryImages
from crate.data.pair_order import Order, Slot
from crate.data.pair_shards import PairShards, Shard, list_pairs
from crate.errors import RunError, unknown
from crate.recipes import ImageTraining
from crate.runtime import Runtime, seed_for

Encode = Callable[[list[str]], np.ndarray]  # captions → ids int64 (n, T)

OPEN = 64  # shards a process keeps open: those of two groups, and a few more
TRIES = 100  # unusable pairs in a row
CAPTION_BYTES = 8_192  # longer captions are cut
LONGEST = 500  # ratio of the sides; scaling a longer line would take gigabytes
NAMED = 3  # unusable pairs of a kind that get a line each


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

    Args:
        encode: makes token ids of captions.
        held_out_for: the split that the run is evaluated on (see `crate/data/splits.py`).
        bad_pairs: largest share of unusable pairs among those read so far.

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
        try:
            chosen = splits.shards(dataset, split, shards.pairs, held_out_for)
        except RunError as error:
            raise RunError(f"{root}: {error}") from None
        shards = shards.select(chosen)
    if runtime.main:
        for line in (*shards.broken(), *shards.left_out()):
            print(f"warning: {root}, {split}: {line}", file=sys.stderr, flush=True)
    return ShardedPairs(shards, size=size, encode=encode, runtime=runtime, bad_pairs=bad_pairs)


# --- embedded -----------------------------------------------------------


class MemoryPairs(MemoryImages):
    """An embedded split: `MemoryImages` with ids (N, T) in place of labels."""

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
        self.left_out = int(shards.bad.sum())  # keys that are not pairs, by the headers
        self._met: set[tuple[int, int]] = set()  # unusable pairs that this process read
        self._kinds: collections.Counter[str] = collections.Counter()  # of those
        self._looked_at = self._unusable = 0  # repetitions counted
        self._refuse(least=0)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def bad(self) -> int:
        """Pairs skipped so far by this process; those known from the headers count with rank 0."""
        return len(self._met) + (self.left_out if self.runtime.main else 0)

    def training(
        self, recipe: ImageTraining, seed: int, first: int, last: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`(pixels, ids)` of this rank's part of updates `first` to `last` - 1.

        The last partial batch of an epoch is left out.

        Raises:
            RunError: a larger share of pairs than `bad_pairs` cannot be used.
        """
        order = Order(self.shards.pairs, seed)
        per_epoch = len(self) // recipe.batch_size
        mine = self.runtime.shard(torch.arange(recipe.batch_size)).numpy()

        def batches() -> Iterator[list[Slot]]:
            for index in range(first, last):
                epoch, update = divmod(index, per_epoch)
                yield order.slots(epoch, update * recipe.batch_size + mine)

        view = functools.partial(training_view, size=self.size, recipe=recipe)
        return self._load(order, view, batches(), recipe)

    def evaluation(
        self, recipe: ImageTraining, batch_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's pairs in order, as `centre_view` sees them; unusable ones are replaced."""
        order = Order(self.shards.pairs, 0)
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        batches = (
            order.in_order(np.array(mine[start : start + batch_size]))
            for start in range(0, len(mine), batch_size)
        )
        view = functools.partial(_evaluation_view, size=self.size, recipe=recipe)
        return self._load(order, view, batches, recipe)

    def _load(
        self, order: Order, view: Callable, batches: Iterator, recipe: ImageTraining
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`view` makes pixels of a PIL image and a seed."""
        loaded = load_batches(
            _PairReader(self.shards, order, view),
            batches,
            workers=recipe.compute.workers,
            runtime=self.runtime,
            collate=functools.partial(_collate, self.encode),
        )
        for pixels, ids, notes in loaded:
            for note in notes:
                self._count(*note)
            self._looked_at += len(pixels) + len(notes)
            self._refuse(least=min(recipe.batch_size, len(self)))
            yield pixels, ids

    def _count(self, kind: str, shard: int, which: int, message: str) -> None:
        """Count an unusable pair; print the first of each kind."""
        self._unusable += 1
        if (shard, which) in self._met:
            return
        self._met.add((shard, which))
        self._kinds[kind] += 1
        number = self._kinds[kind]
        if number <= NAMED:
            print(f"warning: {message}; another pair comes instead", file=sys.stderr, flush=True)
        elif number in (10, 100, 1_000, 10_000, 100_000):
            print(f"warning: {number:,} {kind} so far", file=sys.stderr, flush=True)

    def _refuse(self, least: int) -> None:
        """Raise `RunError` if too many pairs are unusable, once `least` were looked at.

        Those known from the headers count in proportion to the pairs looked at.
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


class _Unusable(Exception):
    """An invalid pair; `kind` names several of its kind."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def _evaluation_view(image, seed: int, *, size: int, recipe: ImageTraining) -> torch.Tensor:
    return centre_view(image, size, recipe.eval_resize, recipe.interpolation)


def _collate(encode: Encode, items: list) -> tuple[torch.Tensor, torch.Tensor, list[tuple]]:
    pictures, captions, notes = zip(*items, strict=True)
    ids = torch.from_numpy(encode(list(captions)))
    return torch.stack(pictures), ids, list(itertools.chain(*notes))


class _PairReader(torch.utils.data.Dataset):
    """One pair by its slot, in a loader process; an error travels back as its text.

    An item is `(pixels, caption, notes)`: a note `(kind, shard, pair, text)` for each unusable pair
    that was met before a usable one.
    """

    def __init__(self, shards: PairShards, order: Order, view: Callable):
        self.shards, self.order, self.view = shards, order, view
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
                return self.view(image, seed=seed), caption, notes
        return f"{self.shards.root}: {TRIES} unusable pairs in a row; the last: {notes[-1][-1]}"

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
            message = f"{name}: its caption is not UTF-8 text"
            raise _Unusable("captions that are not UTF-8 text", message) from None
        if not caption.strip():
            raise _Unusable("empty captions", f"{name}: its caption is empty")
        try:
            image = pair.read(which)[0]
        except Exception as error:  # a damaged picture makes Pillow raise nearly anything
            message = str(error) if isinstance(error, RunError) else f"{name}: {error!r}"
            raise _Unusable("pictures that cannot be decoded", message) from None
        if max(image.size) > LONGEST * min(image.size):
            message = f"{name}: {image.width:,} × {image.height:,} pixels are a line, not a picture"
            raise _Unusable("pictures that are lines", message)
        return image, caption

    def _shard(self, shard: int) -> Shard:
        if shard not in self._open:
            opened = self.shards.open(shard)
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = opened
        self._open[shard] = self._open.pop(shard)  # most recently used last
        return self._open[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}
