"""What the classification task measures: hand-worked accuracies, epochs, compute."""

import json
import math

import pytest
import torch

from crate.data.catalogue import get_dataset
from crate.launch.run import perform, prepare
from crate.models.flops import macs
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import Run
from crate.runtime import Runtime
from crate.tasks.classification.task import best_epoch, evaluate
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed(torch.nn.Module):
    """Logits that were worked out by hand, batch by batch."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = [torch.tensor(part).log() for part in logits]

    def forward(self, images):
        return self.logits.pop(0)


def test_accuracy_by_hand():
    # probabilities of 10 classes; the rest share what is left
    certain = [0.91] + [0.01] * 9
    spread = [0.02, 0.3, 0.2, 0.15, 0.1, 0.09, 0.05, 0.04, 0.03, 0.02]
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    batches = [(pixels, torch.tensor([0, 4])), (pixels[:1], torch.tensor([0]))]
    model = Fixed([certain, spread], [spread])
    found = evaluate(model, batches, get_dataset("fashion_mnist_tiny"), CPU)
    assert found["top1"] == pytest.approx(100 / 3, abs=1e-5)  # the first only
    assert found["top5"] == pytest.approx(200 / 3, abs=1e-5)  # class 4 is the fourth of `spread`
    surprise = -(math.log(0.91) + math.log(0.1) + math.log(0.02)) / 3
    assert found["cross_entropy"] == pytest.approx(surprise, abs=1e-5)
    assert found["chance"] == pytest.approx(200 / 3, abs=1e-5)
    assert found["images"] == 3


def test_any_of_several_labels_is_right():
    spread = [0.02, 0.3, 0.2, 0.15, 0.1, 0.09, 0.05, 0.04, 0.03, 0.02]
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([[0, 1, -1], [2, 3, 0], [8, -1, -1]])
    model = Fixed([spread] * 3)
    found = evaluate(model, [(pixels, labels)], get_dataset("fashion_mnist_tiny"), CPU)
    assert found["top1"] == pytest.approx(100 / 3, abs=1e-5)
    assert found["top5"] == pytest.approx(200 / 3, abs=1e-5)
    surprise = -(math.log(0.32) + math.log(0.37) + math.log(0.03)) / 3
    assert found["cross_entropy"] == pytest.approx(surprise, abs=1e-5)


def test_the_best_epoch_is_the_first_of_equals():
    history = [
        {"epoch": 1.0, "top1": 50.0},
        {"epoch": 1.5},
        {"epoch": 2.0, "top1": 60.0},
        {"epoch": 3.0, "top1": 60.0},
    ]
    assert best_epoch(history, 55.0, 4) == {"best_epoch_top1": 60.0, "best_epoch": 2.0}
    assert best_epoch(history, 61.0, 4) == {"best_epoch_top1": 61.0, "best_epoch": 4}


def test_names_of_recipes_decide_nothing(folder):
    """The same recipe under another name gives the same number; another rate starts alike."""
    (folder / "steps/again.yaml").write_text("extends: imagenet21k\n")
    (folder / "steps/faster.yaml").write_text("extends: imagenet21k\nlr: 6e-3\n")
    plan = Plan(Experiments(folder))
    settings, results, first_losses = plan.experiments.settings({"scale": "smoke"}), {}, {}
    for step in ("imagenet21k", "again", "faster"):
        run = Run("smoke", "crate_base_patch32", 0, (step,), "names")
        prepared = prepare(
            f"results/{run.folder('').as_posix()}", plan, overrides={"evaluate_updates": 1}
        )
        perform(prepared, settings)
        results[step] = json.loads(prepared.folder.metrics.read_text())
        lines = [json.loads(line) for line in prepared.folder.history.read_text().splitlines()]
        first_losses[step] = lines[0]["loss"]
    assert results["again"] == results["imagenet21k"]
    # the same initial weights, pictures and augmentation: losses part only after an update
    assert first_losses["faster"] == first_losses["imagenet21k"]
    assert results["faster"]["weights_sha256"] != results["imagenet21k"]["weights_sha256"]


@pytest.fixture
def transfer(plan, tmp_path):
    """`transfer(**overrides)`: a trial of a transfer whose ancestors are trained once, at smoke."""
    settings = plan.experiments.settings({"scale": "smoke"})
    chain = ("imagenet1k_lion", "cifar10_crate")

    def run(name: str, **overrides):
        trial = Run("smoke", "crate_base_patch16", 0, chain, name)
        parent = prepare(f"results/{trial.parent.folder('').as_posix()}", plan)
        perform(parent, settings)
        prepared = prepare(f"results/{trial.folder('').as_posix()}", plan, overrides=overrides)
        perform(prepared, settings)
        return prepared

    return run


def test_every_epoch_is_looked_at_and_the_last_one_counts(transfer):
    plain = transfer("plain", epochs=3.0, evaluate_epochs=None)
    watched = transfer("watched", epochs=3.0, evaluate_epochs=1)
    lines = [json.loads(text) for text in watched.folder.history.read_text().splitlines()]
    seen = {line["epoch"]: line["top1"] for line in lines if "top1" in line}
    assert list(seen) == [1.0, 2.0]  # the third is the result itself
    found = json.loads(watched.folder.metrics.read_text())
    assert found["metrics"]["best_epoch_top1"] == max(*seen.values(), found["metrics"]["top1"])
    # looking changes nothing
    before = json.loads(plain.folder.metrics.read_text())
    assert "best_epoch" not in before["metrics"]
    assert found["weights_sha256"] == before["weights_sha256"]
    assert found["metrics"]["top1"] == before["metrics"]["top1"]


def test_the_head_starts_from_zeros_and_compute_adds_up(transfer):
    untrained = transfer("untrained", epochs=0.0, zero_head=True)
    weights = read_weights(untrained.folder.weights)
    assert not weights["head.weight"].any()
    assert not weights["head.bias"].any()
    trained = transfer("trained", epochs=1.0)
    first, after = (
        json.loads(p.folder.metrics.read_text())["metrics"] for p in (untrained, trained)
    )
    spec = trained.resolved.spec
    forward = 2 * macs(spec, image_size=28, num_classes=10)
    assert first["flops"] == after["flops"] == forward
    # two epochs of 1,024 images before, and the 1,579 drawings once, 43 of them in the last batch
    assert first["train_flops"] == 3 * forward * 2 * 1024
    assert after["train_flops"] == first["train_flops"] + 3 * forward * 1579


def test_a_trial_plan_is_the_tables_recipe(plan: Plan):
    """The published transfer, as `paper.md` has it."""
    recipe = plan.experiments.recipe("flowers102_crate", "paper")
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.weight_decay) == (
        1e-4,
        400,
        256,
        0.01,
    )
    assert recipe.dont_load == ["head", "norm"]
    assert recipe.evaluate_epochs == 1
