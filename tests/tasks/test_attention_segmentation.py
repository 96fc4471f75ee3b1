"""Attention as a mask: worked by hand, against a literal loop, and its controls as runs."""

import numpy as np
import pytest
import torch
from PIL import Image

from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.examples import read_examples
from crate.data.readers import composites
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.launch.run import perform, prepare
from crate.models.features import pretrained
from crate.models.initial import PairedDraws
from crate.records import read_json
from crate.runs import Run
from crate.tasks.attention_segmentation.recipe import AttentionSegmentation
from crate.tasks.attention_segmentation.task import attention_masks, classes_of, scores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def work(plan):
    """`work(step, trial, **overrides)` → the prepared run, performed at smoke."""
    settings = plan.experiments.settings({"scale": "smoke"})

    def work(recipe="voc2012_attention", trial=None, **overrides):
        run = Run("smoke", "vit_tiny_patch8", 0, (recipe,), trial)
        path = f"results/{run.folder('').as_posix()}"
        prepared = prepare(path, plan, overrides=overrides or None)
        perform(prepared, settings)
        return prepared

    return work


def test_by_hand():
    rows = np.array(
        [
            [[0.1, 0.2], [0.3, 0.4]],  # from below 0.1, 0.3, 0.6, 1: above 0.4 are the last two
            [[0.7, 0.1], [0.1, 0.1]],
            [[0.2, 0.2], [0.2, 0.2]],  # equal, and less than 1 in all: 1/4, 1/2, 3/4, 1
        ]
    )
    masks = attention_masks(rows, 0.6)
    expected = [[[0, 0], [1, 1]], [[1, 0], [0, 0]], [[0, 1], [1, 1]]]
    assert (masks == np.array(expected, bool)).all()
    assert attention_masks(rows, 1.0).all()
    assert attention_masks(rows, 0.05).sum() == 3  # the largest, always

    large = masks.repeat(2, axis=1).repeat(2, axis=2)  # (3, 4, 4)
    labels = np.array([[7, 7, 0, 0], [255, 255, 0, 0], [5, 5, 0, 0], [5, 5, 0, 0]], np.uint8)
    assert classes_of(labels) == [5, 7]
    # class 5: 4 of 8 pixels by head 0. Class 7: head 1 has it, and two pixels of no class
    assert scores(large, labels, "ignored") == [1 / 2, 1]
    assert scores(large, labels, "background") == [1 / 2, 1 / 2]
    whole = np.ones((1, 4, 4), bool)
    assert scores(whole, labels, "ignored") == [4 / 14, 2 / 14]
    assert scores(whole, labels, "background") == [4 / 16, 2 / 16]
    assert scores(whole, np.array([[0, 255]], np.uint8), "ignored") == []


def literal(rows, mass):
    """Entry by entry: the largest, until what is left holds no more than 1 - mass."""
    left, kept = sorted(range(len(rows)), key=lambda i: (rows[i], i)), set()
    while left and sum(rows[i] for i in left) > (1 - mass) * sum(rows):
        kept.add(left.pop())
    return kept


@pytest.mark.parametrize("void", ["ignored", "background"])
def test_a_run_is_the_literal_protocol(work, void):
    trial = None if void == "background" else "void"
    prepared = work(trial=trial, **({} if void == "background" else {"void": void}))
    recipe = prepared.resolved.recipe
    assert recipe == AttentionSegmentation(
        dataset="composites_tiny", image_size=56, layer=1, mass=0.6, void=void,
        follows=recipe.follows, compute=recipe.compute,
    )  # fmt: skip
    dataset = get_dataset("composites_tiny")
    scenes = open_scenes(dataset, "test", "data")
    with PairedDraws(0):
        model = pretrained(prepared.resolved.spec, None, image_size=56)
    means, objects = [], 0
    for index in range(16):
        picture = scenes.picture(index).resize((56, 56), Image.Resampling.BILINEAR)
        labels = Image.fromarray(scenes.labels(index)).resize((56, 56), Image.Resampling.NEAREST)
        labels = np.asarray(labels).ravel().tolist()
        images = normalise(torch.tensor(np.array(picture)).permute(2, 0, 1)[None], dataset)
        with torch.no_grad():
            heads = model.layer_records(images)[1]["attention"][0, :, 0, 1:].tolist()
        best = []
        for wanted in sorted(set(labels) - {0, 255}):
            region = {i for i, c in enumerate(labels) if c == wanted}
            found = []
            for rows in heads:
                patches = literal(rows, 0.6)
                mask = {i for i in range(56**2) if i // 56 // 4 * 14 + i % 56 // 4 in patches}
                if void == "ignored":
                    mask = {i for i in mask if labels[i] != 255}
                found.append(len(mask & region) / len(mask | region))
            best.append(max(found))
        objects += len(best)
        means.append(sum(best) / len(best))
    metrics = read_json(prepared.folder.metrics)["metrics"]
    miou = 100 * sum(means) / len(means)
    assert metrics == {"miou": pytest.approx(miou, abs=1e-4), "objects": objects, "images": 16}
    assert not prepared.folder.weights.exists()
    assert not list(prepared.folder.folder.glob("*.jsonl"))
    kept = read_examples(prepared.folder.examples)
    assert len(kept) == 6
    assert kept[5]["attention"].shape == (len(heads), 14, 14)


def test_controls(work):
    truth = read_json(work("voc2012_ground_truth").folder.metrics)["metrics"]
    assert truth["miou"] == 100
    assert truth["images"] == 16
    whole = read_json(work("voc2012_whole_image").folder.metrics)["metrics"]
    assert whole["objects"] == truth["objects"]
    scenes = open_scenes(get_dataset("composites_tiny"), "test", "data")
    shares = []
    for index in range(16):
        labels = Image.fromarray(scenes.labels(index)).resize((56, 56), Image.Resampling.NEAREST)
        counts = np.bincount(np.asarray(labels).ravel(), minlength=256)
        classes = counts[1:255]  # void is in the picture too, as background
        shares.append((classes[classes > 0] / counts.sum()).mean())
    assert whole["miou"] == pytest.approx(100 * np.mean(shares), abs=1e-5)


def test_pictures_without_objects_and_broken_ones(work, monkeypatch, capsys):
    read = composites.Composites.labels

    def some(self, index):
        if index == 2:
            raise RunError("2.png: cannot be read as an image (truncated)")
        return read(self, index) * (index != 4)

    expected = read_json(work().folder.metrics)["metrics"]
    monkeypatch.setattr(composites.Composites, "labels", some)
    prepared = work(trial="some", mass=0.61)
    metrics = read_json(prepared.folder.metrics)["metrics"]
    assert metrics["images"] == 15
    assert metrics["objects"] < expected["objects"]
    assert read_json(prepared.folder.record)["images_without_objects"] == 1
    assert "warning: 2.png: cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(composites.Composites, "labels", lambda self, index: read(self, index) * 0)
    with pytest.raises(RunError, match="no picture has a class other than the background"):
        work(trial="none", mass=0.62)


def test_maps_without_a_background_are_refused(plan):
    run = Run("paper", "vit_tiny_patch8", 0, ("voc2012_attention",), "other")
    path = f"results/{run.folder('').as_posix()}"
    resolved = prepare(path, plan, overrides={"dataset": "ade20k"}).resolved
    from crate.tasks.attention_segmentation.task import run as task

    with pytest.raises(UsageError, match="ADE20K has no maps with a background class"):
        task(resolved, runtime=None, folder=None, identity="", parent=None, data_root="data")
