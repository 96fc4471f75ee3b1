"""`crate data check` and `crate data prepare`: what is told, what is unpacked, never half."""

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import imagenet
from writers import SCENE_WRITERS, WRITERS, coco, coco_file, coco_object, noise

from crate.cli import main
from crate.data.catalogue import DATASETS
from crate.data.ilsvrc import unpack
from crate.data.listing import index_path, list_part
from crate.data.readers import reader, real
from crate.data.sources import open_pictures, read_part
from crate.errors import RunError

NOWHERE = "http://127.0.0.1:9/"  # refuses connections: stands for a machine without a network


def crate(capsys, *words: str) -> tuple[int, list[str], list[str]]:
    list_part.cache_clear()
    capsys.readouterr()
    status = main(["data", *words])
    out, errors = capsys.readouterr()
    return status, out.splitlines(), errors.splitlines()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def set_as_published(request, tmp_path, monkeypatch):
    """A tiny set, whose sizes and md5 sums are made the published ones: name, data_root, folder."""
    name = request.param
    folder = WRITERS[name](tmp_path)
    sizes = dict.fromkeys(DATASETS[name].splits, 0)
    for split, part in DATASETS[name].folders.items():
        sizes[split] = len(read_part(DATASETS[name], part, tmp_path))
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], splits=sizes))
    if name.startswith("cifar"):
        known = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        for files in ("train_list", "test_list"):
            sums = [[file, md5(folder / file)] for file, _ in getattr(known, files)]
            monkeypatch.setattr(known, files, sums)
        archive = pack(folder, tmp_path / name / known.filename, folder.name)
        monkeypatch.setattr(known, "url", NOWHERE + known.filename)
        monkeypatch.setattr(known, "tgz_md5", md5(archive))
    elif name == "flowers102":
        archive = pack(folder / "jpg", folder / "102flowers.tgz", "jpg")
        files = {"image": archive.name, "label": "imagelabels.mat", "setid": "setid.mat"}
        sums = {key: (file, md5(folder / file)) for key, file in files.items()}
        monkeypatch.setattr(datasets.Flowers102, "_file_dict", sums)
        monkeypatch.setattr(datasets.Flowers102, "_download_url_prefix", NOWHERE)
    else:
        archives = [
            pack(folder / part, folder / f"{part}.tar.gz", part)
            for part in ("images", "annotations")
        ]
        sums = tuple((f"{NOWHERE}{path.name}", md5(path)) for path in archives)
        monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", sums)
    return name, tmp_path, folder


def pack(folder: Path, archive: Path, name: str) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, name)
    return archive


every_set = pytest.mark.parametrize("set_as_published", WRITERS, indirect=True)


@every_set
def test_a_whole_set_is_told(set_as_published, capsys):
    name, root, _ = set_as_published
    for command in ("check", "prepare"):  # nothing to do: no network is used
        status, out, errors = crate(capsys, command, name, "--data-root", str(root))
        assert (status, errors) == (0, [])
        assert out == [
            f"{root}/{name}, {part}: {DATASETS[name].splits[split]} images"
            for split, part in DATASETS[name].folders.items()
        ]


