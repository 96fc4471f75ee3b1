"""Images of a person's own, of any format: opening them, and names for the files made of them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from crate.data.colours import to_rgb
from crate.data.files import open_image
from crate.errors import RunError, reason_of

if TYPE_CHECKING:
    import torch

LONGEST_STEM = 200  # bytes of a file name's stem; file systems allow names of 255


def open_picture(path: str | Path) -> Image.Image:
    """Any image as 8-bit RGB (`colours.to_rgb`), turned as its EXIF orientation says.

    Raises:
        RunError: the file cannot be read, or has more pixels than Pillow accepts (179 million).
    """
    image = open_image(Path(path))
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # of EXIF that is damaged
        raise RunError(f"{path}: cannot be read as an image ({reason_of(error)})") from None


def centre_pixels(
    image: Image.Image, size: int, resize: int, interpolation: str = "bilinear"
) -> "torch.Tensor":
    """`centre_view` of an RGB image of any shape, however long: uint8 (3, size, size)."""
    from crate.data.augment import centre_view

    shorter = min(image.size)
    if max(image.size) > 16 * shorter:  # cut first: scaling a line of pixels would fill the memory
        left, top = ((side - min(side, 16 * shorter)) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    return centre_view(image, size, resize, interpolation)


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
    given = {os.path.realpath(path) for path in paths}  # of a link that loops, the link itself
    stems: list[str] = []
    taken: set[str] = set()
    for path in paths:
        base = Path(path).stem or "picture"
        while len(base.encode(errors="surrogateescape")) > LONGEST_STEM:
            base = base[:-1]
        stem, count = base, 1
        while stem.lower() in taken or any(
            os.path.realpath(out / name) in given for name in files(stem)
        ):
            count += 1
            stem = f"{base}-{count}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems
