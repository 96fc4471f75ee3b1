"""Object discovery by MaskCut (Wang et al. 2023) on a network's features, with COCO's scores."""

import contextlib
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
from crate.data.scenes import Scenes
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.models.features import patch_features
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.frozen import Work, frozen_network, precision, sample_picture
from crate.tasks.objects import coco, crf
from crate.tasks.objects.maskcut import find_objects, squared
from crate.tasks.objects.recipe import Objects
from crate.training.per_image import map_details, resumable_map

WITHOUT_CRF = "without CRF: pydensecrf is not installed ('make crf', then run it with --force)"


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Find objects in every image of the split, and score them against its annotations.

    No weights are saved. Images that fail count neither in the scores nor in `images`.

    Args:
        parent: weights of the network; None: as initialised.

    Returns:
        metrics (average precision of boxes and masks in %; objects: predicted masks; images: images
        scored) and details for run.json; both empty on ranks other than 0.

    Raises:
        UsageError: the data set has no annotated objects.
        RunError: the network's features are not finite for too many images, or no image has an
            object.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    scenes = open_scenes(dataset, recipe.evaluate, data_root)
    if not scenes.has_objects:
        raise UsageError(f"{run_}: {dataset.title} has no annotated objects")
    truth = scenes.objects()
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    annotated: dict[int, list[dict]] = {number: [] for number in sizes}
    for annotation in truth["annotations"]:
        annotated[annotation["image_id"]].append(annotation)
    refine = recipe.crf and crf.available()
    without = recipe.crf and not refine and recipe.predictor == "model"
    if runtime.main:
        for problem in (*scenes.problems, *([WITHOUT_CRF] if without else [])):
            print(f"warning: {problem}", file=sys.stderr)

    if recipe.predictor == "model":
        model = frozen_network(resolved, parent, runtime)

    def look(index: int) -> dict:
        """Encoded masks, boxes if they are not the smallest around the masks, and seconds."""
        number = scenes.ids[index]
        width, height = sizes[number]
        if recipe.predictor == "ground_truth":
            own = [a for a in annotated[number] if not a.get("iscrowd")]
            masks = [coco.outline_rle(a["segmentation"], height, width) for a in own]
            return {"masks": masks, "boxes": [a["bbox"] for a in own]}
        if recipe.predictor == "whole_image":
            return {"masks": [coco.encode(np.ones((height, width), bool))]}
        masks, seconds = find(model, scenes.picture(index), recipe, dataset, refine=refine)
        return {"masks": [coco.encode(mask) for mask in masks], "seconds": seconds}

    looked = resumable_map(
        look,
        len(scenes),
        picture=scenes.name,
        runtime=runtime,
        folder=folder,
        identity=identity + ("-without-crf" if without else ""),
        name=str(run_),
    )
    if not runtime.main:
        return {}, {}
    details = map_details(scenes, looked, [WITHOUT_CRF] if without else [])
    # of equal scores, COCO ranks by the image's id
    parts = zip(scenes.ids, looked, strict=True)
    scored = {number: part for number, part in parts if "failed" not in part}
    results = [
        coco.result(number, mask, bbox=bbox)
        for number, part in scored.items()
        for mask, bbox in zip(part["masks"], _boxes(part), strict=True)
    ]
    metrics = coco.evaluate(
        {key: [e for e in truth[key] if e[of] in scored] for key, of in _NUMBERED.items()}, results
    )
    metrics = {key: round(value, 6) for key, value in metrics.items()}
    metrics |= {"objects": len(results), "images": len(scored)}
    times = [part["seconds"] for part in scored.values() if "seconds" in part]
    if times:
        network, cut = (round(statistics.median(part), 4) for part in zip(*times, strict=True))
        details["seconds_per_picture"] = {"network": network, "cut": cut}  # medians
    write_examples(folder.examples, _examples(scenes, looked))
    return metrics, details


_NUMBERED = {"images": "id", "annotations": "image_id"}  # list of COCO's format → key of image ids


def find(
    model: nn.Module, picture: Image.Image, recipe: Objects, dataset: ImageSet, *, refine: bool
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """The objects of one RGB image: bool (H, W) each, and the seconds of network and cut.

    Args:
        dataset: the data set whose normalisation is used.
        refine: whether to refine masks by a CRF.

    Raises `RunError` if the features are not finite.
    """
    device = next(model.parameters()).device
    began = time.perf_counter()
    square = squared(picture, recipe.image_size)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]  # (1, 3, S, S)
    with torch.inference_mode(), precision(recipe, device):
        images = normalise(pixels.to(device), dataset)
        features = patch_features(model, images, recipe.layer, recipe.feature)
    features = features[0].float().cpu().numpy()  # (N, d)
    if not np.isfinite(features).all():
        raise RunError("the network's features are not finite")
    seen = time.perf_counter()
    side = recipe.image_size // model.spec.patch_size
    masks = find_objects(
        picture,
        features,
        (side, side),
        image_size=recipe.image_size,
        tau=recipe.tau,
        masks=recipe.masks,
        crf=refine,
        solver=recipe.solver,
    )
    ended = time.perf_counter()
    return masks, (round(seen - began, 5), round(ended - seen, 5))


def _boxes(part: dict) -> list[list[float] | None]:
    return part.get("boxes", [None] * len(part["masks"]))


def _examples(scenes: Scenes, looked: list[dict]) -> list[dict]:
    examples = []
    for index, part in enumerate(looked[:EXAMPLES]):
        with contextlib.suppress(RunError):  # controls have not opened the images before
            picture = np.asarray(scenes.picture(index))
            masks = [coco.decode(mask) for mask in part.get("masks", [])]
            examples.append({"image": picture, "masks": masks})
    return examples


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """The evaluation of one noise image of the usual shape, and the batch size 1."""
    recipe, dataset = resolved.recipe, get_dataset(resolved.recipe.dataset)
    model, picture = frozen_network(resolved, None, runtime), sample_picture(recipe, dataset)
    refine = recipe.crf and crf.available()
    return lambda _: find(model, picture, recipe, dataset, refine=refine), 1