@every_set
def test_what_is_missing_is_unpacked_again(set_as_published, capsys):
    """The archives are there; what they hold is half there, or damaged."""
    name, root, folder = set_as_published
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    victim = {"cifar10": "data_batch_4", "cifar100": "test", "flowers102": "jpg/image_00004.jpg"}
    victim = folder / victim.get(name, "images/shiba_inu_3.jpg")
    victim.unlink()
    if name.startswith("cifar"):
        victim.write_bytes(before[victim][:-7])
    status, _, errors = crate(capsys, "check", name, "--data-root", str(root))
    assert status == 1
    assert errors[-1] == (
        f"failed: {DATASETS[name].title} is not complete: "
        f"run 'crate data prepare {name} --data-root {root}'"
    )
    assert any(victim.name in line for line in errors)
    status, _, errors = crate(capsys, "prepare", name, "--data-root", str(root))
    assert status == 0, errors
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@every_set
def test_without_a_network_one_line_says_what_to_do(set_as_published, capsys):
    name, root, folder = set_as_published
    (archive,) = (path for path in (root / name).rglob("*gz") if path.name != "annotations.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20])  # half downloaded
    if not name.startswith("cifar"):
        folder = folder / ("jpg" if name == "flowers102" else "images")
    shutil.rmtree(folder)
    status, out, errors = crate(capsys, "prepare", name, "--data-root", str(root))
    assert (status, out) == (1, [])
    assert "refused" in errors[-1]
    assert sum(line.startswith("failed: ") for line in errors) == 1
    assert errors[-1].startswith(f"failed: {archive}: is damaged or half-downloaded, and ")
    told = f"to go without a network, delete it, put {NOWHERE}{archive.name} there"
    assert errors[-1].endswith(told)
    assert "<urlopen" not in errors[-1]
    assert not folder.exists()


@pytest.mark.parametrize("set_as_published", ["cifar10", "pets"], indirect=True)
def test_where_there_is_nothing_yet_it_is_downloaded(set_as_published, capsys):
    name, root, _ = set_as_published
    shutil.rmtree(root / name)
    status, _, errors = crate(capsys, "prepare", name, "--data-root", str(root))
    assert status == 1
    assert "refused" in errors[-1]  # it tried


@pytest.mark.parametrize("set_as_published", ["cifar10", "flowers102"], indirect=True)
def test_files_that_are_not_the_published_ones_are_told(set_as_published, capsys):
    name, root, folder = set_as_published
    path = folder / ("test_batch" if name == "cifar10" else "setid.mat")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"training batch 1", b"another batch :)") + b"\0" * 8)
    status, out, errors = crate(capsys, "check", name, "--data-root", str(root))
    assert status == 1
    assert len(out) == len(DATASETS[name].folders)  # it can be read
    assert errors[0] == f"{path}: is not the published file (its md5 is another)"


def test_a_tiny_set_is_read_but_not_called_whole(tmp_path, capsys):
    folder = WRITERS["cifar10"](tmp_path)
    status, out, errors = crate(capsys, "check", "cifar10", "--data-root", str(tmp_path))
    assert status == 1
    assert out[0] == f"{tmp_path}/cifar10, train: 15 images"
    assert errors[0] == f"{tmp_path}/cifar10, train: 15 images, CIFAR-10 has 50,000"
    assert f"{folder}/data_batch_1: is not the published file (its md5 is another)" in errors


# --- ImageNet -----------------------------------------------------------

