"""`crate evaluate` and `crate predict`: known weights on pictures of known colours."""

import dataclasses
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate.checkpoints.convert import to_official
from crate.cli import main
from crate.data.augment import centre_view, normalise
from crate.data.catalogue import get_dataset
from crate.data.listing import list_part
from crate.models.build import build
from crate.records import RunFolder, file_sha256, write_json
from crate.runs import Run
from crate.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "crate_alpha_base_patch8"
SIDE, CLASSES = 28, 10
NAMES = [f"n{place:02}" for place in range(CLASSES)]
GIVEN = ("--model", MODEL, "--scale", "smoke")


@pytest.fixture
def network(plan):
    """A network with ten classes at smoke, and its weights as a state dict in mine.pth."""
    torch.manual_seed(0)
    model = build(
        plan.experiments.spec(MODEL, "smoke"), num_classes=CLASSES, image_size=SIDE
    ).eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    usual = torch.stack([answer(model, draw(seed)) for seed in range(40)]).mean(0)
    model.head.bias.data -= usual  # else nearly all pictures are of one class
    torch.save(model.state_dict(), "mine.pth")
    return model


def draw(seed: int, size=(40, 52)) -> Image.Image:
    """A picture of large coloured squares."""
    pixels = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def answer(model, image, resize=32, size=SIDE, dataset="imagenet1k") -> torch.Tensor:
    """Logits (classes,) of a picture, computed apart from the commands."""
    pixels = centre_view(image, size, resize)
    with torch.no_grad():
        return model(normalise(pixels[None], get_dataset(dataset)))[0]


@pytest.fixture
def folder_of(network, tmp_path):
    """`folder_of(right, wrong)`: a folder of pictures of which so many are where they belong.

    Pictures are sorted by what the network answers; a wrong one stands in the class of its `choice`
    from 0, by default the last.
    """

    def folder_of(right=30, wrong=10, names=NAMES, choice=-1) -> Path:
        data = tmp_path / "pictures"
        for name in names:
            (data / name).mkdir(parents=True)
        for seed in range(right + wrong):
            image = draw(seed)
            order = answer(network, image).argsort(descending=True)
            place = int(order[0 if seed < right else choice])
            image.save(data / names[place] / f"{seed}.png")
        return data

    return folder_of


def evaluate(capsys, *words) -> tuple[dict, str, str]:
    """The numbers that are printed, by name; standard output and errors."""
    status = main(["evaluate", *map(str, words), "--workers", "0"])
    out, err = capsys.readouterr()
    assert status == 0, err
    top1, among = (
        re.search(pattern, out)[1] for pattern in (r"top-1 (\S+) %", r"among (\S+) classes")
    )
    top5 = re.search(r"top-5 (\S+) %", out)
    images = re.search(r": ([\d,]+) images of (\d+) classes", out)
    found = {"top1": float(top1), "among": int(among), "images": int(images[1])}
    found |= {"top5": float(top5[1])} if top5 else {}
    return found | {"of": int(images[2])}, out, err


@pytest.mark.parametrize("form", ["state_dict", "official"])
def test_accuracy_is_the_share_of_pictures_in_their_folders(network, folder_of, capsys, form):
    data = folder_of()
    if form == "official":
        torch.save(to_official(network.state_dict(), network.spec), "mine.pth")
    found, out, _ = evaluate(capsys, "mine.pth", *GIVEN, "--data", data, "--batch-size", 7)
    assert (found["top1"], found["images"], found["among"]) == (75.0, 40, CLASSES)
    assert found["top5"] == 75.0  # a last choice is not among the first five
    assert "shorter side 32 px, centre 28 x 28 px, bilinear" in out


def test_options_change_what_is_seen(network, folder_of, capsys):
    data = folder_of(right=60, wrong=0)
    words = ("mine.pth", *GIVEN, "--data", data)
    assert evaluate(capsys, *words)[0]["top1"] == 100.0
    for options, view in (
        (("--resize", 56), "shorter side 56 px, centre 28 x 28 px, bilinear"),
        (("--image-size", 56), "shorter side 64 px, centre 56 x 56 px, bilinear"),
        (("--interpolation", "bicubic"), "shorter side 32 px, centre 28 x 28 px, bicubic"),
    ):
        found, out, _ = evaluate(capsys, *words, *options)
        assert view in out
        if "--interpolation" not in options:
            assert found["top1"] < 100.0


