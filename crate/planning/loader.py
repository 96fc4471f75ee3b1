"""What stands in `experiments/`, read and checked: every key, every type, every name.

    config.yaml    what a command runs by default: scale, seeds, folders
    models.yaml    models of your own: a registry model and what differs
    steps/*.yaml   recipes at paper scale, one file a step
    scales/*.yaml  what a scale changes: sizes, epochs, stand-in data sets
    tables/*.yaml  rows, columns and the papers' numbers

The classes below are the schema; a field's default is the meaning of its absence. Adding a field
with a default changes no run's identity, because only what differs from the defaults is hashed.
This module imports no torch.
"""

import itertools
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import yaml
from yaml.composer import Composer

from crate.data.catalogue import DATASETS, Dataset
from crate.errors import UsageError, nearest, unknown

EXPERIMENTS = Path(os.environ.get("CRATE_EXPERIMENTS", "experiments"))
SETTINGS_VARIABLE = "CRATE_SETTINGS"  # the settings of the Snakemake process that started this one


class Strict(pydantic.BaseModel):
    """No unknown keys, no silent conversion (the text "3" is not the number 3), no change later."""

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )


# --- settings of a command -----------------------------------------------------------


class Site(Strict):
    """Where runs are executed: `slurm/site.yaml` explains each key. None enters an identity."""

    launcher: Literal["local", "slurm", "submitit-local"] = "local"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str = ""
    memory: bool = True
    sbatch: dict[str, str | int | bool] = {}
    setup: list[str] = []
    python: str = ""
    max_hours: pydantic.PositiveFloat = 24.0
    signal_seconds: pydantic.PositiveInt = 120
    max_jobs: pydantic.PositiveInt = 64
    pack: pydantic.PositiveInt = 1
    pack_hours: pydantic.PositiveFloat = 0.25
    scratch: str = ""
    poll_seconds: pydantic.PositiveFloat = 15.0
    on_interrupt: Literal["cancel", "leave"] = "cancel"

    @pydantic.field_validator("partition", "account", "qos", mode="before")
    @classmethod
    def _accept_numbers(cls, value: Any) -> Any:
        """An account may be called 4711."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @pydantic.field_validator("max_hours", "pack_hours", "poll_seconds", mode="before")
    @classmethod
    def _accept_whole(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Settings(Site):
    """`experiments/config.yaml`, a site's file, and `--config key=value` after the targets."""

    scale: str = "mini"
    seeds: list[pydantic.NonNegativeInt] = [0]
    data_root: str = "data"  # real data sets, one folder each
    results: str = "results"  # where results/<scale>/ is written
    frozen: bool = False  # take from results/published what is there instead of running it
    log: Literal["none", "tensorboard", "wandb"] = "none"  # what shows training as it goes on

    @pydantic.field_validator("frozen", "memory", mode="before")
    @classmethod
    def _parse_switch(cls, value: Any) -> Any:
        """Snakemake leaves `true` of its command line as text."""
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _parse_seeds(cls, value: Any) -> Any:
        """Accept `0`, `[0, 1]`, `"0,1,2"` and `"0-4"`: the command line knows no lists."""
        if isinstance(value, bool):
            raise ValueError("seeds are whole numbers from 0, such as 0,1,2")
        if isinstance(value, int):
            return [value]
        if isinstance(value, str):
            seeds: list[int] = []
            for part in value.split(","):
                match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
                if not match:
                    raise ValueError(f"'{part}' is no seed; write whole numbers such as 0,1,2")
                first, last = int(match[1]), int(match[2] or match[1])
                seeds.extend(range(first, last + 1))
            value = seeds
        if isinstance(value, list) and not value:
            raise ValueError("at least one seed is needed, such as seeds=0")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise ValueError(f"a seed is named twice in {value}")
        return value