WNIDS = ("n03000001", "n01000001", "n02000001")  # by ILSVRC2012_ID, not sorted


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(12, 16, 3, seed=seed)).save(file, "JPEG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def ilsvrc(tmp_path, monkeypatch) -> Path:
    """The three archives of ILSVRC 2012, small, in their layouts."""
    root = tmp_path / "imagenet1k"
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for k, wnid in enumerate(WNIDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(k + 2):
                    add(tar, f"{wnid}_{i}.JPEG", jpeg(10 * k + i))
            add(outer, f"{wnid}.tar", inner.getvalue())
    truth = [2, 1, 3, 3, 2]  # ILSVRC2012_ID of each validation picture
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(1, 6):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(100 + number))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    kinds += [(name, "O") for name in ("num_children", "children", "wordnet_height")]
    kinds += [("num_train_images", "O")]
    synsets = np.array(
        [(float(k + 1), wnid, f"thing {k}, other", "a thing", 0.0, [], 0.0, 2.0)
         for k, wnid in enumerate(WNIDS)]
        + [(4.0, "n09000001", "all things", "their parent", 3.0, [1.0, 2.0, 3.0], 1.0, 0.0)],
        dtype=kinds,
    )  # fmt: skip
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        lines = "".join(f"{k}\n" for k in truth).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines)
    sums = {k: (file, md5(root / file)) for k, (file, _) in imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", sums)
    small = {"classes": 3, "splits": {"train": 9, "validation": 2, "test": 5}, "holdout": 2}
    whole = dataclasses.replace(DATASETS["imagenet1k"], **small)
    monkeypatch.setitem(DATASETS, "imagenet1k", whole)
    real = dataclasses.replace(DATASETS["imagenet1k_real"], classes=3, splits={"test": 4})
    monkeypatch.setitem(DATASETS, "imagenet1k_real", real)
    return root


def test_imagenets_archives_become_trees_and_indexes(ilsvrc, capsys):
    data_root = ilsvrc.parent
    status, out, _ = crate(capsys, "prepare", "imagenet1k", "--data-root", str(data_root))
    assert status == 0
    counts = {"train": 9, "val": 5}
    assert out == [f"{index_path(ilsvrc / part)}: {n} images" for part, n in counts.items()]
    for part, count in counts.items():
        mine = read_part(DATASETS["imagenet1k"], part, data_root)
        theirs = datasets.ImageNet(ilsvrc, part)
        assert len(mine) == len(theirs) == count
        for k in range(count):
            assert np.array_equal(np.array(mine.read(k)[0]), np.array(theirs[k][0]))
            assert mine.labels[k] == theirs[k][1]
    # picture 1 is of ILSVRC2012_ID 2, the first class by name
    assert (ilsvrc / "val/n01000001/ILSVRC2012_val_00000001.JPEG").read_bytes() == jpeg(101)
    status, out, errors = crate(capsys, "check", "imagenet1k", "--data-root", str(data_root))
    assert (status, errors) == (0, [])
    assert out == [
        f"{ilsvrc / part}: 3 class folders, {n} images; indexed" for part, n in counts.items()
    ]
    (ilsvrc / "val/n01000001/more.JPEG").write_bytes(jpeg(3))
    status, out, errors = crate(capsys, "check", "imagenet1k", "--data-root", str(data_root))
    assert out[1].endswith("6 images; the index is out of date (n01000001 changed)")
    assert errors[0] == f"{ilsvrc}/val: 6 images, ImageNet-1K has 5"
    shutil.rmtree(ilsvrc / "val/n03000001")
    (ilsvrc / "val/n0300").mkdir()
    _, _, errors = crate(capsys, "check", "imagenet1k", "--data-root", str(data_root))
    assert f"{ilsvrc}/val: no images in 1 of its classes, first n0300" in errors
    odd = f"{ilsvrc}/val: its classes are not those of train, first n0300"
    assert odd in errors


def test_a_part_is_unpacked_whole_or_not_at_all(ilsvrc, capsys, monkeypatch):
    data_root = str(ilsvrc.parent)
    extract = imagenet.extract_archive

    def interrupted(source, *arguments, **keys):
        if str(source).endswith("n01000001.tar"):
            raise OSError(28, "No space left on device")
        return extract(source, *arguments, **keys)

    monkeypatch.setattr(imagenet, "extract_archive", interrupted)
    status, _, errors = crate(capsys, "prepare", "imagenet1k", "--data-root", data_root)
    assert status == 1
    archive = ilsvrc / "ILSVRC2012_img_train.tar"
    room = "no room is left for what is in it; make room and run this again"
    assert errors[-1] == f"failed: {archive}: {room}"
    assert not (ilsvrc / "train").exists()
    monkeypatch.setattr(imagenet, "extract_archive", extract)
    assert crate(capsys, "prepare", "imagenet1k", "--data-root", data_root)[0] == 0
    names = {path.name for path in ilsvrc.iterdir() if path.is_dir()}
    assert names == {"train", "val"}


def test_a_half_downloaded_archive_of_imagenet(ilsvrc, capsys):
    archive = ilsvrc / "ILSVRC2012_img_val.tar"
    archive.write_bytes(archive.read_bytes()[:-5000])
    status, _, errors = crate(capsys, "prepare", "imagenet1k", "--data-root", str(ilsvrc.parent))
    assert status == 1
    assert errors[-1] == f"failed: {archive}: is damaged or half-downloaded; download it again"
    assert not (ilsvrc / "val").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "is missing, and it says which class each picture is of; put"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "is damaged or half-downloaded"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "is damaged or half-downloaded; down"),
    ],
)
def test_the_devkit_is_blamed_for_itself_alone(ilsvrc, capsys, damage, reason):
    devkit = ilsvrc / "ILSVRC2012_devkit_t12.tar.gz"
    damage(devkit)
    status, _, errors = crate(capsys, "prepare", "imagenet1k", "--data-root", str(ilsvrc.parent))
    assert status == 1
    assert errors[-1].startswith(f"failed: {devkit}: {reason}")
    assert not (ilsvrc / "val").exists()


