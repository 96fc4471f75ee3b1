"""Real data sets, written small in their exact layouts (tests import this as `writers`)."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def save(path: Path, seed: int, size=(20, 15), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size[1], size[0], 3, seed=seed)).convert(mode).save(path, "JPEG")


def text(content: bytes) -> bytes:
    """A text of Python 2 in a pickle (opcodes U and T), which Python 3 has no way to write."""
    if len(content) < 256:
        return b"U" + struct.pack("<B", len(content)) + content
    return b"T" + struct.pack("<I", len(content)) + content


def cifar_batch(path: Path, key: str, labels: list[int], rows: np.ndarray) -> None:
    """A batch of `rows` (n, 3072) as Python 2's cPickle wrote the published ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    shape = b"M" + struct.pack("<H", len(labels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    pixels = text(rows.tobytes())
    array += b"\x87R(K\x01" + shape + kind + b"\x89" + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    content = text(b"batch_label") + text(b"training batch 1 of 5")
    content += text(b"data") + array + text(key.encode()) + numbers
    path.write_bytes(b"\x80\x02}(" + content + b"u.")


def cifar_names(path: Path, key: bytes, count: int) -> None:
    names = b"".join(text(b"class %d" % k) for k in range(count))
    path.write_bytes(b"\x80\x02}" + text(key) + b"](" + names + b"es.")


def cifar10(root: Path) -> Path:
    folder = root / "cifar10/cifar-10-batches-py"
    for k in range(1, 6):
        cifar_batch(folder / f"data_batch_{k}", "labels", [k, 9, 0], noise(3, 3072, seed=k))
    cifar_batch(folder / "test_batch", "labels", [5, 6], noise(2, 3072, seed=9))
    cifar_names(folder / "batches.meta", b"label_names", 10)
    return folder


def cifar100(root: Path) -> Path:
    folder = root / "cifar100/cifar-100-python"
    cifar_batch(folder / "train", "fine_labels", [99, 0, 50, 7], noise(4, 3072, seed=1))
    cifar_batch(folder / "test", "fine_labels", [3], noise(1, 3072, seed=2))
    cifar_names(folder / "meta", b"fine_label_names", 100)
    return folder


def flowers102(root: Path) -> Path:
    folder = root / "flowers102/flowers-102"
    for number in range(1, 10):
        save(folder / f"jpg/image_{number:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 5, 9, 2, 3, 4]])})
    ids = {"trnid": [[8, 1, 3]], "valid": [[2, 7]], "tstid": [[9, 4, 5, 6]]}
    savemat(folder / "setid.mat", {key: np.array(v, dtype=np.uint16) for key, v in ids.items()})
    return folder


def pets(root: Path) -> Path:
    folder = root / "pets/oxford-iiit-pet"
    lines = {
        "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_2 2 2 1", "pug_9 37 2 25"],
        "test": ["Abyssinian_201 1 1 1", "shiba_inu_3 34 2 23"],
    }  # fmt: skip
    (folder / "annotations").mkdir(parents=True)
    for part, content in lines.items():
        (folder / f"annotations/{part}.txt").write_text("\n".join(content) + "\n")
        for seed, line in enumerate(content):  # a few of the real ones are no RGB
            save(
                folder / f"images/{line.split()[0]}.jpg",
                seed + len(content),
                mode=("RGB", "L", "CMYK")[seed],
            )
    return folder


WRITERS = {"cifar10": cifar10, "cifar100": cifar100, "flowers102": flowers102, "pets": pets}


# --- sets with maps or objects -----------------------------------------------------------


def ade20k(root: Path) -> Path:
    """Three training pictures, two of validation; maps of mode L, 0 is "other"."""
    folder = root / "ade20k/ADEChallengeData2016"
    for part, short, count in (("training", "train", 3), ("validation", "val", 2)):
        maps = folder / "annotations" / part
        maps.mkdir(parents=True)
        for k in range(1, count + 1):
            name = f"ADE_{short}_{k:08d}"
            save(folder / f"images/{part}/{name}.jpg", seed=k, size=(20, 10 + k))
            values = noise(10 + k, 20, seed=k) % 151
            values[0, :3] = 0, 1, 150
            Image.fromarray(values).save(maps / f"{name}.png")
    return folder


VOC_LISTS = {"train": ["2007_000032", "2011_000999", "2007_000039"], "val": ["2007_000033"]}


def voc2012(root: Path) -> Path:
    """Maps with a palette: 0 to 20, and 255 around the things; more pictures than have maps."""
    folder = root / "voc2012/VOCdevkit/VOC2012"
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    for part, names in VOC_LISTS.items():
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for k, name in enumerate(names):
            save(folder / f"JPEGImages/{name}.jpg", seed=k, size=(12 + k, 9))
            values = noise(9, 12 + k, seed=k) % 21
            values[:, 3] = 255
            image = Image.fromarray(values, "P")
            image.putpalette(noise(256, 3, seed=7).tobytes())
            image.save(folder / f"SegmentationClass/{name}.png")
    save(folder / "JPEGImages/2012_004331.jpg", seed=9)
    return folder


