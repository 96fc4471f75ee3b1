"""`crate weights`: official files in, finished runs out, and what is refused with one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch

from crate import cli
from crate.checkpoints.convert import convert, infer_sizes, to_official
from crate.checkpoints.manifest import checkpoint_path
from crate.checkpoints.read import read_checkpoint
from crate.models.build import build
from crate.models.zoo import resolve
from crate.records import RunFolder, file_sha256, write_json
from crate.runs import Run
from crate.weights import read_weights, save_weights

ROOT = Path(__file__).parents[2]
ALPHA, CRATE_2023, VIT = "crate_alpha_base_patch32", "crate_base_patch16", "vit_base_patch16"


@pytest.fixture
def crate(folder, capsys):
    """`crate("list")` in a folder with nothing but `experiments/`: status, output, errors."""

    def crate(*words: object) -> tuple[int, str, str]:
        status = cli.main(["weights", *map(str, words)])
        return status, *capsys.readouterr()

    return crate


def metadata(path) -> dict:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["crate"])


# --- list ---------------------------------------------------------------------


def test_the_list_tells_what_is_here(crate, tmp_path):
    for name, size in (("crate_alpha_B16.pth", 1_000), ("vanilla_crate_B32_in21k.pth", None)):
        path = checkpoint_path(name, tmp_path / "sets")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # sparse: nothing is written
            file.truncate(size or 153_686_661)
    status, out, errors = crate("list", "--data-root", tmp_path / "sets")
    assert (status, errors) == (0, "")
    rows = {row[0]: row[1:] for row in (re.split(r"  +", line) for line in out.splitlines())}
    assert rows["crate_alpha_B16.pth"] == [
        *("crate_alpha_base_patch16", "1,000", "289,348,353", "unknown", "available"),
        "half-downloaded? 1,000 of 289,348,353 bytes",
    ]
    assert rows["vanilla_crate_B32_in21k.pth"][-2:] == ["withdrawn", "yes"]
    assert rows["crate_alpha_L14.pth"][-1] == "no"
    assert rows["crate_alpha_CLIPA_L14.pth"][:2] == [
        *("crate_alpha_clipa_large_patch14", "2,560,901,931"),  # no classes
    ]


def test_listing_imports_no_torch(folder):
    program = (
        "import sys; from crate.cli import main; assert main(['weights', 'list']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.parent,
        env=environment,
        check=True,
        capture_output=True,
    )


# --- import -------------------------------------------------------------------


@pytest.fixture
def official(tmp_path):
    """A checkpoint in CRATE-alpha's PyTorch layout, and the weights of ours that it is."""
    torch.manual_seed(0)
    model = build(resolve("crate_alpha_tiny_patch32"), num_classes=11, image_size=64)
    path = tmp_path / "theirs.pth"
    torch.save(to_official(model.state_dict(), "crate_alpha_tiny_patch32"), path)
    return path, model


def test_import_writes_our_weights_and_says_what_they_are(crate, official, tmp_path):
    path, model = official
    words = ("import", path, "--model", "crate_alpha_tiny_patch32", "--out", "new/a.safetensors")
    status, out, errors = crate(*words)
    assert (status, errors) == (0, "")
    parameters = sum(p.numel() for p in model.parameters())
    assert out == (
        f"new/a.safetensors: crate_alpha_tiny_patch32, {parameters:,} parameters, 11 classes, "
        f"64 px; sha256 of theirs.pth {file_sha256(path)}\n"
    )
    state = read_weights(tmp_path / "new" / "a.safetensors")
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    facts = metadata(tmp_path / "new" / "a.safetensors")
    assert facts["source"] == "theirs.pth"
    assert facts["source_sha256"] == file_sha256(path)
    assert facts["spec"]["dim"] == 192
    first = (tmp_path / "new" / "a.safetensors").read_bytes()
    crate(*words)
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ("missing.pth --model crate_alpha_tiny_patch32 --out a.safetensors", 2, "no such file"),
        ("theirs.pth --model crate_alpha_tny_patch32 --out a.safetensors", 2, "did you mean"),
        ("theirs.pth --model crate_alpha_tiny_patch32 --out a.pth", 2, "should end in .safetensor"),
        ("theirs.pth --model vit_tiny_patch32 --out a.safetensors", 2, "theirs.pth: not the weigh"),
        (
            "theirs.pth --model crate_alpha_tiny_patch16 --out a.safetensors",
            2,
            "'conv1.weight' has",
        ),
        ("cut.pth --model crate_alpha_tiny_patch32 --out a.safetensors", 1, "cut.pth: is cut shor"),
    ],
)
def test_a_refused_import_leaves_nothing(crate, official, tmp_path, words, status, reason):
    path, _ = official
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:-1000])
    got, out, errors = crate("import", *words.split())
    assert (got, out) == (status, "")
    assert errors.startswith("error: " if status == 2 else "failed: ")
    assert reason in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("*a.safetensors*"))


