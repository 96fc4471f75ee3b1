"""Semantic segmentation: a backbone and a decoder trained together, or a control."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.augment import normalise
from crate.data.datasets import ImageSet
from crate.data.scenes import IGNORED
from crate.data.segmentation import LabelledScenes, windows
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.models.segmenter import Segmenter, build_segmenter
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.segmentation.cost import COST
from crate.tasks.segmentation.recipe import Segmentation
from crate.tasks.stage import TrainingStage
from crate.training.loop import Batch

# Without `micro_batch`, a test evaluates as many windows at once as have this many logits, at most
# EVALUATION_WINDOWS.
EVALUATION_LOGITS = 2**28
EVALUATION_WINDOWS = 16
FREQUENCY_SAMPLE = 500  # training maps from which the most frequent class is estimated


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

    The controls have no network and save no weights: "ground_truth" predicts the maps themselves,
    "whole_image" the class with the most pixels in `FREQUENCY_SAMPLE` evenly spaced training maps.

    Args:
        parent: weights of the backbone to start from; None: as initialised.

    Returns:
        metrics (`scores`, all in %, and the number of images evaluated) and details for run.json.
    """
    stage = STAGE(resolved, runtime, data_root)
    if resolved.recipe.predictor == "model":
        return stage.train(folder, identity, parent)
    stage.open()
    pictures = readable(stage.evaluated.evaluation(resolved.recipe))
    if resolved.recipe.predictor == "ground_truth":
        pairs, details = ((truth, truth) for _, truth in pictures), {}
    else:
        common = most_frequent(stage.open_training())
        pairs = ((truth, torch.full_like(truth, common)) for _, truth in pictures)
        details = {"most_frequent_class": common}
    return evaluate(pairs, stage.dataset, runtime), details


class SegmentationStage(TrainingStage):
    COST = COST
    WATCHED = ("miou",)

    def open(self) -> None:
        stride, size = self.recipe.stride, self.recipe.image_size
        if stride > size:
            raise UsageError(
                f"{self.run}: a stride of {stride} leaves gaps between windows of {size} pixels; "
                f"set stride to at most {size}"
            )
        self.evaluated = self._open(self.recipe.evaluate)

    def _open(self, split: str, held_out_for: str = "test") -> LabelledScenes:
        scenes = open_scenes(self.dataset, split, self.data_root, held_out_for=held_out_for)
        if not scenes.has_maps:
            raise UsageError(f"{self.run}: {self.dataset.title} has no class maps")
        return LabelledScenes(scenes, self.dataset, runtime=self.runtime)

    def build(self) -> Segmenter:
        return self.start(None)[0]

    def start(self, weights: dict[str, Tensor] | None) -> tuple[Segmenter, dict | None]:
        """As `TrainingStage.start`; only the backbone's weights are transferred."""
        return build_segmenter(self.spec, self.recipe, self.dataset.classes, weights)

    def prepare(self, model: Segmenter) -> nn.Module:
        return self._prepare_norms(model) if self.recipe.trains else model

    def _prepare_norms(self, model: Segmenter) -> nn.Module:
        """Synchronise BatchNorm over all GPUs; on one device it sees each micro-batch.

        Raises `UsageError` if a micro-batch of UPerNet would have a single image: its coarsest map
        has one value a channel, for which BatchNorm is not defined.
        """
        world = self.runtime.world
        if world > 1 and self.runtime.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.recipe.decoder != "upernet":
            return model
        size = self.recipe.batch_size // world
        micro = min(self.recipe.compute.micro_batch or size, size)
        if 1 in (micro, size % micro):
            raise UsageError(
                f"{self.run}: BatchNorm needs two pictures at once, but {size} a process in "
                f"micro-batches of {micro} leave a single one; change batch_size or micro_batch"
            )
        return model

    def open_training(self) -> LabelledScenes:
        return self._open("train", self.recipe.evaluate)

    def batches(self, source: LabelledScenes, first: int, last: int) -> Iterator[Batch]:
        for pixels, maps in source.training(self.recipe, self.seed, first, last):
            yield normalise(pixels, self.dataset), maps

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        images, maps = batch
        return segmentation_loss(network(images), maps, self.recipe.auxiliary)

    def measure(self) -> dict:
        model, recipe, runtime = self.model, self.recipe, self.runtime
        broadcast_statistics(model, runtime)
        model.eval()
        pictures = readable(self.evaluated.evaluation(recipe))
        pairs = segment(model, pictures, recipe, self.dataset, runtime)
        return evaluate(pairs, self.dataset, runtime)

    def evaluation_batch(self, model: nn.Module) -> int:
        return windows_at_once(self.recipe, self.dataset)

    def random_batch(self, model: nn.Module, count: int) -> Batch:
        images = self.random_images(count)
        shape = (count, *images.shape[-2:])
        return images, torch.randint(self.dataset.classes, shape, device=images.device)

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])


