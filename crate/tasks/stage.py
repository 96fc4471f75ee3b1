"""The training stage that all kinds of training share: build, transfer, train, save, evaluate.

A kind of training subclasses `TrainingStage` with its network, data, loss and metrics. `crate
bench` times the same network and loss on random batches.
"""

import abc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crate.data.catalogue import get_dataset
from crate.data.datasets import odd_count
from crate.errors import UsageError
from crate.models.initial import PairedDraws
from crate.models.transfer import transfer_weights
from crate.records import RunFolder, read_json
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost
from crate.training.loop import Batch, Examples, Session, fit
from crate.weights import read_weights, save_weights

EVALUATION_BATCH = 500  # examples evaluated at once, at most


class TrainingStage(abc.ABC):
    """The training of one run in this process.

    COST           closed forms of its cost
    WATCHED        metrics of `measure` that train.jsonl records during training
    UNIT           unit of examples: "images", "pairs" or "tokens"
    MICRO_BATCHES  whether the loss of a batch is the mean over its micro-batches; if not, the loss
                   splits its own micro-batches
    """

    COST: ClassVar[TrainingCost]
    WATCHED: ClassVar[tuple[str, ...]]
    UNIT: ClassVar[str] = "images"
    MICRO_BATCHES: ClassVar[bool] = True

    def __init__(self, resolved: Resolved, runtime: Runtime, data_root: str | Path):
        self.resolved, self.runtime, self.data_root = resolved, runtime, data_root
        self.run, self.recipe, self.spec = resolved.run, resolved.recipe, resolved.spec
        self.seed, self.dataset = resolved.run.seed, get_dataset(resolved.recipe.dataset)
        self.epochs = 0.0  # trained so far

    # each kind of training defines

    @abc.abstractmethod
    def open(self) -> None:
        """Open the evaluated split, and check the data, so that errors come before training."""

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The network, newly initialised."""

    @abc.abstractmethod
    def open_training(self) -> Any:
        """The training split, with a length, without the examples that are held out."""

    @abc.abstractmethod
    def batches(self, source: Any, first: int, last: int) -> Iterator[Batch]:
        """This rank's shards of the batches of updates `first` to `last` - 1."""

    @abc.abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abc.abstractmethod
    def measure(self) -> dict:
        """Metrics of `self.model` on the evaluated split, over all ranks."""

    @abc.abstractmethod
    def random_batch(self, model: nn.Module, count: int) -> Batch:
        """A batch of random data with the shapes of training, for `crate bench`."""

    @abc.abstractmethod
    def evaluate_batch(self, model: nn.Module, batch: Batch) -> object:
        """The work of `measure` on one batch, for `crate bench`."""

    def evaluation_batch(self, model: nn.Module) -> int:
        """Examples evaluated at once."""
        return min(self.recipe.compute.micro_batch or EVALUATION_BATCH, EVALUATION_BATCH)

    # each kind of training may override

    def start(self, weights: dict[str, Tensor] | None) -> tuple[nn.Module, dict | None]:
        """The network with its parent's weights, and the record of the transfer for run.json."""
        model = self.build()
        if weights is None:
            return model, None
        return model, transfer_weights(model, self.adapt(weights), self.recipe.dont_load)

    def adapt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a parent's weights that this network takes, under its own names."""
        return weights

    def prepare(self, model: nn.Module) -> nn.Module:
        """Change the network before training, for example freeze a part; returns it."""
        return model

    def examples(self, source: Any) -> Examples:
        """The examples for `fit`. Raises `UsageError` if they are fewer than a batch."""
        size, batch = len(source), self.recipe.batch_size
        per_epoch = self.recipe.per_epoch(size)
        updates = self.recipe.total_updates(per_epoch)
        if size < batch or not updates:
            raise UsageError(
                f"{self.run}: {size:,} {self.UNIT} in batches of {batch:,} give no update; lower "
                "batch_size or train longer"
            )
        return Examples(
            batches=lambda first: self.batches(source, first, updates),
            size=size,
            per_epoch=per_epoch,
            unit=self.UNIT,
        )

    def describe(self, source: Any) -> dict:
        """Details of the training split for run.json; warns if it is incomplete."""
        warn_odd_count(self.dataset, len(source), self.runtime)
        return {f"training_{self.UNIT}": len(source)}

    def details(self) -> dict:
        """Further details for run.json at the end, also of runs that train nothing."""
        return {}

    def finish(self, metrics: dict, folder: RunFolder) -> dict:
        """The metrics to record; called after the weights are saved."""
        return metrics

    # the same for all kinds

    def train(self, folder: RunFolder, identity: str, parent: Path | None) -> tuple[dict, dict]:
        """Train (unless the length is 0), save the weights in `folder`, and evaluate.

        parent: file of the parent's weights; None without a parent.
        Returns metrics, and details for run.json.
        """
        self.open()
        weights = None if parent is None else read_weights(parent)
        with PairedDraws(self.seed):
            model, transferred = self.start(weights)
        details: dict = {} if transferred is None else {"carried": transferred}
        self.model = self.prepare(model.to(self.runtime.device))
        trained = 0  # examples
        if self.recipe.trains:
            source = self.open_training()
            details |= self.describe(source)
            examples = self.examples(source)
            details |= fit(
                self.model,
                self.recipe,
                self.loss,
                examples,
                Session(str(self.run), folder, identity, self.seed, self.runtime),
                watch=self._watch,
                micro_batches=self.MICRO_BATCHES,
            )
            updates = self.recipe.total_updates(examples.per_epoch)
            trained = self.recipe.seen(updates, examples.size)
            self.epochs = updates / examples.per_epoch
        if self.runtime.main:
            save_weights(self.model, folder)
        metrics = self.measure()
        if "flops" in self.recipe.METRICS:
            metrics |= self._flops(trained, parent)
        return self.finish(metrics, folder), details | self.details()

    def _watch(self) -> dict:
        measured = self.measure()
        return {key: measured[key] for key in self.WATCHED}

    def _flops(self, examples: int, parent: Path | None) -> dict:
        """FLOPs of one example's forward pass, and of training since the chain's start."""
        before = read_json(parent.with_name("metrics.json"))["metrics"] if parent else {}
        trained = self.COST.training_flops(self.resolved) * examples
        return {
            "flops": 2 * self.COST.complexity(self.resolved)[1],
            "train_flops": before.get("train_flops", 0) + trained,
        }

    def random_images(self, count: int) -> Tensor:
        """Noise with the shape of a batch of images: (count, 3, S, S)."""
        size = self.recipe.image_size
        return torch.randn(count, 3, size, size, device=self.runtime.device)


def warn_odd_count(dataset: Any, count: int, runtime: Runtime) -> None:
    """Print a warning if a training split has another size than the published one."""
    if runtime.main and (warning := odd_count(dataset, count)):
        print(f"warning: {warning}", file=sys.stderr)
