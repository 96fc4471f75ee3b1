"""`crate segment`: the objects of a person's own pictures, as overlays and in COCO's format."""

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crate.data.catalogue import get_dataset
from crate.environment import EXPERIMENTS
from crate.errors import RunError, UsageError, nearest
from crate.models.spec import ModelSpec
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import atomic_path, write_json
from crate.reporting.overlay import overlay
from crate.tasks.objects import coco, crf
from crate.tasks.objects.recipe import Objects

SIDE = 2048  # px, of an overlay's longer side at most
LONGEST_STEM = 200  # bytes of a file's name, of the 255 that there may be


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for.

    `scale` None means the published sizes; `changes` are fields of the protocol (`config.Objects`).
    """

    images: Sequence[str]
    model: str
    out: Path
    weights: Path
    protocol: str = "coco_maskcut_cpal"
    scale: str | None = None
    changes: dict = dataclasses.field(default_factory=dict)


def segment(request: Request) -> None:
    """Write `out`/<stem>.png for each picture, and `out`/objects.json for all.

    What was found until a signal or an error is kept.

    Raises:
        UsageError: model, weights, protocol or sizes make no sense.
        RunError: weights or output cannot be used, or, after all others were done, a picture.
    """
    recipe, spec = _recipe(request)
    model = _model(request, spec, recipe)
    refine = recipe.crf and crf.available()
    if recipe.crf and not refine:
        print("warning: without CRF: pydensecrf is not installed", file=sys.stderr)
    dataset = get_dataset(recipe.dataset)
    names = _names(request)
    images, annotations, failed = [], [], 0
    try:
        for number, (path, name) in enumerate(zip(request.images, names, strict=True), start=1):
            began = time.monotonic()
            try:
                picture = open_picture(path)
                masks = _find(model, picture, recipe, dataset, refine)
                _write_overlay(request.out / name, picture, masks)
            except (UsageError, KeyboardInterrupt):
                raise
            except Exception as error:  # whatever a strange picture makes the readers say
                reason = (str(error).strip() or type(error).__name__).split("\n")[0]
                if not isinstance(error, RunError):
                    reason = f"{path}: {reason}"
                print(f"warning: {reason}", file=sys.stderr)
                failed += 1
                continue
            width, height = picture.size
            images.append(
                {"id": number, "file_name": path, "width": width, "height": height, "overlay": name}
            )
            for mask in masks:
                found = coco.result(number, coco.encode(mask))
                found |= {"id": len(annotations) + 1, "category_id": 1, "iscrowd": 0}
                annotations.append(found | {"area": coco.area(found["segmentation"])})
            seconds = time.monotonic() - began
            plural = "" if len(masks) == 1 else "s"
            print(
                f"{path}: {width} x {height} px, {len(masks)} mask{plural}, {seconds:.1f} s",
                flush=True,
            )
    finally:
        write_json(
            request.out / "objects.json",
            {
                "info": {
                    "description": "objects found by MaskCut, without classes; sizes and masks are "
                    "those of pictures turned as their EXIF data say",
                    "model": request.model,
                    "weights": str(request.weights),
                    "scale": request.scale or "paper",
                    "protocol": recipe.model_dump(
                        include={"image_size", "layer", "feature", "tau", "masks"}
                    )
                    | {"crf": refine},
                },
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "object"}],
            },
        )
    if failed:
        raise RunError(f"{failed} of {len(request.images)} pictures could not be segmented")


# --- what looks --------------------------------------------------------------------------------


def _recipe(request: Request) -> tuple[Objects, ModelSpec]:
    experiments = Experiments()
    scale = request.scale or "paper"
    steps = {name: experiments.recipe(name, scale) for name in experiments.recipes}
    known = [n for n, s in steps.items() if s.task == "objects" and s.predictor == "model"]
    if request.protocol not in known:
        near = nearest(request.protocol, known)
        raise UsageError(f"--protocol: '{request.protocol}' finds no objects{near}")
    recipe = experiments.recipe(request.protocol, scale, request.changes)
    spec = Plan(experiments).spec(request.model, request.scale)
    spec.grid(recipe.image_size)
    if recipe.layer >= spec.depth:
        raise UsageError(
            f"--layer {recipe.layer}: {request.model} has {spec.depth}, counted from 0"
        )
    return recipe, spec


def _model(request: Request, spec: ModelSpec, recipe: Objects):
    import torch

    from crate.models.features import pretrained

    with contextlib.suppress(OSError):
        request.out.mkdir(parents=True, exist_ok=True)
    if not request.out.is_dir():
        raise RunError(f"--out {request.out}: cannot be made a folder")
    state = read_any_weights(request.weights, request.model, spec)
    try:
        model = pretrained(spec, state, image_size=recipe.image_size)
    except RunError as error:
        message = str(error).replace("the parent's", "its")
        hint = "" if request.scale else "; a run's weights have its scale's sizes: add --scale"
        raise UsageError(
            f"{request.weights}: not the weights of {request.model}: {message}{hint}"
        ) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def read_any_weights(path: Path, name: str, spec: ModelSpec) -> dict:
    """Weights under our names, from a run's file or an official checkpoint.

    Raises:
        UsageError, RunError: as `released.read` and `released.convert`.
    """
    from crate.checkpoints import convert as released

    if path.suffix == ".safetensors":
        state = released.read(path)
        if "class_token" in state:
            return state
    released.verify_listed(path, name, EXPERIMENTS)
    return released.convert(released.read(path), spec, where=path)


def _find(model, picture: Image.Image, recipe: Objects, dataset, refine: bool) -> list[np.ndarray]:
    from crate.tasks.objects.task import find

    return find(model, picture, recipe, dataset, refine=refine)[0]


# --- pictures ----------------------------------------------------------------------------------


def open_picture(path: str | Path) -> Image.Image:
    """Any picture as 8-bit RGB, turned as its EXIF data say; what is transparent is on white.

    Grey of more than 8 bits is scaled: integers by 255 / 65,535, floats from their own range.

    Raises:
        RunError: it cannot be read, or is larger than Pillow reads (179 megapixels).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        reason = "its format is unknown"
    except Exception as error:  # each reader has its own ways to fail
        reason = str(getattr(error, "strerror", None) or error).split("\n")[0]
        reason = reason or type(error).__name__
    raise RunError(f"{path}: cannot be read as an image ({reason})")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max() > 255:
            values = (values.clip(0, 65_535) * 255 + 32_767) // 65_535
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
        spread = values.max() - values.min()
        values = (values - values.min()) / (spread or 1.0) * 255
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _names(request: Request) -> list[str]:
    """An overlay's file name for each picture: no two alike, and none that is a picture given."""
    given = {Path(path).resolve() for path in request.images}
    names: list[str] = []
    taken: set[str] = set()
    for path in request.images:
        stem, count = Path(path).stem or "picture", 1
        while len(stem.encode(errors="surrogateescape")) > LONGEST_STEM:
            stem = stem[:-1]
        name = f"{stem}.png"
        while name.lower() in taken or (request.out / name).resolve() in given:
            count += 1
            name = f"{stem}-{count}.png"
        taken.add(name.lower())
        names.append(name)
    return names


def _write_overlay(path: Path, picture: Image.Image, masks: list[np.ndarray]) -> None:
    longer = max(picture.size)
    parts = [Image.fromarray(mask) for mask in masks]
    if longer > SIDE:
        size = tuple(max(1, round(side * SIDE / longer)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        parts = [part.resize(size, Image.Resampling.NEAREST) for part in parts]
    drawn = overlay(np.asarray(picture), [np.asarray(part, dtype=bool) for part in parts])
    with atomic_path(path) as temporary:
        Image.fromarray(drawn).save(temporary, "png")
