"""The fields that all recipes share (`Recipe`), and those of training (`Training`).

Each kind of stage extends these in `tasks/<kind>/recipe.py`. Only values that differ from the
defaults enter a run's identity, so a new field whose default keeps the behaviour reruns nothing.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from crate.errors import UsageError
from crate.schema import Strict

# The largest numbers that make sense; a larger one is a mistake in writing.
LARGEST = {
    "nodes": 10_000, "gpus": 64, "processes": 1024, "threads": 1024, "workers": 1024,
    "micro_batch": 10**7, "hours": 10_000, "memory_gb": 100_000, "checkpoint_seconds": 10**6,
    "epochs": 10**6, "updates": 10**9, "batch_size": 10**7, "lr": 10**4, "min_lr": 10**4,
    "warmup_epochs": 10**6, "warmup_updates": 10**9, "eps": 1, "weight_decay": 10**4,
    "clip_grad": 10**9, "evaluate_epochs": 10**6, "evaluate_updates": 10**9,
    "image_size": 2**14, "eval_resize": 2**15, "stride": 2**14, "resize": 2**16, "ratio": 100,
    "mixup": 1000, "cutmix": 1000, "layer": 1000, "layers": 1000, "masks": 1000,
    "pictures": 10**9, "seconds": 10**6, "block_size": 10**7, "context_length": 10**5,
    "evaluation_batch": 10**7, "neighbours": 10**7, "temperature": 10**4, "channels": 10**6,
}  # fmt: skip


class Compute(Strict):
    """Resources of a run; not part of its identity, except `autocast` (`Recipe.identity`)."""

    LARGEST = LARGEST

    nodes: pydantic.PositiveInt = 1
    gpus: pydantic.NonNegativeInt = 0  # per node, to request; a single process uses a GPU if any
    processes: pydantic.PositiveInt | None = None  # per node; None: one per GPU, or one
    threads: pydantic.PositiveInt = 1  # CPU threads of each process
    workers: pydantic.NonNegativeInt = 0  # loader processes of each process (image folders only)
    micro_batch: pydantic.PositiveInt | None = None  # most examples at once on a device
    hours: pydantic.PositiveFloat = 1.0
    memory_gb: pydantic.PositiveInt = 4
    autocast: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    recompute: bool = False  # sparse codes, in the backward pass: less memory, the same bits
    checkpoint_seconds: pydantic.NonNegativeFloat = 30.0

    @property
    def cores(self) -> int:
        """CPU cores of one node: the threads of all its processes."""
        return self.threads * self.processes_per_node

    @property
    def processes_per_node(self) -> int:
        """Processes of one node."""
        return self.processes or max(1, self.gpus)


class Recipe(Strict):
    """A stage of a run: its task, its data set, and the stages it may follow."""

    LARGEST = LARGEST

    METRICS: ClassVar[tuple[str, ...]] = ()  # keys of metrics.json; tuning compares the first
    LOWER_IS_BETTER: ClassVar[bool] = False  # of the first metric
    READS_DATA: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True  # whether its task needs a device and torch's processes
    AS_PUBLISHED: ClassVar[bool] = False  # uses the published model size at every scale
    TIMED: ClassVar[tuple[str, ...]] = ()  # metrics of speed; such a run gets the machine to itself
    MODEL_KINDS: ClassVar[tuple[str, ...]] = ("vision",)  # kinds of models it accepts
    UNITS: ClassVar[tuple[str, ...]] = ("images",)  # units of the data sets it accepts

    task: str
    dataset: str
    follows: list[str]  # stages it may follow; "start" if it may begin a chain
    evaluate: Literal["test", "validation"] = "test"
    compute: Compute = Compute()

    @property
    def identity(self) -> dict:
        """The fields that decide the result: all that differ from the defaults, without `compute`.

        Of `compute`, only an explicit `autocast` counts: it changes the numbers.
        """
        identity = self.model_dump(
            exclude_defaults=True, exclude={"compute", "follows"}, mode="json"
        )
        if self.compute.autocast != "auto":
            identity["autocast"] = self.compute.autocast
        return identity

    def check_model(self, spec: Any) -> None:
        """Raise `UsageError` if the model `spec` (a `ModelSpec` of `MODEL_KINDS`) does not fit."""
        size = None if spec.causal else getattr(self, "image_size", None)
        if size is not None and size % spec.patch_size:
            raise UsageError(f"{size} px images do not divide into patches of {spec.patch_size} px")

    def splits(self, dataset: Any) -> list[str]:
        """The splits of the data set that the stage reads; the evaluated one comes last."""
        return [self.evaluate] if self.READS_DATA else []

    def inputs(self, model: str, dataset: Any, experiments: Path) -> dict:
        """Further inputs that decide the result and enter its identity, such as official files."""
        return {}


Schedule = Literal["cosine", "linear", "cosine_by_epoch"]


class Training(Recipe):
    """How a network is trained; the defaults are the simplest choices, not those of a paper."""

    epochs: pydantic.NonNegativeFloat | None = None  # how long: this, or `updates`
    updates: pydantic.NonNegativeInt | None = None
    batch_size: pydantic.PositiveInt  # over all devices
    optimizer: Literal["adamw", "lion"] = "adamw"
    lr: pydantic.PositiveFloat  # peak, for the whole batch (already scaled)
    min_lr: pydantic.NonNegativeFloat = 0.0
    schedule: Schedule = "cosine"  # training/optim.py, `learning_rate`
    warmup_epochs: pydantic.NonNegativeFloat = 0.0
    warmup_updates: pydantic.NonNegativeInt = 0
    warmup_from_zero: bool = False  # the first update has rate 0; else one step of the warm-up
    betas: list[float] = pydantic.Field([0.9, 0.999], min_length=2, max_length=2)
    eps: pydantic.PositiveFloat = 1e-8
    weight_decay: pydantic.NonNegativeFloat = 0.0
    decay: Literal["all", "kernels", "matrices"] = "all"  # training/optim.py, `parameter_groups`
    layer_decay: float = pydantic.Field(1.0, gt=0, le=1)  # factor of lr, block by block
    clip_grad: pydantic.PositiveFloat | None = None  # global norm
    drop_path: float = pydantic.Field(0.0, ge=0, lt=1)
    dont_load: list[str] = []  # parameters (by prefix) that are initialised, not transferred
    evaluate_epochs: pydantic.PositiveInt | None = None  # also evaluate every so many epochs,
    evaluate_updates: pydantic.PositiveInt | None = None  # or optimizer updates

    @pydantic.field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: list[float]) -> list[float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{betas} should be two numbers from 0 to below 1")
        return betas

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.epochs is None) == (self.updates is None):
            raise ValueError("give exactly one of 'epochs' and 'updates'")
        if self.warmup_epochs and self.warmup_updates:
            raise ValueError("give only one of 'warmup_epochs' and 'warmup_updates'")
        if self.evaluate_epochs and self.evaluate_updates:
            raise ValueError("give only one of 'evaluate_epochs' and 'evaluate_updates'")
        if self.schedule == "cosine_by_epoch" and (self.epochs is None or self.min_lr):
            raise ValueError("schedule 'cosine_by_epoch' needs 'epochs', and falls to 0 (min_lr)")
        return self

    @pydantic.model_validator(mode="after")
    def _falls(self) -> "Training":
        if self.min_lr > self.lr:
            raise ValueError(f"'min_lr' {self.min_lr:g} is above 'lr' {self.lr:g}")
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is trained; `epochs: 0` or `updates: 0` only evaluates."""
        return bool(self.epochs or self.updates)

    def splits(self, dataset: Any) -> list[str]:
        return [*(["train"] if self.trains else []), *super().splits(dataset)]

    @property
    def evaluation_keys(self) -> set[str]:
        """Keys that decide the result when nothing is trained."""
        return {
            "task", "dataset", "evaluate", "epochs", "updates", "image_size", "dont_load",
            "autocast",
        }  # fmt: skip

    @property
    def identity(self) -> dict:
        """As `Recipe.identity`; without training, only the keys in `evaluation_keys`."""
        identity = super().identity
        if self.trains:
            return identity
        return {key: value for key, value in identity.items() if key in self.evaluation_keys}

    def per_epoch(self, examples: int) -> float:
        """Optimizer updates of an epoch of so many examples."""
        return examples // self.batch_size

    def seen(self, updates: int, examples: int) -> int:
        """Examples of the first `updates` batches, of a training set of so many examples."""
        return updates * self.batch_size

    def total_updates(self, per_epoch: float) -> int:
        """Optimizer updates of the whole training, with `per_epoch` updates an epoch."""
        return round(self.epochs * per_epoch) if self.updates is None else self.updates

    def warmup(self, per_epoch: float) -> int:
        """Optimizer updates of the warm-up, at most `total_updates`."""
        wanted = self.warmup_updates or round(self.warmup_epochs * per_epoch)
        return min(wanted, self.total_updates(per_epoch))

    def evaluate_every(self, per_epoch: float) -> int:
        """Optimizer updates between two evaluations during training; 0: only at the end."""
        return self.evaluate_updates or round((self.evaluate_epochs or 0) * per_epoch)


