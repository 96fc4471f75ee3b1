"""The images that `crate inspect` writes: attention, sparse codes and tokens, by layer."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 96  # px, smallest width of a map
GAP = 4  # px between tiles
LABEL = 64  # px left of a row
TEXT = 14  # px, height of a line of text
LONG = 100  # px, longest heading
CODES = (640, 160)  # px, width and height of the support of a layer's codes


def draw_attention(maps: list[np.ndarray]) -> Image.Image:
    """Attention maps (K, g, g) by layer; each tile has a scale of its own."""
    lines = [[_viridis(head) for head in layer] for layer in maps]
    heads = [f"head {head}" for head in range(1, 1 + len(maps[0]))]
    return _mosaic(lines, [f"layer {layer}" for layer in range(1, 1 + len(maps))], heads)


def draw_codes(supports: list[np.ndarray]) -> Image.Image:
    """Supports (1 + N, atoms) by layer, the atoms that most tokens use first.

    If there are more atoms than pixels, a pixel is the mean of several.
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
    """The image (S, S, 3), then its patches' colours (g, g, 3) in each layer, 8 in a row."""
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
    """Values (h, w) scaled from the least to the largest, as colours, uint8 (h, w, 3)."""
    from matplotlib import colormaps

    scaled = (values - values.min()) / (np.ptp(values) or 1.0)
    return _bytes(colormaps["viridis"](scaled)[..., :3])


def _bytes(colours: np.ndarray) -> np.ndarray:
    return (255 * colours).round().astype(np.uint8)


def _mosaic(lines: list[list[np.ndarray]], left: list[str], above: list[str]) -> Image.Image:
    """A grid of tiles, uint8 (h, w, 3), with labels.

    All get the size of the first row's last tile, which is enlarged to `TILE` if it is smaller.
    """
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
