"""Supervised image classification: pre-training, fine-tuning, and evaluation alone (epochs: 0)."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from crate.data.augment import mix, normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet, odd_count
from crate.data.images import open_split
from crate.errors import UsageError
from crate.models.build import build
from crate.models.flops import macs
from crate.models.transfer import transfer_weights, vision_weights
from crate.records import RunFolder, read_json
from crate.runtime import Runtime, seed_for
from crate.tasks.base import Resolved
from crate.training.loop import fit, read_history, read_weights, save_weights

EVALUATION_BATCH = 500


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Train (if `epochs` asks for it) and evaluate one model; weights are left in `folder`.

    Args:
        parent: weights to start from, of a masked autoencoder its encoder's, of a
            contrastive model its vision tower's; None starts anew.

    Returns:
        metrics (top-1 and top-5 accuracy in %, cross-entropy in nats, all on the evaluated split
        after the last update; chance: % of its most frequent class; FLOPs of one image's forward
        pass, and of training since the chain's start, three forward passes an image) and details
        for run.json.
    """
    recipe, seed = resolved.recipe, resolved.run.seed
    dataset = get_dataset(recipe.dataset)
    torch.manual_seed(seed_for(seed, "init", *resolved.run.chain))
    model = build(
        resolved.spec,
        num_classes=dataset.classes,
        image_size=recipe.image_size,
        drop_path=recipe.drop_path,
    )
    details: dict = {}
    if parent is not None:
        details["carried"] = transfer_weights(
            model, vision_weights(read_weights(parent)), recipe.dont_load
        )
    if recipe.zero_head:
        for parameter in model.head.parameters():
            torch.nn.init.zeros_(parameter)
    model.to(runtime.device)

    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    evaluated = open_split(dataset, recipe.evaluate, **opened)  # first: it must not fail afterwards

    def accuracy() -> dict:
        most = recipe.compute.micro_batch or EVALUATION_BATCH
        batches = evaluated.evaluation(recipe, min(most, EVALUATION_BATCH))
        return evaluate(model, batches, dataset, runtime)

    updates, per_epoch = 0, 1
    if recipe.trains:
        source = open_split(dataset, "train", held_out_for=recipe.evaluate, **opened)
        if runtime.main and (warning := odd_count(dataset, len(source))):
            print(f"warning: {warning}", file=sys.stderr)
        per_epoch = len(source) // recipe.batch_size
        details["training_images"] = len(source)
        total = updates = recipe.total_updates(per_epoch)
        if not per_epoch or not total:
            raise UsageError(
                f"{resolved.run}: {len(source):,} images in batches of {recipe.batch_size:,} are not "
                "a single update"
            )

        def training_batches(first: int):
            for index, (pixels, labels) in enumerate(
                source.training(recipe, seed, first, total), start=first
            ):
                images = normalise(pixels, dataset)
                mix_seed = seed_for(seed, "mix", index)
                yield mix(
                    images,
                    labels,
                    dataset.classes,
                    mix_seed,
                    mixup=recipe.mixup,
                    cutmix=recipe.cutmix,
                    switch=recipe.mix_switch,
                )

        def loss(network: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            images, targets = batch
            return F.cross_entropy(
                network(images).float(), targets, label_smoothing=recipe.label_smoothing
            )

        details |= fit(
            model,
            loss=loss,
            batches=training_batches,
            steps_per_epoch=per_epoch,
            recipe=recipe,
            runtime=runtime,
            folder=folder,
            identity=identity,
            seed=seed,
            name=str(resolved.run),
            watch=lambda: {"top1": accuracy()["top1"]},
            size=len(source),
        )
    if runtime.main:
        save_weights(model, folder)
    metrics = accuracy()
    forward = 2 * macs(resolved.spec, image_size=recipe.image_size, num_classes=dataset.classes)
    before = read_json(parent.with_name("metrics.json"))["metrics"] if parent else {}
    metrics["flops"] = forward
    metrics["train_flops"] = (
        before.get("train_flops", 0) + 3 * forward * updates * recipe.batch_size
    )
    if recipe.evaluate_epochs:
        metrics |= best_epoch(read_history(folder), metrics["top1"], updates / per_epoch)
    return metrics, details


def best_epoch(history: list[dict], last: float, epochs: float) -> dict:
    """The best accuracy on the evaluated split over the epochs looked at, the first of equals.

    The official transfer script reports this, on the test set; the tables here show the last one.
    """
    seen = [(line["top1"], line["epoch"]) for line in history if "top1" in line]
    top1, epoch = max([*seen, (last, epochs)], key=lambda pair: pair[0])
    return {"best_epoch_top1": top1, "best_epoch": epoch}


@torch.inference_mode()
def evaluate(model: nn.Module, batches, dataset: ImageSet, runtime: Runtime) -> dict:
    """Accuracy and cross-entropy over all batches of all ranks, in float32.

    labels: (B,), or (B, M) where a picture has several, padded with -1: any of them is right, and
    the cross-entropy is that of their summed probability.
    """
    model.eval()
    counts = torch.zeros(dataset.classes, dtype=torch.float64, device=runtime.device)
    sums = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    for pixels, labels in batches:
        logits = model(normalise(pixels, dataset))
        ranked = logits.topk(min(5, dataset.classes), dim=1).indices
        labels = labels.view(len(labels), -1)  # (B, M)
        given = labels >= 0
        hits = ((ranked[:, :, None] == labels[:, None, :]) & given[:, None, :]).any(2)  # (B, 5)
        sums[0] += hits[:, 0].sum()
        sums[1] += hits.any(1).sum()
        likely = F.log_softmax(logits, 1).gather(1, labels.clamp(min=0))
        sums[2] -= likely.masked_fill(~given, -torch.inf).logsumexp(1).sum().double()
        sums[3] += len(labels)
        counts += torch.bincount(labels[given], minlength=dataset.classes)
    sums, counts = runtime.all_reduce_sum(sums).cpu(), runtime.all_reduce_sum(counts).cpu()
    images = int(sums[3])
    top1, top5, cross_entropy = (sums[:3] / images).tolist()
    return {
        "top1": round(100 * top1, 6),
        "top5": round(100 * top5, 6),
        "cross_entropy": round(cross_entropy, 6),
        "chance": round(100 * float(counts.max()) / images, 6),
        "images": images,
    }
