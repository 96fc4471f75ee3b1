"""Data sets of one's own: counted, checked, trained on, and stale when their pictures change."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import writers
from suite import ROOT, copy_suite, environment

from crate import cli
from crate.data.catalogue import get_dataset
from crate.data.check import check
from crate.data.images import open_split
from crate.data.listing import index_path, list_part
from crate.data.prepare import prepare
from crate.data.sources import open_pictures, open_scenes
from crate.errors import RunError, UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import read_json
from crate.runs import parse_path
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification
from crate.workflow.targets import stale_results

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RUN = "results/smoke/runs/crate_base_patch16/seed0/leaves"
OTHER = "results/smoke/runs/crate_base_patch16/seed0/imagenet21k"
STEP = """
task: classification
dataset: leaves
follows: [start]
epochs: 1
batch_size: 8
lr: 1e-3
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(folder):
    """Pictures, and `own(text)`: the experiments with these entries, read anew."""
    writers.leaves(Path("pictures"))
    writers.cells(Path("pictures"))
    (folder / "steps/leaves.yaml").write_text(STEP)

    def read(text: str = "leaves: {folder: pictures/leaves}\n") -> Plan:
        (folder / "datasets.yaml").write_text(text)
        list_part.cache_clear()  # else kept for the whole process
        return Plan(Experiments(folder))

    return read


def resolved(plan: Plan, path: str = RUN):
    return plan.resolve(parse_path(path)[0])


def test_classes_and_pictures_are_counted_and_held_out(own):
    own()
    dataset = get_dataset("leaves")
    assert (dataset.classes, dataset.title, dataset.form) == (3, "leaves", "class_folders")
    assert dataset.splits == {"train": 102, "validation": 10, "test": 10}
    parts = {split: open_pictures(dataset, split, "nowhere") for split in dataset.splits}
    names = {k: {part.name(i) for i in range(len(part))} for k, part in parts.items()}
    assert {k: len(part) for k, part in names.items()} == {
        "train": 92,
        "validation": 10,
        "test": 10,
    }
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    assert all("/pictures/leaves/" in name for name in names["test"])

    own("leaves: {folder: pictures/leaves, held_out: 0.3, mean: [0.5], std: [0.25]}")
    dataset = get_dataset("leaves")
    assert (dataset.splits["test"], dataset.training_size) == (31, 71)
    assert dataset.mean == (0.5,)


def test_splits_with_folders_of_their_own(own):
    for part in ("fit", "final"):
        shutil.copytree("pictures/leaves", f"pictures/parted/{part}")
    shutil.rmtree("pictures/parted/final/elm")
    text = "leaves: {folder: pictures/parted, splits: {train: fit, test: final}}"
    own(text)
    dataset = get_dataset("leaves")
    assert dataset.splits == {"train": 102, "validation": 10, "test": 68}
    assert dataset.training_size == 102
    with pytest.raises(RunError, match="has 2 class folders, leaves has 3"):
        open_pictures(dataset, "test", "nowhere")
    there, wrong = check(dataset, "nowhere")
    assert there[0] == (
        "leaves: 3 classes; 102 to train on, validation 10 held out of train, test 68"
    )
    assert any("final: has 2 class folders" in line for line in wrong)


def test_the_names_of_pictures_are_the_identity_not_their_place(own):
    plan = own()
    before, other = resolved(plan), resolved(plan, OTHER)
    shutil.copytree("pictures/leaves", "elsewhere")
    moved = resolved(own("leaves: {folder: elsewhere, title: Leaves}"))
    assert (moved.config, moved.code) == (before.config, before.code)
    found = {before.config_json}
    new, old = Path("elsewhere/oak/new.jpg"), next(Path("elsewhere/elm").iterdir())
    for change in (
        lambda: writers.save(new, 0),
        lambda: new.unlink(),
        lambda: old.unlink(),
        lambda: next(Path("elsewhere/ash").iterdir()).rename("elsewhere/oak/moved.jpg"),
    ):
        change()
        found.add(resolved(own("leaves: {folder: elsewhere}")).config_json)
    assert len(found) == 4  # what was added and taken away again is as before
    without = own("")
    assert resolved(without, OTHER).identity == other.identity


