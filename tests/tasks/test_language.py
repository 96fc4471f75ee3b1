"""Language models trained and evaluated: windows, scores, controls against what is worked out."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from crate.data.texts import Tokens
from crate.data.tokenizer import get_tokenizer
from crate.errors import UsageError
from crate.launch.run import perform, prepare
from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import RunFolder, read_json
from crate.reporting import tuning as tune
from crate.runs import Run
from crate.runtime import Runtime
from crate.tasks.language.recipe import Language
from crate.tasks.language.task import evaluate, next_token_loss, scores, training_windows
from crate.training.loop import read_history
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RANKS = [dataclasses.replace(CPU, rank=rank, world=2) for rank in (0, 1)]
pytestmark = pytest.mark.usefixtures("one_thread")

IDS = np.random.RandomState(0).randint(0, 50, 101).astype(np.uint16)


def make_recipe(**changes) -> Language:
    values = {"dataset": "speeches_tiny", "follows": ["start"], "updates": 1, "batch_size": 4}
    return Language(**values | {"lr": 1e-3, "block_size": 8} | changes)


def model():
    torch.manual_seed(0)
    return create_model(
        "crate_alpha_gpt_base", vocab_size=50, block_size=8, dim=16, depth=2, heads=2
    ).eval()


# --- training -----------------------------------------------------------


def test_windows_are_pieces_of_the_text_with_the_tokens_that_follow():
    batches = list(training_windows(np.arange(101), make_recipe(), 0, range(200), CPU))
    starts = set()
    for ids, targets in batches:
        assert ids.shape == targets.shape == (4, 8)
        assert (targets == ids + 1).all()  # this text counts
        assert (ids.diff() == 1).all()
        starts |= set(ids[:, 0].tolist())
    assert starts == set(range(93))  # from the first token, to where the last is a target


def test_windows_depend_on_the_update_alone():
    recipe = make_recipe()
    whole = list(training_windows(IDS, recipe, 0, range(6), CPU))
    later = list(training_windows(IDS, recipe, 0, range(4, 6), CPU))  # a resumed run
    assert all((a[0] == b[0]).all() for a, b in zip(whole[4:], later, strict=True))
    halves = [list(training_windows(IDS, recipe, 0, range(6), rank)) for rank in RANKS]
    for (ids, _), (first, _), (second, _) in zip(whole, *halves, strict=True):
        assert (torch.cat([first, second]) == ids).all()
    assert (next(training_windows(IDS, recipe, 1, range(1), CPU))[0] != whole[0][0]).any()


def test_a_text_must_hold_a_window(plan):
    run = Run("smoke", "gpt2_base", 0, ("openwebtext",))
    with pytest.raises(UsageError, match=r"one window needs 10,000,001 tokens, State of the Union"):
        plan.resolve(run, {"block_size": 10_000_000})


# --- evaluation -----------------------------------------------------------


@pytest.mark.parametrize("count", [2, 8, 9, 10, 101])  # with whole and cut-off last windows
def test_every_token_but_the_first_is_predicted_once(count):
    network, ids = model(), IDS[:count]
    wanted = 0.0
    with torch.no_grad():
        for place in range(1, count):  # token by token, from those before it in its window
            first = (place - 1) // 8 * 8
            context = torch.from_numpy(ids[first:place].astype(np.int64))[None]
            logits = network(context)[0, -1].double()
            wanted -= float(logits.log_softmax(0)[ids[place]])
    recipe = make_recipe(compute={"micro_batch": 3})
    assert evaluate(network, ids, recipe, CPU) == pytest.approx(wanted, rel=1e-6)
    shares = [evaluate(network, ids, recipe, rank) for rank in alone(RANKS)]
    assert sum(shares) == pytest.approx(wanted, rel=1e-6)


def alone(ranks):
    """Ranks whose sums are their own shares: nobody else is there to add to them."""

    class Share(Runtime):
        def all_reduce_sum(self, values):
            return values

    return [Share(**dataclasses.asdict(rank) | {"device": rank.device}) for rank in ranks]


def test_scores_by_hand():
    tokenizer = get_tokenizer("gpt2")
    ids = np.append(tokenizer.encode("Fellow citizens, fellow citizens"), tokenizer.end_of_text)
    found = scores(10.0, Tokens(ids.astype(np.uint16), tokenizer, 1, "test"))
    counted = len(ids) - 1  # the first is not predicted, and is no byte that was paid for
    text = len("Fellow citizens, fellow citizens") - len(tokenizer.decode(ids[:1]))
    assert found["cross_entropy"] == pytest.approx(10 / counted, abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(10 / math.log(2) / text, abs=1e-6)
    assert (found["tokens"], found["documents"]) == (counted, 1)


def test_the_loss_is_the_mean_over_all_tokens():
    network = model()
    ids, targets = next(training_windows(IDS, make_recipe(), 0, range(1), CPU))
    with torch.no_grad():
        each = -network(ids).log_softmax(-1).gather(-1, targets[..., None])
        assert float(next_token_loss(network, (ids, targets))) == pytest.approx(float(each.mean()))


# --- whole runs -----------------------------------------------------------


@pytest.fixture
def small(folder):
    """A plan whose language runs take a second or two."""
    path = folder / "scales" / "smoke.yaml"
    text = path.read_text()
    for old, new in (
        ("updates: 60,", "updates: 8,"),
        ("evaluate_updates: 20", "evaluate_updates: 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return Plan(Experiments(folder))


def bring(run: Run, plan: Plan, tmp_path: Path) -> dict:
    """The metrics of a run, brought to its end."""
    prepared = prepare(str(run.folder(tmp_path / "results")), plan)
    perform(prepared, plan.experiments.settings({"scale": "smoke"}))
    return read_json(prepared.folder.metrics)["metrics"]


def test_a_chain_from_training_to_another_text(small, tmp_path):
    trained = Run("smoke", "crate_gpt_base", 0, ("openwebtext",))
    first = bring(trained, small, tmp_path)
    other = bring(Run("smoke", "crate_gpt_base", 0, ("openwebtext", "lambada")), small, tmp_path)
    new = bring(dataclasses.replace(trained, chain=("openwebtext_untrained",)), small, tmp_path)
    assert first["cross_entropy"] < new["cross_entropy"] - 0.2
    assert other["tokens"] != first["tokens"]
    assert other["train_flops"] == first["train_flops"] > 0
    a, b = (
        read_weights(run.folder(tmp_path / "results") / "weights.safetensors")
        for run in (trained, Run("smoke", "crate_gpt_base", 0, ("openwebtext", "lambada")))
    )
    assert all((a[name] == b[name]).all() for name in a)  # nothing was trained
    lines = read_history(RunFolder(trained.folder(tmp_path / "results")))
    assert [(line["step"], line["seen"]) for line in lines] == [(4, 4 * 8 * 32), (8, 8 * 8 * 32)]
    assert ["cross_entropy" in line for line in lines] == [True, False]  # the last is the result
    record = read_json(trained.folder(tmp_path / "results") / "run.json")
    assert (record["training_documents"], record["updates"]) == (10, 8)


def test_counts_go_on_to_another_text(small, tmp_path):
    found = {}
    for order in ("unigram", "bigram"):
        run = Run("smoke", "gpt2_base", 0, (f"openwebtext_{order}",))
        found[order] = bring(run, small, tmp_path)["cross_entropy"]
        run = Run("smoke", "gpt2_base", 0, (f"openwebtext_{order}", "lambada"))
        found[order, "lambada"] = bring(run, small, tmp_path)["cross_entropy"]
    record = read_json(run.parent.folder(tmp_path / "results") / "run.json")
    assert record["training_documents"] == 10  # a count of part of a set is not judged either
    assert found["bigram"] < found["unigram"]
    assert found["bigram", "lambada"] < found["unigram", "lambada"] < math.log(257)


def test_speed_is_measured_and_leaves_nothing(small, tmp_path):
    run = Run("smoke", "crate_gpt_base", 0, ("openwebtext_speed",))
    assert bring(run, small, tmp_path)["tokens_per_second"] > 0
    folder = RunFolder(run.folder(tmp_path / "results"))
    assert read_json(folder.record)["updates"] >= 1
    assert not folder.weights.exists()


@pytest.mark.parametrize(
    ("model", "step", "told"),
    [
        ("gpt2_base", "imagenet1k_untrained", ".*a vision model.*; gpt2_base is a language mo"),
        (
            "crate_base_patch16",
            "openwebtext",
            "a language model; crate_base_patch16 is a vision m",
        ),
    ],
)
def test_images_and_text_do_not_mix(plan, model, step, told):
    with pytest.raises(UsageError, match=f"'{step}' needs {told}"):
        plan.resolve(Run("paper", model, 0, (step,)))


def test_tuning_prefers_the_lower_cross_entropy(plan, tmp_path, monkeypatch, capsys):
    def outcome(run, words, settings):
        return {"cross_entropy": 1.5 if "lr=2e-3" in words else 2.25}

    monkeypatch.setattr(tune, "_call", outcome)
    settings = plan.experiments.settings({"scale": "smoke", "results": str(tmp_path / "results")})
    tune.tune("language", "openwebtext", {"lr": ["1e-3", "2e-3"]}, plan, settings, jobs=1)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["    1.5  mean of 3 runs  lr=2e-3", "   2.25  mean of 3 runs  lr=1e-3"]
    outcomes = (tmp_path / "results" / "smoke" / "tuning.csv").read_text()
    assert "validation cross_entropy,1.5," in outcomes
