"""Probes as runs: what they are fitted to and choose by, what they keep, what is refused."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import safetensors.torch
import torch

from crate.costs.cost import cost
from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.images import open_split
from crate.errors import RunError, Stopped, UsageError
from crate.launch.run import perform, prepare
from crate.models.features import image_features, pretrained
from crate.models.flops import macs
from crate.models.initial import PairedDraws
from crate.models.probes import LinearProbe, neighbour_votes
from crate.records import read_json
from crate.runs import Run
from crate.runtime import Runtime
from crate.tasks.probe import task
from crate.tasks.probe.recipe import Probe
from crate.tasks.probe.task import accuracy, choose
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
MODEL, PARENT = "crate_base_patch16", "imagenet1k_lion"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def work(plan):
    """`work("cifar10_probe", trial, **overrides)`: a probe, performed at smoke."""
    settings = plan.experiments.settings({"scale": "smoke"})

    def work(chain, trial=None, **overrides):
        run = Run("smoke", MODEL, 0, tuple(chain.split("/")), trial)
        for each in (*run.ancestors, run):
            path = f"results/{each.folder('').as_posix()}"
            prepared = prepare(path, plan, overrides=(each is run and overrides) or None)
            perform(prepared, settings)
        return prepared

    return work


def metrics_of(prepared):
    return read_json(prepared.folder.metrics)["metrics"]


def features_of(prepared, weights=None, kind="mean"):
    """Split → features and labels, computed plainly."""
    recipe = prepared.resolved.recipe
    dataset = get_dataset(recipe.dataset)
    with PairedDraws(0):
        model = pretrained(prepared.resolved.spec, weights, image_size=28)
    found = {}
    for split in ("train", "validation", "test"):
        source = open_split(dataset, split, size=28, runtime=CPU, data_root="data")
        with torch.no_grad():
            features = image_features(model, normalise(source.pixels, dataset), kind)
        found[split] = (features, source.labels)
    return found


def test_a_run_is_the_plain_protocol(work):
    prepared = work("cifar10_probe", "plain", features="token", penalties=[1.0, 0.01])
    found = features_of(prepared, kind="token")  # a network as it is initialised
    top1 = {}
    for penalty in (0.01, 1.0):
        fitted = LinearProbe(*found["train"], classes=10, penalty=penalty)
        features, labels = found["validation"]
        right = fitted.logits(features).argmax(1) == labels
        top1[penalty] = 100 * right.double().mean().item()
    penalty = max(top1, key=top1.get)
    metrics = metrics_of(prepared)
    fitted = LinearProbe(*found["train"], classes=10, penalty=penalty)
    features, labels = found["test"]
    logits = fitted.logits(features)
    likely = logits.log_softmax(1)[torch.arange(len(labels)), labels]
    order = logits.argsort(1, descending=True)
    assert metrics == {
        "top1": pytest.approx(100 * (order[:, 0] == labels).double().mean().item(), abs=0.11),
        "top5": pytest.approx(
            100 * (order[:, :5] == labels[:, None]).any(1).double().mean().item(), abs=0.11
        ),
        "cross_entropy": pytest.approx(-likely.mean().item(), abs=1e-4),
        "chance": pytest.approx(100 * np.bincount(labels).max() / 1005, abs=1e-6),
        "images": 1005,
        "penalty": penalty,
    }
    record = read_json(prepared.folder.record)
    assert record["validation_top1"] == pytest.approx(
        {f"{penalty:g}": value for penalty, value in top1.items()}, abs=0.7
    )
    assert record["training_images"] == 1579
    assert not prepared.folder.weights.exists()
    assert not list(prepared.folder.folder.rglob("features-*"))  # nobody shares them


def test_probes_of_one_network_share_its_features(work, monkeypatch):
    looked = []
    extract = task._extract

    def watched(*arguments):
        looked.append(arguments[-1].split()[-1])
        return extract(*arguments)

    monkeypatch.setattr(task, "_extract", watched)
    linear = work(f"{PARENT}/cifar10_probe", "linear", penalties=[0.1])
    assert looked == ["(train)", "(test)"]  # one penalty: nothing to choose
    assert len(list(linear.parent.folder.glob("features-*.safetensors"))) == 2
    looked.clear()
    knn = work(f"{PARENT}/cifar10_knn")
    assert not looked
    found = features_of(knn, read_weights(knn.parent.weights))
    votes = neighbour_votes(
        found["test"][0], *found["train"], classes=10, neighbours=20, temperature=0.07
    )
    top1 = 100 * (votes.argmax(1) == found["test"][1]).double().mean().item()
    assert metrics_of(knn)["top1"] == pytest.approx(top1, abs=0.11)
    assert set(metrics_of(knn)) == {"top1", "top5", "chance", "images"}

    # another key: other pictures, other features, another part
    work(f"{PARENT}/cifar100_knn")
    work(f"{PARENT}/cifar10_knn", "token", features="token")
    assert looked == ["(train)", "(test)"] * 2
    looked.clear()
    work(f"{PARENT}/cifar10_probe", "validated", penalties=[0.1], evaluate="validation")
    assert looked == ["(validation)"]


KEY = dict.fromkeys(
    ("weights", "model", "code", "data", "split", "labels", "image_size", "eval_resize",
     "features", "precision"), "a" * 64,
)  # fmt: skip


def test_features_that_are_not_what_they_should_be_are_made_again(tmp_path, capsys):
    parent, features = tmp_path / "weights.safetensors", torch.rand(3, 2)
    made = []

    def extract():
        made.append(1)
        return features

    def kept(key=KEY):
        made.clear()
        return torch.equal(task._kept(extract, key, parent), features), len(made)

    assert kept() == (True, 1)
    assert kept() == (True, 0)
    (path,) = tmp_path.glob("features-*.safetensors")
    assert kept(KEY | {"split": "other"}) == (True, 1)
    (other,) = set(tmp_path.glob("features-*.safetensors")) - {path}
    assert not capsys.readouterr().err
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for content, told in (
        (bytes(flipped), "damaged: its content does not match its sha256"),
        (good[:-1], ""),  # in safetensors' words
        (b"", ""),
        (other.read_bytes(), "features of something else"),
        (safetensors.torch.save({"features": features}), "features of something else"),
        (safetensors.torch.save({"tokens": features}), "features"),
    ):
        path.write_bytes(content)
        assert kept() == (True, 1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{path}: not used (")
        assert told in line
        assert line.endswith("; computing the features again")
        assert kept() == (True, 0)
    # those of weights that are gone go too; nothing of another kind does
    note = tmp_path / "features.txt"
    note.write_text("mine")
    assert kept(KEY | {"weights": "b" * 64}) == (True, 1)
    assert not path.exists()
    assert not other.exists()
    assert note.exists()


def test_a_killed_writer_leaves_nothing(tmp_path):
    parent = tmp_path / "weights.safetensors"

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task._kept(stopped, KEY, parent)
    assert not list(tmp_path.glob("features-*"))


@pytest.mark.parametrize("change", list(KEY))
def test_every_part_of_the_key_counts(tmp_path, change):
    parent = tmp_path / "weights.safetensors"
    first, second = torch.zeros(3, 2), torch.ones(3, 2)
    assert task._kept(lambda: first, KEY, parent) is first
    assert torch.equal(task._kept(lambda: second, dict(reversed(KEY.items())), parent), first)
    assert task._kept(lambda: second, KEY | {change: "b" * 64}, parent) is second


def test_the_key_tells_what_features_depend_on(plan, tmp_path):
    parent = tmp_path / "weights.safetensors"
    parent.write_bytes(b"one")

    def key(recipe="cifar10_knn", split="train", roll=0, **overrides):
        run = Run("smoke", MODEL, 0, (recipe,), "other" if overrides else None)
        resolved = plan.resolve(run, overrides or None)
        dataset = get_dataset(resolved.recipe.dataset)
        source = open_split(dataset, split, size=28, runtime=CPU, data_root="data")
        source.labels = source.labels.roll(roll)
        return task._key(resolved, dataset, split, source, parent)

    assert set(key()) == set(KEY)
    assert key() == key("cifar10_probe") == key(neighbours=3)
    different = [
        key(), key("cifar100_knn"), key(split="test"), key(roll=1), key(features="token"),
        key(eval_resize=32), key(compute={"autocast": "bfloat16"}), key(image_size=56),
        key(model={"norm_eps": 1e-3}),
    ]  # fmt: skip
    parent.write_bytes(b"two")
    different.append(key())
    assert len({repr(each) for each in different}) == len(different)


def test_a_signal_stops_between_batches(plan, monkeypatch):
    resolved = plan.resolve(Run("smoke", MODEL, 0, ("pets_knn",)))
    looked = []

    def interrupted(model, images, kind):
        looked.append(len(images))
        os.kill(os.getpid(), signal.SIGUSR2)
        return torch.zeros(len(images), 2)

    monkeypatch.setattr(task, "image_features", interrupted)
    monkeypatch.setattr(task, "BATCH", 100)
    rest = {"folder": None, "identity": "", "parent": None, "data_root": "data"}
    told = "stopped by SIGUSR2 at image 100 of 366; the next start begins this split again"
    with pytest.raises(Stopped, match=told):
        task.run(resolved, runtime=CPU, **rest)
    assert looked == [100]


def test_the_test_part_decides_nothing(work, monkeypatch):
    """With other test labels, the same penalty, the same probe."""
    before = read_json(work("pets_probe", "before", penalties=[0.1, 0.01]).folder.record)
    opened = task.open_split

    def shuffled(dataset, split, **how):
        source = opened(dataset, split, **how)
        if split == "test":
            source.labels = source.labels.roll(1)
        return source

    monkeypatch.setattr(task, "open_split", shuffled)
    after = read_json(work("pets_probe", "after", penalties=[0.1, 0.01]).folder.record)
    assert after["result"]["metrics"]["top1"] != before["result"]["metrics"]["top1"]
    assert after["result"]["metrics"]["penalty"] == before["result"]["metrics"]["penalty"]
    for decided in ("validation_top1", "gradient", "iterations", "training_images"):
        assert after[decided] == before[decided]


def test_the_largest_of_equal_penalties_is_taken():
    features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    best, found = choose([0.01, 1.0, 0.1], (features, labels), (features, labels), classes=2)
    assert best == 1.0
    assert found == {"1": 100, "0.1": 100, "0.01": 100}


def test_accuracy_by_hand():
    none = -torch.inf
    scores = torch.tensor(
        [[3.0, 2, none, none, none, none], [1, 6, 5, 4, 3, 2], [none, 1, none, none, none, none]]
    )
    found = accuracy(scores, torch.tensor([1, 0, 1]))  # second; sixth; first
    third = pytest.approx(100 / 3, abs=1e-5)
    two = pytest.approx(200 / 3, abs=1e-5)
    assert found == {"top1": third, "top5": two, "chance": two, "images": 3}
    unvoted = accuracy(scores[:1], torch.tensor([2]))  # would be among the first five by its place
    assert unvoted["top5"] == 0


def test_held_out_pictures_are_fitted_to_in_the_end(plan):
    real, own, embedded = map(get_dataset, ("cifar10", "flowers102", "clip_art_topics"))
    recipe = plan.experiments.recipe("cifar10_probe", "paper")
    knn = plan.experiments.recipe("cifar10_knn", "paper")
    for dataset in (real, own, embedded):
        assert recipe.splits(dataset) == ["train", "validation", "test"]
    assert knn.splits(real) == ["train", "validation", "test"]  # 5,000 of the 50,000
    assert knn.splits(own) == knn.splits(embedded) == ["train", "test"]
    validated = recipe.model_copy(update={"evaluate": "validation"})
    assert validated.splits(real) == ["train", "validation"]

    counts = cost(plan, Run("paper", "vit_small_patch16", 0, (PARENT, "cifar10_probe")))
    forward = 2 * macs(
        plan.experiments.spec("vit_small_patch16", "paper"), image_size=224, num_classes=10
    )
    assert counts.eval_flops == forward * 60_000  # each picture once
    assert counts.disk_bytes == 60_000 * 384 * 4
    assert (counts.examples, counts.train_flops) == (0, 0)
    flowers = cost(plan, Run("paper", "vit_small_patch16", 0, ("flowers102_probe",)))
    assert flowers.eval_flops == pytest.approx(forward * (1_020 + 1_020 + 6_149), rel=1e-3)
    assert flowers.disk_bytes == 0
    votes = cost(plan, Run("paper", "vit_small_patch16", 0, ("flowers102_knn",)))
    assert votes.eval_flops == pytest.approx(forward * (1_020 + 6_149), rel=1e-3)


def test_cut_parts_are_the_training_split(tmp_path):
    """Train without validation, and validation, are together what recipes train on."""
    from PIL import Image

    dataset = dataclasses.replace(
        get_dataset("imagenet1k"), name="small", classes=2, holdout=3, folders={"train": "train"}
    )
    for index in range(20):
        path = tmp_path / f"small/train/{index % 2}/{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    names = {}
    for split, held_out_for in (
        ("train", "test"), ("train", "validation"), ("validation", "test"), ("test", "test"),
    ):  # fmt: skip
        source = open_split(
            dataset, split, size=4, runtime=CPU, data_root=tmp_path, held_out_for=held_out_for
        )
        pictures = source.pictures
        names[split, held_out_for] = {pictures.name(index) for index in range(len(pictures))}
        assert len(task._labels(source)) == len(pictures)
    assert dataset.held_out("validation")
    assert names["train", "test"] == names["train", "validation"] | names["validation", "test"]
    assert not names["train", "validation"] & names["validation", "test"]
    assert not names["train", "test"] & names["test", "test"]


def test_the_identity_holds_only_what_decides(plan):
    linear = plan.resolve(Run("paper", MODEL, 0, ("cifar10_probe",)))
    knn = plan.resolve(Run("paper", MODEL, 0, ("cifar10_knn",)))

    def identity(of, **changes):
        run = dataclasses.replace(of.run, trial="other")
        return plan.resolve(run, changes).identity

    assert set(linear.config["step"]) == {"dataset", "features"}
    assert set(knn.config["step"]) == {"dataset", "features", "method"}
    for same in ({"neighbours": 5}, {"temperature": 1.0}, {"compute": {"workers": 2}}):
        assert identity(linear, **same) == linear.identity
    assert identity(knn, penalties=[1.0]) == knn.identity
    for changed in ({"penalties": [1.0]}, {"features": "token"}, {"eval_resize": 256}):
        assert identity(linear, **changed) != linear.identity
    assert identity(knn, neighbours=5) != knn.identity
    small = plan.experiments.recipe("pets_knn", "mini")
    assert (small.image_size, small.eval_resize, small.method) == (28, None, "knn")
    assert (small.neighbours, small.temperature) == (20, 0.07)


def refused(work, chain, trial, **overrides):
    with pytest.raises((UsageError, RunError)) as caught:
        work(chain, trial, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_makes_no_sense_is_one_line(work, plan):
    told = refused(work, "cifar10/cifar10_probe", None)
    assert "cannot begin a chain" in told
    told = refused(work, f"{PARENT}/cifar10_probe/pets_probe", None)
    assert "'pets_probe' cannot follow 'cifar10_probe'; it follows: start, imagenet1k_lion" in told
    told = refused(work, "cifar10_probe", "ranks", compute={"processes": 2})
    assert "a probe runs in one process, on at most one GPU" in told
    told = refused(work, "cifar10_probe", "twice", penalties=[0.1, 0.1])
    assert "penalties: duplicate value" in told
    assert "penalties.0" in refused(work, "cifar10_probe", "zero", penalties=[0.0])
    assert "penalties" in refused(work, "cifar10_probe", "none", penalties=[])
    assert "unknown key 'lr'" in refused(work, "cifar10_probe", "lr", lr=0.1)
    told = refused(work, "cifar10_probe", "maps", dataset="composites_tiny")
    assert "a probe needs one label a picture; composites of " in told
    assert told.rstrip().endswith("clip art and photographs has scenes")
    told = refused(work, "pets_knn", "many", neighbours=400)
    assert "neighbours: 400 is more than the 366 training images" in told
    with pytest.raises(UsageError, match=r"'cifar10_probe' needs .*; gpt2_base is a langu"):
        plan.resolve(Run("smoke", "gpt2_base", 0, ("cifar10_probe",)))


def test_splits_and_ranks_are_checked_before_anything_is_read(plan):
    run = Run("paper", MODEL, 0, ("cifar10_probe",), "real")
    path = f"results/{run.folder('').as_posix()}"
    resolved = prepare(path, plan, overrides={"dataset": "imagenet1k_real"}).resolved
    rest = {"folder": None, "identity": "", "parent": None, "data_root": "data"}
    with pytest.raises(UsageError, match=r"ReaL labels: unknown split 'train'; valid: test"):
        task.run(resolved, runtime=CPU, **rest)
    several = dataclasses.replace(CPU, world=2)
    with pytest.raises(UsageError, match="runs in one process, not in 2"):
        task.run(resolved, runtime=several, **rest)


def test_weights_of_another_model_are_refused(plan, tmp_path):
    resolved = plan.resolve(Run("smoke", MODEL, 0, ("cifar10_probe",)))
    tensors = pretrained(resolved.spec, None, image_size=28).state_dict()
    del tensors["norm.weight"]
    parent = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, parent)
    rest = {"folder": None, "identity": "", "data_root": "data", "runtime": CPU}
    with pytest.raises(RunError, match=r"have no 'norm\.weight'; give a parent of the same"):
        task.run(resolved, parent=parent, **rest)
    parent.write_bytes(b"")
    with pytest.raises(RunError, match="weights cannot be read"):
        task.run(resolved, parent=parent, **rest)


def test_the_defaults_mean_what_they_meant():
    recipe = Probe(dataset="cifar10", follows=["start"])
    assert recipe.penalties == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert (recipe.method, recipe.features, recipe.image_size) == ("linear", "token", 224)
    assert (recipe.neighbours, recipe.temperature, recipe.eval_resize) == (20, 0.07, None)
