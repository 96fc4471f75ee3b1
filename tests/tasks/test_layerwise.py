"""The layerwise step as runs, what is collected of them, and their figures."""

import json

import numpy as np
import pytest
import torch

from crate.costs.cost import cost
from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.examples import read_examples
from crate.data.images import open_split
from crate.data.readers.composites import Composites
from crate.errors import UsageError
from crate.launch.run import perform, prepare
from crate.models.features import pretrained
from crate.models.flops import macs
from crate.models.initial import PairedDraws
from crate.models.objective import layer_terms
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import read_json
from crate.reporting import by_layer
from crate.reporting.collect import collect, layers_json, read_layers
from crate.reporting.figures import write_figure
from crate.runs import Run
from crate.runtime import Runtime
from crate.schema import parse
from crate.tasks.frozen import evenly_spaced
from crate.tasks.layerwise.recipe import Layerwise
from crate.tasks.layerwise.task import _histogram
from crate.weights import read_weights
from crate.workflow.targets import collected_files

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
CRATE, ALPHA, VIT = "crate_small_patch16", "crate_alpha_base_patch16", "vit_small_patch16_pooled"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def work(plan):
    """`work(model, "imagenet1k_layerwise", trial, **overrides)`: a run and its ancestors, done."""

    def work(model, chain, trial=None, plan=plan, **overrides):
        run = Run("smoke", model, 0, tuple(chain.split("/")), trial)
        for each in (*run.ancestors, run):
            path = f"results/{each.folder('').as_posix()}"
            prepared = prepare(path, plan, overrides=(each is run and overrides) or None)
            perform(prepared, plan.experiments.settings({"scale": "smoke"}))
        return prepared

    return work


def terms_of(model, images, term):
    """The means by layer of a term, over all pictures at once."""
    with torch.no_grad():
        found = layer_terms(model, images, weight=0.1)
        return [terms[term].mean().item() for terms, _ in found]


def test_a_run_is_the_mean_over_pictures_of_either_split(work):
    """In batches that do not divide the pictures, with the parent's weights."""
    chain = "imagenet1k_lion/imagenet1k_layerwise"
    prepared = work(CRATE, chain, "t", pictures=13, compute={"micro_batch": 5})
    metrics = read_json(prepared.folder.metrics)["metrics"]
    record = read_json(prepared.folder.record)
    weights = read_weights(prepared.parent.weights)
    model = pretrained(prepared.resolved.spec, weights, image_size=28)
    dataset = get_dataset("fashion_mnist_tiny")
    for split, key, prefix in (("test", "evaluated", ""), ("train", "train", "train_")):
        source = open_split(dataset, split, size=28, runtime=CPU, data_root="data")
        images = normalise(source.pixels[evenly_spaced(len(source), 13)], dataset)
        for term, factor in (("compression", 1), ("sparsity", 100), ("objective", 1)):
            known = terms_of(model, images, term)
            assert record["layers"][key][term]["mean"] == pytest.approx(known, rel=1e-5)
            assert metrics[f"{prefix}{term}_last"] == pytest.approx(factor * known[-1], rel=1e-5)
    first, last = (metrics[f"compression_{place}"] for place in ("first", "last"))
    assert metrics["compression_falls"] == (100 if last < first else 0)  # of one step
    assert metrics["pictures"] == 13
    assert not prepared.folder.weights.exists()
    assert set(metrics) <= set(Layerwise.METRICS)
    norms = record["layers"]["histograms"]["norm"]
    assert [sum(layer) for layer in norms["counts"]] == [13 * 17] * 2  # every token of 4 x 4, + 1


def test_scenes_have_no_training_split_and_colours_are_of_the_grid(work):
    prepared = work("crate_tiny_patch8", "coco_tokens", "t", pictures=5)
    metrics = read_json(prepared.folder.metrics)["metrics"]
    assert metrics["pictures"] == 5
    assert not any(name.startswith("train_") for name in metrics)
    examples = read_examples(prepared.folder.examples)
    assert len(examples) == 5
    scenes = Composites("x", "test", get_dataset("composites_tiny").splits["test"])
    chosen = [scenes.picture(int(index)) for index in evenly_spaced(len(scenes), 5)]
    squares = np.stack([np.asarray(picture.resize((56, 56), 1)) for picture in chosen])  # Lanczos
    assert np.abs(examples[1]["image"].astype(int) - squares[1]).mean() < 5  # JPEG
    with PairedDraws(0):
        model = pretrained(prepared.resolved.spec, None, image_size=56)
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
    norms = terms_of(model, normalise(pixels, get_dataset("composites_tiny")), "norms")
    assert norms == pytest.approx([metrics["norm_first"], metrics["norm_last"]], rel=1e-5)
    for example in examples:
        assert example["colours"].shape == (14, 14, 3)
    together = np.concatenate([example["colours"].reshape(-1, 3) for example in examples])
    assert together.min(0).tolist() == [0, 0, 0]  # components of all pictures, each to its range
    assert together.max(0).tolist() == [255, 255, 255]


def test_histograms_of_known_values():
    found = _histogram(torch.tensor([[0.0, 1.0, 1.0, 100.0]]), logarithmic=True)
    assert found["edges"][0] == 1
    assert found["edges"][-1] == 100
    assert found["edges"][10] == pytest.approx(10)
    assert found["counts"][0][0] == 3  # a zero is in the first bin
    assert found["counts"][0][-1] == 1
    assert sum(_histogram(torch.zeros(1, 4), logarithmic=True)["counts"][0]) == 4
    found = _histogram(torch.tensor([[0.0, 0.5, 1.0]]), logarithmic=False)
    assert [place for place, count in enumerate(found["counts"][0]) if count] == [0, 10, 19]


