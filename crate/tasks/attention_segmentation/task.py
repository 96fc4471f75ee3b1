"""Self-attention of the class token as a mask, by its Jaccard index (DINO, Caron et al. 2021).

The protocol of that paper's figure is the public script of Naseer et al. 2021: in each head, the
patches that together hold most of the attention are the mask; each class in a picture's map is
compared with the masks of all heads, and the best one counts.
"""

import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet
from crate.data.examples import EXAMPLES, write_examples
from crate.data.scenes import IGNORED, Scenes
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.models.features import class_attention
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.attention_segmentation.recipe import AttentionSegmentation
from crate.tasks.base import Resolved
from crate.tasks.frozen import Work, parents_network, precision, sample_picture
from crate.training.per_image import report, work_through

BACKGROUND = 0
WITH_BACKGROUND = ("voc2012", "composites")  # forms of maps (crate/data/scenes.py) whose 0 is that


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Score the attention on every picture of the split; no weights are left.

    Args:
        parent: weights to look with; None: as initialised.

    Returns:
        metrics (miou: mean over pictures of the mean over their classes, in %; objects: the
        regions of a class that were scored; images: pictures looked at, which counts those that
        have no class but the background and so no part in the mean, and not those that failed) and
        details for run.json; empty on other ranks than 0.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    if dataset.scenes not in WITH_BACKGROUND:
        raise UsageError(f"{run_}: {dataset.title} has no maps with a background class")
    scenes = open_scenes(dataset, recipe.evaluate, data_root)
    if recipe.predictor == "model":
        model = parents_network(resolved, parent, runtime)

    def look(index: int) -> dict:
        """The best Jaccard index of each class of a picture, and the network's seconds."""
        labels = resized_map(scenes.labels(index), recipe.image_size)
        if recipe.predictor == "ground_truth":
            masks = [labels == wanted for wanted in classes_of(labels)]
            return {"jaccard": scores(np.array(masks), labels, recipe.void)}
        if recipe.predictor == "whole_image":
            return {"jaccard": scores(np.ones((1, *labels.shape), bool), labels, recipe.void)}
        began = time.perf_counter()
        masks = attention_masks(
            attention(model, scenes.picture(index), recipe, dataset), recipe.mass
        )
        seconds = round(time.perf_counter() - began, 5)
        patch = recipe.image_size // masks.shape[-1]
        masks = masks.repeat(patch, axis=1).repeat(patch, axis=2)  # (K, S, S), nearest neighbour
        return {"jaccard": scores(masks, labels, recipe.void), "seconds": seconds}

    found = work_through(
        look,
        len(scenes),
        picture=scenes.name,
        runtime=runtime,
        folder=folder,
        identity=identity,
        name=str(run_),
    )
    if not runtime.main:
        return {}, {}
    there = [part for part in found if "failed" not in part]
    pictures = [statistics.fmean(part["jaccard"]) for part in there if part["jaccard"]]
    if not pictures:
        raise RunError(f"{dataset.title}: none of the pictures has a class but the background")
    metrics = {
        "miou": round(100 * statistics.fmean(pictures), 6),
        "objects": sum(len(part["jaccard"]) for part in there),
        "images": len(there),
    }
    for problem in scenes.problems:
        print(f"warning: {problem}", file=sys.stderr)
    details = report(scenes, found, [])
    details["images_without_objects"] = len(there) - len(pictures)
    times = [part["seconds"] for part in there if "seconds" in part]
    if times:
        details["seconds_per_picture"] = round(statistics.median(times), 5)
    if recipe.predictor == "model":
        write_examples(folder.examples, _examples(model, scenes, found, recipe, dataset))
    return metrics, details


def attention(
    model: nn.Module, picture: Image.Image, recipe: AttentionSegmentation, dataset: ImageSet
) -> np.ndarray:
    """(K, h, w) float32: how the class token attends to each patch, by head."""
    device = next(model.parameters()).device
    square = picture.resize((recipe.image_size, recipe.image_size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]  # (1, 3, S, S)
    with torch.inference_mode(), precision(recipe, device):
        rows = class_attention(model, normalise(pixels.to(device), dataset), recipe.layer)[0]
    if not rows.isfinite().all():
        raise RunError("the network's attention is not finite")
    side = math.isqrt(rows.shape[-1])
    return rows.float().cpu().numpy().reshape(len(rows), side, side)


def attention_masks(rows: np.ndarray, mass: float) -> np.ndarray:
    """The largest entries of each head that hold `mass` of its attention: (K, h, w) → bool.

    Sorted from the smallest, an entry is kept once the sum up to and with it is more than
    1 - mass of the whole. Among equals the first in reading order are the smaller.
    """
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    order = flat.argsort(axis=1, kind="stable")
    sums = np.take_along_axis(flat, order, axis=1).cumsum(axis=1)
    kept = np.empty(flat.shape, bool)
    np.put_along_axis(kept, order, sums > (1 - mass) * sums[:, -1:], axis=1)
    return kept.reshape(rows.shape)


def resized_map(labels: np.ndarray, size: int) -> np.ndarray:
    """A map (H, W) uint8 at size × size, nearest neighbour."""
    resized = Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized)


def classes_of(labels: np.ndarray) -> list[int]:
    """The classes of a map, without background and what belongs to none."""
    return [c for c in np.unique(labels).tolist() if c not in (BACKGROUND, IGNORED)]


def scores(masks: np.ndarray, labels: np.ndarray, void: str) -> list[float]:
    """The best of the masks (K, S, S) for each class of a map (S, S), as Jaccard index in [0, 1].

    void: "ignored", PASCAL's own rule, leaves pixels that belong to no class out of both sets;
    "background", what the public script does, counts them as background.
    """
    valid = labels != IGNORED if void == "ignored" else np.ones(labels.shape, bool)
    return [
        max(_jaccard(mask & valid, labels == wanted) for mask in masks)
        for wanted in classes_of(labels)
    ]


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B|; one of the two is not empty."""
    return int((one & other).sum()) / int((one | other).sum())


def _examples(
    model: nn.Module,
    scenes: Scenes,
    found: list[dict],
    recipe: AttentionSegmentation,
    dataset: ImageSet,
) -> list[dict]:
    examples = []
    for index in range(min(EXAMPLES, len(scenes))):
        if "failed" not in found[index]:
            picture = scenes.picture(index)
            rows = attention(model, picture, recipe, dataset)
            examples.append({"image": np.asarray(picture), "attention": rows.astype(np.float16)})
    return examples


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """Looking at one picture of noise, of the usual shape."""
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    model, picture = parents_network(resolved, None, runtime), sample_picture(recipe, dataset)
    return lambda _: attention_masks(attention(model, picture, recipe, dataset), recipe.mass), 1
