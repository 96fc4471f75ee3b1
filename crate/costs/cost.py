"""What a run costs: parameters and operations are counted, disk is estimated.

`workloads` names what of a run decides its speed on a device: `crate bench` measures those, and
`crate plan` (crate/costs/budget.py) takes measured speeds where there are any. This module
imports no torch.
"""

import dataclasses
import math

from crate.data.captions import VOCABULARIES
from crate.data.catalogue import get_dataset
from crate.data.datasets import Dataset, TextSet
from crate.data.tokenizer import get_tokenizer
from crate.models import flops as complexity
from crate.models import flops_autoencoder as autoencoder_complexity
from crate.models import flops_contrastive as contrastive_complexity
from crate.models import flops_segmenter as segmenter_complexity
from crate.planning.plan import Plan
from crate.recipes import Recipe, Training
from crate.runs import Run
from crate.tasks.attention_segmentation.recipe import AttentionSegmentation
from crate.tasks.autoencoding.recipe import Autoencoding
from crate.tasks.base import Resolved
from crate.tasks.contrastive.recipe import Contrastive
from crate.tasks.layerwise.recipe import Layerwise
from crate.tasks.objects.recipe import Objects
from crate.tasks.probe.recipe import Probe
from crate.tasks.segmentation.recipe import Segmentation
from crate.tasks.zeroshot.recipe import ZeroShot

# Peak dense bfloat16 TFLOP/s of one device, from the makers' data sheets (A6000: NVIDIA RTX A6000,
# the device of CRATE-alpha's Table 8; V100: float16).
DEVICES = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "a6000": 154.8, "v100": 125.0}
# The most power that a board of it draws, in watts, from the same data sheets (A100, H100, H200,
# V100: the SXM boards, A100 with 80 GB). Hosts, cooling and networks are not in it.
BOARD_WATTS = {"a100": 400, "h100": 700, "h200": 700, "a6000": 300, "v100": 300}
UTILISATION = 0.35  # assumed share of the peak that training reaches; an estimate, so say so

PICTURE = (640, 480)  # what a picture of scenes is taken to be, COCO's usual size; embedded: square
PHRASES = {"openai": 80, "simple": 7}  # of a class, in zero-shot classification

# What has no closed form, and is in a measured speed.
CUTS, RATES = "the cuts and CRFs of MaskCut", "the coding rates of layers"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run takes: counts are exact, disk is an estimate; hours are budget.py's."""

    parameters: int
    examples: int  # images, or windows of a text, seen in training, repetitions counted
    train_flops: float  # forward and backward (three times the forward pass)
    eval_flops: float
    disk_bytes: int  # final weights, plus one checkpoint while it trains; a probe's features
    evaluated: int = 0  # images, or windows, that are looked at and not trained on
    seconds: float = 0.0  # of a run that is timed: as long as its recipe says


