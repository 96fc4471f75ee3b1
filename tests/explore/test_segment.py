"""`crate segment`: pictures of every kind in, overlays and COCO's format out."""

import contextlib
import dataclasses
import io
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from crate.checkpoints.convert import to_official
from crate.cli import main
from crate.data.embedded import photos
from crate.explore import segment as module
from crate.explore.pictures import open_picture
from crate.models.build import create_model
from crate.planning.plan import Plan
from crate.tasks.objects import coco

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "crate_tiny_patch8"


@pytest.fixture
def weights(plan: Plan, tmp_path):
    """Weights as a run at scale smoke leaves them."""
    torch.manual_seed(0)
    spec = dataclasses.asdict(plan.experiments.spec(MODEL, "smoke"))
    model = create_model(MODEL, num_classes=10, image_size=28, **spec)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def segment(weights, tmp_path, capsys):
    """`segment(*words)` → exit status, standard output, errors."""

    def segment(*words, model=MODEL, given=weights):
        own = ["--weights", str(given)] if given else []
        arguments = ["segment", *map(str, words), "--model", model, "--out", str(tmp_path / "out")]
        status = main([*arguments, *own])
        return status, *capsys.readouterr()

    return segment


SMOKE = ("--scale", "smoke")


def loaded(path):
    """objects.json as pycocotools reads it."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def test_photographs(segment, tmp_path):
    for number, (name, pixels) in enumerate(photos().items()):
        folder = tmp_path / ("a" if number % 2 else "b")
        folder.mkdir(exist_ok=True)
        stem = "rocket" if name in ("rocket", "coffee") else name  # two of one stem
        Image.fromarray(pixels).save(folder / f"{stem}.png")
    paths = sorted(tmp_path.glob("[ab]/*.png"))
    assert len(paths) == 7
    status, out, err = segment(*paths, *SMOKE, "--masks", "2")
    assert (status, err) == (0, "")
    *lines, last = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in paths]
    assert last == f"wrote 7 overlays and objects.json to {tmp_path / 'out'}/"
    dataset = loaded(tmp_path / "out" / "objects.json")
    assert sorted(dataset.imgs) == list(range(1, 8))
    overlays = [image["overlay"] for image in dataset.imgs.values()]
    assert len(set(overlays)) == 7
    assert "rocket-2.png" in overlays
    for number, line in enumerate(lines, start=1):
        entry, found = dataset.imgs[number], dataset.imgToAnns[number]
        with Image.open(paths[number - 1]) as picture:
            size, pixels = picture.size, np.asarray(picture)
        assert f"{size[0]} x {size[1]} px, {len(found)} mask" in line
        assert (entry["width"], entry["height"]) == size
        assert 0 < len(found) <= 2
        with Image.open(tmp_path / "out" / entry["overlay"]) as drawn:
            changed = (np.asarray(drawn) != pixels).any(2)
        masks = [dataset.annToMask(annotation).astype(bool) for annotation in found]
        assert not (changed & ~np.any(masks, axis=0)).any()
        for mask, annotation in zip(masks, found, strict=True):
            assert annotation["area"] == mask.sum()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, w, h = annotation["bbox"]
            assert (x, x + w - 1, y, y + h - 1) == (*columns[[0, -1]], *rows[[0, -1]])
            assert annotation["category_id"] == 1
    assert dataset.cats == {1: {"id": 1, "name": "object"}}
    # what was found can be scored as it stands
    truth = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert coco.evaluate(truth, truth["annotations"])["mask_ap"] == pytest.approx(100)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_every_kind_of_picture_becomes_8_bit_rgb(tmp_path):
    cat = Image.fromarray(photos()["chelsea"]).resize((90, 60))
    grey = np.asarray(cat.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = open_picture(save(tmp_path / "turned.jpg", cat, exif=exif, quality=95))
    assert turned.size == (60, 90)
    expected = np.asarray(cat.transpose(Image.Transpose.ROTATE_270), float)
    assert abs(np.asarray(turned) - expected).mean() < 4

    for mode, suffix in (
        ("1", "png"),
        ("L", "png"),
        ("P", "gif"),
        ("CMYK", "tif"),
        ("YCbCr", "tif"),
    ):
        opened = open_picture(save(tmp_path / f"{mode}.{suffix}", cat.convert(mode)))
        assert (opened.mode, opened.size) == ("RGB", cat.size)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for name in ("16.png", "16.tif"):
        shown = np.asarray(open_picture(save(tmp_path / name, deep)))
        assert (shown == grey[..., None]).all()
    real = open_picture(save(tmp_path / "f.tif", Image.fromarray(grey / np.float32(9))))
    spread = (grey - grey.min()) * 255.0 / np.ptp(grey)
    assert abs(np.asarray(real) - spread[..., None]).max() <= 0.51

    clear = cat.convert("RGBA")
    alpha = np.zeros((60, 90), np.uint8)
    alpha[:, :30], alpha[:, 30:60] = 255, 128
    clear.putalpha(Image.fromarray(alpha))
    shown = np.asarray(open_picture(save(tmp_path / "clear.png", clear)), int)
    pixels = np.asarray(cat, int)
    assert (shown[:, :30] == pixels[:, :30]).all()
    assert abs(shown[:, 30:60] - (pixels[:, 30:60] + 255) / 2).max() <= 1
    assert (shown[:, 60:] == 255).all()
    named = save(tmp_path / "one.png", Image.new("P", (1, 1)), transparency=0)
    assert open_picture(named).getpixel((0, 0)) == (255, 255, 255)


def test_what_cannot_be_read_is_a_warning_and_the_rest_is_done(segment, tmp_path):
    good = save(tmp_path / "good.png", Image.fromarray(photos()["rocket"]))
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:5000])
    huge = save(tmp_path / "huge.png", Image.new("1", (20_000, 9_000)))  # 180 megapixels
    pixel = save(tmp_path / "pixel.gif", Image.new("L", (1, 1)))
    paths = [tmp_path / "text.jpg", good, tmp_path / "cut.png", pixel, huge, tmp_path]
    status, out, err = segment(*paths, tmp_path / "nowhere.png", *SMOKE)
    assert status == 1
    *lines, last = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(good), str(pixel)]
    assert last.startswith("wrote 2 overlays and objects.json to ")
    warnings = err.splitlines()
    assert [line.startswith("warning: ") for line in warnings] == [True] * 5 + [False]
    assert warnings[0] == f"warning: {tmp_path}/text.jpg: cannot be read as an image (its format is unknown)"  # fmt: skip # noqa: E501
    assert "180000000 pixels" in warnings[2]
    assert warnings[-1] == "failed: 5 of 7 pictures could not be segmented"
    dataset = loaded(tmp_path / "out" / "objects.json")
    assert sorted(dataset.imgs) == [2, 4]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"good.png", "pixel.png"}


def test_nothing_found_leaves_the_picture_as_it_is(segment, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_find", lambda *_: [])
    wide = Image.fromarray(photos()["rocket"]).resize((3000, 30))
    status, out, _ = segment(save(tmp_path / "wide.png", wide), *SMOKE)
    assert status == 0
    assert "wide.png: 3000 x 30 px, 0 masks" in out
    assert json.loads((tmp_path / "out/objects.json").read_text())["annotations"] == []
    with Image.open(tmp_path / "out/wide.png") as drawn:
        assert drawn.size == (2048, 20)
        expected = wide.resize((2048, 20), Image.Resampling.LANCZOS)
        assert (np.asarray(drawn) == np.asarray(expected)).all()


def test_what_was_done_is_kept_when_it_is_interrupted(segment, tmp_path, monkeypatch):
    find = module._find

    def interrupted(model, picture, *rest):
        if picture.size == (7, 7):
            raise KeyboardInterrupt
        return find(model, picture, *rest)

    monkeypatch.setattr(module, "_find", interrupted)
    first = save(tmp_path / "first.png", Image.fromarray(photos()["rocket"]))
    second = save(tmp_path / "second.png", Image.new("RGB", (7, 7)))
    status, _, err = segment(first, second, *SMOKE)
    assert (status, err) == (130, "stopped\n")
    assert list(loaded(tmp_path / "out" / "objects.json").imgs) == [1]


def test_what_is_no_picture_costs_a_warning_each(segment, tmp_path):
    good = save(tmp_path / "good.png", Image.fromarray(photos()["rocket"]))
    loop, pipe, empty = (tmp_path / name for name in ("loop.png", "pipe.png", "empty.png"))
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    empty.touch()
    status, out, err = segment(loop, pipe, good, empty, *SMOKE)
    assert status == 1
    assert out.startswith(f"{good}: ")
    why = "cannot be read as an image"
    assert err.splitlines() == [
        f"warning: {loop}: {why} (Too many levels of symbolic links)",
        f"warning: {pipe}: {why} (it is not a regular file)",
        f"warning: {empty}: {why} (it is empty)",
        "failed: 3 of 4 pictures could not be segmented",
    ]
    assert (tmp_path / "out/good.png").is_file()
    loop_out = tmp_path / "out/bad.png"
    loop_out.symlink_to(loop_out)  # in the place of an overlay
    assert segment(save(tmp_path / "bad.png", Image.new("RGB", (9, 9))), *SMOKE)[0] == 0


def test_a_picture_in_the_output_folder_is_not_overwritten(segment, tmp_path):
    (tmp_path / "out").mkdir()
    path = save(tmp_path / "out" / "own.png", Image.fromarray(photos()["rocket"]))
    before = path.read_bytes()
    assert segment(path, *SMOKE)[0] == 0
    assert path.read_bytes() == before
    assert (tmp_path / "out" / "own-2.png").is_file()


def test_official_checkpoints_do_too(segment, weights, plan, tmp_path):
    spec = plan.experiments.spec(MODEL, "smoke")
    torch.save(
        to_official(safetensors.torch.load_file(weights), spec), tmp_path / "official_file.pth"
    )
    path = save(tmp_path / "a.png", Image.fromarray(photos()["rocket"]))
    found = []
    for file in (weights, tmp_path / "official_file.pth"):
        assert segment(path, *SMOKE, given=file)[0] == 0
        found.append(json.loads((tmp_path / "out" / "objects.json").read_text())["annotations"])
    assert found[0] == found[1] != []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.fill_(float("nan")), "holds values that are not finite (NaN or infinity)"),
        (lambda w: w.long(), "is int64; weights are float16, bfloat16 or float32"),
        (lambda w: w.to_sparse(), "is a sparse or nested tensor; have it saved as a dense one"),
        (lambda w: w.to("meta"), "has a shape and no values (a meta tensor); have it saved anew"),
        (lambda w: [1.0], "is not a tensor but list"),
    ],
)
def test_weights_without_numbers_are_found_before_any_picture(
    segment, weights, tmp_path, change, reason
):
    path = save(tmp_path / "a.png", Image.fromarray(photos()["rocket"]))
    state = safetensors.torch.load_file(weights)
    state["norm.weight"] = change(state["norm.weight"])
    torch.save(state, tmp_path / "odd.pth")
    status, out, err = segment(path, *SMOKE, given=tmp_path / "odd.pth")
    assert (status, out) == (1, "")
    assert err == f"failed: {tmp_path / 'odd.pth'}: 'norm.weight' {reason}\n"


def test_requests_that_make_no_sense_are_one_line(segment, weights, tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (9, 9)))
    for words, options, said in [
        (SMOKE, {"given": tmp_path / "no.safetensors"}, "no.safetensors: no such file"),
        (SMOKE, {"model": "crate_tny_patch8"}, "did you mean 'crate_tiny_patch8'"),
        ((), {}, "its 'class_token' has shape (1, 1, 32), this model needs (1, 1, 384)"),
        (
            (*SMOKE, "--layer", 9),
            {},
            "--layer 9: crate_tiny_patch8 has 2 layers, counted from 0",
        ),
        ((*SMOKE, "--masks", 0), {}, "masks: 0 should be greater than 0"),
        ((*SMOKE, "--tau", "nan"), {}, "tau: nan should be a finite number"),
        ((*SMOKE, "--image-size", 57), {}, "57 is not divisible by patch_size 4"),
        ((*SMOKE, "--protocol", "cifar10"), {}, "--protocol: 'cifar10' finds no objects"),
        (("--scale", "smke"), {}, "unknown scale 'smke'; did you mean 'smoke'?"),
    ]:
        status, out, err = segment(path, *words, **options)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert said in err
    assert not list(tmp_path.glob("out/*"))
