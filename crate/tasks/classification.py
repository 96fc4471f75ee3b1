"""Supervised image classification: pre-training, fine-tuning, and evaluation alone (epochs: 0)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from crate.data.images import mix, normalise, open_split
from crate.data.registry import Dataset, get_dataset
from crate.errors import UsageError
from crate.models.carry import carry
from crate.models.registry import build
from crate.plan import Resolved
from crate.records import RunFolder
from crate.runtime import Runtime, seed_for
from crate.train import fit, read_weights, save_weights

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
        parent: weights to start from; None starts anew.

    Returns:
        metrics (top-1 and top-5 accuracy in %, cross-entropy in nats, all on the evaluated split;
        chance: % of its most frequent class) and details for run.json.
    """
    step, seed = resolved.step, resolved.run.seed
    dataset = get_dataset(step.dataset)
    torch.manual_seed(seed_for(seed, "init", *resolved.run.chain))
    model = build(
        resolved.spec,
        num_classes=dataset.classes,
        image_size=step.image_size,
        drop_path=step.drop_path,
    )
    details: dict = {}
    if parent is not None:
        details["carried"] = carry(model, read_weights(parent), step.dont_load)
    model.to(runtime.device)

    opened = {"size": step.image_size, "runtime": runtime, "data_root": data_root}
    evaluated = open_split(dataset, step.evaluate, **opened)  # first: it must not fail afterwards
    if step.epochs:
        source = open_split(dataset, "train", spare=step.evaluate, **opened)
        per_epoch = len(source) // step.batch_size
        total = int(step.epochs * per_epoch)
        if not total:
            raise UsageError(
                f"{resolved.run}: {step.epochs:g} epochs of {len(source):,} images in batches of "
                f"{step.batch_size:,} are not a single update"
            )

        def training_batches(first: int):
            for index, (pixels, labels) in enumerate(
                source.training(step, seed, first, total), start=first
            ):
                images = normalise(pixels, dataset)
                mix_seed = seed_for(seed, "mix", index)
                yield mix(images, labels, step, dataset.classes, mix_seed)

        def loss(network: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            images, targets = batch
            return F.cross_entropy(
                network(images).float(), targets, label_smoothing=step.label_smoothing
            )

        details |= fit(
            model,
            loss=loss,
            batches=training_batches,
            steps_per_epoch=per_epoch,
            step=step,
            runtime=runtime,
            folder=folder,
            identity=identity,
            seed=seed,
            name=str(resolved.run),
        )
    if runtime.main:
        save_weights(model, folder)
    batches = evaluated.evaluation(step, EVALUATION_BATCH)
    metrics = evaluate(model, batches, dataset, runtime)
    return metrics, details


@torch.inference_mode()
def evaluate(model: nn.Module, batches, dataset: Dataset, runtime: Runtime) -> dict:
    """Accuracy and cross-entropy over all batches of all ranks, in float32."""
    model.eval()
    counts = torch.zeros(dataset.classes, dtype=torch.float64, device=runtime.device)
    sums = torch.zeros(3, dtype=torch.float64, device=runtime.device)
    for pixels, labels in batches:
        logits = model(normalise(pixels, dataset))
        ranked = logits.topk(min(5, dataset.classes), dim=1).indices
        hits = ranked == labels[:, None]
        sums[0] += hits[:, 0].sum()
        sums[1] += hits.sum()
        sums[2] += F.cross_entropy(logits, labels, reduction="sum").double()
        counts += torch.bincount(labels, minlength=dataset.classes)
    sums, counts = runtime.sum(sums).cpu(), runtime.sum(counts).cpu()
    images = int(counts.sum())
    top1, top5, cross_entropy = (sums / images).tolist()
    return {
        "top1": round(100 * top1, 6),
        "top5": round(100 * top5, 6),
        "cross_entropy": round(cross_entropy, 6),
        "chance": round(100 * float(counts.max()) / images, 6),
        "images": images,
    }