# What is scored: the model's prediction, or that of a control without a model.
Predictor = Literal["model", "whole_image", "ground_truth"]


class ImageRecipe(Recipe):
    """A stage that sees whole images, and how they are scaled (`centre_view`, data/augment.py)."""

    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"


# drop: they are left out. keep: they are a smaller batch, as PyTorch's loaders make it. carry: the
# batch is filled from the next epoch, as in the JAX code, whose epochs are one stream.
LastBatch = Literal["drop", "keep", "carry"]

# The highest level of RandAugment: torchvision has 31 levels from 0.
RANDAUGMENT_LEVELS = {"torchvision": 30, "tensorflow": 10}


class ImageTraining(ImageRecipe, Training):
    """Training on whole images: how they are cropped and augmented (crate/data/augment.py).

    `pipeline` names the library whose laws random crops and RandAugment follow: torchvision's, as
    the papers' PyTorch codes, or TensorFlow's, as CRATE-alpha's JAX code.
    """

    pipeline: Literal["torchvision", "tensorflow"] = "torchvision"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of training crops too
    crop_area_min: float = pydantic.Field(1.0, gt=0, le=1)  # least area of random crops; 1: off
    center_crop: bool = False  # train on the centre crop that evaluation sees
    flip: bool = True
    randaugment: list[int] | None = pydantic.Field(None, min_length=2, max_length=2)  # [ops, level]
    last_batch: LastBatch = "drop"  # what becomes of images that do not fill an epoch's last batch

    @property
    def evaluation_keys(self) -> set[str]:
        return super().evaluation_keys | {"eval_resize", "interpolation"}

    @pydantic.model_validator(mode="after")
    def _one_way_to_crop(self) -> "ImageTraining":
        if self.center_crop and self.crop_area_min < 1:
            raise ValueError("give only one of 'center_crop' and 'crop_area_min'")
        most, drawn = RANDAUGMENT_LEVELS[self.pipeline], self.randaugment
        if drawn and not (drawn[0] >= 1 and 0 <= drawn[1] <= most):
            raise ValueError(
                f"randaugment: {drawn} should be [operations from 1, level from 0 to {most}], as "
                f"the pipeline is {self.pipeline}"
            )
        return self

    def per_epoch(self, examples: int) -> float:
        if self.last_batch == "keep":
            return math.ceil(examples / self.batch_size)
        if self.last_batch == "carry":
            return examples / self.batch_size
        return super().per_epoch(examples)

    def seen(self, updates: int, examples: int) -> int:
        if self.last_batch == "keep":
            epochs, rest = divmod(updates, self.per_epoch(examples))
            return epochs * examples + rest * self.batch_size
        return super().seen(updates, examples)
