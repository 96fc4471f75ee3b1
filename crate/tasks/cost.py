"""What the runs of a kind of step cost: counted in closed form. No torch.

Each kind has a `cost.py` with one object, COST. A multiply-accumulate (MAC) is two FLOPs.
"""

import dataclasses
import math

from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset
from crate.models import flops
from crate.tasks.base import Resolved

PICTURE = (640, 480)  # what a picture of scenes is taken to be, COCO's usual size; embedded: square


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run takes: counts are exact, disk is an estimate."""

    parameters: int
    examples: int  # images, or windows of a text, seen in training, repetitions counted
    train_flops: float  # forward and backward (three times the forward pass)
    eval_flops: float
    disk_bytes: int  # final weights, plus one checkpoint while it trains; a probe's features
    evaluated: int = 0  # images, or windows, that are looked at and not trained on
    seconds: float = 0.0  # of a run that is timed: as long as its recipe says


class KindCost:
    """Costs of an evaluation of image classifiers; other kinds change what differs.

    FORWARD   settings that decide how fast an example goes through the network
    TRAINING  those that decide the speed of an update beside them
    TIMES_ALL whether a measured speed includes what is not counted
    """

    FORWARD: tuple[str, ...] = ("image_size",)
    TRAINING: tuple[str, ...] = ()
    TIMES_ALL: bool = False

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        """Parameters of the network, and MACs of one example's forward pass.

        An example is an image, a window of `block_size` tokens, or a pair of an image and a
        caption; in a segmentation, a window of a picture. Of a network that is used in part, that
        part is counted.
        """
        shape = {
            "image_size": resolved.recipe.image_size,
            "num_classes": getattr(get_dataset(resolved.recipe.dataset), "classes", 1),
        }
        return flops.parameter_count(resolved.spec, **shape), flops.macs(resolved.spec, **shape)

    def sizes(self, resolved: Resolved) -> dict[str, int]:
        """Examples of each split; of the training part, those that are trained on."""
        dataset = get_dataset(resolved.recipe.dataset)
        return dataset.splits | {"train": dataset.training_size}

    def evaluated(self, resolved: Resolved) -> int:
        """Examples that are looked at once."""
        recipe = resolved.recipe
        return self.sizes(resolved).get(recipe.evaluate, 0) if recipe.READS_DATA else 0

    def not_counted(self, resolved: Resolved) -> str:
        """What of a run has no closed form, in words; empty where all is counted."""
        return ""

    def cost(self, resolved: Resolved) -> Cost:
        """What a run takes."""
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
    """Costs of a training and the evaluations in it."""

    TRAINING = ("optimizer", "drop_path", "clip_grad")

    def training_flops(self, resolved: Resolved) -> int:
        """FLOPs of one example in training: forward, and twice that backward."""
        return 3 * 2 * self.complexity(resolved)[1]

    def looked_at(self, resolved: Resolved, looks: int) -> int:
        """Examples that are evaluated, where the evaluated split is looked at so often."""
        return looks * self.evaluated(resolved)

    def cost(self, resolved: Resolved) -> Cost:
        recipe = resolved.recipe
        parameters, macs = self.complexity(resolved)
        per_epoch = self.sizes(resolved)["train"] // recipe.batch_size
        updates = recipe.total_updates(per_epoch)
        looks = max(1, math.ceil(updates / (recipe.evaluate_every(per_epoch) or math.inf)))
        examples, looked_at = updates * recipe.batch_size, self.looked_at(resolved, looks)
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
    """The shape that pictures of scenes are taken to have."""
    return (1, 1) if dataset.embedded else PICTURE