def test_deleted_and_added_pictures_make_results_stale(own, folder):
    own()
    assert cli.main(["run", RUN]) == 0
    settings = Experiments(folder).settings({"scale": "smoke"})
    metrics = Path(RUN) / "metrics.json"
    assert stale_results(own(), settings, [f"{metrics}"]) == []
    next(Path("pictures/leaves/oak").iterdir()).unlink()
    assert stale_results(own(), settings, [f"{metrics}"]) == [metrics]
    first = read_json(metrics)["metrics"]
    assert cli.main(["run", RUN]) == 0
    assert stale_results(own(), settings, [f"{metrics}"]) == []
    assert read_json(metrics)["metrics"] != first
    writers.save(Path("pictures/leaves/oak/new.jpg"), 0)
    assert stale_results(own(), settings, [f"{metrics}"]) == [metrics]


def test_an_index_changes_no_identity_and_is_deleted_when_it_is_old(own, capsys):
    before = resolved(own()).config
    assert prepare(get_dataset("leaves"), "nowhere")[0].endswith("index-leaves.npz: 102 images")
    index = index_path(Path("pictures/leaves").absolute())
    assert resolved(own()).config == before
    assert capsys.readouterr().err == f"listing {index.parent}/leaves\n"
    next(Path("pictures/leaves/oak").iterdir()).unlink()
    assert resolved(own()).config != before
    told = capsys.readouterr().err
    assert told == (
        f"warning: {index}: is out of date (oak changed); deleted ('crate data prepare leaves' "
        "makes it anew)\n"
    )
    assert not index.exists()


def test_pictures_are_trained_on_in_loader_processes(own):
    own()
    dataset = get_dataset("leaves")
    source = open_split(dataset, "train", size=8, runtime=CPU, data_root="nowhere")
    recipe = Classification(
        dataset="leaves", follows=[], batch_size=46, epochs=1.0, lr=1e-3, compute={"workers": 2}
    )
    batches = list(source.training(recipe, 0, 0, 2))
    assert [pixels.shape for pixels, _ in batches] == [(46, 3, 8, 8)] * 2
    assert set(torch.cat([labels for _, labels in batches]).tolist()) == {0, 1, 2}


CELLS = "cells: {folder: pictures/cells, layout: maps, classes: 3, splits: {test: validation}}"


def test_maps(own):
    own(CELLS)
    dataset = get_dataset("cells")
    assert dataset.splits == {"test": 6}
    scenes = open_scenes(dataset, "test", "nowhere")
    assert [scenes.name(k).rpartition(".")[2] for k in (0, 1)] == ["jpg", "png"]
    assert set(np.unique(scenes.labels(1)).tolist()) == {0, 2, 255}
    there, wrong = check(dataset, "nowhere", thorough=True)
    assert (there[0], wrong) == ("cells: 3 classes; test 6", [])
    Path("pictures/cells/annotations/validation/c3.png").unlink()
    with pytest.raises(UsageError, match=r"line 1: cells: splits: test: .*lacks 1 of the 6 files"):
        own(CELLS) and get_dataset("cells")
    own(CELLS.replace("test: validation", "test: training").replace("3,", "2,"))
    _, wrong = check(get_dataset("cells"), "nowhere", thorough=True)
    assert "a value is 2, those of cells are 0 to 1 and 255" in wrong[0]


def test_maps_are_trained_on(own, folder):
    steps = folder / "steps"
    (steps / "cells.yaml").write_text("extends: ade20k\ndataset: cells\nfollows: [imagenet21k]\n")
    scale = folder / "scales/smoke.yaml"
    scale.write_text(scale.read_text() + "  cells: {batch_size: 2}\n")
    own(CELLS.replace("{test: validation}", "{train: training, test: validation}"))
    (steps / "leaves.yaml").unlink()
    for path in (OTHER, f"{OTHER}/cells"):
        assert cli.main(["run", path]) == 0
    metrics = read_json(Path(OTHER) / "cells/metrics.json")["metrics"]
    assert (metrics["images"], metrics["miou"] > 0) == (6, True)