# --- recipes -----------------------------------------------------------


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
    MODEL_KINDS: ClassVar[tuple[str, ...]] = ("vision", "language")  # of models (`ModelSpec.kind`)

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


class Classification(ImageTraining):
    """Supervised image classification: pre-training, fine-tuning, or evaluation (epochs: 0)."""

    METRICS = (
        "top1",
        "top5",
        "cross_entropy",
        "chance",
        "images",
        "flops",
        "train_flops",
        "best_epoch_top1",
        "best_epoch",
    )
    # of an autoencoder, the encoder is the classifier; of a contrastive model, the vision tower
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["classification"] = "classification"
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    mixup: pydantic.NonNegativeFloat = 0.0  # Beta(a, a); 0: off
    cutmix: pydantic.NonNegativeFloat = 0.0
    mix_switch: float = pydantic.Field(0.5, ge=0, le=1)  # share of CutMix where both are on
    zero_head: bool = False  # the classifier starts from zeros

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {"zero_head"}


class Autoencoding(ImageTraining):
    """A masked autoencoder: most patches of a picture are hidden, and predicted from the others."""

    METRICS = ("reconstruction", "train_reconstruction", "images", "flops", "train_flops")
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("autoencoder",)

    task: Literal["autoencoding"] = "autoencoding"
    mask_ratio: float = pydantic.Field(0.75, gt=0, lt=1)  # share of the patches that is hidden
    normalise_patches: bool = False  # predict each patch less its mean, over its standard deviation

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {"mask_ratio", "normalise_patches"}


# What captions are cut with (crate/data/captions.py); and into how many tokens.
CaptionTokens = Literal["bert", "clip"]
CONTEXT_LENGTH = 32


class Contrastive(ImageTraining):
    """Images and captions embedded in one space, those of a pair near each other (CLIP, CLIPA).

    Evaluated on pairs that are held out, each image against the captions of its batch.
    """

    METRICS = ("contrastive_loss", "image_to_text", "pairs", "flops", "train_flops")
    LOWER_IS_BETTER = True
    MODEL_KINDS = ("contrastive",)

    task: Literal["contrastive"] = "contrastive"
    tokenizer: CaptionTokens = "bert"
    context_length: pydantic.PositiveInt = CONTEXT_LENGTH
    text_tower: str | None = None  # the official file that the text tower and the scale start from
    freeze_text: bool = False  # the text tower and the scale of the logits stay as they start
    bad_pairs: float = pydantic.Field(0.1, ge=0, le=1)  # share of them that a run bears
    evaluation_batch: pydantic.PositiveInt = 500

    @property
    def evaluated_by(self) -> set[str]:
        return super().evaluated_by | {
            "tokenizer", "context_length", "text_tower", "evaluation_batch",
        }  # fmt: skip


class ZeroShot(Recipe):
    """Classification by the names of the classes: a picture is what its nearest text names.

    A class's text is the mean of its name in many phrases (Radford et al. 2021).
    """

    METRICS = ("top1", "top5", "cross_entropy", "chance", "images")
    MODEL_KINDS = ("contrastive",)

    task: Literal["zeroshot"] = "zeroshot"
    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    tokenizer: CaptionTokens = "bert"
    context_length: pydantic.PositiveInt = CONTEXT_LENGTH
    templates: Literal["openai", "simple"] = "openai"  # 80 phrases, or the best 7 of them


# What is scored: the model's answer, or a control that needs no model.
Answer = Literal["model", "whole_image", "ground_truth"]