def test_a_file_with_an_official_name_and_another_size_is_read(crate, official, tmp_path):
    path, _ = official
    shutil.copy(path, tmp_path / "crate_alpha_B16.pth")
    words = ("import", "crate_alpha_B16.pth", "--model", "crate_alpha_tiny_patch32")
    status, out, errors = crate(*words, "--out", "a.safetensors")
    assert status == 0
    assert "crate_alpha_tiny_patch32" in out
    size = path.stat().st_size
    assert errors.startswith(f"note: crate_alpha_B16.pth: has {size:,} bytes, the official file ")


def test_import_takes_the_weights_that_it_is_told_to(crate, official, tmp_path):
    path, model = official
    weights = torch.load(path, weights_only=True)
    average = {key: value + 1 for key, value in weights.items()}
    torch.save({"model": weights, "model_ema": average}, tmp_path / "model_best.pth.tar")
    words = ("import", "model_best.pth.tar", "--model", "crate_alpha_tiny_patch32")
    words += ("--out", "a.safetensors")
    status, _, errors = crate(*words)
    assert (status, errors.count("\n")) == (0, 1)
    assert "model_best.pth.tar: took 'model', not 'model_ema'" in errors
    status, _, errors = crate(*words, "--take", "model_ema")
    assert (status, errors) == (0, "")
    state = read_weights(tmp_path / "a.safetensors")
    assert torch.equal(state["head.bias"], model.state_dict()["head.bias"] + 1)
    status, _, errors = crate(*words, "--take", "ema")
    assert status == 2
    assert errors == "error: model_best.pth.tar: unknown weights 'ema'; valid: model, model_ema\n"


