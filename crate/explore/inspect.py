"""`crate inspect`: the layers of a trained vision model on a person's own images.

It writes for each image, and all of them again in one page, index.html, that needs no other file:

    <stem>-attention.png  attention of the class token to the patches: a row a layer, a tile a head
    <stem>-codes.png      the atoms that each token's sparse code uses: a row a layer
    <stem>-tokens.png     principal components of the patches' keys as colours, by layer
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crate.data.datasets import ImageSet
from crate.errors import RunError, UsageError
from crate.explore.drawings import draw_attention, draw_codes, draw_tokens
from crate.explore.networks import Opened, open_weights
from crate.explore.page import PARTS, page, printable, section
from crate.explore.pictures import centre_pixels, open_picture, unique_stems
from crate.records import atomic_path, write_text


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `crate inspect`.

    `weights` is a run or a file, with `model` and `scale` as in `open_weights`; `image_size` None
    means the weights' own.
    """

    weights: str
    images: Sequence[str]
    out: Path
    image_size: int | None = None
    model: str | None = None
    scale: str | None = None


def inspect(request: Request) -> None:
    """Write the drawings of each image and index.html to `out`.

    Images are scaled and cut to their middle square.

    Raises:
        UsageError: there is no such file or finished run, it has no vision model, or the image
            size is not divisible by the patch size.
        RunError: the weights cannot be read, `out` cannot be written, or some images could not be
            read (all others are done first).
    """
    pictures, failed = _open_all(request.images)
    opened = _open(request)
    model = opened.build(request.image_size)
    dataset, size = opened.images(classes=1), model.image_size
    paths = [path for path, _ in pictures]
    stems = unique_stems(paths, request.out, lambda stem: [f"{stem}-{part}.png" for part in PARTS])
    squares = [_square(picture, size) for _, picture in pictures]
    layers = [look(model, square, dataset) for square in squares]
    coloured = _colours([each["keys"] for each in layers])
    sections = []
    for path, stem, square, seen, colours in zip(
        paths, stems, squares, layers, coloured, strict=True
    ):
        drawn = {"attention": draw_attention(seen["attention"])}
        if seen["codes"]:
            drawn["codes"] = draw_codes(seen["codes"])
        drawn["tokens"] = draw_tokens(square, colours)
        for part, image in drawn.items():
            target = request.out / f"{stem}-{part}.png"
            with atomic_path(target) as temporary:
                image.save(temporary, "png")
        print(printable(f"{path}: {', '.join(f'{stem}-{part}.png' for part in drawn)}"), flush=True)
        sections.append(section(path, square, drawn, seen["terms"], model.spec.sparsity))
    spec = model.spec
    facts = (
        f"{spec.attention} and {spec.feedforward}, {spec.depth} layers, {spec.heads} heads; "
        f"{size} x {size} px, patches of {spec.patch_size}"
    )
    facts += f"; trained on {opened.trained}" if opened.trained else f"; weights of {opened.model}"
    write_text(request.out / "index.html", page(printable(opened.where), facts, sections))
    print(f"all of it: {request.out / 'index.html'}")
    if failed:
        raise RunError(f"{failed} of {len(request.images)} pictures could not be inspected")


def _open_all(paths: Sequence[str]) -> tuple[list[tuple[str, Image.Image]], int]:
    """The images that can be read, and how many cannot; prints a warning for each of those.

    Raises:
        RunError: none can be read.
    """
    pictures, reasons = [], []
    for path in paths:
        try:
            pictures.append((path, open_picture(path)))
        except RunError as error:
            reasons.append(str(error))
    if not pictures:
        raise RunError("; ".join(reasons))
    for reason in reasons:
        print(f"warning: {reason}", file=sys.stderr)
    return pictures, len(reasons)


def _open(request: Request) -> Opened:
    """The weights, of all layers. Raises as `inspect`."""
    opened = open_weights(request.weights, model=request.model, scale=request.scale)
    from crate.models.transfer import vision_weights

    if "class_token" not in vision_weights(opened.state):
        raise UsageError(
            f"{opened.where}: a backbone with a decoder, without the layers above the last used "
            "one; inspect the run that it started from"
        )
    return opened


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """The middle square of an image, scaled, as uint8 (size, size, 3)."""
    return centre_pixels(picture, size, size).permute(1, 2, 0).numpy()


def look(model, square: np.ndarray, dataset: ImageSet) -> dict:
    """The layers of a network on one image, uint8 (S, S, 3), as lists with an entry a layer.

    Returns:
        "attention": (K, g, g), the class token's, for K heads and g x g patches.
        "codes": bool (1 + N, M), the support of the codes of 1 + N tokens; empty list for an MLP.
        "keys": (N, d), the keys of the patches in the layer's attention.
        "terms": {name: number}, the terms of the objective.

    Raises:
        RunError: tokens are not finite (`crate.models.objective.layer_terms`).
    """
    import torch

    from crate.data.augment import normalise
    from crate.models.features import patch_features
    from crate.models.objective import layer_terms

    device = next(model.parameters()).device
    pixels = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].to(device)
    seen: dict[str, list] = {"attention": [], "codes": [], "keys": [], "terms": []}
    # full float32, as in the task layerwise: a GPU's convolutions would round to TF32
    full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), full_precision:
        images = normalise(pixels, dataset)
        each_layer = layer_terms(model, images, weight=model.spec.sparsity)
        for layer, (terms, record) in enumerate(each_layer):
            maps = record["attention"][0, :, 0, 1:]  # (K, N)
            side = math.isqrt(maps.shape[-1])
            seen["attention"].append(maps.view(-1, side, side).cpu().numpy())
            if "codes" in record:
                seen["codes"].append((record["codes"][0] != 0).cpu().numpy())
            seen["keys"].append(patch_features(model, images, layer, "key")[0].cpu())
            numbers = {name: value for name, value in terms.items() if value.dim() == 1}
            seen["terms"].append({name: value.item() for name, value in numbers.items()})
    return seen


def _colours(keys: list[list]) -> list[list[np.ndarray]]:
    """Keys (N, d) by image and layer → colours (g, g, 3) in [0, 1]."""
    import torch

    from crate.models.objective import principal_colours

    by_layer = []
    for layer in zip(*keys, strict=True):
        colours = principal_colours(torch.stack(layer))
        side = math.isqrt(colours.shape[1])
        by_layer.append(colours.view(len(layer), side, side, 3).numpy())
    return [list(picture) for picture in zip(*by_layer, strict=True)]
