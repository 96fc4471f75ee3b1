"""Closed forms of the cost of runs, by kind of stage. No torch.

Each kind has a `cost.py` with one object, COST. A multiply-accumulate (MAC) is two FLOPs.
"""

import dataclasses
import math

from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset
from crate.models import flops
from crate.tasks.base import Resolved

PICTURE = (640, 480)  # assumed size of real scenes, COCO's usual one; embedded scenes are square


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run: counts are exact, disk is an estimate."""

    parameters: int
    examples: int  # images, pairs or windows of a text in training, repetitions included
    train_flops: float  # forward and backward (three times the forward pass)
    eval_flops: float
    disk_bytes: int  # final weights and, during training, one checkpoint; a probe's features
    evaluated: int = 0  # images, pairs or windows in evaluations, repetitions included
    seconds: float = 0.0  # duration of a run that measures speed, from its recipe


class KindCost:
    """The cost of an evaluation of image classifiers; other kinds override what differs.

    FORWARD    settings that decide the speed of a forward pass
    TRAINING   further settings that decide the speed of an optimizer update
    TIMES_ALL  whether `crate bench` also measures the work that is `not_counted`
    """

    FORWARD: tuple[str, ...] = ("image_size",)
    TRAINING: tuple[str, ...] = ()
    TIMES_ALL: bool = False

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        """Parameters of the network, and MACs of one example's forward pass.

        An example is an image, a window of `block_size` tokens, a pair of an image and a caption,
        or, in segmentation, a window of an image. If only a part of the network is used, its MACs
        are those of that part.
        """
        shape = {
            "image_size": resolved.recipe.image_size,
            "num_classes": getattr(get_dataset(resolved.recipe.dataset), "classes", 1),
        }
        return flops.parameter_count(resolved.spec, **shape), flops.macs(resolved.spec, **shape)

    def sizes(self, resolved: Resolved) -> dict[str, int]:
        """Examples of each split; "train" without the held-out ones."""
        dataset = get_dataset(resolved.recipe.dataset)
        return dataset.splits | {"train": dataset.training_size}

    def evaluated(self, resolved: Resolved) -> int:
        """Examples of one evaluation."""
        recipe = resolved.recipe
        return self.sizes(resolved).get(recipe.evaluate, 0) if recipe.READS_DATA else 0

    def not_counted(self, resolved: Resolved) -> str:
        """The work of a run that has no closed form, in words; "" if all is counted."""
        return ""

    def cost(self, resolved: Resolved) -> Cost:
        """The cost of a run."""
        parameters, macs = self.complexity(resolved)
        evaluated = self.evaluated(resolved)
        return Cost(
            parameters,
            0,
            train_flops=0.0,
            eval_flops=float(2 * macs * evaluated),
            disk_bytes=0,
            evaluated=evaluated,
            seconds=resolved.recipe.seconds if resolved.recipe.TIMED else 0.0,
        )


class TrainingCost(KindCost):
    """The cost of a training and its evaluations."""

    TRAINING = ("optimizer", "drop_path", "clip_grad")

    def training_flops(self, resolved: Resolved) -> int:
        """FLOPs of one example in training: the forward pass, and twice that backward."""
        return 3 * 2 * self.complexity(resolved)[1]

    def looked_at(self, resolved: Resolved, looks: int) -> int:
        """Examples of all evaluations, if the evaluated split is evaluated `looks` times."""
        return looks * self.evaluated(resolved)

    def cost(self, resolved: Resolved) -> Cost:
        recipe = resolved.recipe
        parameters, macs = self.complexity(resolved)
        size = self.sizes(resolved)["train"]
        per_epoch = recipe.per_epoch(size)
        updates = recipe.total_updates(per_epoch)
        looks = max(1, math.ceil(updates / (recipe.evaluate_every(per_epoch) or math.inf)))
        examples, looked_at = recipe.seen(updates, size), self.looked_at(resolved, looks)
        moments = {"adamw": 2, "lion": 1}[recipe.optimizer]
        return Cost(
            parameters=parameters,
            examples=examples,
            train_flops=float(self.training_flops(resolved) * examples),
            eval_flops=float(2 * macs * looked_at),
            disk_bytes=4 * parameters * (1 + (1 + moments if examples else 0)),
            evaluated=looked_at,
        )


def square(dataset: Dataset) -> tuple[int, int]:
    """The assumed aspect of a data set's scenes, as (width, height)."""
    return (1, 1) if dataset.embedded else PICTURE