def test_a_list_of_all_classes_places_a_subset_of_folders(network, folder_of, capsys, tmp_path):
    """Folders named in another order than the network's, some of them missing."""
    turned = [f"c{CLASSES - place:02}" for place in range(CLASSES)]  # sorted: backwards
    data = folder_of(right=40, wrong=0, names=turned)
    filled = [name for name in turned if any((data / name).iterdir())]
    for name in [name for name in turned if name not in filled]:
        (data / name).rmdir()
    listed = tmp_path / "classes.txt"
    listed.write_text("".join(f"{name} what it is called, and also\n" for name in turned))
    words = ("mine.pth", *GIVEN, "--data", data, "--classes", listed)
    found, _, _ = evaluate(capsys, *words)
    assert found == {"top1": 100.0, "top5": 100.0, "images": 40, "among": 10, "of": len(filled)}
    (data / filled[0]).rename(data / "n99")
    list_part.cache_clear()
    assert main(["evaluate", *map(str, words)]) == 2
    assert f"{listed}: has no class 'n99'" in capsys.readouterr().err


def test_fewer_names_choose_among_the_folders(network, folder_of, capsys, tmp_path):
    data = folder_of(right=40, wrong=20, choice=1)
    counts = {name: len(list((data / name).iterdir())) for name in NAMES}
    some = sorted(sorted(NAMES, key=counts.get)[-3:])
    listed = tmp_path / "some.txt"
    listed.write_text("\n".join(some))
    words = ("mine.pth", *GIVEN, "--data", data, "--classes", listed)
    among_all, _, _ = evaluate(capsys, *words)
    restricted, _, _ = evaluate(capsys, *words, "--restrict")
    images = sum(counts[name] for name in some)
    right = {"all": 0, "three": 0}
    places = [NAMES.index(name) for name in some]
    for name in some:
        for path in (data / name).iterdir():
            logits = answer(network, Image.open(path))
            right["all"] += int(logits.argmax()) == NAMES.index(name)
            right["three"] += places[int(logits[places].argmax())] == NAMES.index(name)
    assert right["three"] > right["all"] > 0  # else this test shows nothing
    assert (among_all["images"], among_all["among"], among_all["of"]) == (images, 10, 3)
    assert (restricted["images"], restricted["among"], restricted["of"]) == (images, 3, 3)
    assert among_all["top1"] == pytest.approx(100 * right["all"] / images, abs=0.006)
    assert restricted["top1"] == pytest.approx(100 * right["three"] / images, abs=0.006)
    assert "top5" not in restricted  # of three classes, it would be 100


def test_folders_that_are_numbers_are_sorted_as_text(network, folder_of, capsys, tmp_path):
    names = sorted(str(place) for place in range(2, 2 + CLASSES))  # 10, 11, 2, …
    data = folder_of(right=20, wrong=0, names=names)
    found, _, err = evaluate(capsys, "mine.pth", *GIVEN, "--data", data)
    assert found["top1"] == 100.0
    assert "folders are sorted as text, as torchvision does (10, 11, 2, …)" in err


def test_shards_are_read_too(network, folder_of, capsys, tmp_path):
    data, shards = folder_of(), tmp_path / "shards"
    shards.mkdir()
    for name in NAMES:
        with tarfile.open(shards / f"{name}.tar", "w") as tar:
            for path in sorted((data / name).iterdir()):
                tar.add(path, path.name)
    found, _, _ = evaluate(capsys, "mine.pth", *GIVEN, "--data", shards)
    assert (found["top1"], found["images"]) == (75.0, 40)


@pytest.fixture
def run(network, plan):
    """A finished run of the network on Fashion-MNIST, whose pixels have other moments."""
    folder = RunFolder(Run("smoke", MODEL, 0, ("imagenet1k_lion",)).folder("results"))
    folder.folder.mkdir(parents=True)
    save_weights(network, folder)
    record = {"status": "complete", "dataset": "fashion_mnist_tiny"}
    write_json(folder.record, record | {"config": {"model": dataclasses.asdict(network.spec)}})
    result = {"metrics": {}, "weights_sha256": file_sha256(folder.weights)}
    write_json(folder.metrics, result)
    return folder