def test_import_beside_links_that_loop(crate, official, tmp_path):
    path, _ = official
    for name in ("loop.pth", "loop.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / name)
    words = ("--model", "crate_alpha_tiny_patch32", "--out")
    status, _, errors = crate("import", "loop.pth", *words, "a.safetensors")
    assert (status, errors) == (2, "error: loop.pth: is a link that leads nowhere\n")
    status, _, errors = crate("import", path, *words, "loop.safetensors")
    assert (status, errors) == (0, "")  # a file takes the link's place
    status, _, errors = crate("import", path, *words, path.with_suffix(".safetensors") / "a.safet")
    assert status == 2


# --- export -------------------------------------------------------------------


@pytest.fixture
def finished(plan, tmp_path):
    """`finished(name)` leaves a smoke run of random weights; returns its folder and its model."""

    def finished(name: str):
        run = Run("smoke", name, 0, ("imagenet21k",))
        resolved = plan.resolve(run)
        model = build(resolved.spec, num_classes=10, image_size=28).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = RunFolder(run.folder(tmp_path / "results"))
        folder.folder.mkdir(parents=True)
        save_weights(model, folder)
        write_json(folder.record, {"config": resolved.config})
        folder.finish({"top1": 1.0}, {})
        return folder, model

    return finished


def images(b: int) -> torch.Tensor:
    return torch.randn(b, 3, 28, 28)


@pytest.mark.parametrize("name", [ALPHA, "crate_base_patch32_plain", CRATE_2023, VIT])
def test_onnx_computes_the_same_for_any_batch(crate, finished, tmp_path, name):
    folder, model = finished(name)
    status, out, errors = crate("export", folder.folder, "--to", "onnx", "--out", "m.onnx")
    assert (status, errors) == (0, "")
    assert out.startswith(f"m.onnx: {name}, ")
    assert out.endswith(f" 10 classes, 28 px; sha256 {file_sha256(tmp_path / 'm.onnx')}\n")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for b in (1, 2, 5):
        x = images(b)
        (got,) = session.run(["logits"], {"images": x.numpy()})
        expected = model(x).detach().numpy()
        assert got.shape == (b, 10)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    facts = json.loads(proto.metadata_props[0].value)
    assert (facts["model"], facts["image_size"], facts["num_classes"]) == (name, 28, 10)
    assert str(tmp_path).encode() not in (tmp_path / "m.onnx").read_bytes()
    assert b"site-packages" not in (tmp_path / "m.onnx").read_bytes()
    assert b"crate/models" not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("name", [ALPHA, "crate_base_patch32_plain", CRATE_2023])
def test_torch_official_can_be_read_back(crate, finished, tmp_path, name):
    folder, model = finished(name)
    words = ("export", folder.metrics, "--to", "torch-official", "--out", "m.pth")
    assert crate(*words)[0] == 0
    state = convert(read_checkpoint(tmp_path / "m.pth"), model.spec)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert infer_sizes(state, model.spec) == {"num_classes": 10, "image_size": 28}
    first = (tmp_path / "m.pth").read_bytes()
    crate(*words)
    assert (tmp_path / "m.pth").read_bytes() == first


def test_safetensors_say_what_they_are(crate, finished, tmp_path):
    folder, model = finished(VIT)
    words = ("export", folder.folder, "--to", "safetensors", "--out", "m.safetensors")
    assert crate(*words)[0] == 0
    state = read_weights(tmp_path / "m.safetensors")
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    facts = metadata(tmp_path / "m.safetensors")
    assert facts["run"] == f"{VIT} seed0 imagenet21k"
    assert facts["weights_sha256"] == file_sha256(folder.weights)
    assert facts["mean"] == [0.286]
    assert str(tmp_path) not in json.dumps(facts)


def test_what_cannot_be_exported_is_one_line(crate, finished, tmp_path, monkeypatch):
    folder, _ = finished(VIT)

    def refused(*words, status=2) -> str:
        got, out, errors = crate("export", *words)
        assert (got, out, errors.count("\n")) == (status, "", 1)
        assert not (tmp_path / "m").exists()
        return errors

    run = folder.folder
    assert "no official CRATE code" in refused(run, "--to", "torch-official", "--out", "m")
    assert "cannot export to 'tflite'; there are: sa" in refused(
        run, "--to", "tflite", "--out", "m"
    )
    other = str(run).replace("seed0", "seed1")
    assert "no such file or folder" in refused(other, "--to", "onnx", "--out", "m")
    assert "no such file or folder" in refused("nonsense", "--to", "onnx", "--out", "m")
    own = refused(run, "--to", "safetensors", "--out", folder.weights)
    assert "is the run's own file" in own
    monkeypatch.setattr("crate.checkpoints.onnx.LIMIT", 100)
    assert "more than one ONNX file holds" in refused(run, "--to", "onnx", "--out", "m")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "ONNX needs the package onnxscript" in refused(run, "--to", "onnx", "--out", "m")
    write_json(folder.record, {"status": "failed"})
    assert "is not finished" in refused(run, "--to", "safetensors", "--out", "m")
    write_json(folder.record, {"status": "complete"})
    folder.weights.write_bytes(b"")
    reason = refused(run, "--to", "safetensors", "--out", "m", status=1)
    assert "is not the file its metrics were measured on" in reason
    write_json(folder.metrics, {"metrics": {}})
    assert "leaves no weights" in refused(run, "--to", "safetensors", "--out", "m")