class Segmentation(Training):
    """Semantic segmentation: a backbone and a decoder trained together, tested on sliding windows.

    The network sees squares of `image_size`: random crops of pictures scaled at random, and in a
    test the windows that cover a picture, `stride` apart.
    """

    METRICS = ("miou", "macc", "aacc", "images")

    task: Literal["segmentation"] = "segmentation"
    image_size: pydantic.PositiveInt = 512
    stride: pydantic.PositiveInt = 341
    resize: list[pydantic.PositiveInt] = pydantic.Field([2048, 512], min_length=2, max_length=2)
    ratio: list[pydantic.PositiveFloat] = pydantic.Field([0.5, 2.0], min_length=2, max_length=2)
    category_max: float = pydantic.Field(0.75, gt=0, le=1)  # most of a crop that one class may fill
    flip: bool = True
    photometric: bool = True  # random brightness, contrast, saturation, hue
    layers: list[pydantic.NonNegativeInt] = pydantic.Field(
        [3, 5, 7, 11], min_length=4, max_length=4
    )
    decoder: Literal["upernet", "linear"] = "upernet"
    channels: pydantic.PositiveInt | None = None  # of the decoder; None: the backbone's width
    auxiliary: pydantic.NonNegativeFloat = 0.0  # weight of UPerNet's second head; 0: none
    answer: Answer = "model"  # whole_image: the most frequent class everywhere

    @property
    def evaluated_by(self) -> set[str]:
        if self.answer != "model":  # a control without a network
            return {"task", "dataset", "evaluate", "answer"}
        return super().evaluated_by | {"stride", "resize", "layers", "decoder", "channels"}

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "Segmentation":
        if self.resize[0] < self.resize[1]:
            raise ValueError(f"resize {self.resize}: the limit of the longer side comes first")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: the smaller comes first")
        if self.auxiliary and self.decoder != "upernet":
            raise ValueError("auxiliary: only UPerNet has a second head")
        return self


class Objects(Recipe):
    """MaskCut (Wang et al. 2023, CutLER) on a network's patch features, scored as COCO does."""

    METRICS = (
        "box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75", "objects", "images",
    )  # fmt: skip

    task: Literal["objects"] = "objects"
    image_size: pydantic.PositiveInt = 480  # side of the square a picture is scaled to
    layer: pydantic.NonNegativeInt  # the block whose features are used, from 0
    feature: Literal["key", "query", "value", "tokens"] = "key"  # tokens: what enters the block
    tau: float = 0.15  # patches are alike above this cosine
    masks: pydantic.PositiveInt = 3  # at most, of a picture
    crf: bool = False
    solver: Literal["iterative", "dense"] = "iterative"
    answer: Answer = "model"


class AttentionSegmentation(Recipe):
    """Self-attention of the class token as a mask, its best head against each object."""

    METRICS = ("miou", "objects", "images")

    task: Literal["attention_segmentation"] = "attention_segmentation"
    image_size: pydantic.PositiveInt = 480
    layer: pydantic.NonNegativeInt  # the block whose attention is used, from 0
    mass: float = pydantic.Field(0.6, gt=0, le=1)  # share of the attention that the mask keeps
    void: Literal["ignored", "background"] = "ignored"  # pixels that belong to no class
    answer: Answer = "model"


class Probe(Recipe):
    """What the features of a frozen network tell of a picture's class; no network is trained.

    "linear": logistic regression, on features standardised by the mean and variance of those it
    is fitted to. Of several penalties, the one with the best top-1 on the validation split is
    taken, fitted to the training split without it; then it is fitted to all that recipes train on.
    "knn": weighted votes of the most similar training features by cosine (Wu et al. 2018,
    arXiv 1805.01978), as in DINO's evaluation (arXiv 2104.14294).
    """

    METRICS = ("top1", "top5", "cross_entropy", "chance", "images", "penalty")
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["probe"] = "probe"
    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    features: Literal["token", "mean"] = "token"  # mean: of the patch tokens
    method: Literal["linear", "knn"] = "linear"
    # of the squared weights: the mean cross-entropy in nats + penalty / 2 × their sum
    penalties: list[pydantic.PositiveFloat] = pydantic.Field(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0], min_length=1
    )
    neighbours: pydantic.PositiveInt = 20
    temperature: pydantic.PositiveFloat = 0.07

    @pydantic.model_validator(mode="after")
    def _one_process(self) -> "Probe":
        if self.compute.nodes * self.compute.tasks > 1:
            raise ValueError("compute: a probe is the work of one process, on one GPU at most")
        if len(set(self.penalties)) < len(self.penalties):
            raise ValueError(f"penalties: one is named twice in {self.penalties}")
        return self

    @property
    def identity(self) -> dict:
        """What the other method goes by decides nothing."""
        others = {"linear": {"neighbours", "temperature"}, "knn": {"penalties"}}[self.method]
        return {key: value for key, value in super().identity.items() if key not in others}

    def splits(self, dataset: Dataset) -> list[str]:
        """The splits whose pictures are looked at; the evaluated one stands last."""
        chooses = self.method == "linear" and len(self.penalties) > 1
        needed = ["train", *(["validation"] if chooses or dataset.held_out("validation") else [])]
        return [*(split for split in needed if split != self.evaluate), self.evaluate]