def shown(out: str) -> list[tuple[float, str]]:
    return [(float(p), name) for p, name in re.findall(r"^ +(\S+) %  (.+)$", out, re.MULTILINE)]


def test_predictions_are_the_networks(network, capsys, tmp_path):
    draw(1).save("a.png")
    (tmp_path / "names.txt").write_text("\n".join(f"thing {k}" for k in range(CLASSES)))
    words = ["predict", "mine.pth", "a.png", *GIVEN]
    likely, order = answer(network, draw(1)).softmax(0).sort(descending=True)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("a.png\n")
    assert [name for _, name in shown(out)] == [f"class {k}" for k in order[:5].tolist()]
    np.testing.assert_allclose([p for p, _ in shown(out)], 100 * likely[:5].numpy(), atol=0.006)
    assert main([*words, "--classes", "names.txt", "--top", "2"]) == 0
    found = shown(capsys.readouterr().out)
    assert [name for _, name in found] == [f"thing {k}" for k in order[:2].tolist()]


@pytest.mark.parametrize("given", ["folder", "metrics", "weights", "exported"])
def test_a_run_and_what_is_exported_of_it_have_their_model_and_moments(network, run, capsys, given):
    """No --model: what stands beside or in the file says it, and how pixels are normalised."""
    draw(1).save("a.png")
    path = {"folder": run.folder, "metrics": run.metrics, "weights": run.weights}.get(given)
    if given == "exported":
        path = "mine.safetensors"
        with_data = {"data": {"mean": [0.2860], "std": [0.3530]}}
        config = {"model": dataclasses.asdict(network.spec)} | with_data
        result = {"weights_sha256": file_sha256(run.weights)}
        record = {"status": "complete", "dataset": "fashion_mnist_tiny", "result": result}
        write_json(run.record, record | {"config": config})
        export = ["weights", "export", str(run.folder), "--to", "safetensors", "--out", path]
        assert main(export) == 0
        capsys.readouterr()
    assert main(["predict", str(path), "a.png", "--top", "10"]) == 0
    logits = answer(network, draw(1), dataset="fashion_mnist_tiny")
    likely, order = logits.softmax(0).sort(descending=True)
    found = shown(capsys.readouterr().out)
    assert [name for _, name in found] == [f"class {k}" for k in order.tolist()]
    np.testing.assert_allclose([p for p, _ in found], 100 * likely.numpy(), atol=0.006)


def test_a_file_named_as_an_official_one_is_of_its_model(folder, capsys, tmp_path):
    """experiments/released.yaml names the model; the size is another, so it is no official file."""
    (tmp_path / "crate_alpha_B16.pth").write_bytes(b"not weights \0\1")
    draw(1).save("a.png")
    assert main(["predict", "crate_alpha_B16.pth", "a.png"]) == 1
    err = capsys.readouterr().err
    assert "read as another file" in err
    assert "crate_alpha_B16.pth: is damaged, or not a file of weights" in err


def test_pictures_that_cannot_be_read_are_left_out(network, capsys, tmp_path):
    draw(1).save("a.png")
    (tmp_path / "no.png").write_text("no picture")
    line = np.zeros((1, 30_000, 3), np.uint8)  # scaled before it is cut, it would take gigabytes
    Image.fromarray(line).save("line.png")
    assert main(["predict", "mine.pth", "no.png", "line.png", "a.png", *GIVEN]) == 1
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line[0] != " "] == ["line.png", "a.png"]
    assert "warning: no.png: cannot be read as an image" in err
    assert err.endswith("failed: 1 of 3 pictures could not be read\n")


