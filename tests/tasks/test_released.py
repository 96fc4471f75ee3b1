"""A chain that starts from an official checkpoint: from the file to its number, or one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate.checkpoints.convert import to_official
from crate.cli import main
from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import parse_path
from crate.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "crate_alpha_tiny_patch16"
RUN = f"results/paper/runs/{MODEL}/seed0/released"
FILE = Path("data/released/tiny.pth")
SETTINGS = ["--config", "scale=paper"]


@pytest.fixture
def model(folder):
    """A model at its published size, its official checkpoint, ImageNet's empty class folders."""
    (folder / "released.yaml").write_text(
        f"tiny.pth: {{model: {MODEL}, classes: 1000, format: alpha-torch, source: a test}}\n"
    )
    torch.manual_seed(0)
    model = create_model(MODEL).eval()
    torch.nn.init.normal_(model.head.weight)  # so that pictures differ in their class
    FILE.parent.mkdir(parents=True)
    torch.save(to_official(model.state_dict(), MODEL), FILE)
    for part in ("train", "val"):
        for label in range(1000):
            Path(f"data/imagenet1k/{part}/n{label:08d}").mkdir(parents=True)
    return model


def put_pictures(model) -> list[int]:
    """Four pictures, filed under the class that the model sees in them, but the last one."""
    random = np.random.RandomState(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    labels = []
    for place in range(4):
        small = Image.fromarray(random.randint(0, 256, (4, 4, 3), dtype=np.uint8))
        image = small.resize((256, 256), Image.Resampling.BICUBIC)
        pixels = torch.tensor(np.array(image.crop((16, 16, 240, 240)))) / 255
        with torch.no_grad():
            label = int(model(((pixels - mean) / std).permute(2, 0, 1)[None]).argmax())
        labels.append(label if place < 3 else (label + 1) % 1000)
        image.save(f"data/imagenet1k/val/n{labels[-1]:08d}/{place}.png")
    return labels


def test_released_weights_are_evaluated_without_training(model, capsys):
    put_pictures(model)
    assert main(["run", RUN, *SETTINGS]) == 0
    assert main(["run", f"{RUN}/imagenet1k_evaluated", *SETTINGS]) == 0
    found = json.loads(Path(f"{RUN}/imagenet1k_evaluated/metrics.json").read_text())["metrics"]
    assert (found["top1"], found["images"], found["train_flops"]) == (75.0, 4, 0)
    record = json.loads(Path(f"{RUN}/run.json").read_text())
    assert record["file"] == "tiny.pth"
    assert len(record["sha256"]) == 64


def refused(capsys, *words: str) -> str:
    assert main(["run", RUN, *SETTINGS]) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path(f"{RUN}/weights.safetensors").exists()
    for word in words:
        assert word in said
    return said


def test_a_checkpoint_that_does_not_fit_is_one_line(model, capsys):
    state = to_official(model.state_dict(), MODEL)
    torch.save({k: v[:500] if k.startswith("mlp_head.1") else v for k, v in state.items()}, FILE)
    refused(capsys, "tiny.pth", "500", "1,000")
    torch.save({k: v for k, v in state.items() if "layers.11" not in k}, FILE)
    refused(capsys, "tiny.pth", "transformer.layers.11")
    other = create_model("crate_alpha_small_patch32").state_dict()
    torch.save(to_official(other, "crate_alpha_small_patch32"), FILE)
    refused(capsys, "tiny.pth", "(1, 1, 576)", "crate_alpha_small_patch32")


def test_a_damaged_or_hostile_file_is_one_line(model, capsys):
    whole = FILE.read_bytes()
    FILE.write_bytes(whole[: len(whole) // 2])
    refused(capsys, "tiny.pth", "cut short")
    FILE.write_bytes(b"<!DOCTYPE html><p>Access denied")
    refused(capsys, "tiny.pth", "web page")

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (Path("owned"),))

    FILE.write_bytes(pickle.dumps({"conv1.weight": Hostile()}))
    refused(capsys, "tiny.pth")
    assert not Path("owned").exists()
    FILE.unlink()
    refused(capsys, "data/released/tiny.pth")


def test_a_file_that_the_manifest_tells_more_of_is_another_start(model, folder):
    plan = Plan(Experiments(folder))
    run = parse_path(RUN)[0]
    before = plan.resolve(run).identity
    manifest = folder / "released.yaml"
    manifest.write_text(manifest.read_text().replace("source: a test", "source: b, bytes: 7"))
    assert Plan(Experiments(folder)).resolve(run).identity != before


CLIPA, CLIPA_FILE = "small_clipa", Path("data/released/clipa.pth")
CLIPA_RUN = f"results/paper/runs/{CLIPA}/seed0/released_clipa"
TOWERS = {"dim": 24, "heads": 3, "depth": 2, "embed_dim": 20}
TOWERS |= {"text_dim": 16, "text_depth": 3, "text_heads": 2}


@pytest.fixture
def clipa(folder):
    """A small contrastive model of one's own, and its official checkpoint."""
    base = "crate_alpha_clipa_base_patch16"
    settings = {CLIPA: {"base": base, **TOWERS}}
    (folder / "models.yaml").write_text(json.dumps(settings))
    (folder / "released.yaml").write_text(
        f"clipa.pth: {{model: {CLIPA}, classes: null, format: clipa-torch, source: a test}}\n"
    )
    torch.manual_seed(0)
    model = create_model(base, image_size=48, vocab_size=60, context_length=9, **TOWERS)
    CLIPA_FILE.parent.mkdir(parents=True)
    torch.save(to_official(model.state_dict(), model.spec), CLIPA_FILE)
    return model


def test_a_contrastive_model_starts_from_its_file_and_goes_out_as_it_came(clipa, capsys):
    assert main(["run", CLIPA_RUN, *SETTINGS]) == 0
    found = json.loads(Path(f"{CLIPA_RUN}/metrics.json").read_text())["metrics"]
    assert found == {"parameters": sum(p.numel() for p in clipa.parameters())}
    assert json.loads(Path(f"{CLIPA_RUN}/run.json").read_text())["file"] == "clipa.pth"
    weights = read_weights(Path(f"{CLIPA_RUN}/weights.safetensors"))
    assert set(weights) == set(clipa.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in clipa.state_dict().items())
    capsys.readouterr()
    for to in ("torch-official", "safetensors"):
        assert main(["weights", "export", CLIPA_RUN, "--to", to, "--out", f"out.{to}"]) == 0
        told = f"out.{to}: {CLIPA}, {found['parameters']:,} parameters, vocabulary 60, texts of 9 "
        assert capsys.readouterr().out.startswith(f"{told}tokens, 48 px; sha256 ")
    official, again = (torch.load(path) for path in (CLIPA_FILE, "out.torch-official"))
    assert set(again) == set(official)
    assert all(torch.equal(again[key], official[key]) for key in official)
    assert main(["weights", "export", CLIPA_RUN, "--to", "onnx", "--out", "m.onnx"]) == 2
    assert "ONNX is for image classifiers; a contrastive model goes" in capsys.readouterr().err
    words = ["import", str(CLIPA_FILE), "--model", CLIPA, "--out", "in.safetensors"]
    assert main(["weights", *words]) == 0
    assert all(
        torch.equal(value, weights[key])
        for key, value in read_weights(Path("in.safetensors")).items()
    )


def test_another_file_than_a_contrastive_models_is_one_line(clipa, capsys):
    def refused(*words: str) -> None:
        assert main(["run", CLIPA_RUN, *SETTINGS]) in (1, 2)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert not Path(f"{CLIPA_RUN}/weights.safetensors").exists()
        assert all(word in said for word in words), said

    other = create_model(MODEL).state_dict()
    torch.save(to_official(other, MODEL), CLIPA_FILE)
    refused("clipa.pth", "'conv1.weight' is of the alpha-torch layout", "the weights fit", MODEL)
    official = to_official(clipa.state_dict(), clipa.spec)
    official["visual.transformer.resblocks.1.attn.in_proj_weight"][0, 0] += 1
    torch.save(official, CLIPA_FILE)
    refused("clipa.pth", "'visual.transformer.resblocks.1.attn.in_proj_weight': its thirds differ")
    CLIPA_FILE.unlink()
    refused(f"the official weights of {CLIPA} are not here: no data/released/clipa.pth")