def cost(plan: Plan, run: Run, overrides: dict | None = None) -> Cost:
    """Cost of one run. A multiply-accumulate is two FLOPs.

    What `not_counted` names costs nothing here.
    """
    resolved = plan.resolve(run, overrides)
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    steps = [recipe, *(plan.resolve(before).recipe for before in run.ancestors)]
    if any(getattr(each, "predictor", "model") != "model" for each in steps):
        return Cost(0, 0, train_flops=0.0, eval_flops=0.0, disk_bytes=0)  # no network
    parameters, products = complexity_of(resolved)
    forward = 2 * products
    sizes, size = dataset.splits, dataset.training_size
    if isinstance(dataset, TextSet):  # an example is a window
        sizes = {name: tokens // recipe.block_size for name, tokens in dataset.tokens.items()}
        size = sizes.get("train", 0)
    evaluated = sizes.get(recipe.evaluate, 0) if recipe.READS_DATA else 0
    if isinstance(recipe, Segmentation):
        evaluated *= windows_of(recipe, dataset)
    if isinstance(recipe, Layerwise):  # of each split, as many as there are
        splits = (
            (recipe.evaluate,) if getattr(dataset, "scenes", None) else (recipe.evaluate, "train")
        )
        evaluated = sum(min(recipe.pictures, sizes.get(split, 0)) for split in splits)
    if isinstance(
        recipe, Probe
    ):  # as if nothing were cached yet; beside its parent's weights it is
        looked_at, dim = pictures(recipe, dataset), resolved.spec.dim
        cosines = 0
        if recipe.method == "knn":
            cosines = 2 * evaluated * (looked_at - evaluated) * dim
        return Cost(
            parameters,
            0,
            train_flops=0.0,
            eval_flops=float(forward * looked_at + cosines),
            disk_bytes=4 * dim * looked_at if run.parent else 0,
            evaluated=looked_at,
        )
    if not isinstance(recipe, Training) or not recipe.READS_DATA:
        texts = 0
        if isinstance(recipe, ZeroShot):
            one = contrastive_complexity.text_macs(
                resolved.spec, context_length=recipe.context_length
            )
            texts = 2 * one * dataset.classes * PHRASES[recipe.templates]
        return Cost(
            parameters,
            0,
            train_flops=0.0,
            eval_flops=float(forward * evaluated + texts),
            disk_bytes=0,
            evaluated=evaluated,
            seconds=recipe.seconds if recipe.TIMED else 0.0,
        )
    per_epoch = size // recipe.batch_size
    updates = recipe.total_updates(per_epoch)
    looks = max(1, math.ceil(updates / (recipe.evaluate_every(per_epoch) or math.inf)))
    examples = updates * recipe.batch_size
    looked_at = evaluated * looks
    if isinstance(recipe, Autoencoding):  # and once at as many training pictures
        looked_at += min(evaluated, size)
    moments = {"adamw": 2, "lion": 1}[recipe.optimizer]
    return Cost(
        parameters=parameters,
        examples=examples,
        train_flops=training_flops(resolved) * examples,
        eval_flops=float(forward * looked_at),
        disk_bytes=4 * parameters * (1 + (1 + moments if examples else 0)),
        evaluated=looked_at,
    )


def training_flops(resolved: Resolved) -> float:
    """FLOPs of one example in training: forward, and backward where there are gradients."""
    recipe, spec, products = resolved.recipe, resolved.spec, complexity_of(resolved)[1]
    flops = 3 * 2 * products
    if isinstance(recipe, Contrastive) and recipe.freeze_text:  # no backward pass through the texts
        text = contrastive_complexity.text_macs(spec, context_length=recipe.context_length)
        flops -= 2 * 2 * text
    if isinstance(recipe, Segmentation) and recipe.auxiliary:
        size = decoder_sizes(resolved) | {"grid": spec.grid(recipe.image_size)}
        with_second, without = (
            segmenter_complexity.decoder_macs(recipe.decoder, **size | {"auxiliary": second})
            for second in (True, False)
        )
        flops += 3 * 2 * (with_second - without)
    return float(flops)


def windows_of(recipe: Segmentation, dataset: Dataset) -> int:
    """Windows that cover a picture, taken to be of `PICTURE`'s shape, in a test."""
    shape = (1, 1) if dataset.embedded else PICTURE
    longest, shortest = recipe.resize
    factor = min(longest / max(shape), shortest / min(shape))
    count = 1
    for side in shape:
        side = max(1, int(side * factor + 0.5))
        count *= max(0, math.ceil((side - recipe.image_size) / recipe.stride)) + 1
    return count


def decoder_sizes(resolved: Resolved) -> dict:
    """What a segmentation decoder's closed forms need."""
    recipe = resolved.recipe
    return {
        "dim": resolved.spec.dim,
        "classes": get_dataset(recipe.dataset).classes,
        "channels": recipe.channels or resolved.spec.dim,
        "auxiliary": recipe.auxiliary > 0,
    }


def pictures(recipe: Probe, dataset: Dataset) -> int:
    """How many pictures a probe looks at, each once."""
    sizes = dict(dataset.splits)
    sizes["train"] = dataset.training_size
    if dataset.held_out("validation"):  # out of what is trained on
        sizes["train"] -= dataset.holdout
    return sum(sizes.get(split, 0) for split in recipe.splits(dataset))


def not_counted(resolved: Resolved) -> str:
    """What of a run has no closed form, in words; empty where all is counted."""
    recipe = resolved.recipe
    if isinstance(recipe, Objects) and recipe.predictor == "model":
        return CUTS
    if isinstance(recipe, Layerwise):
        return RATES
    if isinstance(recipe, Probe) and recipe.method == "linear":
        return "the fits of linear probes"
    if not counted(resolved):
        return "evaluations on texts whose number of tokens is not known"
    return ""


def counted(resolved: Resolved) -> bool:
    """Whether the size of what a run is evaluated on is known: that of some texts is not."""
    dataset = get_dataset(resolved.recipe.dataset)
    needed = resolved.recipe.READS_DATA and isinstance(dataset, TextSet)
    return not needed or resolved.recipe.evaluate in dataset.tokens


def complexity_of(resolved: Resolved) -> tuple[int, int]:
    """Parameters of a run's network, and multiply-accumulates of one example's forward pass.

    An example is an image, a window of `block_size` tokens, or a pair of an image and a caption; in
    a segmentation, a window of a picture. Where patches are masked, the network is the whole
    autoencoder, where captions are cut into tokens both towers; in a classification, the encoder
    or the vision tower with a head. Of a network that is used in part, that part is counted.
    """
    recipe, spec, dataset = resolved.recipe, resolved.spec, get_dataset(resolved.recipe.dataset)
    if isinstance(dataset, TextSet):
        vocabulary, size = get_tokenizer(dataset.tokenizer).vocab_size, recipe.block_size
        return (
            complexity.language_parameter_count(
                spec,
                vocab_size=vocabulary,
                block_size=size,
                positions=getattr(recipe, "positions", True),
            ),
            complexity.language_macs(spec, vocab_size=vocabulary, tokens=size),
        )
    if spec.decoder != "none" and hasattr(recipe, "mask_ratio"):
        size = {"image_size": recipe.image_size}
        return (
            autoencoder_complexity.autoencoder_parameter_count(spec, **size),
            autoencoder_complexity.autoencoder_macs(spec, **size, mask_ratio=recipe.mask_ratio),
        )
    if spec.kind == "contrastive" and hasattr(recipe, "context_length"):
        size = {"image_size": recipe.image_size, "context_length": recipe.context_length}
        vocabulary = VOCABULARIES[recipe.tokenizer]
        macs = contrastive_complexity.image_macs(spec, image_size=recipe.image_size)
        if isinstance(recipe, Contrastive):  # in a zero-shot classification, texts are few
            macs += contrastive_complexity.text_macs(spec, context_length=recipe.context_length)
        return (
            contrastive_complexity.contrastive_parameter_count(spec, **size, vocab_size=vocabulary),
            macs,
        )
    shape = {"image_size": recipe.image_size, "num_classes": getattr(dataset, "classes", 1)}
    parameters, size = complexity.parameter_count(spec, **shape), {"image_size": recipe.image_size}
    if isinstance(recipe, Segmentation):
        blocks, decoder = max(recipe.layers) + 1, decoder_sizes(resolved)
        return (
            segmenter_complexity.backbone_parameter_count(spec, **size, blocks=blocks)
            + segmenter_complexity.decoder_parameter_count(recipe.decoder, **decoder),
            segmenter_complexity.backbone_macs(spec, **size, blocks=blocks)
            + segmenter_complexity.decoder_macs(
                recipe.decoder,
                **decoder | {"auxiliary": False},
                grid=spec.grid(recipe.image_size),
            ),
        )
    if isinstance(recipe, Objects | AttentionSegmentation):
        macs = segmenter_complexity.backbone_macs(spec, **size, blocks=recipe.layer)
        if getattr(recipe, "feature", "") != "tokens":
            macs += segmenter_complexity.projection_macs(spec, **size)
        return parameters, macs
    return parameters, complexity.macs(spec, **shape)


# --- what decides a speed -----------------------------------------------------------

# Settings of a step that decide how fast an example goes through its network, forward alone ...
FORWARD_KEYS = (
    "image_size", "block_size", "context_length", "tokenizer", "mask_ratio", "normalise_patches",
    "layers", "decoder", "channels", "layer", "feature", "features", "tau", "masks", "crf",
    "solver",
)  # fmt: skip
# ... and in training.
TRAINING_KEYS = (*FORWARD_KEYS, "auxiliary", "optimizer", "drop_path", "clip_grad", "freeze_text")


def workloads(resolved: Resolved, price: Cost) -> dict[str, dict]:
    """What decides the speed of a run's kinds of work, "train" and "evaluate", where it has them.

    Runs with equal workloads are equally fast on a device, whatever seed, data or schedule.
    """
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    compute = recipe.compute
    common = {
        "model": resolved.config["model"],
        "task": recipe.task,
        "outputs": dataset.tokenizer
        if isinstance(dataset, TextSet)
        else getattr(dataset, "classes", 0),
        "threads": compute.threads,
        "autocast": compute.autocast,
        "micro_batch": compute.micro_batch,
    }
    found = {}
    if price.examples:
        found["train"] = (
            common
            | _settings(recipe, TRAINING_KEYS)
            | {"batch": share_of(recipe), "compile": compute.compile}
        )
    if price.evaluated:
        found["evaluate"] = common | _settings(recipe, FORWARD_KEYS)
    return {kind: {"kind": kind} | workload for kind, workload in found.items()}


def share_of(recipe: Training) -> int:
    """Examples of a batch that one process has; at least one."""
    return max(1, recipe.batch_size // (recipe.compute.nodes * recipe.compute.tasks))


def _settings(recipe: Recipe, keys: tuple[str, ...]) -> dict:
    known = recipe.model_dump(mode="json")
    return {key: known[key] for key in keys if key in known}