def flatten(folder: Path) -> None:
    for path in list(folder.glob("*/*")):
        path.rename(folder / path.name)
    for inside in list(folder.iterdir()):
        if inside.is_dir():
            inside.rmdir()


def empty(folder: Path) -> None:
    for path in folder.glob("*/*"):
        path.unlink()


def nest(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    folder.with_name("moved").rename(folder / "ILSVRC2012_img_val")


AGAIN = "run 'crate data prepare imagenet1k'"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


@pytest.mark.parametrize(
    ("change", "kept", "told", "mended"),
    [
        (flatten, [DEVKIT], f"has 5 pictures outside class folders; {AGAIN}, which sorts th", True),
        (flatten, ["meta.bin"], "has 5 pictures outside class folders; run 'crate data pre", True),
        (flatten, [], f"has 5 pictures outside class folders; put {DEVKIT} into ", False),
        (empty, [], "no pictures in its class folders; put the pictures' archive into ", False),
        (shutil.rmtree, ["ILSVRC2012_img_val.tar", DEVKIT], "is not unpacked yet; run 'cra", True),
        (
            nest,
            [],
            "/ILSVRC2012_img_val: has the class folders; move them one level up, to ",
            False,
        ),
    ],
)
def test_each_state_of_a_half_prepared_set_has_its_own_next_step(
    ilsvrc, capsys, change, kept, told, mended
):
    words = ("imagenet1k", "--data-root", str(ilsvrc.parent))
    assert crate(capsys, "prepare", *words)[0] == 0
    whole = sorted((ilsvrc / "val").glob("*/*"))
    change(ilsvrc / "val")
    for path in [*ilsvrc.glob("*.tar*"), *ilsvrc.glob("meta.bin")]:
        if path.name not in kept:
            path.unlink()
    status, _, errors = crate(capsys, "check", *words)
    assert status == 1
    assert sum(told in line for line in errors) == 1, errors
    status, _, errors = crate(capsys, "prepare", *words)
    assert status == (0 if mended else 1)
    if mended:
        assert sorted((ilsvrc / "val").glob("*/*")) == whole
        assert crate(capsys, "check", *words)[0] == 0
    else:
        assert told in errors[-1]


def test_a_flat_training_part_is_sorted_by_its_names(ilsvrc, capsys):
    words = ("imagenet1k", "--data-root", str(ilsvrc.parent))
    assert crate(capsys, "prepare", *words)[0] == 0
    whole = sorted((ilsvrc / "train").glob("*/*"))
    flatten(ilsvrc / "train")
    assert crate(capsys, "prepare", *words)[0] == 0
    assert sorted((ilsvrc / "train").glob("*/*")) == whole
    (ilsvrc / "train/holiday.jpg").write_bytes(jpeg(1))
    status, _, errors = crate(capsys, "prepare", *words)
    assert status == 1
    assert errors[-1].endswith(
        "train: has 1 pictures outside class folders, and their names do not say their class; put "
        "them into class folders"
    )
    assert (ilsvrc / "train/holiday.jpg").is_file()


def test_class_folders_and_tars_together_are_told(ilsvrc, capsys):
    words = ("imagenet1k", "--data-root", str(ilsvrc.parent))
    assert crate(capsys, "prepare", *words)[0] == 0
    shutil.copy(ilsvrc / "ILSVRC2012_img_val.tar", ilsvrc / "train/n01000001.tar")
    _, _, errors = crate(capsys, "check", *words)
    assert (
        f"{ilsvrc}/train: has class folders and tars, first n01000001.tar; unpack the" in errors[0]
    )
    (ilsvrc / "train/n01000001.tar").rename(ilsvrc / "train/ILSVRC2012_img_train.tar")
    _, _, errors = crate(capsys, "check", *words)
    assert f"ILSVRC2012_img_train.tar: is the whole archive; move it to {ilsvrc} and" in errors[0]


# --- bad pictures -----------------------------------------------------------


def test_check_finds_pictures_without_content_and_thoroughly_all(ilsvrc, capsys, monkeypatch):
    monkeypatch.setattr("crate.data.check.SMALL", 4)  # a smaller part is always looked at whole
    words = ("imagenet1k", "--data-root", str(ilsvrc.parent))
    assert crate(capsys, "prepare", *words)[0] == 0
    paths = sorted((ilsvrc / "val").glob("*/*"))
    content = paths[0].read_bytes()
    for damage, looked, reason in (
        (b"", True, "is empty or missing"),
        (b"not a picture", True, "cannot be read as an image (its format is unknown)"),
        (content[:-30], False, "cannot be read as an image (image file is trun"),
    ):
        paths[0].write_bytes(damage)
        for thorough in ((), ("--thorough",)):
            status, _, errors = crate(capsys, "check", *words, *thorough)
            found = [line for line in errors if "1 picture of 5 cannot be read: " in line]
            assert len(found) == (1 if looked or thorough else 0), errors
            assert status == (1 if found else 0)
            assert all(f"{paths[0]}: {reason}" in line for line in found)


def test_many_bad_pictures_are_one_line(ilsvrc, capsys):
    words = ("imagenet1k", "--data-root", str(ilsvrc.parent))
    assert crate(capsys, "prepare", *words)[0] == 0
    for path in (ilsvrc / "val").glob("*/*"):
        path.write_bytes(b"")
    _, _, errors = crate(capsys, "check", *words)
    assert sum("5 pictures of 5 cannot be read: " in line for line in errors) == 1
    assert len(errors) == 2  # and that the set is not complete


@pytest.mark.parametrize("kind", ["file", "tar", "gone"])
def test_an_empty_picture_ends_a_run_before_its_training(ilsvrc, kind):
    root = ilsvrc.parent
    for part in ("train", "val"):
        unpack(ilsvrc, part)
    if kind == "tar":
        folder = ilsvrc / "val"
        for inside in sorted(folder.iterdir()):
            with tarfile.open(folder / f"{inside.name}.tar", "w") as tar:
                for k, path in enumerate(sorted(inside.iterdir())):
                    add(tar, path.name, b"" if k == 0 else path.read_bytes())
            shutil.rmtree(inside)
    else:
        path = sorted((ilsvrc / "val").glob("*/*"))[1]
        path.unlink()
        path.symlink_to("nowhere") if kind == "gone" else path.touch()
    count = "3 pictures" if kind == "tar" else "1 picture"
    told = rf"JPEG: is empty or missing, of {count} in the test split; 'crate data check imagenet1k"
    with pytest.raises(RunError, match=told):
        open_pictures(DATASETS["imagenet1k"], "test", root)


def test_without_archives_one_line_says_which(ilsvrc, capsys):
    for archive in ilsvrc.iterdir():
        archive.unlink()
    status, _, errors = crate(capsys, "prepare", "imagenet1k", "--data-root", str(ilsvrc.parent))
    assert (status, len(errors)) == (1, 1)
    assert errors[0].startswith(f"failed: ImageNet-1K is not at {ilsvrc}/train: download ILSVRC20")
    shutil.rmtree(ilsvrc)
    for command in ("check", "prepare"):
        status, out, errors = crate(
            capsys, command, "imagenet1k", "--data-root", str(ilsvrc.parent)
        )
        assert (status, out, len(errors)) == (1, [], 1)


def test_real_labels_are_fetched_or_told(ilsvrc, capsys, monkeypatch):
    words = ("imagenet1k_real", "--data-root", str(ilsvrc.parent))
    monkeypatch.setattr(real, "URL", NOWHERE + "real.json")
    status, _, errors = crate(capsys, "prepare", *words)
    assert status == 1
    assert f"to go without a network, put {NOWHERE}real.json there" in errors[-1]
    labels = [[1], [], [0, 2], [2], [1], *([[]] * 49_995)]
    (ilsvrc / "real.json").write_text(json.dumps(labels))
    status, out, _ = crate(capsys, "prepare", *words)
    assert status == 0
    assert out[-1] == f"{ilsvrc}/val: 4 images with labels"
    assert crate(capsys, "check", *words)[:2] == (0, [f"{ilsvrc}/val: 4 images"])
    (ilsvrc / "real.json").write_text(json.dumps(labels[:-1]))
    status, out, errors = crate(capsys, "check", *words)
    assert (status, len(errors)) == (1, 2)
    assert errors[0] == f"{ilsvrc}/real.json: is not a list of 50,000 lists of labels"


# --- sets with maps or objects -----------------------------------------------------------

TOLD = {
    "ade20k": [
        "{}, training: 3 images, each with its map",
        "{}, validation: 2 images, each with its map",
    ],
    "voc2012": ["{}, train: 3 images, each with its map", "{}, val: 1 images, each with its map"],
    "coco": ["{}, val2017: 3 images, 3 objects of 80 categories"],
}
TOPS = {
    "ADEChallengeData2016.zip": "ADEChallengeData2016",
    "VOCtrainval_11-May-2012.tar": "VOCdevkit",
    "val2017.zip": "val2017",
    "annotations_trainval2017.zip": "annotations",
}


@pytest.fixture(params=SCENE_WRITERS)
def archived(request, tmp_path, monkeypatch) -> tuple[str, Path, dict[Path, bytes]]:
    """A tiny set as its official archives, and the files that were in its folders."""
    name = request.param
    SCENE_WRITERS[name](tmp_path)
    root = tmp_path / name
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for archive in reader(name).ARCHIVES:
        top = root / TOPS[archive]
        if archive.endswith(".tar"):
            with tarfile.open(root / archive, "w") as tar:
                tar.add(top, top.name)
        else:
            with zipfile.ZipFile(root / archive, "w", zipfile.ZIP_DEFLATED) as file:
                for path in (top, *top.rglob("*")):
                    file.write(path, path.relative_to(root))
        shutil.rmtree(top)
    sizes = {"ade20k": (3, 2), "voc2012": (3, 1), "coco": (3,)}[name]
    sizes = dict(zip(DATASETS[name].folders, sizes, strict=True)) | {"validation": 1}
    splits = {split: sizes[split] for split in DATASETS[name].splits}
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], splits=splits))
    return name, root, files


