"""`crate evaluate` and `crate predict`: a trained classifier on a person's own images.

Images are seen as the tables' evaluations see them (`centre_view`): the shorter side is scaled to
`resize` pixels, then the centre is cut out; pixels are normalised as those the weights were trained
on.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crate.data.files import IMAGE_SUFFIXES, Unusable, file_names, read_text, say_once
from crate.data.listing import list_part
from crate.data.pictures import Pictures
from crate.errors import RunError, UsageError, nearest
from crate.explore.networks import Opened, open_weights
from crate.explore.pictures import centre_pixels, open_picture
from crate.recipes import Compute, ImageRecipe
from crate.training.progress import Progress

if TYPE_CHECKING:
    import torch

    from crate.models.vision import VisionTransformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """Which network, and how it sees an image.

    `weights`, `model` and `scale` as in `open_weights`. `image_size` is the side of the network's
    input in pixels (None: the weights' own); `resize` that of the shorter side before the crop
    (None: 8/7 of `image_size`: 256 for 224).
    """

    weights: str
    model: str | None = None
    scale: str | None = None
    image_size: int | None = None
    resize: int | None = None
    interpolation: str = "bilinear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The arguments of `crate evaluate`; `restrict`: choose among the classes of `data` only."""

    classifier: Classifier
    data: Path
    classes: Path | None = None
    restrict: bool = False
    batch_size: int = 64
    workers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The arguments of `crate predict`; `top`: how many classes are shown of each image."""

    classifier: Classifier
    images: Sequence[str]
    classes: Path | None = None
    top: int = 5


def evaluate(request: Evaluation) -> dict:
    """Print top-1 and top-5 accuracy on a folder of images, one folder a class; returns them.

    `data` is a tree class/image or tar shards (`crate/data/listing.py`). Its folders, sorted, are
    the network's classes in their order; `classes`, a file with a name a line, changes that: the
    names of all classes of the network place folders that are only some of them, fewer names
    choose some of the folders.

    Returns:
        as `crate.tasks.classification.task.evaluate`: accuracies in %, cross-entropy in nats.

    Raises:
        UsageError: there is no such file, folder or class, or the folders are not the classes.
        RunError: weights or an image cannot be read.
    """
    names, pictures = _open_folder(request.data)
    listed = None if request.classes is None else read_names(request.classes)
    opened = open_weights(
        request.classifier.weights, model=request.classifier.model, scale=request.classifier.scale
    )
    classes = _classes(opened)
    model, view = _build(request.classifier, opened)
    pictures, present = _labelled(request, names, pictures, listed, classes)

    import torch

    from crate.data.images import StreamedImages
    from crate.runtime import start
    from crate.tasks.classification.task import evaluate as measure

    if request.restrict:
        model = _among(model, present)
    recipe = ImageRecipe(
        task="classification",
        dataset="imagenet1k",
        follows=[],
        image_size=view.image_size,
        eval_resize=view.resize,
        interpolation=view.interpolation,
        compute=Compute(threads=torch.get_num_threads(), workers=request.workers),
    )
    with start(recipe.compute) as runtime:
        images = StreamedImages(pictures, size=view.image_size, runtime=runtime)
        batches = _shown(images.evaluation(recipe, request.batch_size), len(images))
        metrics = measure(model, batches, opened.images(classes), runtime)
    among = len(present) if request.restrict else classes
    print(
        f"{request.data}: {metrics['images']:,} images of {len(present):,} classes, shorter side "
        f"{view.resize} px, centre {view.image_size} x {view.image_size} px, {view.interpolation}"
    )
    top5 = f", top-5 {metrics['top5']:.2f} %" if among > 5 else ""
    print(
        f"top-1 {metrics['top1']:.2f} %{top5}, cross-entropy {metrics['cross_entropy']:.4f} nats, "
        f"among {among:,} classes; the most frequent class alone: {metrics['chance']:.2f} %"
    )
    return metrics


def predict(request: Prediction) -> None:
    """Print the most probable classes of each image, with their probabilities in %.

    `classes` is a file with the name of a class a line, in the network's order; without it, classes
    are numbers from 0.

    Raises:
        UsageError: there is no such file, or the network has another number of classes.
        RunError: weights cannot be read, or some images could not (all others are done first).
    """
    names = None if request.classes is None else read_names(request.classes)
    opened = open_weights(
        request.classifier.weights, model=request.classifier.model, scale=request.classifier.scale
    )
    classes = _classes(opened)
    if names is not None and len(names) != classes:
        raise UsageError(
            f"{request.classes}: has {len(names):,} names, the network has {classes:,} classes"
        )
    model, view = _build(request.classifier, opened)

    import torch

    from crate.data.augment import normalise

    device, failed = next(model.parameters()).device, 0
    for path in request.images:
        try:
            picture = open_picture(path)
        except RunError as error:
            print(f"warning: {error}", file=sys.stderr)
            failed += 1
            continue
        pixels = centre_pixels(picture, view.image_size, view.resize, view.interpolation)
        with torch.inference_mode():
            logits = model(normalise(pixels[None].to(device), opened.images(classes)))[0]
        best = logits.float().softmax(0).topk(min(request.top, classes))
        print(os.fsencode(path).decode(errors="replace"))
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            name = f"class {index}" if names is None else names[index]
            print(f"  {100 * probability:6.2f} %  {name}", flush=True)
    if failed:
        raise RunError(f"{failed} of {len(request.images)} pictures could not be read")


def read_names(path: Path) -> list[str]:
    """The names in a text file, one a line; empty lines at its end do not count.

    Raises:
        UsageError: there is no such file, it is not text, or a line is empty.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --classes takes a file with a name a line")
    try:
        names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    except Unusable as error:
        raise UsageError(str(error)) from None
    if "" in names or not names:
        raise UsageError(f"{path}: line {1 + names.index('') if names else 1} is empty")
    return names


# --- the network ----------------------------------------------------------------------------------


def _classes(opened: Opened) -> int:
    """How many classes a network tells apart. Raises `UsageError` if it has no head for them."""
    if "logit_scale" in opened.state:
        raise UsageError(
            f"{opened.where}: a contrastive model, whose head gives embeddings and no classes"
        )
    if "head.weight" not in opened.state or "mask_token" in opened.state:
        raise UsageError(f"{opened.where}: has no head for classes; fine-tune it first")
    return len(opened.state["head.weight"])


def _build(classifier: Classifier, opened: Opened) -> "tuple[VisionTransformer, Classifier]":
    """The network, and the view with its sizes filled in. Raises `UsageError`."""
    size = classifier.image_size or opened.image_size
    resize = classifier.resize or size * 8 // 7
    if resize < size:
        raise UsageError(f"--resize {resize}: is smaller than the {size} px that are cut out of it")
    model = opened.build(size)
    return model, dataclasses.replace(classifier, image_size=size, resize=resize)


def _among(model: "VisionTransformer", present: np.ndarray):
    """The model with the logits of all but some classes at minus infinity."""
    import torch

    device = next(model.parameters()).device
    others = torch.full((model.head.out_features,), -torch.inf, device=device)
    others[torch.from_numpy(present).to(device)] = 0
    model.head.register_forward_hook(lambda _head, _inputs, logits: logits + others)
    return model


def _shown(batches: Iterator, total: int) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """The batches, with progress on stderr while it takes long."""
    progress, done = Progress("evaluate", total=total, unit="images"), 0
    for pixels, labels in batches:
        yield pixels, labels
        done += len(labels)
        if done < total:
            progress.update(done, "")


# --- the folder -----------------------------------------------------------------------------------


def _open_folder(folder: Path) -> tuple[list[str], Pictures]:
    """Names of the class folders (of WebDataset shards: none), and images. Raises `UsageError`."""
    if not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder")
    names, pictures = list_part(folder)
    if len(pictures):
        return names, pictures
    loose = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in file_names(folder))
    what = f"{loose:,} images outside class folders" if loose else "no images"
    raise UsageError(f"--data {folder}: has {what}; give a folder of folders, one a class")