class Layerwise(Recipe):
    """What each layer does to the objective that CRATE is derived from (crate/models/objective.py).

    Looks at a few pictures of a split, and at as many that were trained on, all evenly spaced; of
    a set of scenes, which has no split to compare with, at the evaluated ones alone.
    """

    METRICS = (
        "compression_first", "compression_last", "compression_falls",
        "official_first", "official_last", "rate_first", "rate_last",
        "sparsity_first", "sparsity_last", "sparsity_falls", "codes_first", "codes_last",
        "objective_first", "objective_last", "objective_rises", "norm_first", "norm_last",
        "train_compression_last", "train_sparsity_last", "train_objective_last", "pictures",
    )  # fmt: skip
    MODEL_KINDS = ("vision", "autoencoder", "contrastive")

    task: Literal["layerwise"] = "layerwise"
    image_size: pydantic.PositiveInt = 224
    eval_resize: pydantic.PositiveInt | None = None  # shorter side before the centre crop
    pictures: pydantic.PositiveInt = 1000  # of each split, at most
    epsilon: pydantic.PositiveFloat = 0.1  # ε of the coding rates
    weight: pydantic.NonNegativeFloat = 0.1  # λ of ‖Z‖₀ in the objective

    @pydantic.model_validator(mode="after")
    def _one_process(self) -> "Layerwise":
        if self.compute.nodes * self.compute.tasks > 1:
            raise ValueError("compute: this is the work of one process, on one GPU at most")
        return self


class Language(Training):
    """A language model: trained on random windows of a text, evaluated on the whole of one.

    Two controls count tokens instead: how often each comes ("unigram"), and after which other one
    ("bigram"). What follows them in a chain is evaluated by those counts.
    """

    METRICS = (
        "cross_entropy", "bits_per_byte", "tokens", "documents", "flops", "train_flops",
    )  # fmt: skip
    LOWER_IS_BETTER = True

    task: Literal["language"] = "language"
    block_size: pydantic.PositiveInt = 1024  # tokens that the network sees at once
    answer: Literal["model", "unigram", "bigram"] = "model"

    @property
    def trains(self) -> bool:
        return super().trains and self.answer == "model"

    @property
    def evaluated_by(self) -> set[str]:
        if self.answer != "model":  # a control without a network
            return {"task", "dataset", "evaluate", "answer"}
        return super().evaluated_by | {"block_size"}


class LanguageSpeed(Language):
    """Speed and memory of training a language model by a recipe, on the device at hand."""

    METRICS = ("tokens_per_second", "peak_memory")
    READS_DATA = False
    TIMED = METRICS

    task: Literal["language_speed"] = "language_speed"
    seconds: pydantic.PositiveFloat = 60.0  # at most this long, but two updates at least


