"""What every recipe has: compute, data set, place in a chain; and how networks are trained.

The recipe of each kind of step extends these, in `tasks/<kind>/recipe.py`. A field's default is the
meaning of its absence: only what differs from the defaults enters a run's identity, so a new field
with a default reruns nothing.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from crate.errors import UsageError
from crate.schema import Strict


class Compute(Strict):
    """What a run needs and how it is spread; not part of its identity (`Step.identity`)."""

    nodes: pydantic.PositiveInt = 1
    gpus: pydantic.NonNegativeInt = 0  # per node, for the launcher; a lone process takes one if any
    processes: pydantic.PositiveInt | None = None  # per node; None: one per GPU, or one
    threads: pydantic.PositiveInt = 1  # CPU threads of each process
    workers: pydantic.NonNegativeInt = 0  # loader processes of each process (image folders only)
    micro_batch: pydantic.PositiveInt | None = None  # examples at once on a device; None: no limit
    hours: pydantic.PositiveFloat = 1.0
    memory_gb: pydantic.PositiveInt = 4
    autocast: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    checkpoint_seconds: pydantic.NonNegativeFloat = 30.0

    @property
    def cores(self) -> int:
        """CPU cores of one node: the threads of all its processes."""
        return self.threads * self.tasks

    @property
    def tasks(self) -> int:
        """Processes of one node."""
        return self.processes or max(1, self.gpus)


class Recipe(Strict):
    """Every kind of step: its task, its data set, and what it may come after."""

    METRICS: ClassVar[tuple[str, ...]] = ()  # its metrics.json; tuning looks at the first
    LOWER_IS_BETTER: ClassVar[bool] = False  # of the first metric
    READS_DATA: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True  # whether its task needs a device and torch's processes
    AS_PUBLISHED: ClassVar[bool] = False  # looks at the published model, whatever the scale
    TIMED: ClassVar[tuple[str, ...]] = ()  # metrics of the machine; such a run has it for itself
    MODEL_KINDS: ClassVar[tuple[str, ...]] = ("vision",)  # the kinds of models that can do it
    UNITS: ClassVar[tuple[str, ...]] = ("images",)  # of the data sets that it takes

    task: str
    dataset: str
    follows: list[str]  # steps it may follow; "start" if it may begin a chain
    evaluate: Literal["test", "validation"] = "test"
    compute: Compute = Compute()

    @property
    def identity(self) -> dict:
        """What the result depends on: all that differs from the defaults, less `compute`.

        Of that only a precision asked for by name counts: it changes numbers.
        """
        identity = self.model_dump(
            exclude_defaults=True, exclude={"compute", "follows"}, mode="json"
        )
        if self.compute.autocast != "auto":
            identity["autocast"] = self.compute.autocast
        return identity

    def check_model(self, spec: Any) -> None:
        """Raise `UsageError` where a model (a `ModelSpec`) of a right kind cannot do it."""
        size = None if spec.causal else getattr(self, "image_size", None)
        if size is not None and size % spec.patch_size:
            raise UsageError(f"{size} px images do not divide into patches of {spec.patch_size} px")

    def inputs(self, model: str, dataset: Any, experiments: Path) -> dict:
        """What decides the result beside model, recipe, seed and data; part of its identity."""
        return {}


class Training(Recipe):
    """How a network is trained; the defaults are the plainest choice, not any paper's."""

    epochs: pydantic.NonNegativeFloat | None = None  # how long: this, or `updates`
    updates: pydantic.NonNegativeInt | None = None
    batch_size: pydantic.PositiveInt  # over all devices
    optimizer: Literal["adamw", "lion"] = "adamw"
    lr: pydantic.PositiveFloat  # peak, for the whole batch (already scaled)
    min_lr: pydantic.NonNegativeFloat = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"  # from lr to min_lr, after the warm-up
    warmup_epochs: pydantic.NonNegativeFloat = 0.0
    warmup_updates: pydantic.NonNegativeInt = 0
    betas: list[float] = pydantic.Field([0.9, 0.999], min_length=2, max_length=2)
    eps: pydantic.PositiveFloat = 1e-8
    weight_decay: pydantic.NonNegativeFloat = 0.0
    decay: Literal["all", "kernels", "matrices"] = "all"  # training/optim.py, `parameter_groups`
    layer_decay: float = pydantic.Field(1.0, gt=0, le=1)  # factor of lr, block by block
    clip_grad: pydantic.PositiveFloat | None = None  # global norm
    drop_path: float = pydantic.Field(0.0, ge=0, lt=1)
    dont_load: list[str] = []  # parameters (by prefix) that start anew instead of from the parent
    evaluate_epochs: pydantic.PositiveInt | None = None  # evaluate after every so many epochs too,
    evaluate_updates: pydantic.PositiveInt | None = None  # or updates

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.epochs is None) == (self.updates is None):
            raise ValueError("one of 'epochs' and 'updates' says how long to train")
        if self.warmup_epochs and self.warmup_updates:
            raise ValueError("warmup_epochs and warmup_updates exclude each other")
        if self.evaluate_epochs and self.evaluate_updates:
            raise ValueError("evaluate_epochs and evaluate_updates exclude each other")
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is trained: a length of 0 evaluates only."""
        return bool(self.epochs or self.updates)

    @property
    def evaluated_by(self) -> set[str]:
        """Keys that decide the result where nothing is trained."""
        return {
            "task", "dataset", "evaluate", "epochs", "updates", "image_size", "dont_load",
            "autocast",
        }  # fmt: skip

    @property
    def identity(self) -> dict:
        """What is only evaluated does not depend on how one would train."""
        identity = super().identity
        if self.trains:
            return identity
        return {key: value for key, value in identity.items() if key in self.evaluated_by}

    def total_updates(self, per_epoch: int) -> int:
        """Updates of the whole training, where an epoch has `per_epoch`."""
        return int(self.epochs * per_epoch) if self.updates is None else self.updates

    def warmup(self, per_epoch: int) -> int:
        """Updates of the warm-up, at most all."""
        wanted = self.warmup_updates or round(self.warmup_epochs * per_epoch)
        return min(wanted, self.total_updates(per_epoch))

    def evaluate_every(self, per_epoch: int) -> int:
        """Updates between two looks at the evaluated split while training; 0: none."""
        return self.evaluate_updates or (self.evaluate_epochs or 0) * per_epoch


# What is scored: the model's answer, or a control that needs no model.
Predictor = Literal["model", "whole_image", "ground_truth"]


class ImageTraining(Training):
    """Training on whole pictures: how they are cropped and augmented (crate/data/images.py)."""

    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    crop_area_min: float = pydantic.Field(1.0, gt=0, le=1)  # inception crop; 1: none
    center_crop: bool = False  # train on the centre crop that evaluation sees
    flip: bool = True
    randaugment: list[int] | None = pydantic.Field(None, min_length=2, max_length=2)  # [ops, level]

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {"eval_resize"}

    @pydantic.model_validator(mode="after")
    def _one_way_to_crop(self) -> "ImageTraining":
        if self.center_crop and self.crop_area_min < 1:
            raise ValueError("center_crop and crop_area_min exclude each other")
        return self