def test_a_set_with_maps_is_stale_when_its_maps_or_pictures_change(own):
    own(CELLS)
    before = get_dataset("cells").names_sha256
    for path in ("images/validation/c0.jpg", "annotations/validation/c0.png"):
        (Path("pictures/cells") / path).unlink()
    own(CELLS)
    assert get_dataset("cells").names_sha256 != before


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("leaves: {foldr: x}", "line 1: leaves: unknown key 'foldr'; did you mean 'folder'?"),
        ("leaves: {title: x}", "leaves: the key 'folder' is missing"),
        ("leaves: pictures", "line 1: leaves: should have keys, at least 'folder'"),
        ("coco: {folder: x}", "line 1: coco: the suite has a data set of this name; choose ano"),
        ("leaves: {folder: x, layout: flat}", "leaves: layout: 'flat' should be 'class_folders'"),
        ("leaves: {folder: x, splits: {tain: a}}", "leaves: splits.tain"),
        ("leaves: {folder: x, splits: {test: a}}", "'splits' needs train, whose folders are the"),
        ("leaves: {folder: x, held_out: 0.5}", "leaves: held_out: 0.5 should be less than 0.5"),
        ("leaves: {folder: x, classes: 3}", "'classes' is for maps; class folders are counted"),
        ("leaves: {folder: x, layout: maps}", "'layout' maps needs 'classes', 2 to 255"),
        ("leaves: {folder: x, std: [1.0]}", "'mean' and 'std' should have as many numbers"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_with_its_line(own, entry, told):
    with pytest.raises(UsageError) as refused:
        own(entry)
    assert str(refused.value).startswith("experiments/datasets.yaml: ") or "/experiments/" in str(
        refused.value
    )
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("leaves: {folder: nowhere}", "line 1: leaves: folder: .*/nowhere is not there"),
        ("leaves: {folder: $NOT_SET/x}", "folder: .*the environment variable NOT_SET is not set"),
        ("leaves: {folder: bare}", "leaves: splits: train: .*bare: has no pictures in the layout"),
        ("leaves: {folder: few}", "leaves: held_out: of 2 pictures nothing is left to train on"),
        (
            "leaves: {folder: pictures/leaves, splits: {train: ., test: fina}}",
            "leaves: splits: test: .*/fina: cannot be read",
        ),
    ],
)
def test_what_is_not_there_is_said_when_it_is_asked_for(own, entry, told, capsys):
    for name in ("a", "b"):
        writers.save(Path(f"few/{name}/x.jpg"), 0)
        Path(f"bare/{name}").mkdir(parents=True)
    plan = own(entry)  # others plan without it
    assert resolved(plan, OTHER)
    with pytest.raises(UsageError, match=told):
        resolved(plan)
    for words in (["data", "check", "leaves"], ["plan", RUN]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert re.search(told, error)
        assert error.count("\n") == 1


def test_a_scale_may_use_it_and_names_are_suggested(own, folder):
    scale = folder / "scales/smoke.yaml"
    text = scale.read_text()
    scale.write_text(text.replace("imagenet21k: fashion_mnist_tiny", "imagenet21k: leaves", 1))
    plan = own()
    assert plan.experiments.recipe("imagenet21k", "smoke").dataset == "leaves"
    assert resolved(plan, OTHER).config["data"]["classes"] == 3
    assert plan.stand_ins("smoke", ["imagenet21k"]) == {
        "imagenet21k": "leaves (92 training images)"
    }
    (folder / "steps/leaves.yaml").write_text(STEP.replace("dataset: leaves", "dataset: leavs"))
    with pytest.raises(UsageError, match="unknown data set 'leavs'; did you mean 'leaves'"):
        own().experiments.recipe("leaves", "smoke")


@pytest.mark.slow
def test_the_page_can_be_carried_out(tmp_path, monkeypatch, capfd):
    """All commands of docs/own_data.md at smoke, Snakemake's as a dry run."""
    page = (ROOT / "docs/own_data.md").read_text()
    monkeypatch.chdir(copy_suite(tmp_path))
    writers.leaves(Path("pictures"))
    writers.cells(Path("pictures"))
    done = []
    for kind, title, block in re.findall(
        r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page, flags=re.M | re.S
    ):
        if kind == "yaml":
            with Path(title).open("a") as file:
                file.write(block)
            continue
        for line in block.splitlines():
            program, *words = line.removeprefix("$ ").replace("/mini/", "/smoke/").split()
            if program == "snakemake":
                command = [sys.executable, "-m", "snakemake", "-n", *words]
                ran = subprocess.run(
                    [*command, "--config", "scale=smoke"], env=environment() | {
                        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
                    }, capture_output=True, text=True,
                )  # fmt: skip
                assert ran.returncode == 0, ran.stdout + ran.stderr
                assert re.search(r"^run_classification +1$", ran.stdout, flags=re.M), ran.stdout
                assert cli.main(["run", str(Path(words[-1]).parents[1])]) == 0
                words = ["run", words[-1]]
            assert cli.main(words) == 0, capfd.readouterr().err
            done.append(words[0])
    assert done == ["data", "run", "run", "inspect", "data", "run"]
    runs = Path("results/smoke/runs/crate_base_patch16/seed0/leaves")
    for step, metric in (
        ("leaves_knn", "top1"),
        ("leaves_probe", "top1"),
        ("cells_attention", "miou"),
    ):
        assert read_json(runs / step / "metrics.json")["metrics"][metric] > 0
