"""Images of a person's own, of any format: opening them, and names for the files made of them."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crate.errors import RunError

LONGEST_STEM = 200  # bytes of a file name's stem; file systems allow names of 255


def open_picture(path: str | Path) -> Image.Image:
    """Any image as 8-bit RGB, turned as its EXIF orientation says, on white where transparent.

    Grey values of more than 8 bits are scaled: integers by 255 / 65,535, floats from their range.

    Raises:
        RunError: the file cannot be read, or has more pixels than Pillow accepts (179 million).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        reason = "its format is unknown"
    except Exception as error:  # each of Pillow's readers raises errors of its own
        reason = str(getattr(error, "strerror", None) or error).split("\n")[0]
        reason = reason or type(error).__name__
    raise RunError(f"{path}: cannot be read as an image ({reason})")


def _to_rgb(image: Image.Image) -> Image.Image:
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


def unique_stems(
    paths: Sequence[str], out: Path, files: Callable[[str], Sequence[str]]
) -> list[str]:
    """A stem for the output files of each image.

    No two stems are equal (without regard to case), and no output file is one of the images.

    Args:
        paths: the images.
        out: the output folder.
        files: the names of the output files of a stem.
    """
    given = {Path(path).resolve() for path in paths}
    stems: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = Path(path).stem or "picture"
        while len(base.encode(errors="surrogateescape")) > LONGEST_STEM:
            base = base[:-1]
        stem, count = base, 1
        while stem.lower() in taken or any((out / name).resolve() in given for name in files(stem)):
            count += 1
            stem = f"{base}-{count}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems
