"""The page that `crate inspect` writes: all images and numbers in one HTML file."""

import base64
import html
import io

import numpy as np
from PIL import Image

PARTS = {
    "attention": "Attention of the class token: a row a layer, a tile a head; each tile has its "
    "own scale.",
    "codes": "Support of the sparse codes: for each layer the tokens down (the class token first) "
    "and the atoms across, the most used first; dark means not zero. Beside it, from dark to "
    "bright, the number of atoms that each patch uses.",
    "tokens": "Keys of the patches in each layer: their principal components 2 to 4, over all "
    "images of this page, as red, green and blue; each image has its own scale.",
}
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


def page(title: str, facts: str, sections: list[str]) -> str:
    """The whole page; `sections` are HTML, `title` and `facts` text."""
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


def section(
    path: str,
    square: np.ndarray,
    drawn: dict[str, Image.Image],
    terms: list[dict],
    weight: float,
) -> str:
    """The HTML of one image.

    Args:
        path: the image's file, for the heading.
        square: what the network sees, uint8 (S, S, 3).
        drawn: part → drawing, of `PARTS`.
        terms: the terms of the objective by layer.
        weight: λ.
    """
    from crate.models.objective import EPSILON

    name = html.escape(printable(path))
    parts = [
        f"<section><h2>{name}</h2>",
        f'<img src="{_embedded(Image.fromarray(square))}" alt="{name}, as the network sees it">',
    ]
    for part, image in drawn.items():
        parts.append(
            f'<figure><div class="wide"><img src="{_embedded(image)}" alt="{part}"></div>'
            f"<figcaption>{PARTS[part]}</figcaption></figure>"
        )
    if "codes" not in drawn:
        parts.append("<p>An MLP has no sparse codes.</p>")
    shown = {term: column for term, column in COLUMNS.items() if term in terms[0]}
    heads = "".join(f"<th>{heading}</th>" for heading, _ in shown.values())
    rows = []
    for layer, each in enumerate(terms, start=1):
        cells = [f"{factor * each[term]:,.1f}" for term, (_, factor) in shown.items()]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in [layer, *cells]) + "</tr>")
    parts.append(
        f'<div class="wide"><table><tr><th>layer</th>{heads}</tr>{"".join(rows)}</table></div>'
        f"<p>Sparse rate reduction by layer (crate/models/objective.py): ε² = {EPSILON**2:g}, "
        f"λ = {weight:g}.</p></section>"
    )
    return "\n".join(parts)


def printable(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 become question marks."""
    return name.encode(errors="replace").decode()


def _embedded(image: Image.Image) -> str:
    """The image as a data URL (PNG)."""
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
