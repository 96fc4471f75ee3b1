"""The cost of image classification."""

from crate.tasks.cost import TrainingCost


class ClassificationCost(TrainingCost):
    FORWARD = ("image_size",)


COST = ClassificationCost()
