"""Self-attention of the class token as a mask, by its Jaccard index (DINO, arXiv 2104.14294).

The protocol is the public script of Naseer et al. 2021: the mask of a head is the patches that
together hold most of its attention; each class in an image's map is compared with the masks of all
heads, and the best one counts.
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
from crate.tasks.frozen import Work, frozen_network, precision, sample_picture
from crate.training.per_image import map_details, resumable_map

BACKGROUND = 0
WITH_BACKGROUND = (
    "voc2012",
    "composites",
    "maps",
)  # formats of class maps in which 0 is the background


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Score the attention on every image of the split; no weights are saved.

    Args:
        parent: weights of the network; None: as initialised.

    Returns:
        metrics (miou: mean over images of the mean over their classes, in %; objects: number of
        class regions scored; images: images evaluated, including those with background only, which
        are not in the mean, and excluding those that failed) and details for run.json; both empty
        on ranks other than 0.

    Raises:
        UsageError: the data set has no maps with a background class.
        RunError: attention is not finite, or no image has a class.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    if dataset.scenes not in WITH_BACKGROUND:
        raise UsageError(f"{run_}: {dataset.title} has no maps with a background class")
    scenes = open_scenes(dataset, recipe.evaluate, data_root)
    if recipe.predictor == "model":
        model = frozen_network(resolved, parent, runtime)

    def look(index: int) -> dict:
        """The best Jaccard index of each class of an image, and the network's seconds."""
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

    results = resumable_map(
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
    scored = [part for part in results if "failed" not in part]
    means = [statistics.fmean(part["jaccard"]) for part in scored if part["jaccard"]]
    if not means:
        raise RunError(f"{dataset.title}: no picture has a class other than the background")
    metrics = {
        "miou": round(100 * statistics.fmean(means), 6),
        "objects": sum(len(part["jaccard"]) for part in scored),
        "images": len(scored),
    }
    for problem in scenes.problems:
        print(f"warning: {problem}", file=sys.stderr)
    details = map_details(scenes, results, [])
    details["images_without_objects"] = len(scored) - len(means)
    times = [part["seconds"] for part in scored if "seconds" in part]
    if times:
        details["seconds_per_picture"] = round(statistics.median(times), 5)
    if recipe.predictor == "model":
        write_examples(folder.examples, _examples(model, scenes, results, recipe, dataset))
    return metrics, details


def attention(
    model: nn.Module, picture: Image.Image, recipe: AttentionSegmentation, dataset: ImageSet
) -> np.ndarray:
    """Attention of the class token to each patch by head: (K, h, w) float32.

    Raises `RunError` if it is not finite.
    """
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

    In ascending order, an entry is in the mask if the sum up to and including it exceeds 1 - mass
    of the total. Equal entries are in reading order.
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
    """The classes of a map, without background and ignored pixels."""
    return [c for c in np.unique(labels).tolist() if c not in (BACKGROUND, IGNORED)]


def scores(masks: np.ndarray, labels: np.ndarray, void: str) -> list[float]:
    """The best Jaccard index in [0, 1] of the masks (K, S, S) for each class of a map (S, S).

    void: pixels without a class are "ignored" (PASCAL's rule: left out of both sets) or count as
    "background" (as in the public script).
    """
    valid = labels != IGNORED if void == "ignored" else np.ones(labels.shape, bool)
    return [
        max(_jaccard(mask & valid, labels == wanted) for mask in masks)
        for wanted in classes_of(labels)
    ]


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B|; at least one of the two is not empty."""
    return int((one & other).sum()) / int((one | other).sum())


def _examples(
    model: nn.Module,
    scenes: Scenes,
    results: list[dict],
    recipe: AttentionSegmentation,
    dataset: ImageSet,
) -> list[dict]:
    examples = []
    for index in range(min(EXAMPLES, len(scenes))):
        if "failed" not in results[index]:
            picture = scenes.picture(index)
            rows = attention(model, picture, recipe, dataset)
            examples.append({"image": np.asarray(picture), "attention": rows.astype(np.float16)})
    return examples


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """The evaluation of one noise image of the usual shape, and the batch size 1."""
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    model, picture = frozen_network(resolved, None, runtime), sample_picture(recipe, dataset)
    return lambda _: attention_masks(attention(model, picture, recipe, dataset), recipe.mass), 1
