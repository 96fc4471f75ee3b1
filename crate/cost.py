"""What a run costs: parameters and operations are counted, device-hours and disk estimated.

This module imports no torch.
"""

import dataclasses
import math

from crate.config import Autoencoding, Contrastive, Probe, Training
from crate.data.captions import VOCABULARIES
from crate.data.registry import Dataset, TextSet, get_dataset
from crate.data.tokenizer import get_tokenizer
from crate.models import autoencoder_complexity, complexity, contrastive_complexity
from crate.plan import Plan, Resolved, Run

# Peak dense bfloat16 TFLOP/s of one device, from the makers' data sheets (A6000: NVIDIA RTX A6000,
# the device of CRATE-alpha's Table 8).
DEVICES = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "a6000": 154.8, "v100": 125.0}
UTILISATION = 0.35  # assumed share of the peak that training reaches; an estimate, so say so


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run takes: counts are exact, device-hours and disk are estimates."""

    parameters: int
    examples: int  # images, or windows of a text, seen in training, repetitions counted
    train_flops: float  # forward and backward (three times the forward pass)
    eval_flops: float
    disk_bytes: int  # final weights, plus one checkpoint while it trains; a probe's features

    def device_hours(self, device: str) -> float:
        flops = self.train_flops + self.eval_flops
        return flops / (DEVICES[device] * 1e12 * UTILISATION) / 3600


def cost(plan: Plan, run: Run, overrides: dict | None = None) -> Cost:
    """Cost of one run: its network, without a decoder. A multiply-accumulate is two FLOPs.

    Evaluations that are not `counted` cost nothing here.
    """
    resolved = plan.resolve(run, overrides)
    step, dataset = resolved.step, get_dataset(resolved.step.dataset)
    steps = [step, *(plan.resolve(before).step for before in run.ancestors)]
    if any(getattr(each, "answer", "model") != "model" for each in steps):
        return Cost(0, 0, train_flops=0.0, eval_flops=0.0, disk_bytes=0)  # no network
    parameters, products = complexity_of(resolved)
    forward = 2 * products
    sizes, size = dataset.splits, dataset.training_size
    if isinstance(dataset, TextSet):  # an example is a window
        sizes = {name: tokens // step.block_size for name, tokens in dataset.tokens.items()}
        size = sizes.get("train", 0)
    evaluated = sizes.get(step.evaluate, 0) if step.READS_DATA else 0
    if isinstance(step, Probe):  # as if nothing were cached yet; beside its parent's weights it is
        looked_at = pictures(step, dataset)
        cached = 4 * resolved.spec.dim * looked_at if run.parent else 0
        return Cost(
            parameters,
            0,
            train_flops=0.0,
            eval_flops=float(forward * looked_at),
            disk_bytes=cached,
        )
    if not isinstance(step, Training) or not step.READS_DATA:
        return Cost(
            parameters, 0, train_flops=0.0, eval_flops=float(forward * evaluated), disk_bytes=0
        )
    per_epoch = size // step.batch_size
    updates = step.total_updates(per_epoch)
    looks = max(1, math.ceil(updates / (step.evaluate_every(per_epoch) or math.inf)))
    examples = updates * step.batch_size
    looked_at = evaluated * looks
    if isinstance(step, Autoencoding):  # and once at as many training pictures
        looked_at += min(evaluated, size)
    moments = {"adamw": 2, "lion": 1}[step.optimizer]
    train = 3 * forward
    if isinstance(step, Contrastive) and step.freeze_text:  # no backward pass through the texts
        train -= 4 * contrastive_complexity.text_macs(
            resolved.spec, context_length=step.context_length
        )
    return Cost(
        parameters=parameters,
        examples=examples,
        train_flops=float(train * examples),
        eval_flops=float(forward * looked_at),
        disk_bytes=4 * parameters * (1 + (1 + moments if examples else 0)),
    )


def pictures(step: Probe, dataset: Dataset) -> int:
    """How many pictures a probe looks at, each once."""
    sizes = dict(dataset.splits)
    sizes["train"] = dataset.training_size
    if dataset.held_out("validation"):  # out of what is trained on
        sizes["train"] -= dataset.holdout
    return sum(sizes.get(split, 0) for split in step.splits(dataset))


def counted(resolved: Resolved) -> bool:
    """Whether the size of what a run is evaluated on is known: that of some texts is not."""
    dataset = get_dataset(resolved.step.dataset)
    needed = resolved.step.READS_DATA and isinstance(dataset, TextSet)
    return not needed or resolved.step.evaluate in dataset.tokens


def complexity_of(resolved: Resolved) -> tuple[int, int]:
    """Parameters of a run's network, and multiply-accumulates of one example's forward pass.

    An example is an image, a window of `block_size` tokens, or a pair of an image and a caption.
    Where patches are masked, the network is the whole autoencoder, where captions are cut into
    tokens both towers; in a classification, the encoder or the vision tower with a head.
    """
    step, spec, dataset = resolved.step, resolved.spec, get_dataset(resolved.step.dataset)
    if isinstance(dataset, TextSet):
        vocabulary, size = get_tokenizer(dataset.tokenizer).vocab_size, step.block_size
        return (
            complexity.language_parameter_count(
                spec,
                vocab_size=vocabulary,
                block_size=size,
                positions=getattr(step, "positions", True),
            ),
            complexity.language_macs(spec, vocab_size=vocabulary, tokens=size),
        )
    if spec.decoder != "none" and hasattr(step, "mask_ratio"):
        size = {"image_size": step.image_size}
        return (
            autoencoder_complexity.autoencoder_parameter_count(spec, **size),
            autoencoder_complexity.autoencoder_macs(spec, **size, mask_ratio=step.mask_ratio),
        )
    if spec.kind == "contrastive" and hasattr(step, "context_length"):
        size = {"image_size": step.image_size, "context_length": step.context_length}
        vocabulary = VOCABULARIES[step.tokenizer]
        macs = contrastive_complexity.image_macs(spec, image_size=step.image_size)
        if isinstance(step, Contrastive):  # in a zero-shot classification, texts are few
            macs += contrastive_complexity.text_macs(spec, context_length=step.context_length)
        return (
            contrastive_complexity.contrastive_parameter_count(spec, **size, vocab_size=vocabulary),
            macs,
        )
    shape = {"image_size": step.image_size, "num_classes": dataset.classes}
    return complexity.parameter_count(spec, **shape), complexity.macs(spec, **shape)