def there(root: Path) -> dict[Path, bytes]:
    """All files of a set but its archives, hidden ones too."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in TOPS)
    return {path: path.read_bytes() for path in files}


def test_official_archives_are_unpacked(archived, capsys):
    name, root, files = archived
    words = (name, "--data-root", str(root.parent))
    told = [line.format(root) for line in TOLD[name]]
    assert crate(capsys, "prepare", *words)[:2] == (0, told)
    assert there(root) == files
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    for archive in reader(name).ARCHIVES:
        (root / archive).unlink()
    for command in ("check", "prepare"):  # they are not needed any more
        assert crate(capsys, command, *words) == (0, told, [])


def test_without_archives_one_line_says_what_to_download(archived, capsys):
    name, root, _ = archived
    for archive in reader(name).ARCHIVES:
        (root / archive).unlink()
    status, out, errors = crate(capsys, "prepare", name, "--data-root", str(root.parent))
    assert (status, out, len(errors)) == (1, [], 1)
    dataset = DATASETS[name]
    (needed, *_) = (*dataset.needs, *next(iter(dataset.parts_need.values()), ()))
    first = f"failed: {dataset.title} is not at {root}/{needed}: download "
    assert errors[0].startswith(first + "http://")
    assert all(f"/{archive} " in errors[0] for archive in reader(name).ARCHIVES)
    command = f"run 'crate data prepare {name} --data-root {root.parent}'"
    assert errors[0].endswith(f" to {root}, then {command}")


@pytest.mark.parametrize("damage", ["cut", "padding", "other", "text"])
def test_a_damaged_archive_leaves_nothing(archived, capsys, damage):
    name, root, _ = archived
    for name_of_archive in reader(name).ARCHIVES:
        archive = root / name_of_archive
        content = archive.read_bytes()
        if damage == "cut":
            archive.write_bytes(content[: len(content) // 2])
        elif damage == "padding":  # a tar cut after a member; a zip with a changed byte in one
            if name == "voc2012":
                content = content.rstrip(b"\0")
                archive.write_bytes(content + b"\0" * (-len(content) % 512))
            else:
                with zipfile.ZipFile(archive) as file:
                    victim = max(file.infolist(), key=lambda info: info.compress_size)
                place = victim.header_offset + len(victim.filename) + 40
                changed = bytes([content[place] ^ 255])
                archive.write_bytes(content[:place] + changed + content[place + 1 :])
        elif damage == "text":
            archive.write_bytes(b"<html>not found</html>")
        elif archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("something/else.txt", b"else")
        else:
            with tarfile.open(archive, "w") as tar:
                add(tar, "something/else.txt", b"else")
    status, out, errors = crate(capsys, "prepare", name, "--data-root", str(root.parent))
    archive = root / next(iter(reader(name).ARCHIVES))
    assert (status, out) == (1, [])
    assert errors[-1].startswith(f"failed: {archive}: ")
    assert ("is it the official one?" if damage == "other" else "download it again") in errors[-1]
    assert there(root) == {}


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "annotations/../../evil.txt"])
def test_an_archive_that_would_leave_its_folder(archived, capsys, member):
    name, root, _ = archived
    archive = root / next(iter(reader(name).ARCHIVES))
    if archive.suffix == ".tar":
        if member == "/evil.txt":
            member = "../../evil.txt"  # of a tar, a leading slash is dropped
        with tarfile.open(archive, "a") as tar:
            add(tar, member.replace("annotations/", ""), b"evil")
    else:
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr(member, b"evil")
    status, _, errors = crate(capsys, "prepare", name, "--data-root", str(root.parent))
    assert status == 1
    assert errors[-1].startswith(f"failed: {archive}: ")
    assert "evil.txt' would " in errors[-1]
    assert not (root / TOPS[archive.name]).exists()
    assert not list(root.parent.parent.rglob("evil.txt"))


def test_a_set_that_is_not_whole_is_told(archived, capsys):
    name, root, files = archived
    words = (name, "--data-root", str(root.parent))
    crate(capsys, "prepare", *words)
    victim = next(path for path in files if path.suffix == ".jpg" and "2012_" not in path.name)
    victim.unlink()
    status, _, errors = crate(capsys, "check", *words)
    assert (status, len(errors)) == (1, 2)
    assert errors[0].startswith(f"{victim.parent}: lacks 1 of the ")
    assert errors[0].endswith(f"first {victim.name}")
    assert errors[1].startswith(f"failed: {DATASETS[name].title} is not complete: download ")
    status, out, errors = crate(capsys, "prepare", *words)  # nothing of a person's is overwritten
    assert (status, out, len(errors)) == (1, [], 1)
    first, *_ = reader(name).ARCHIVES.values()
    assert errors[0].startswith(f"failed: {victim.parent}: lacks 1 of the ")
    assert f"; move {root / first}" in errors[0]


def test_what_cannot_be_used_of_a_set_is_told(tmp_path, capsys):
    folder = coco(tmp_path)
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    content["annotations"].append(coco_object(id=1, image_id=25, segmentation=[[1, 2, 3]]))
    content["categories"].pop()
    path = coco_file(folder, content)
    status, out, errors = crate(capsys, "check", "coco", "--data-root", str(tmp_path))
    assert (status, out) == (1, [f"{folder}, val2017: 3 images, 2 objects of 79 categories"])
    assert errors[:-1] == [
        f"{path}: 1 annotation left out, the category_id is of no category; first id 3",
        f"{path}: 1 annotation left out, a polygon has an odd number of coordinates or fewer "
        "than 6; first id 1",
        f"{folder}, val2017: 79 categories, COCO val2017 has 80",
        f"{folder}, val2017: 3 images, COCO val2017 has 5,000",
    ]


def test_composites_need_nothing(tmp_path, capsys):
    words = ("composites", "--data-root", str(tmp_path / "nowhere"))
    counts = "17 classes; train 2,000, validation 300, test 1,000"
    assert crate(capsys, "check", *words) == (
        0,
        [f"composites: embedded, complete ({counts})"],
        [],
    )
    assert crate(capsys, "prepare", *words)[1] == ["composites: embedded, nothing to prepare"]
