"""Supervised image classification: pre-training, fine-tuning, and evaluation alone (epochs: 0)."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.augment import mix, normalise
from crate.data.datasets import ImageSet
from crate.data.images import MemoryImages, StreamedImages, open_split
from crate.models.build import build
from crate.models.transfer import vision_weights
from crate.records import RunFolder
from crate.runtime import Runtime, seed_for
from crate.tasks.base import Resolved
from crate.tasks.classification.cost import COST
from crate.tasks.stage import TrainingStage
from crate.training.loop import Batch, read_history

Images = MemoryImages | StreamedImages


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Train (unless its length is 0) and evaluate one model; saves its weights in `folder`.

    Args:
        parent: weights to start from; of a masked autoencoder the encoder's are used, of a
            contrastive model the vision tower's; None: as initialised.

    Returns:
        metrics (top-1 and top-5 accuracy in %, cross-entropy in nats, all on the evaluated split
        after the last update; chance: % of its most frequent class; FLOPs of one image's forward
        pass, and of training since the chain's start, three forward passes an image) and details
        for run.json.
    """
    return STAGE(resolved, runtime, data_root).train(folder, identity, parent)


class ClassificationStage(TrainingStage):
    COST = COST
    WATCHED = ("top1",)

    def open(self) -> None:
        self.evaluated = self._open(self.recipe.evaluate)

    def _open(self, split: str, **options: str) -> Images:
        return open_split(
            self.dataset,
            split,
            size=self.recipe.image_size,
            runtime=self.runtime,
            data_root=self.data_root,
            **options,
        )

    def build(self) -> nn.Module:
        return build(
            self.spec,
            num_classes=self.dataset.classes,
            image_size=self.recipe.image_size,
            drop_path=self.recipe.drop_path,
        )

    def adapt(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return vision_weights(weights)

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.recipe.zero_head:
            for parameter in model.head.parameters():
                nn.init.zeros_(parameter)
        return model

    def open_training(self) -> Images:
        return self._open("train", held_out_for=self.recipe.evaluate)

    def batches(self, source: Images, first: int, last: int) -> Iterator[Batch]:
        recipe = self.recipe
        group = recipe.mix_group or recipe.batch_size
        mixes = recipe.mixup or recipe.cutmix
        mine = range(recipe.batch_size)[self.runtime.part(recipe.batch_size)] if mixes else []
        pictures = source.training(recipe, self.seed, first, last)
        for index, (pixels, labels) in enumerate(pictures, start=first):
            images = normalise(pixels, self.dataset)
            yield mix(
                images,
                labels,
                self.dataset.classes,
                [seed_for(self.seed, "mix", index, place // group) for place in mine],
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                switch=recipe.mix_switch,
            )

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch
        smoothing = self.recipe.label_smoothing
        return F.cross_entropy(network(images).float(), targets, label_smoothing=smoothing)

    def measure(self) -> dict:
        batches = self.evaluated.evaluation(self.recipe, self.evaluation_batch(self.model))
        return evaluate(self.model, batches, self.dataset, self.runtime)

    def finish(self, metrics: dict, folder: RunFolder) -> dict:
        if self.recipe.evaluate_epochs:
            metrics |= best_epoch(read_history(folder), metrics["top1"], self.epochs)
        return metrics

    def random_batch(self, model: nn.Module, count: int) -> Batch:
        classes = self.dataset.classes
        labels = torch.randint(classes, (count,), device=self.runtime.device)
        mixed = self.recipe.mixup or self.recipe.cutmix
        return self.random_images(count), F.one_hot(labels, classes).float() if mixed else labels

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])


STAGE = ClassificationStage


def best_epoch(history: list[dict], last: float, epochs: float) -> dict:
    """The best accuracy on the evaluated split over all evaluations, the first of equals.

    The official transfer script reports this on the test set; the tables show the last epoch's.
    """
    seen = [(line["top1"], line["epoch"]) for line in history if "top1" in line]
    top1, epoch = max([*seen, (last, epochs)], key=lambda pair: pair[0])
    return {"best_epoch_top1": top1, "best_epoch": epoch}


@torch.inference_mode()
def evaluate(model: nn.Module, batches, dataset: ImageSet, runtime: Runtime) -> dict:
    """Accuracy and cross-entropy over all batches of all ranks, in float32.

    batches: of pixels uint8 (B, C, S, S) and labels (B,), or (B, M) if an image has several, padded
    with -1: any of them is right, and the cross-entropy is that of their summed probability.
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