class Architecture(Recipe):
    """The size of a model as published: nothing is trained and no data are read."""

    METRICS = ("depth", "width", "heads", "parameters", "flops")
    READS_DATA = False
    TORCH = False
    AS_PUBLISHED = True
    MODEL_KINDS = ("vision", "language", "autoencoder", "contrastive")

    task: Literal["architecture"] = "architecture"
    image_size: pydantic.PositiveInt = 224
    mask_ratio: float = pydantic.Field(0.75, gt=0, lt=1)  # of a masked autoencoder
    block_size: pydantic.PositiveInt = 1024  # of a language model
    positions: bool = True  # whether a language model's positions count among its parameters


class Throughput(Recipe):
    """Speed of a published model's forward pass on the device at hand, and its FLOPs."""

    METRICS = ("images_per_second", "flops", "parameters")
    READS_DATA = False
    AS_PUBLISHED = True
    TIMED = ("images_per_second",)

    task: Literal["throughput"] = "throughput"
    image_size: pydantic.PositiveInt = 224
    batch_size: pydantic.PositiveInt = 64  # on a GPU; a CPU takes one image at a time
    seconds: pydantic.PositiveFloat = 10.0  # at most this long, but one batch at least


class Released(Recipe):
    """A chain's start from an official checkpoint: converted, strictly, and nothing trained."""

    METRICS = ("parameters",)
    READS_DATA = False
    TORCH = False  # no device, no ranks
    AS_PUBLISHED = True
    MODEL_KINDS = ("vision", "contrastive")

    task: Literal["released"] = "released"
    image_size: pydantic.PositiveInt = 224


RECIPE_TYPES: dict[str, type[Recipe]] = {
    "classification": Classification,
    "autoencoding": Autoencoding,
    "contrastive": Contrastive,
    "zeroshot": ZeroShot,
    "segmentation": Segmentation,
    "objects": Objects,
    "attention_segmentation": AttentionSegmentation,
    "probe": Probe,
    "layerwise": Layerwise,
    "language": Language,
    "language_speed": LanguageSpeed,
    "architecture": Architecture,
    "throughput": Throughput,
    "released": Released,
}


# --- scales and tables -----------------------------------------------------------


class Scale(Strict):
    """What a scale changes about models, steps and data; paper scale changes nothing."""

    title: str  # printed in captions
    datasets: dict[str, str] = {}  # real set → the embedded set that stands in for it
    models: dict[str, dict[str, Any]] = {}  # name pattern → overrides, later ones win
    defaults: dict[str, Any] = {}  # overrides of every step
    steps: dict[str, dict[str, Any]] = {}  # overrides of one step (and of those that extend it)


class PaperValue(Strict):
    """A number as printed, with where it was read and how surely (marks A to C of the sources)."""

    value: float
    source: str
    mark: Literal["A", "B", "C"]
    unexplained: str | None = None  # why our own number cannot agree


class Row(Strict):
    label: str
    model: str
    control: bool = False  # a reference point, not a competitor: no bold, no ranking
    metric: str | None = None  # shown in place of the columns' metrics
    chain: str | None = None  # in place of the columns'
    steps: dict[str, str | None] = {}  # column → chain of this cell; null: an empty cell
    paper: dict[str, PaperValue] = {}  # column → the paper's number

    def chain_of(self, key: str, column: "Column") -> str | None:
        """The chain of this row's cell in a column; None: an empty cell."""
        return self.steps.get(key, self.chain or column.chain)


class Column(Strict):
    label: str
    metric: str
    chain: str
    direction: Literal["up", "down"] | None = "up"  # null: a fact, nothing to win
    unit: str = ""
    factor: pydantic.PositiveFloat = 1.0  # printed value = metric × factor
    decimals: pydantic.NonNegativeInt | None = 1  # null: three digits and an SI prefix
    tolerance: pydantic.NonNegativeFloat | None = None  # |ours − paper| that counts as reproduced