def _labelled(
    request: Evaluation,
    names: list[str],
    pictures: Pictures,
    listed: list[str] | None,
    classes: int,
) -> tuple[Pictures, np.ndarray]:
    """The images to evaluate, labelled with the network's classes, and which classes are there.

    Raises:
        UsageError: folders and classes do not fit together.
    """
    if not names:  # WebDataset shards say the label of each image
        if listed is not None:
            raise UsageError(f"--classes: the shards of {request.data} have labels, not names")
        of_folder = np.arange(max(classes, 1 + pictures.labels.max()))
    elif listed is None:
        of_folder = _in_order(request.data, names, classes)
    elif len(listed) == classes:
        of_folder = _by_name(names, listed, request.classes)
    elif len(names) == classes:
        chosen = set(_by_name(listed, names, request.data).tolist())
        of_folder = np.array([k if k in chosen else -1 for k in range(classes)])
    else:
        raise UsageError(
            f"{request.classes}: has {len(listed):,} names, the network {classes:,} classes and "
            f"{request.data} {len(names):,} folders; list the network's classes, or some folders "
            "where there is one for each class"
        )
    labels = of_folder[pictures.labels]
    kept = pictures.select(np.flatnonzero(labels >= 0))
    kept.labels = labels[labels >= 0]
    present = np.unique(kept.labels)
    if not len(kept):
        raise UsageError(f"--data {request.data}: has no image of the classes in {request.classes}")
    if present[-1] >= classes:
        raise UsageError(
            f"--data {request.data}: has the label {present[-1]}, the network {classes:,} classes"
        )
    wanted = len(np.unique(of_folder[of_folder >= 0])) if names else len(present)
    if len(present) < wanted:
        say_once(f"note: {request.data}: {wanted - len(present):,} class folders have no images")
    return kept, present


def _in_order(folder: Path, names: list[str], classes: int) -> np.ndarray:
    """Folders as classes, sorted as text."""
    if len(names) != classes:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise UsageError(
            f"--data {folder}: has {len(names):,} folders ({some}), the network has {classes:,} "
            "classes; list their names in the network's order in a file: --classes FILE"
        )
    if all(map(str.isdecimal, names)) and names != sorted(names, key=int):
        say_once(
            f"note: {folder}: folders are sorted as text, as torchvision does "
            f"({', '.join(names[:3])}, …); --classes gives another order"
        )
    return np.arange(classes)


def _by_name(names: list[str], listed: list[str], where: Path) -> np.ndarray:
    """The place of each name in a list, by the whole entry or its first word ("n01440764 tench").

    Raises:
        UsageError: a name is not in the list, or in several places of it.
    """
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(listed):
        for key in {entry, entry.split()[0]}:
            places.setdefault(key, []).append(place)
    for name in names:
        found = places.get(name, [])
        if not found:
            raise UsageError(f"{where}: has no class '{name}'{nearest(name, listed)}")
        if len(found) > 1:
            raise UsageError(f"{where}: has the class '{name}' {len(found)} times")
    return np.array([places[name][0] for name in names])
