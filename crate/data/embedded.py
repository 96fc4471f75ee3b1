"""Readers of the data sets that are committed with the package, in `crate/data/assets/`.

Each asset is one zip archive; pictures inside are lossless WebP strips (pictures below each other).
An archive is compared with `SHA256SUMS` whenever it is read, which is once: what is decoded is kept
(`kept.py`). `assets/ASSETS.md` has sources and
licences, `assets/build.py` makes the archives. Nothing here needs torch.
"""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np

from crate.data.kept import kept
from crate.errors import RunError, nearest, unknown

ASSETS = Path(__file__).parent / "assets"
CHECKSUMS = "SHA256SUMS"
_RESTORE = "restore it with 'git checkout -- crate/data/assets'"

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# The folders whose drawings open_clip_art(64) has, at most 100 of each.
CLIP_ART_FOLDERS = (
    "animals/birds",
    "animals/bugs",
    "animals/mammals",
    "buildings/homes",
    "computer/hardware",
    "food/beverages",
    "food/desserts",
    "food/fruit",
    "people/clothing",
    "plants/flowers",
    "recreation/music",
    "recreation/sports",
    "signs_and_symbols/flags",
    "transportation/boating",
    "transportation/roadsigns",
    "transportation/vehicles",
)


def fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST, the whole of one standard split, in the published order.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747. Licence: MIT, Copyright Zalando SE.

    Args:
        split: "train" (60,000 pictures, 6,000 a class) or "test" (10,000, 1,000 a class).

    Returns:
        Images uint8 (N, 28, 28), 0 = background; labels int64 (N,), see `FASHION_MNIST_CLASSES`.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"), where="Fashion-MNIST")
    images, labels = _decoded(f"fashion-mnist-{split}", "labels.bin", 28, grey=True)
    return images, labels.astype(np.int64)


def open_clip_art(size: int) -> tuple[np.ndarray, list[str]]:
    """Open Clip Art 0.18: drawings on a transparent canvas, labelled by the folders they are in.

    Drawings are cut to what is visible, scaled to fit and centred; where alpha is 0 the colour is
    0 too. Colour is not premultiplied. No picture is there twice. Public domain.

    Args:
        size: 32 (all usable drawings) or 64 (the first 100 of each of `CLIP_ART_FOLDERS`; the
            names are a subset of those at 32).

    Returns:
        Images uint8 (N, size, size, 4), RGBA; names, the path in the collection, sorted:
        "topic/file.png" or "topic/sub/…/file.png" (see `topic_of` and `folder_of`).
    """
    if size not in (32, 64):
        raise unknown("size", size, (32, 64), where="Open Clip Art")
    images, names = _decoded(f"open-clip-art-{size}", "names.txt", size)
    return images, names.tobytes().decode().splitlines()


def handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits 0 to 9: the test part of the UCI set "Optical Recognition of Handwritten
    Digits" (Alpaydin & Kaynak 1998), as scikit-learn ships it. Licence: CC BY 4.0.

    Returns:
        Images uint8 (1797, 8, 8), 0 = background, 240 = full ink; labels int64 (1797,).
    """
    images, labels = _decoded("handwritten-digits", "labels.bin", 8, grey=True)
    return images, labels.astype(np.int64)


def photos() -> dict[str, np.ndarray]:
    """Seven photographs, as scikit-image ships them: name → uint8 (H, W, 3); three are grey.

    CC0 or in the public domain; `assets/ASSETS.md` says whose each is.
    """
    archive = open_asset("photos")
    names = archive.read("names.txt").decode().splitlines()
    image = _webp_image()
    return {
        name: np.array(image.open(io.BytesIO(archive.read(f"{number:04d}.webp"))).convert("RGB"))
        for number, name in enumerate(names)
    }


def topic_of(name: str) -> str:
    """The coarse label of a drawing: "animals" for "animals/birds/penguin/tux.png"."""
    return name.split("/")[0]


def folder_of(name: str) -> str:
    """The fine label: "animals/birds"; only the topic where a drawing lies in no sub-folder."""
    return "/".join(name.split("/")[:-1][:2])


def asset_digest(*names: str) -> str:
    """One digest of the named assets (all of them without a name): the version of the data.

    It is read from `SHA256SUMS`; that the files agree is checked when they are read.
    """
    sums = _checksums()
    lines = [f"{_listed(name, sums)}  {name}\n" for name in sorted(names or sums)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_assets(*names: str) -> list[str]:
    """Compare the named assets (all of them without a name) with `SHA256SUMS`.

    Returns:
        One line for each missing or changed file; empty when all is well.
    """
    problems = []
    try:
        sums = _checksums()
    except RunError as error:
        return [str(error)]
    for name in names or sums:
        try:
            _read(name)
        except RunError as error:
            problems.append(str(error))
    return problems


def _checksums() -> dict[str, str]:
    """Asset name (file name without `.zip`) → sha256."""
    try:
        text = (ASSETS / CHECKSUMS).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{ASSETS / CHECKSUMS}: {error.strerror}; {_RESTORE}") from None
    pairs = (line.split() for line in text.splitlines())
    return {file.removesuffix(".zip"): digest for digest, file in pairs}


def _listed(name: str, sums: dict[str, str]) -> str:
    if name not in sums:
        raise RunError(f"{ASSETS / CHECKSUMS} lists no asset '{name}'{nearest(name, sums)}")
    return sums[name]


def _read(name: str) -> bytes:
    expected = _listed(name, _checksums())
    path = ASSETS / f"{name}.zip"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; {_RESTORE}") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise RunError(f"{path}: not the file that {CHECKSUMS} lists; {_RESTORE}")
    return content


def open_asset(name: str) -> zipfile.ZipFile:
    """An asset's archive. Raises `RunError` where it is missing or not the committed one."""
    return zipfile.ZipFile(io.BytesIO(_read(name)))


@cache
def _webp_image():
    """Pillow's `Image` module, which some builds of Pillow have without WebP."""
    from PIL import Image, features

    if not features.check("webp"):
        raise RunError("Pillow was built without WebP, which the embedded pictures need")
    return Image


def _decoded(name: str, member: str, size: int, grey: bool = False) -> tuple:
    """An asset's pictures (N, size, size), or (N, size, size, 4), and the bytes of one member."""
    version = _listed(name, _checksums())

    def content() -> np.ndarray:
        return np.frombuffer(open_asset(name).read(member), np.uint8)

    images = kept(name, version, lambda: _strips(open_asset(name), size, grey))
    return images, kept(f"{name}-{member}", version, content)


def _strips(archive: zipfile.ZipFile, size: int, grey: bool) -> np.ndarray:
    """The pictures of an archive's strips, in the order of their names."""
    image, strips = _webp_image(), []
    for member in sorted(name for name in archive.namelist() if name.endswith(".webp")):
        strip = np.asarray(image.open(io.BytesIO(archive.read(member))))
        if grey:  # decodes to three equal channels
            strip = strip[..., 0]
        strips.append(strip.reshape(-1, size, *strip.shape[1:]))
    return np.concatenate(strips)
