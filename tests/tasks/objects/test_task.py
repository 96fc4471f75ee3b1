"""Object discovery as a run: against a plain loop, its controls, failures, ranks and examples."""

import io
import os
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.embedded import photos
from crate.data.examples import EXAMPLE_SIDE, read_examples, write_examples
from crate.data.readers import composites
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.launch.run import perform, prepare
from crate.models.features import patch_features, pretrained
from crate.models.initial import PairedDraws
from crate.records import read_json
from crate.runs import Run
from crate.tasks.objects import coco, crf
from crate.tasks.objects import task as objects
from crate.tasks.objects.maskcut import find_objects

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "crate_tiny_patch8"


@pytest.fixture
def work(plan):
    """`work(step, trial, **overrides)` → the prepared run, performed at smoke."""
    settings = plan.experiments.settings({"scale": "smoke"})

    def work(recipe="coco_maskcut_cpal", trial=None, **overrides):
        run = Run("smoke", MODEL, 0, (recipe,), trial)
        path = f"results/{run.folder('').as_posix()}"
        prepared = prepare(path, plan, overrides=overrides or None)
        perform(prepared, settings)
        return prepared

    return work


def test_a_run_is_the_plain_loop(work):
    prepared = work()
    recipe = prepared.resolved.recipe
    dataset = get_dataset("composites_tiny")
    scenes = open_scenes(dataset, "test", "data")
    with PairedDraws(0):
        model = pretrained(prepared.resolved.spec, None, image_size=56)
    results = []
    for index, number in enumerate(scenes.ids):
        picture = scenes.picture(index)
        pixels = np.array(picture.resize((56, 56), Image.Resampling.LANCZOS))
        images = normalise(torch.tensor(pixels).permute(2, 0, 1)[None], dataset)
        with torch.no_grad():
            features = patch_features(model, images, recipe.layer, "key")[0].numpy()
        found = find_objects(
            picture, features, (14, 14), image_size=56, tau=0.15, masks=3, crf=False
        )
        results += [coco.result(number, coco.encode(mask)) for mask in found]
    expected = coco.evaluate(scenes.objects(), results)
    metrics = read_json(prepared.folder.metrics)["metrics"]
    counts = {"objects": len(results), "images": 16}
    assert metrics == pytest.approx(expected | counts, abs=1e-6)
    assert set(metrics) == set(recipe.METRICS)

    assert not prepared.folder.weights.exists()
    assert not list(prepared.folder.folder.glob("*.jsonl"))
    examples = read_examples(prepared.folder.examples)
    assert len(examples) == 6
    masks = [coco.decode(r["segmentation"]) for r in results if r["image_id"] == scenes.ids[0]]
    assert (examples[0]["masks"] == masks).all()
    record = read_json(prepared.folder.record)
    assert record["seconds_per_picture"].keys() == {"network", "cut"}
    assert record["problems"] == []


def test_controls(work):
    truth = read_json(work("coco_ground_truth").folder.metrics)["metrics"]
    scenes = open_scenes(get_dataset("composites_tiny"), "test", "data").objects()
    assert truth.pop("objects") == len(scenes["annotations"])
    assert truth.pop("images") == 16
    assert set(truth.values()) == {100.0}

    whole = read_json(work("coco_whole_image").folder.metrics)["metrics"]
    full = coco.encode(np.ones((composites.SIZE, composites.SIZE), bool))
    masks = [coco.result(image["id"], full) for image in scenes["images"]]
    expected = coco.evaluate(scenes, masks) | {"objects": 16, "images": 16}
    assert whole == pytest.approx(expected, abs=1e-6)


def test_a_broken_picture_is_counted_out(work, monkeypatch, capsys):
    read = composites.Composites.picture

    def broken(self, index):
        if index == 3:
            raise RunError("3.jpg: cannot be read as an image (truncated)")
        return read(self, index)

    monkeypatch.setattr(composites.Composites, "picture", broken)
    prepared = work()
    assert read_json(prepared.folder.metrics)["metrics"]["images"] == 15
    assert "warning: 3.jpg: cannot be read as an image (truncated)\n" in capsys.readouterr().err
    assert len(read_examples(prepared.folder.examples)) == 5


def test_the_missing_crf_is_a_remark(work, monkeypatch, capsys):
    plain = work()
    monkeypatch.setattr(crf, "available", lambda: False)
    prepared = work(trial="crf", crf=True)
    record = read_json(prepared.folder.record)
    assert record["remark"] == objects.WITHOUT_CRF
    assert "warning: without CRF: pydensecrf is not installed" in capsys.readouterr().err
    found = read_json(prepared.folder.metrics)
    assert found == read_json(plain.folder.metrics)


@pytest.mark.skipif(not crf.available(), reason="pydensecrf is not installed")
def test_the_crf_refines(work):
    plain, refined = work(), work(trial="crf", crf=True)
    assert "remark" not in read_json(refined.folder.record)
    found = [read_json(prepared.folder.metrics)["metrics"] for prepared in (plain, refined)]
    assert found[0] != found[1]
    assert found[1]["images"] == 16


def test_a_missing_layer_ends_the_run(work):
    with pytest.raises(UsageError, match="layer: 2 is not a layer of the model, which has 2"):
        work(trial="layer", layer=2)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(work, tmp_path):
    alone = work()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = f"two/{alone.resolved.run.folder('').as_posix()}"
    words = [sys.executable, "-m", "crate", "run", path, "--config", "scale=smoke", "results=two"]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRATE_RANKS": "1"}
    ranks = [
        subprocess.Popen(
            words, cwd=tmp_path, env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    there = tmp_path / path
    assert (there / "metrics.json").read_bytes() == alone.folder.metrics.read_bytes()
    assert (there / "examples.npz").read_bytes() == alone.folder.examples.read_bytes()
    assert not list(there.glob("*.jsonl"))


# --- examples ----------------------------------------------------------------------------------


def test_examples_are_small_and_equal_byte_for_byte(tmp_path):
    examples = []
    for picture in list(photos().values())[:6]:
        mask = np.zeros(picture.shape[:2], bool)
        mask[20:200, 50:150] = True
        examples.append({"image": picture, "masks": [mask, ~mask]})
    examples[1]["masks"] = []
    maps = np.random.RandomState(0).dirichlet(np.ones(3600), 12).reshape(12, 60, 60)
    examples[2] = {"image": examples[2]["image"], "attention": maps.astype(np.float16)}
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    write_examples(first, examples)
    write_examples(second, examples)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 400_000
    for given, kept in zip(examples, read_examples(first), strict=True):
        height, width = kept["image"].shape[:2]
        assert max(height, width) == EXAMPLE_SIDE
        reduced = Image.fromarray(given["image"]).resize((width, height), Image.Resampling.LANCZOS)
        assert abs(np.asarray(reduced, float) - kept["image"]).mean() < 4
        if "masks" in given:
            assert kept["masks"].shape == (len(given["masks"]), height, width)
            if given["masks"]:
                assert kept["masks"][0].mean() == pytest.approx(given["masks"][0].mean(), abs=0.01)
                assert (kept["masks"][0] != kept["masks"][1]).all()
        else:
            assert (kept["attention"] == given["attention"]).all()


def test_examples_that_are_damaged_or_pickles_are_refused(tmp_path):
    path = tmp_path / "examples.npz"
    with pytest.raises(RunError, match="examples cannot be read"):
        read_examples(path)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(RunError, match="examples cannot be read"):
        read_examples(path)
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("000.masks.npy", content.getvalue())
    with pytest.raises(RunError, match=r"examples cannot be read .*allow_pickle"):
        read_examples(path)
