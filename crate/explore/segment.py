"""`crate segment`: objects in a person's own images, as overlays and in COCO's format."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crate.data.catalogue import get_dataset
from crate.errors import RunError, UsageError, nearest, told
from crate.explore.networks import best_device, read_any_weights
from crate.explore.pictures import open_picture, unique_stems
from crate.models.spec import ModelSpec
from crate.planning.loader import Experiments
from crate.records import atomic_path, write_json
from crate.reporting.overlay import overlay
from crate.tasks.objects import coco, crf
from crate.tasks.objects.recipe import Objects

SIDE = 2048  # px, largest side of an overlay


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `crate segment`.

    `scale` None means the published sizes. `changes` replace fields of the protocol, which is a
    recipe of the task `objects` (`crate.tasks.objects.recipe.Objects`).
    """

    images: Sequence[str]
    model: str
    out: Path
    weights: Path
    protocol: str = "coco_maskcut_cpal"
    scale: str | None = None
    changes: dict = dataclasses.field(default_factory=dict)


def segment(request: Request) -> None:
    """Write `out`/<stem>.png for each image, and `out`/objects.json for all.

    On a signal or an error, objects.json holds the images done so far.

    Raises:
        UsageError: the model, weights, protocol or sizes are unknown or do not fit together.
        RunError: the weights cannot be read, the output cannot be written, or some images could
            not be segmented (all others are done first).
    """
    recipe, spec = _recipe(request)
    model = _model(request, spec, recipe)
    refine = recipe.crf and crf.available()
    if recipe.crf and not refine:
        print("warning: without CRF: pydensecrf is not installed", file=sys.stderr)
    dataset = get_dataset(recipe.dataset)
    stems = unique_stems(request.images, request.out, lambda stem: [f"{stem}.png"])
    images, annotations, failed = [], [], 0
    try:
        for number, (path, stem) in enumerate(zip(request.images, stems, strict=True), start=1):
            began = time.monotonic()
            try:
                picture = open_picture(path)
                masks = _find(model, picture, recipe, dataset, refine)
                _write_overlay(request.out / f"{stem}.png", picture, masks)
            except (UsageError, KeyboardInterrupt):
                raise
            except Exception as error:  # any error that a damaged or unusual image causes
                reason = str(error) if isinstance(error, RunError) else f"{path}: {told(error)}"
                print(f"warning: {reason}", file=sys.stderr)
                failed += 1
                continue
            width, height = picture.size
            images.append(
                {
                    "id": number,
                    "file_name": path,
                    "width": width,
                    "height": height,
                    "overlay": f"{stem}.png",
                }
            )
            for mask in masks:
                annotation = coco.result(number, coco.encode(mask))
                annotation |= {"id": len(annotations) + 1, "category_id": 1, "iscrowd": 0}
                annotations.append(annotation | {"area": coco.area(annotation["segmentation"])})
            seconds = time.monotonic() - began
            plural = "" if len(masks) == 1 else "s"
            print(
                f"{path}: {width} x {height} px, {len(masks)} mask{plural}, {seconds:.1f} s",
                flush=True,
            )
    finally:
        _write_objects(request, recipe, refine, images, annotations)
    if images:
        overlays = f"{len(images):,} overlay{'s' * (len(images) > 1)}"
        print(f"wrote {overlays} and objects.json to {request.out}/")
    if failed:
        raise RunError(f"{failed} of {len(request.images)} pictures could not be segmented")


def _recipe(request: Request) -> tuple[Objects, ModelSpec]:
    """The protocol with its changes, and the architecture; raises `UsageError`."""
    experiments = Experiments()
    scale = request.scale or "paper"
    recipes = {name: experiments.recipe(name, scale) for name in experiments.recipes}
    known = [
        name
        for name, recipe in recipes.items()
        if recipe.task == "objects" and recipe.predictor == "model"
    ]
    if request.protocol not in known:
        near = nearest(request.protocol, known)
        raise UsageError(f"--protocol: '{request.protocol}' finds no objects{near}")
    recipe = experiments.recipe(request.protocol, scale, request.changes)
    spec = experiments.spec(request.model, request.scale)
    spec.grid(recipe.image_size)
    if recipe.layer >= spec.depth:
        raise UsageError(
            f"--layer {recipe.layer}: {request.model} has {spec.depth} layers, counted from 0"
        )
    return recipe, spec


def _model(request: Request, spec: ModelSpec, recipe: Objects):
    """The network with its weights, in evaluation mode; raises `UsageError` or `RunError`."""
    with contextlib.suppress(OSError):
        request.out.mkdir(parents=True, exist_ok=True)
    if not request.out.is_dir():
        raise RunError(f"--out {request.out}: cannot be made a folder")
    state = read_any_weights(request.weights, spec, listed_as=request.model)
    from crate.models.features import pretrained  # torch: after what needs none

    try:
        model = pretrained(spec, state, image_size=recipe.image_size)
    except RunError as error:
        message = str(error).replace("the parent's", "its")
        hint = "" if request.scale else "; a run's weights have its scale's sizes: add --scale"
        raise UsageError(
            f"{request.weights}: not the weights of {request.model}: {message}{hint}"
        ) from None
    return model.to(best_device())


def _find(model, picture: Image.Image, recipe: Objects, dataset, refine: bool) -> list[np.ndarray]:
    """Boolean masks (height, width) of the objects in an image."""
    from crate.tasks.objects.task import find

    return find(model, picture, recipe, dataset, refine=refine)[0]


def _write_objects(
    request: Request, recipe: Objects, refine: bool, images: list[dict], annotations: list[dict]
) -> None:
    """Write objects.json: COCO's format, with the model and the protocol under "info"."""
    keys = {"image_size", "layer", "feature", "tau", "masks"}
    info = {
        "description": "objects found by MaskCut, without classes; sizes and masks are those of "
        "the images turned as their EXIF orientation says",
        "model": request.model,
        "weights": str(request.weights),
        "scale": request.scale or "paper",
        "protocol": recipe.model_dump(include=keys) | {"crf": refine},
    }
    write_json(
        request.out / "objects.json",
        {
            "info": info,
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "object"}],
        },
    )


def _write_overlay(path: Path, picture: Image.Image, masks: list[np.ndarray]) -> None:
    """Write the image with its masks drawn, scaled down to `SIDE`."""
    longer = max(picture.size)
    parts = [Image.fromarray(mask) for mask in masks]
    if longer > SIDE:
        size = tuple(max(1, round(side * SIDE / longer)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        parts = [part.resize(size, Image.Resampling.NEAREST) for part in parts]
    drawn = overlay(np.asarray(picture), [np.asarray(part, dtype=bool) for part in parts])
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, "png")