STAGE = SegmentationStage


# --- training -----------------------------------------------------------


def segmentation_loss(scores: tuple[Tensor, ...], maps: Tensor, auxiliary: float) -> Tensor:
    """Cross-entropy of the decoder, plus `auxiliary` times that of the auxiliary head, if any.

    scores: each (B, C, S, S). maps: (B, S, S) uint8.
    As mmsegmentation does by default, the sum over labelled pixels is divided by the number of all
    pixels: a crop without labels gives 0, and micro-batches and ranks do not change the loss.
    """
    target = maps.long()
    losses = [
        F.cross_entropy(score.float(), target, ignore_index=IGNORED, reduction="sum")
        for score in scores
    ]
    weights = (1.0, auxiliary)[: len(losses)]
    return sum(w * value for w, value in zip(weights, losses, strict=True)) / target.numel()


def broadcast_statistics(model: nn.Module, runtime: Runtime) -> None:
    """Broadcast the buffers (BatchNorm statistics) of rank 0, which are saved, to all ranks."""
    if runtime.world > 1:
        for buffer in model.buffers():
            buffer.mul_(int(runtime.main))
            runtime.all_reduce_sum(buffer)


# --- evaluation -----------------------------------------------------------


def readable(pictures: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """The images that could be read; prints a warning for each other (a text in `pictures`)."""
    for item in pictures:
        if isinstance(item, str):
            print(f"warning: left out: {item}", file=sys.stderr)
        else:
            yield item


def most_frequent(source: LabelledScenes) -> int:
    """The class with the most pixels in a fixed sample of a split, the first of equals.

    Raises:
        RunError: a map cannot be read, or no map has a label.
    """
    chosen = np.linspace(0, len(source) - 1, min(FREQUENCY_SAMPLE, len(source))).round().astype(int)
    counts = torch.zeros(256, dtype=torch.int64, device=source.runtime.device)
    for index in chosen[source.runtime.rank :: source.runtime.world].tolist():
        labels = torch.from_numpy(source.scenes.labels(index))
        counts += torch.bincount(labels.flatten(), minlength=256).to(counts.device)
    counts = source.runtime.all_reduce_sum(counts)[: source.dataset.classes]
    if not counts.any():
        raise RunError(f"no class in {len(chosen)} maps of {source.dataset.title}")
    return int(counts.argmax())


def segment(
    model: nn.Module, pictures: Iterable, recipe: Segmentation, dataset: ImageSet, runtime: Runtime
) -> Iterator[tuple[Tensor, Tensor]]:
    """True and predicted class of each pixel of each image, (H, W) each, at the image's own size.

    pictures: pixels (3, h, w) and map (H, W), both uint8. Windows of several images pass through
    the network at once, up to `windows_at_once`.
    """
    size, most = recipe.image_size, windows_at_once(recipe, dataset)
    group, waiting = [], 0
    for pixels, truth in pictures:
        images = normalise(pixels[None].to(runtime.device), dataset)
        group.append((images[0], truth.to(runtime.device)))
        waiting += len(windows(*images.shape[-2:], size, recipe.stride))
        if waiting >= most:
            yield from _segment(model, group, size, recipe.stride, most)
            group, waiting = [], 0
    yield from _segment(model, group, size, recipe.stride, most)


def windows_at_once(recipe: Segmentation, dataset: ImageSet) -> int:
    """Windows that pass through the network at once in a test."""
    few = max(1, EVALUATION_LOGITS // (dataset.classes * recipe.image_size**2))
    return recipe.compute.micro_batch or min(few, EVALUATION_WINDOWS)


@torch.inference_mode()
def _segment(
    model: nn.Module, group: list[tuple[Tensor, Tensor]], size: int, stride: int, most: int
) -> list[tuple[Tensor, Tensor]]:
    """Predictions for a few images: logits are averaged where windows overlap, then scaled."""
    images, jobs = [], []
    for k, (image, _) in enumerate(group):
        height, width = image.shape[-2:]
        margin = (0, max(size - width, 0), 0, max(size - height, 0))
        images.append(F.pad(image, margin))  # 0: the mean colour
        jobs += [(k, *place) for place in windows(height, width, size, stride)]
    sums: list = [None] * len(group)
    counts = [image.new_zeros(image.shape[-2:]) for image in images]
    for start in range(0, len(jobs), most):
        chunk = jobs[start : start + most]
        squares = [images[k][:, y : y + size, x : x + size] for k, y, x in chunk]
        for (k, y, x), logits in zip(chunk, model(torch.stack(squares)), strict=True):
            if sums[k] is None:
                sums[k] = logits.new_zeros(len(logits), *images[k].shape[-2:])
            sums[k][:, y : y + size, x : x + size] += logits
            counts[k][y : y + size, x : x + size] += 1
    answers = []
    for (image, truth), total, count in zip(group, sums, counts, strict=True):
        height, width = image.shape[-2:]
        answers.append((truth, _best_class((total / count)[:, :height, :width], truth.shape)))
    return answers


def _best_class(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the largest logit after bilinear scaling: (C, h, w) → (H, W) int64.

    Scales a few classes at a time: all logits of an image of 100 megapixels would need 60 GB.
    """
    if logits.shape[1:] == size:
        return logits.max(0).indices  # argmax is four times as slow on a CPU
    few = max(1, EVALUATION_LOGITS // (size[0] * size[1]))
    best = answer = None
    for start in range(0, len(logits), few):
        part = logits[None, start : start + few]
        part = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
        highest, index = part.max(0)
        if best is None:
            best, answer = highest, index
        else:  # the first of equals stays
            answer = torch.where(highest > best, index + start, answer)
            best = torch.maximum(best, highest)
    return answer


def evaluate(pairs: Iterable[tuple[Tensor, Tensor]], dataset: ImageSet, runtime: Runtime) -> dict:
    """Metrics over all images of all ranks, from one confusion matrix.

    pairs: true (255 is ignored) and predicted classes, of equal shape.

    Raises:
        RunError: no image could be read, or no image has a label.
    """
    # the confusion matrix, rows true classes, then the number of images
    sums = torch.zeros(dataset.classes**2 + 1, dtype=torch.int64, device=runtime.device)
    for truth, answer in pairs:
        sums[:-1] += confusion(truth, answer, dataset.classes).flatten().to(sums.device)
        sums[-1] += 1
    *counts, images = runtime.all_reduce_sum(sums).tolist()
    if not any(counts):
        raise RunError(f"{dataset.title}: none of {images} readable pictures has a label")
    matrix = np.array(counts, dtype=np.float64).reshape(dataset.classes, -1)
    return scores(matrix) | {"images": images}


def confusion(truth: Tensor, answer: Tensor, classes: int) -> Tensor:
    """Pixels by true (rows) and predicted class: (C, C) int64; ignored pixels do not count."""
    known = truth != IGNORED
    cells = truth[known].long() * classes + answer[known].long()
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def scores(matrix: np.ndarray) -> dict:
    """Mean intersection over union, mean accuracy and accuracy of the pixels, in %.

    matrix: (C, C), rows true classes, columns predicted ones, over all images.
    miou  mean over the classes that occur in truth or predictions
    macc  mean recall over the classes that occur in the truth
    aacc  share of the pixels that are right
    As in mmsegmentation, classes whose ratio is 0 / 0 are left out.
    """
    right, true, answered = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = true + answered - right
    seen, there = union > 0, true > 0
    return {
        "miou": round(100 * float((right[seen] / union[seen]).mean()), 6),
        "macc": round(100 * float((right[there] / true[there]).mean()), 6),
        "aacc": round(100 * float(right.sum() / true.sum()), 6),
    }