COCO_SKIPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # the ids that COCO has no category for


def coco(root: Path) -> Path:
    """Pictures in no order of their ids; polygons, and a crowd as uncompressed RLE."""
    folder = root / "coco"
    images = []
    for k, number in enumerate((139, 872, 25)):
        name = f"{number:012d}.jpg"
        save(folder / "val2017" / name, seed=k, size=(20, 15))
        images.append({"id": number, "file_name": name, "width": 20, "height": 15})
    triangle, square = [1.5, 1, 10, 1, 10, 8.25], [12, 2, 18, 2, 18, 9, 12, 9]
    annotations = [
        coco_object(id=7, image_id=872, segmentation=[triangle]),
        coco_object(id=3, image_id=25, segmentation=[triangle, square], category_id=90),
        coco_object(
            id=900100000139,
            image_id=139,
            segmentation={"counts": [30, 15, 255], "size": [15, 20]},
            bbox=[2, 0, 1, 15],
            iscrowd=1,
        ),
    ]
    names = [number for number in range(1, 91) if number not in COCO_SKIPS]
    categories = [{"id": k, "name": f"thing {k}", "supercategory": "things"} for k in names]
    coco_file(folder, {"images": images, "annotations": annotations, "categories": categories})
    return folder


def coco_object(**changes) -> dict:
    entry = {"category_id": 1, "bbox": [1.5, 1, 8.5, 7.25], "area": 30.8, "iscrowd": 0}
    return entry | changes


def coco_file(folder: Path, content: object) -> Path:
    path = folder / "annotations/instances_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


SCENE_WRITERS = {"ade20k": ade20k, "voc2012": voc2012, "coco": coco}


# --- pairs -----------------------------------------------------------

Pair = tuple[
    bytes | None, str | bytes | None
]  # a picture's file and a caption; None: there is none


def write_pair_shards(folder: Path, pairs: list[Pair], per_shard: int) -> list[Path]:
    """WebDataset shards as img2dataset writes them: 00000.tar with 000000000.{jpg,json,txt} …

    Its tars have a header more a member, for the fraction of a second of its time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, start in enumerate(range(0, len(pairs), per_shard)):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.PAX_FORMAT) as tar:
            for number, (picture, caption) in enumerate(pairs[start : start + per_shard]):
                key = f"{shard:05d}{number:04d}"
                text = caption.encode() if isinstance(caption, str) else caption
                about = json.dumps({"caption": str(caption), "key": key, "status": "success"})
                files = {"jpg": picture, "json": about.encode(), "txt": text}
                for extension, content in files.items():
                    if content is not None:
                        add_member(tar, f"{key}.{extension}", content)
        paths[-1].with_name(f"{shard:05d}_stats.json").write_text("{}")
    return paths


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), 1_700_000_000.25
    tar.addfile(member, io.BytesIO(content))


def jpeg(colour: tuple[int, int, int], size=(20, 15)) -> bytes:
    """A picture as a file: noise around one colour."""
    pixels = np.array(colour) + noise(size[1], size[0], 1, seed=sum(colour)) % 32 - 16
    file = io.BytesIO()
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def places_in(shard: Path) -> dict[str, tuple[int, int]]:
    """Member → where its first header begins and where its content ends: where to cut a shard."""
    found, start = {}, 0
    with tarfile.open(shard) as tar:
        for member in tar:
            found[member.name] = start, member.offset_data + member.size
            start = member.offset_data + -(-member.size // 512) * 512
    return found


def cut(shard: Path, at: int) -> None:
    """Leave the first `at` bytes."""
    shard.write_bytes(shard.read_bytes()[:at])


# --- sets of one's own, as docs/own_data.md lays them out ---------------------------------------


def leaves(root: Path) -> None:
    """Three classes of 34 pictures, each class of a colour of its own."""
    for place, name in enumerate(("ash", "elm", "oak")):
        colour = np.eye(3, dtype=np.int64)[place] * 120 + 60
        for k in range(34):
            pixels = colour + noise(24, 30, 3, seed=100 * place + k) // 4
            path = root / f"leaves/{name}/{k:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def cells(root: Path) -> None:
    """Six pictures with maps in each of two parts: a rectangle of class 1 or 2, a row left out."""
    for part in ("training", "validation"):
        for k in range(6):
            labels = np.zeros((32, 40), np.uint8)
            labels[8:20, 5 + k : 25], labels[0] = 1 + k % 2, 255
            suffix = "png" if k % 2 else "jpg"
            for kind, name in (("images", f"c{k}.{suffix}"), ("annotations", f"c{k}.png")):
                path = root / f"cells/{kind}/{part}/{name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).convert("RGB" if kind == "images" else "L").save(path)
