"""`crate inspect`: what a trained vision model makes of a person's own pictures, layer by layer.

For each picture <stem>, in one folder, and all of it in one page, index.html, that needs no other
file:

    <stem>-attention.png  how the class token attends to the patches: a line a layer, a tile a head
    <stem>-codes.png      which atoms each token's sparse code uses: a line a layer
    <stem>-tokens.png     the first principal components of the patch tokens as colours, by layer
"""

import base64
import dataclasses
import html
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crate.data.catalogue import get_dataset
from crate.data.datasets import ImageSet
from crate.errors import RunError, UsageError
from crate.explore.segment import LONGEST_STEM, open_picture
from crate.records import atomic_path, write_text

TILE = 96  # px, of a map at least
GAP = 4  # px, between tiles
LABEL = 64  # px, left of a line
TEXT = 14  # px, a line of text
LONG = 100  # px, that a heading may need
CODES = (640, 160)  # px, of the support of a layer's codes
PARTS = {
    "attention": "Attention of the class token: a line a layer, a tile a head; each tile has its "
    "own scale.",
    "codes": "Support of the sparse codes: for each layer the tokens down (the class token first), "
    "the atoms across, those most often used first; dark is not zero. Beside it, from dark to "
    "bright, how many atoms each patch uses.",
    "tokens": "Patch tokens after each layer: their first three principal components, over all "
    "pictures of this page, as red, green and blue.",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for; `image_size` None means the run's own."""

    run: str
    images: Sequence[str]
    out: Path
    image_size: int | None = None


def inspect(request: Request) -> None:
    """Write three pictures for each of `images`, and index.html for all, to `out`.

    A picture is scaled and cut to its middle square.

    Raises:
        UsageError: the run is not finished, leaves no weights, or is no vision model; a size that
            its patches do not fill.
        RunError: the weights or `out` cannot be used, or, after all others were done, a picture.
    """
    pictures, failed = _open_all(request.images)
    run, dataset, model = _open_run(request)

    size = model.image_size
    names = _names(pictures, request.out)
    squares = [_square(picture, size) for _, picture in pictures]
    looked = [look(model, square, dataset) for square in squares]
    coloured = _colours([each["tokens"] for each in looked])
    sections = []
    for (path, _), name, square, seen, colours in zip(
        pictures, names, squares, looked, coloured, strict=True
    ):
        drawn = {"attention": draw_attention(seen["attention"])}
        if seen["codes"]:
            drawn["codes"] = draw_codes(seen["codes"])
        drawn["tokens"] = draw_tokens(square, colours)
        for part, image in drawn.items():
            target = request.out / f"{name}-{part}.png"
            with atomic_path(target) as temporary:
                image.save(temporary, "png")
        print(_shown(f"{path}: {', '.join(f'{name}-{part}.png' for part in drawn)}"), flush=True)
        sections.append(_section(path, square, drawn, seen["terms"], model.spec.sparsity))
    spec = model.spec
    facts = (
        f"{spec.attention} and {spec.feedforward}, {spec.depth} layers, {spec.heads} heads; "
        f"{size} x {size} px, patches of {spec.patch_size}; trained on {dataset.title}"
    )
    write_text(request.out / "index.html", _page(str(run), facts, sections))
    print(f"all of it: {request.out / 'index.html'}")
    if failed:
        raise RunError(f"{failed} of {len(request.images)} pictures could not be inspected")


# --- what is looked at, and with what ------------------------------------------------------


def _open_all(paths: Sequence[str]) -> tuple[list[tuple[str, Image.Image]], int]:
    """The pictures that can be read, and how many cannot, each told in a line."""
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


def _open_run(request: Request):
    """The run, its data set, and its network in evaluation mode."""
    from crate.checkpoints.export import read_finished
    from crate.models.features import pretrained
    from crate.models.transfer import vision_weights

    run, _, record, spec, state = read_finished(request.run)
    if spec.causal:
        raise UsageError(f"{run}: a language model, which sees no pictures; see 'crate sample'")
    if "class_token" not in vision_weights(state):
        raise UsageError(
            f"{run}: a backbone with a decoder, cut off above its last used layer; inspect the run "
            "that it started from"
        )
    import torch

    size = request.image_size
    if size is None:
        size = math.isqrt(vision_weights(state)["positions"].shape[1] - 1) * spec.patch_size
    model = pretrained(spec, state, image_size=size)
    dataset = get_dataset(record["dataset"])
    return run, dataset, model.to("cuda" if torch.cuda.is_available() else "cpu")


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3): the shorter side scaled to `size`, then the middle."""
    from crate.data.augment import centre_view

    shorter = min(picture.size)
    if max(picture.size) > 16 * shorter:  # scaled whole, a line of pixels would fill the memory
        left, top = ((side - min(side, 16 * shorter)) // 2 for side in picture.size)
        picture = picture.crop((left, top, picture.width - left, picture.height - top))
    return centre_view(picture, size, size).permute(1, 2, 0).numpy()


def look(model, square: np.ndarray, dataset: ImageSet) -> dict:
    """What a network does with one picture, uint8 (S, S, 3), each a list by layer.

    "attention" (K, g, g), the class token's; "codes" bool (1 + N, M), the support, none for an MLP;
    "tokens" (N, d), of the patches after the layer; "terms" {name: number}, of the objective
    (`crate.models.objective.layer_terms`, which raises `RunError` for tokens that are not finite).
    """
    import torch

    from crate.data.augment import normalise
    from crate.models.objective import layer_terms

    device = next(model.parameters()).device
    pixels = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].to(device)
    seen: dict[str, list] = {"attention": [], "codes": [], "tokens": [], "terms": []}
    # full float32, as a layerwise step has it: convolutions on a GPU would round to TF32
    whole = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), whole:
        images = normalise(pixels, dataset)
        for terms, record in layer_terms(model, images, weight=model.spec.sparsity):
            maps = record["attention"][0, :, 0, 1:]  # (K, N)
            side = math.isqrt(maps.shape[-1])
            seen["attention"].append(maps.view(-1, side, side).cpu().numpy())
            if "codes" in record:
                seen["codes"].append((record["codes"][0] != 0).cpu().numpy())
            seen["tokens"].append(record["output"][0, 1:].cpu())
            numbers = {name: value for name, value in terms.items() if value.dim() == 1}
            seen["terms"].append({name: value.item() for name, value in numbers.items()})
    return seen


def _colours(tokens: list[list]) -> list[list[np.ndarray]]:
    """Tokens by picture and layer, (N, d) → colours (g, g, 3) in [0, 1], alike for all pictures."""
    import torch

    from crate.models.objective import principal_colours

    by_layer = []
    for layer in zip(*tokens, strict=True):
        colours = principal_colours(torch.cat(layer)).view(len(layer), len(layer[0]), 3)
        side = math.isqrt(colours.shape[1])
        by_layer.append(colours.view(len(layer), side, side, 3).numpy())
    return [list(picture) for picture in zip(*by_layer, strict=True)]


# --- pictures ------------------------------------------------------------------------------


def draw_attention(maps: list[np.ndarray]) -> Image.Image:
    """Maps (K, g, g) by layer: tiles from the least to the largest weight of each."""
    lines = [[_viridis(head) for head in layer] for layer in maps]
    heads = [f"head {head}" for head in range(1, 1 + len(maps[0]))]
    return _mosaic(lines, [f"layer {layer}" for layer in range(1, 1 + len(maps))], heads)


def draw_codes(supports: list[np.ndarray]) -> Image.Image:
    """Supports (1 + N, atoms) by layer, the atoms in the order of how many tokens use them.

    Where there are more of them than pixels, a pixel is their mean.
    """
    lines, labels = [], []
    for layer, support in enumerate(supports, start=1):
        order = np.argsort(-support.sum(0), kind="stable")
        grey = Image.fromarray(np.where(support[:, order], 30, 255).astype(np.uint8))
        grey = np.asarray(grey.resize(CODES, Image.Resampling.BOX).convert("RGB"))
        side = math.isqrt(len(support) - 1)
        used = _viridis(support[1:].mean(1).reshape(side, side))
        used = Image.fromarray(used).resize((CODES[1], CODES[1]), Image.Resampling.NEAREST)
        gap = np.full((CODES[1], GAP, 3), 255, np.uint8)
        lines.append([np.concatenate([grey, gap, np.asarray(used)], axis=1)])
        labels.append(f"layer {layer}\n{100 * support.mean():.1f} %")
    tokens, atoms = supports[0].shape
    return _mosaic(lines, labels, [f"{tokens:,} tokens, {atoms:,} atoms"])


def draw_tokens(square: np.ndarray, colours: list[np.ndarray]) -> Image.Image:
    """The picture, and its tokens after each layer, side by side, at most 8 in a line."""
    tiles = [square, *(_bytes(each) for each in colours)]
    labels = ["picture", *(f"layer {layer}" for layer in range(1, 1 + len(colours)))]
    across = 8
    lines = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    marks = [labels[start : start + across] for start in range(0, len(labels), across)]
    parts = [_mosaic([line], [], mark) for line, mark in zip(lines, marks, strict=True)]
    whole = Image.new(
        "RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white"
    )
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _viridis(values: np.ndarray) -> np.ndarray:
    """Values (h, w), from the least to the largest, as uint8 (h, w, 3)."""
    from matplotlib import colormaps

    scaled = (values - values.min()) / (np.ptp(values) or 1.0)
    return _bytes(colormaps["viridis"](scaled)[..., :3])


def _bytes(colours: np.ndarray) -> np.ndarray:
    return (255 * colours).round().astype(np.uint8)


def _mosaic(lines: list[list[np.ndarray]], left: list[str], above: list[str]) -> Image.Image:
    """Tiles uint8 (h, w, 3), each resized to the size of the last, which is enlarged if small."""
    height, width, _ = lines[0][-1].shape
    zoom = max(1, math.ceil(TILE / width))
    size = (width * zoom, height * zoom)
    margin, step = LABEL * bool(left), max(size[1], 2 * TEXT) + GAP
    across = max(len(lines[0]) * (size[0] + GAP), LONG)
    whole = Image.new("RGB", (margin + across, TEXT + GAP + len(lines) * step), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(TEXT - 2)
    for place, text in enumerate(above):
        draw.text((margin + place * (size[0] + GAP), 0), text, "black", font)
    for down, line in enumerate(lines):
        top = TEXT + GAP + down * step
        if left:
            draw.text((0, top), left[down], "black", font)
        for place, tile in enumerate(line):
            larger = tile.shape[1] > size[0]
            way = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
            resized = Image.fromarray(tile).resize(size, way)
            whole.paste(resized, (margin + place * (size[0] + GAP), top))
    return whole


# --- the page ------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h1, h2 { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide img { max-width: none; }  /* scrolls: labels stay legible */
table { border-collapse: collapse; } td, th { padding: .1rem .6rem; text-align: right; }
th { border-bottom: 1px solid; } figure { margin: 1rem 0; } figcaption { color: #555; }
"""
COLUMNS = {  # term of a layer → heading, factor
    "compression": ("R<sup>c</sup>(Z<sup>ℓ+1/2</sup> | U), nats", 1),
    "official": ("of unit projections, nats", 1),
    "sparsity": ("non-zeros of Z<sup>ℓ+1</sup>, %", 100),
    "codes": ("non-zero codes, %", 100),
    "objective": ("R − R<sup>c</sup> − λ‖Z‖<sub>0</sub>, nats", 1),
}