def test_refusals_are_one_line(network, folder_of, capsys, tmp_path):
    data = folder_of(right=12, wrong=0)
    draw(1).save("a.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "flat").mkdir()
    draw(1).save(tmp_path / "flat" / "a.png")
    (tmp_path / "few.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    two = tmp_path / "two"
    for name in ("train", "val"):
        (two / name).mkdir(parents=True)
        draw(1).save(two / name / "a.png")
    headless = {key: value for key, value in network.state_dict().items() if "head" not in key}
    torch.save(headless, "headless.pth")
    torch.save(headless | {"mask_token": torch.zeros(1, 1, 4)}, "encoder.pth")
    for words, told in (
        (["evaluate", "none.pth", "--data", data], "none.pth: no such file, and not the path of a"),
        (["evaluate", "mine.pth", "--data", data], "mine.pth: does not say whose weights it holds"),
        (["evaluate", "mine.pth", *GIVEN, "--data", "nowhere"], "--data nowhere: no such folder"),
        (["evaluate", "mine.pth", *GIVEN, "--data", "none"], "--data none: has no images; give a"),
        (["evaluate", "mine.pth", *GIVEN, "--data", "flat"], "has 1 images outside class folders"),
        (
            ["evaluate", "mine.pth", *GIVEN, "--data", two],
            "has 2 folders (train, val), the network has 10 classes; list their names in the netw",
        ),
        (
            ["evaluate", "mine.pth", *GIVEN, "--data", two, "--classes", "few.txt"],
            "few.txt: has 2 names, the network 10 classes and ",
        ),
        (
            ["evaluate", "mine.pth", *GIVEN, "--data", data, "--classes", "few.txt"],
            "has no class 'a'",
        ),
        (
            ["evaluate", "mine.pth", *GIVEN, "--data", data, "--resize", "20"],
            "--resize 20: is smaller than the 28 px that are cut out of it",
        ),
        (
            ["evaluate", "mine.pth", *GIVEN, "--data", data, "--image-size", "30"],
            "30 is not divisible by patch_size 4",
        ),
        (
            ["predict", "mine.pth", "a.png", *GIVEN, "--classes", "few.txt"],
            "few.txt: has 2 names, the network has 10 classes",
        ),
        (["predict", "mine.pth", "a.png", *GIVEN, "--classes", "gap.txt"], "gap.txt: line 2 is em"),
        (["predict", "mine.pth", "a.png", *GIVEN, "--classes", "no.txt"], "no.txt: no such file; "),
        (["predict", "headless.pth", "a.png", *GIVEN], "has no head for classes"),
        (["predict", "encoder.pth", "a.png", *GIVEN], "has no head for classes"),
        (["predict", "mine.pth", "a.png", "--model", MODEL], f"not the weights of {MODEL}: "),
        (["predict", "mine.pth", "a.png", "--model", "crate_gpt_base"], "which sees no pictures"),
        (["predict", "mine.pth", "a.png", "--model", "crate_alpha_bse_patch8"], f"mean '{MODEL}'"),
    ):
        assert main([*map(str, words)]) == 2, words
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    (data / NAMES[0] / "broken.png").write_bytes(b"")
    list_part.cache_clear()
    assert main(["evaluate", "mine.pth", *GIVEN, "--data", str(data), "--workers", "0"]) == 0
    told = capsys.readouterr().err
    assert "broken.png: cannot be read as an image (it is empty); left out" in told


@pytest.mark.parametrize(
    "words",
    [
        "evaluate MISSING --data data",
        "predict MISSING a.png",
        "inspect MISSING a.png",
        f"segment a.png --model {MODEL} --weights MISSING --out o",
        "sample --model gpt2_base --prompt x --weights MISSING",
        "sample --prompt x --run MISSING",
        f"weights import MISSING --model {MODEL} --out o.safetensors",
        "weights export MISSING --to onnx --out o",
    ],
)
def test_a_missing_file_is_said_before_torch_is_imported(folder, words):
    draw(1).save("a.png")
    Path("data/a").mkdir(parents=True)
    draw(1).save("data/a/a.png")
    for missing in ("none.pth", f"results/smoke/runs/{MODEL}/seed0/imagenet1k_lion"):
        given = words.replace("MISSING", missing).split()
        program = (
            "import sys; from crate.cli import main; "
            f"assert main({given!r}) == 2; assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", program], check=True)
