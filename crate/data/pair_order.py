"""The order in which the pairs of shards are trained on and evaluated.

Shards are shuffled and taken in groups, and the pairs of a group are shuffled. The order is the
same for any number of ranks and workers and from wherever training resumes, and memory holds no
more than two groups of it.
"""

import numpy as np
import torch

from crate.runtime import generator_for, seed_for

GROUP = 25  # shards shuffled together: 250,000 pairs, as many as the official shuffle buffer
ALL = -1  # the group of all shards, in which nothing is shuffled

Slot = tuple[int, int, int, int]  # shard, pair in it; epoch, group


class Order:
    """Which pair is at which place of an epoch; `counts` (S,) are the pairs of each shard.

    It keeps a few numbers a shard, and the order of the pairs of a few groups.
    """

    def __init__(self, counts: np.ndarray, seed: int):
        self.counts, self.seed = counts, seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def slots(self, epoch: int, places: np.ndarray) -> list[Slot]:
        """The pairs at some places, in ascending order, of an epoch."""
        ends = self._epoch(epoch)[1]
        groups, found = np.searchsorted(ends, places, side="right"), []
        for group in np.unique(groups).tolist():
            start = ends[group - 1] if group else 0
            inside = self._group(epoch, group)[places[groups == group] - start]
            found += self._pairs(epoch, group, inside)
        return found

    def in_order(self, places: np.ndarray) -> list[Slot]:
        """The pairs at some places of the unshuffled shards."""
        return self._pairs(0, ALL, places)

    def another(self, slot: Slot, attempt: int) -> Slot:
        """The replacement of an unusable pair: one of the same group."""
        epoch, group = slot[2:]
        total = int(self.counts[self._shards(epoch, group)].sum())
        place = seed_for(self.seed, "instead", *slot, attempt) % total
        return self._pairs(epoch, group, np.array([place]))[0]

    def _pairs(self, epoch: int, group: int, places: np.ndarray) -> list[Slot]:
        """The pairs at some places of a group, whose shards follow one another."""
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
        """The shuffled shards (S,), and the places of the epoch where the groups end (G,)."""
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
            while len(self._groups) > 1:  # a batch spans two, rarely more
                self._groups.pop(next(iter(self._groups)))
            self._groups[key] = torch.randperm(total, generator=generator).numpy()
        return self._groups[key]