def _page(title: str, facts: str, sections: list[str]) -> str:
    title = html.escape(title)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>\n<p>{html.escape(facts)}.</p>",
            *sections,
            "</body></html>\n",
        ]
    )


def _section(
    path: str,
    square: np.ndarray,
    drawn: dict[str, Image.Image],
    terms: list[dict],
    weight: float,
) -> str:
    from crate.models.objective import EPSILON

    told = html.escape(_shown(path))
    parts = [
        f"<section><h2>{told}</h2>",
        f'<img src="{_embedded(Image.fromarray(square))}" alt="{told}, as the network sees it">',
    ]
    for part, image in drawn.items():
        parts.append(
            f'<figure><div class="wide"><img src="{_embedded(image)}" alt="{part}"></div>'
            f"<figcaption>{PARTS[part]}</figcaption></figure>"
        )
    if "codes" not in drawn:
        parts.append("<p>An MLP has no sparse codes.</p>")
    shown = {name: column for name, column in COLUMNS.items() if name in terms[0]}
    heads = "".join(f"<th>{heading}</th>" for heading, _ in shown.values())
    rows = []
    for layer, each in enumerate(terms, start=1):
        cells = [f"{factor * each[name]:,.1f}" for name, (_, factor) in shown.items()]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in [layer, *cells]) + "</tr>")
    parts.append(
        f'<div class="wide"><table><tr><th>layer</th>{heads}</tr>{"".join(rows)}</table></div>'
        f"<p>Sparse rate reduction by layer (crate/models/objective.py): ε² = {EPSILON**2:g}, "
        f"λ = {weight:g}.</p></section>"
    )
    return "\n".join(parts)


def _shown(name: str) -> str:
    """A file's name as text: bytes of it that are no UTF-8 as question marks."""
    return name.encode(errors="replace").decode()


def _embedded(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _names(pictures: list[tuple[str, Image.Image]], out: Path) -> list[str]:
    """A stem for the files of each picture: no two alike, and no file that is a picture given."""
    given = {Path(path).resolve() for path, _ in pictures}
    names: list[str] = []
    for path, _ in pictures:
        stem = Path(path).stem or "picture"
        while len(stem.encode(errors="surrogateescape")) > LONGEST_STEM:
            stem = stem[:-1]
        name, count = stem, 1
        while name.lower() in map(str.lower, names) or any(
            (out / f"{name}-{part}.png").resolve() in given for part in PARTS
        ):
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names
