"""Which examples are in a batch, and the loader processes that read them.

The order of an epoch depends on (seed, epoch) alone, and each example's random numbers on (seed,
epoch, example): neither ranks, workers nor the update that training resumes at change a result.
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crate.errors import RunError
from crate.recipes import LastBatch
from crate.runtime import Runtime, generator_for, seed_for

# --- order -----------------------------------------------------------


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of one epoch: a permutation of `count` indices; shared, not to be written to."""
    return torch.randperm(count, generator=generator_for(seed, "order", epoch))


def batch_indices(
    count: int, batch_size: int, seed: int, update: int, last_batch: LastBatch = "drop"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of an update: the epoch and the index of each of its examples, (B,) each.

    last_batch: what becomes of the `count % batch_size` examples at the end of an epoch.
    """
    if last_batch == "carry":
        places = torch.arange(update * batch_size, (update + 1) * batch_size)
        epochs = places // count
        parts = [
            epoch_order(count, seed, epoch)[places[epochs == epoch] % count]
            for epoch in epochs.unique().tolist()
        ]
        return epochs, torch.cat(parts)
    per_epoch = count // batch_size if last_batch == "drop" else math.ceil(count / batch_size)
    epoch, position = divmod(update, per_epoch)
    indices = epoch_order(count, seed, epoch)[position * batch_size : (position + 1) * batch_size]
    return torch.full_like(indices, epoch), indices


def own_places(count: int, batch_size: int, runtime: Runtime) -> range:
    """The places of this rank's part of a batch of `count` examples.

    A smaller last batch may leave a rank without examples. It then takes the first one, because
    all ranks compute gradients together; the training loop gives it the weight 0.
    """
    part = runtime.part(count, uneven=count < batch_size)
    return range(part.start, part.stop) or range(1)


def training_batches(
    count: int,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    *,
    name: str,
    runtime: Runtime,
    last_batch: LastBatch = "drop",
) -> Iterator[list[tuple[int, int]]]:
    """`(index, seed)` of each example of this rank in updates `first` to `last` - 1.

    Args:
        name: goes into the seed of an example, with `seed`, its epoch and its index.
    """
    for update in range(first, last):
        epochs, indices = batch_indices(count, batch_size, seed, update, last_batch)
        mine = own_places(len(indices), batch_size, runtime)
        yield [
            (index, seed_for(seed, name, epoch, index))
            for epoch, index in zip(epochs[mine].tolist(), indices[mine].tolist(), strict=True)
        ]


# --- loader processes -----------------------------------------------------------


class Reader(Dataset):
    """One example by its key, in a loader process; a `RunError` travels back as its text.

    `read` must be picklable.
    """

    def __init__(self, read: Callable):
        self.read = read

    def __getitem__(self, key):
        try:
            return self.read(key)
        except RunError as error:
            return str(error)


def make_loader(reader: Dataset, *, workers: int, runtime: Runtime, **options) -> DataLoader:
    """A loader with `workers` processes, each four batches ahead."""
    return DataLoader(
        reader,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=runtime.device.type == "cuda",
        **options,
    )


def load_batches(
    reader: Dataset,
    batches: Iterator[list],
    *,
    workers: int,
    runtime: Runtime,
    collate: Callable[[list], tuple] | None = None,
) -> Iterator[tuple]:
    """What `collate` makes of the examples of each batch, its tensors on the run's device.

    Args:
        batches: lists of keys of `reader`.
        collate: of a list of examples; by default, their parts are stacked.

    Raises:
        RunError: an example is a text, that of an error.
    """
    loader = make_loader(
        reader,
        workers=workers,
        runtime=runtime,
        batch_sampler=batches,
        collate_fn=functools.partial(_collated, collate or stacked),
    )
    for item in loader:
        if isinstance(item, str):
            raise RunError(item)
        yield tuple(
            part.to(runtime.device, non_blocking=True) if isinstance(part, torch.Tensor) else part
            for part in item
        )


def _collated(collate: Callable[[list], tuple], items: list) -> tuple | str:
    """The first error, or what `collate` makes of the examples."""
    for item in items:
        if isinstance(item, str):
            return item
    return collate(items)


def stacked(items: list) -> tuple[torch.Tensor, ...]:
    """The parts of the examples, tensors or numpy's arrays and numbers, each as one tensor."""
    return tuple(
        torch.stack(part) if isinstance(part[0], torch.Tensor) else torch.from_numpy(np.stack(part))
        for part in zip(*items, strict=True)
    )