class Figure(Strict):
    """What is drawn of a table.

    bars       a column, the paper's beside ours
    scaling    one column against another, and losses
    layers     compression, sparsity and objective by layer, a column of panels a model
    tokens     tokens of a few pictures as colours, and their norms and non-zeros by layer
    masks      the masks found in a few pictures, models side by side
    attention  attention maps of a few pictures by model and head
    curves     a column's metric while its runs train, against what they have seen
    stages     training losses of a column's runs, and a column beside an earlier one as bars
    reconstruction  a few pictures, whole, masked, and filled in by models; their attention maps
    """

    kind: Literal[
        "bars", "scaling", "masks", "attention", "curves", "stages", "reconstruction",
        "layers", "tokens",
    ]  # fmt: skip
    column: str  # the column that is drawn, or whose runs' pictures are
    title: str
    # the figure's name, where it is not called as its table
    name: str = pydantic.Field("", pattern=r"^[A-Za-z0-9_]*$")
    # scaling: the column along the horizontal axis; stages: the earlier one
    against: str | None = None
    losses: str | None = None  # scaling, stages: the column whose runs' training losses are drawn
    panels: dict[str, list[str]] = {}  # scaling: title of a panel of losses → its rows
    rows: list[str] = []  # reconstruction: the rows that are drawn; none named: all but controls

    @pydantic.model_validator(mode="after")
    def _complete(self) -> "Figure":
        if (self.kind in ("scaling", "stages")) != (self.against is not None):
            raise ValueError("'against' belongs to kinds 'scaling' and 'stages', which need it")
        stages = self.kind == "stages"
        if (bool(self.panels) or stages) != (self.losses is not None):
            raise ValueError("'losses' and 'panels' belong together; kind 'stages' needs losses")
        if stages and self.panels:
            raise ValueError("kind 'stages' has no 'panels'")
        if self.rows and self.kind != "reconstruction":
            raise ValueError("'rows' belongs to kind 'reconstruction'")
        return self

    @property
    def by_layer(self) -> bool:
        """Whether what runs tell of their layers is drawn."""
        return self.kind in ("layers", "tokens")

    @property
    def pictures(self) -> bool:
        return self.kind in ("masks", "attention", "reconstruction", "tokens")

    @property
    def drawn_losses(self) -> str | None:
        """The column whose runs' losses are drawn, if any are."""
        return self.column if self.kind == "curves" else self.losses


class Table(Strict):
    title: str
    source: str  # paper and table
    note: str = ""
    columns: dict[str, Column] = pydantic.Field(min_length=1)
    rows: list[Row] = pydantic.Field(min_length=1)
    figure: Figure | None = None


# --- reading -----------------------------------------------------------


# libyaml reads experiments/ eight times as fast, where it is built in; its own composer, left out
# here, crashes on deep nesting
_LOADERS = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)


class _Loader(*_LOADERS):
    """Safe YAML in which `1e-3` is a number and a key given twice is an error."""

    def __init__(self, stream: str):
        _LOADERS[-1].__init__(self, stream)
        Composer.__init__(self)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys: list = []
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in keys:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' stands twice", key_node.start_mark
            )
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_yaml(path: Path) -> dict:
    """Read a YAML mapping. Raises `UsageError` naming file and line where it is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(f"{path}: {line}{problem}") from None
    except ValueError as error:  # a value that looks like a date and is none: 2024-13-45
        raise UsageError(f"{path}: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply") from None
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path}: must be a mapping of names to values")
    return content


def load_value(text: str) -> Any:
    """A value of the command line, as YAML. Raises `ValueError` where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_value(text: str) -> Any:
    """A value of the command line, as YAML (and Snakemake) would read it; else the text itself."""
    try:
        return load_value(text) if text.strip() else text
    except ValueError:
        return text


def parse(schema: type[Strict], content: dict, where: str | Path) -> Any:
    """Check `content` against `schema`.

    Raises:
        UsageError: one line naming file, key, and the nearest valid key or what was expected.
    """
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        errors = error.errors()
        # a misspelt key is also a missing one: tell the first of the two
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        raise UsageError(f"{where}: {_explain(schema, first)}") from None


