"""The few examples that a run keeps for a figure, as a file; no torch.

An example is a dict: "image" uint8 (h, w, 3), and "masks" bool (n, h, w) or "attention" float16
(heads, grid h, grid w); of an autoencoder, with the attention, also "masked" and "reconstruction",
pictures as "image"; in a table's collection also "row", the row it is of.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from crate.errors import RunError, reason_of
from crate.records import atomic_path

EXAMPLES = 6  # pictures of a split that a run keeps
EXAMPLE_SIDE = 256  # px, of the longer side
KEPT_AS_JPEG = {"image": "jpeg", "masked": "masked_jpeg", "reconstruction": "reconstruction_jpeg"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's first date: equal content, equal bytes


def write_examples(path: Path, examples: list[dict]) -> None:
    """Write examples, reduced to at most 256 px a side; equal examples give equal files.

    Pictures are kept as JPEG: six photographs then take about 200 kB.
    An example may have "colours" too, uint8 (grid h, grid w, 3), what its tokens look like.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, example in enumerate(examples):
            arrays = {
                kept: _jpeg(_reduced(Image.fromarray(example[name])))
                for name, kept in KEPT_AS_JPEG.items()
                if name in example
            }
            if "masks" in example:
                masks = [_reduced(Image.fromarray(mask)) for mask in example["masks"]]
                arrays["masks"] = np.array([np.asarray(mask, dtype=bool) for mask in masks])
            if "attention" in example:
                arrays["attention"] = np.asarray(example["attention"], np.float16)
            if "colours" in example:
                arrays["colours"] = np.asarray(example["colours"], np.uint8)
            if "row" in example:
                arrays["row"] = np.array(example["row"])
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{number:03d}.{name}.npy", EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                archive.writestr(member, content.getvalue())


def read_examples(path: Path) -> list[dict]:
    """Read what `write_examples` wrote. Raises `RunError` where it is missing or damaged."""
    examples: dict[str, dict] = {}
    pictures = {kept: name for name, kept in KEPT_AS_JPEG.items()}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in sorted(archive.files):
                number, name = key.split(".")
                example = examples.setdefault(number, {})
                if name in pictures:
                    with Image.open(io.BytesIO(archive[key].tobytes())) as image:
                        example[pictures[name]] = np.asarray(image.convert("RGB"))
                else:
                    example[name] = str(archive[key]) if name == "row" else archive[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: examples cannot be read ({reason_of(error)})") from None
    for example in examples.values():
        if "masks" in example and not len(example["masks"]):  # no mask, no size
            example["masks"] = np.zeros((0, *example["image"].shape[:2]), bool)
    return list(examples.values())


def _reduced(image: Image.Image) -> Image.Image:
    """At most 256 px a side, of the same shape; a mask (mode "1") stays one."""
    longer = max(image.size)
    if longer <= EXAMPLE_SIDE:
        return image
    size = [max(1, round(side * EXAMPLE_SIDE / longer)) for side in image.size]
    kind = Image.Resampling.NEAREST if image.mode == "1" else Image.Resampling.LANCZOS
    return image.resize(size, kind)


def _jpeg(image: Image.Image) -> np.ndarray:
    content = io.BytesIO()
    image.save(content, "jpeg", quality=92, subsampling=0)
    return np.frombuffer(content.getvalue(), np.uint8)