def test_what_is_refused(plan):
    with pytest.raises(UsageError, match=r"'imagenet1k_layerwise' needs .*; crate_gpt_base is a"):
        plan.resolve(Run("smoke", "crate_gpt_base", 0, ("imagenet1k_layerwise",)))
    content = {"task": "layerwise", "dataset": "imagenet1k", "follows": ["start"]}
    with pytest.raises(UsageError, match="runs in one process"):
        parse(Layerwise, content | {"compute": {"processes": 2}}, "here")
    with pytest.raises(UsageError, match=r"epsilon: 0.0 should be greater than 0"):
        parse(Layerwise, content | {"epsilon": 0.0}, "here")


def test_cost_counts_the_pictures_of_both_splits(plan):
    run = Run("paper", CRATE, 0, ("imagenet1k_layerwise",))
    forward = 2 * macs(plan.experiments.spec(CRATE, "paper"), image_size=224, num_classes=1000)
    assert cost(plan, run).eval_flops == 2000 * forward
    scenes = Run("paper", "crate_tiny_patch8", 0, ("coco_tokens",))
    classes = get_dataset("coco").classes
    forward = 2 * macs(
        plan.experiments.spec("crate_tiny_patch8", "paper"), image_size=480, num_classes=classes
    )
    assert cost(plan, scenes).eval_flops == 200 * forward


# --- figures ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(folder, tmp_path, work):
    """The table's rows, all of networks as initialised, run, collected; the plan and settings."""
    path = folder / "tables" / "layerwise.yaml"
    text = path.read_text().replace("imagenet1k_lion/imagenet1k_layerwise", "imagenet1k_layerwise")
    path.write_text(text.replace("imagenet21k/imagenet1k/imagenet1k_", "imagenet1k_"))
    plan = Plan(Experiments(folder))
    for model in (CRATE, ALPHA, VIT):
        work(model, "imagenet1k_layerwise", plan=plan)
    settings = plan.experiments.settings({"scale": "smoke"})
    collect("layerwise", plan, settings)
    return plan, settings


def test_the_figure_draws_what_the_runs_say(drawn):
    plan, settings = drawn
    assert str(layers_json("results", "smoke", "layerwise")) in collected_files(
        "layerwise", plan, settings
    )
    layers = read_layers("layerwise", settings)
    for each in layers:
        if "untrained" in each["row"]:  # here the same run as the trained one
            each["evaluated"]["compression"]["mean"].reverse()
    layers_json("results", "smoke", "layerwise").write_text(json.dumps(layers))
    found = {each["row"]: each for each in layers}
    assert list(found) == [row.label for row in plan.table("layerwise").rows]
    figure = by_layer.draw_layers("layerwise", plan, settings)
    axes = figure.get_axes()
    assert len(axes) == 12  # four terms down, three models across
    for across, label in enumerate(("CRATE-S", "CRATE-alpha-B", "ViT-S")):
        lines = {line.get_label(): line.get_ydata() for line in axes[across].lines}
        assert set(lines) == {"evaluated", "training", "untrained"}
        assert list(lines["evaluated"]) == found[label]["evaluated"]["compression"]["mean"]
        assert list(lines["training"]) == found[label]["train"]["compression"]["mean"]
        untrained = found[f"{label}, untrained"]["evaluated"]["compression"]["mean"]
        assert list(lines["untrained"]) == untrained != list(lines["evaluated"])
        zeros = {line.get_label(): line.get_ydata() for line in axes[6 + across].lines}
        assert ("codes, evaluated" in zeros) == (label == "CRATE-alpha-B")
        shown = 100 * np.array(found[label]["evaluated"]["sparsity"]["mean"])
        np.testing.assert_allclose(zeros["evaluated"], shown)

    # byte for byte the same, and without runs too
    first = [path.read_bytes() for path in write_figure("layerwise", plan, settings)]
    assert [path.read_bytes() for path in write_figure("layerwise", plan, settings)] == first
    layers_json("results", "smoke", "layerwise").write_text("[]")
    assert not any(
        axes.lines for axes in by_layer.draw_layers("layerwise", plan, settings).get_axes()
    )


def test_tokens_are_drawn(plan, work):
    for model in ("crate_tiny_patch8", "vit_small_patch8"):
        work(model, "coco_tokens")
    path = plan.experiments.folder / "tables" / "tokens.yaml"
    rows = path.read_text().replace("imagenet21k_cpal/coco_tokens", "coco_tokens")
    path.write_text(rows.replace("imagenet21k/coco_tokens", "coco_tokens"))
    plan = Plan(Experiments(plan.experiments.folder))
    settings = plan.experiments.settings({"scale": "smoke"})
    collect("tokens", plan, settings, partial=True)  # CRATE-alpha's run is missing
    layers = json.loads(layers_json("results", "smoke", "tokens").read_text())
    assert {each["row"] for each in layers} == {
        "CRATE-S/8 (d 384)", "ViT-S/8", "CRATE-S/8, untrained",
    }  # fmt: skip
    png = next(p for p in write_figure("tokens", plan, settings) if p.suffix == ".png")
    from PIL import Image

    with Image.open(png) as image:
        assert image.width > 1000