def _explain(schema: type[Strict], error: dict) -> str:
    """One pydantic error as a person would say it."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(location[-1], _fields_at(schema, location[:-1]))}"
    if error["type"] == "missing":
        return f"the key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {error['input']!r} should be {message}"


def _fields_at(schema: Any, location: list[str]) -> list[str]:
    """The valid keys at a place inside a schema, followed through lists, dicts and options."""
    for part in location:
        fields = getattr(schema, "model_fields", None)
        if fields is None or part not in fields:
            continue  # a list index or a dictionary's key: the element type is already at hand
        schema = fields[part].annotation
        for _ in range(3):
            arguments = [a for a in getattr(schema, "__args__", ()) if a is not type(None)]
            schema = arguments[-1] if arguments else schema
    return list(getattr(schema, "model_fields", {}))


def merge(base: dict, delta: dict) -> dict:
    """`base` with `delta` on top; dictionaries merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in delta.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _shared(delta: dict, content: dict) -> dict:
    """The part of `delta` whose keys `content` has too."""
    return {
        key: _shared(value, content[key])
        if isinstance(value, dict) and isinstance(content[key], dict)
        else value
        for key, value in delta.items()
        if key in content
    }


class Experiments:
    """Everything in `experiments/`, read once; `scale()` checks it as one scale sees it."""

    def __init__(self, folder: Path = EXPERIMENTS):
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}/ here: run this at the root of the suite")
        self.folder = folder
        self.models = read_yaml(folder / "models.yaml")
        self._steps = self._read_all("steps")
        self._scales = self._read_all("scales")
        self._tables = self._read_all("tables")
        self._cache: dict[tuple, Any] = {}

    def _read_all(self, kind: str) -> dict[str, dict]:
        return {p.stem: read_yaml(p) for p in sorted((self.folder / kind).glob("*.yaml"))}

    @property
    def steps(self) -> list[str]:
        return list(self._steps)

    @property
    def scales(self) -> list[str]:
        return list(self._scales)

    @property
    def tables(self) -> list[str]:
        return list(self._tables)

    def settings(self, overrides: dict | None = None) -> Settings:
        """`config.yaml` with `overrides` on top."""
        path = self.folder / "config.yaml"
        own = self._once(("settings",), lambda: read_yaml(path))
        settings = parse(Settings, own, path)
        if overrides:
            settings = parse(Settings, own | overrides, "--config")
        self.scale(settings.scale)
        return settings

    def scale(self, name: str) -> Scale:
        if name not in self._scales:
            raise unknown("scale", name, self._scales)
        path = self.folder / "scales" / f"{name}.yaml"
        scale = self._once(("scale", name), lambda: parse(Scale, self._scales[name], path))
        for recipe in scale.steps:
            if recipe not in self._steps:
                raise unknown("step", recipe, self._steps, str(path))
        fields = set().union(*(schema.model_fields for schema in RECIPE_TYPES.values()))
        for key in scale.defaults:
            if key not in fields:
                raise unknown("key", key, fields, f"{path}: defaults")
        for dataset in (*scale.datasets, *scale.datasets.values()):
            if dataset not in DATASETS:
                raise unknown("data set", dataset, DATASETS, f"{path}: datasets")
        return scale

    def table(self, name: str) -> Table:
        if name not in self._tables:
            raise unknown("table", name, self._tables)
        path = self.folder / "tables" / f"{name}.yaml"
        table = self._once(("table", name), lambda: parse(Table, self._tables[name], path))
        for row in table.rows:
            for column in (*row.paper, *row.steps):
                if column not in table.columns:
                    raise unknown("column", column, table.columns, f"{path}: row '{row.label}'")
        for kind, parts in (("rows", table.rows), ("columns", table.columns.values())):
            labels = [part.label for part in parts]
            for label in labels:
                if labels.count(label) > 1:
                    raise UsageError(f"{path}: two {kind} are called '{label}'")
        if table.figure:
            figure, labels = table.figure, [row.label for row in table.rows]
            for column in filter(None, (figure.column, figure.against, figure.losses)):
                if column not in table.columns:
                    raise unknown("column", column, table.columns, f"{path}: figure")
            for key, named in (("panels", figure.panels.values()), ("rows", [figure.rows])):
                for label in itertools.chain(*named):
                    if label not in labels:
                        raise unknown("row", label, labels, f"{path}: figure: {key}")
        return table

    def recipe(self, name: str, scale: str, overrides: dict | None = None) -> Recipe:
        """The recipe `name` as `scale` runs it, with the stand-in data set filled in."""
        if overrides:
            return self._step(name, scale, overrides)
        return self._once(("step", name, scale), lambda: self._step(name, scale, {}))

    def _step(self, name: str, scale: str, overrides: dict) -> Recipe:
        content = merge(self._step_content(name, scale, ()), overrides)
        where = f"{self.folder / 'steps' / name}.yaml (scale {scale})"
        base = self._steps[name].get("extends")
        if base is not None:
            self.recipe(base, scale)  # a mistake is told where it stands
        task = content.get("task")
        if task is None:
            raise UsageError(f"{where}: the key 'task' is missing")
        if not isinstance(task, str) or task not in RECIPE_TYPES:
            raise unknown("task", task, RECIPE_TYPES, where)
        recipe = parse(RECIPE_TYPES[task], content, where)
        if recipe.dataset not in DATASETS:
            raise unknown("data set", recipe.dataset, DATASETS, where)
        for before in recipe.follows:
            if before not in ("start", *self._steps):
                raise unknown("step", before, ("start", *self._steps), f"{where}: follows")
        if recipe.AS_PUBLISHED:
            return recipe
        stand_in = self.scale(scale).datasets.get(recipe.dataset, recipe.dataset)
        return recipe.model_copy(update={"dataset": stand_in})

    def _step_content(self, name: str, scale: str, seen: tuple[str, ...]) -> dict:
        """Own keys over the extended step's, each as the scale changes it.

        The scale's `defaults` change the recipes, each by the keys it knows; its `steps` change
        one of them and those that extend it, whose own keys stay (an untrained control's
        `epochs: 0`). A step that looks at published models takes only what it may use.
        """
        if name not in self._steps:
            where = str(self.folder / "steps" / f"{seen[-1]}.yaml") if seen else ""
            raise unknown("step", name, self._steps, where)
        path = self.folder / "steps" / f"{name}.yaml"
        if name in seen:
            circle = " → ".join((*seen, name))
            raise UsageError(f"{path}: extends: steps extend each other in a circle: {circle}")
        content = dict(self._steps[name])
        base = content.pop("extends", None)
        if not isinstance(base, str | None):
            raise UsageError(f"{path}: extends: {base!r} should be the name of a step")
        schema = RECIPE_TYPES.get(str(self._task(name)), Classification)
        known = {"compute"} if schema.AS_PUBLISHED else set(schema.model_fields)
        defaults = {k: v for k, v in self.scale(scale).defaults.items() if k in known}
        if base is None:
            content = merge(content, defaults)
        else:
            content = merge(content, _shared(defaults, content))
            content = merge(self._step_content(base, scale, (*seen, name)), content)
        return merge(content, self.scale(scale).steps.get(name, {}))

    def _task(self, name: str) -> Any:
        """The kind of step, its own or that of the step it extends."""
        seen = set()
        while isinstance(name, str) and name in self._steps and name not in seen:
            seen.add(name)
            if "task" in self._steps[name]:
                return self._steps[name]["task"]
            name = self._steps[name].get("extends")
        return None

    def _once(self, key: tuple, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
