"""Contrastive training and zero-shot classification as runs, against what is worked out by hand."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from crate.checkpoints.convert import to_official
from crate.costs.cost import cost
from crate.data.captions import caption_tokenizer, class_names, phrases
from crate.data.catalogue import get_dataset
from crate.errors import RunError, UsageError
from crate.launch.run import perform, prepare
from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.records import read_json
from crate.runs import Run
from crate.runtime import Runtime, generator_for
from crate.tasks.base import Resolved
from crate.tasks.contrastive.recipe import Contrastive
from crate.tasks.contrastive.task import ContrastiveStage, evaluate
from crate.tasks.zeroshot.task import Classifier, class_features
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
ALPHA, VIT = "crate_alpha_clipa_large_patch14", "vit_clipa_huge_patch14"
CHAIN = ("datacomp1b",)
FINE = (*CHAIN, "datacomp1b_finetune")
pytestmark = pytest.mark.usefixtures("one_thread")


def network(**changes):
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 1, "heads": 2, "patch_size": 7, "image_size": 14}
    text = {"embed_dim": 8, "text_dim": 12, "text_depth": 1, "text_heads": 2}
    words = {"vocab_size": 49_408, "context_length": 32}
    return create_model(ALPHA, **sizes | text | words | changes).eval()


# --- the loss -----------------------------------------------------------


def test_the_loss_by_hand():
    rng = np.random.RandomState(0)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.randn(2, 5, 4))
    logits = 7.0 * images @ texts.T

    def among(rows: np.ndarray) -> float:
        return np.mean([math.log(sum(np.exp(row))) - row[k] for k, row in enumerate(rows)])

    given = tuple(torch.from_numpy(x).float() for x in (images, texts))
    batch = (torch.zeros(5), torch.zeros(5))
    recipe = Contrastive(
        dataset="captioned_tiny", follows=["start"], updates=1, batch_size=5, lr=1e-3
    )
    resolved = Resolved(Run("test", ALPHA, 0, CHAIN), network().spec, recipe, {}, "")
    stage = ContrastiveStage(resolved, CPU, "data")
    found = stage.loss(lambda *_: (*given, torch.tensor(7.0)), batch)
    assert found.item() == pytest.approx((among(logits) + among(logits.T)) / 2, rel=1e-5)


class Places:
    """Pairs of which a picture's only pixel is its place, and the only token a kind of caption."""

    def __init__(self, kinds: torch.Tensor, runtime: Runtime):
        self.kinds, self.runtime = kinds, runtime

    def __len__(self):
        return len(self.kinds)

    def evaluation(self, recipe, batch_size):
        mine = range(self.runtime.rank, len(self), self.runtime.world)
        for start in range(0, len(mine), batch_size):
            places = torch.tensor(mine[start : start + batch_size])
            yield places.view(-1, 1, 1, 1).to(torch.uint8), self.kinds[places][:, None]


def test_retrieval_and_loss_over_held_out_pairs_by_hand():
    torch.manual_seed(1)
    count, size = 9, 4
    images, texts = (torch.nn.functional.normalize(torch.randn(count, 8), dim=1) for _ in range(2))
    kinds = torch.arange(count) % 3  # captions that several pictures share
    dataset = dataclasses.replace(get_dataset("captioned_tiny"), mean=(0.0,), std=(1 / 255,))
    recipe = Contrastive(
        dataset=dataset.name, follows=["start"], updates=1, batch_size=4, lr=1e-3,
        evaluation_batch=size, context_length=1, compute={"micro_batch": 3},
    )  # fmt: skip
    model, looked_at = network(), []

    def encode_image(pixels):
        looked_at.append(pixels[:, 0, 0, 0].round().long())
        return images[looked_at[-1]]

    model.encode_image, model.encode_text = encode_image, lambda _: texts[looked_at[-1]]
    found = evaluate(model, Places(kinds, CPU), recipe, dataset, CPU)
    order = torch.randperm(count, generator=generator_for("pairs"))
    losses, hits = [], []
    for start in (0, size):  # two whole batches; the ninth pair is left out
        chosen = order[start : start + size]
        logits = (images[chosen] @ texts[chosen].T).double() / 0.07
        rows, columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
        losses.append(-(rows.mean() + columns.mean()).item() / 2)
        best = chosen[logits.argmax(1)]
        hits += (kinds[best] == kinds[chosen]).tolist()
    assert found["contrastive_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found["image_to_text"] == pytest.approx(100 * np.mean(hits))
    assert 0 < np.mean(hits) < 1


# --- zero-shot classification -------------------------------------------------------


def test_zero_shot_logits_are_the_official_scripts():
    encode = caption_tokenizer("clip", 32, "data")
    model = network().double()
    names, templates = ["boot", "bag", "a rather long name of a class"], ["a {}.", "{} there", "{}"]
    with torch.no_grad():
        texts = class_features(model, names, templates, encode, most=2)
        wanted = []
        for name in names:
            each = []
            for template in templates:
                ids = torch.from_numpy(encode([template.replace("{}", name)]))
                features = model.encode_text(ids)[0]
                each.append(features / features.norm())
            mean = torch.stack(each).mean(0)
            wanted.append(mean / mean.norm())
        torch.testing.assert_close(texts, torch.stack(wanted), atol=1e-7, rtol=0)
        images = torch.randn(2, 3, 14, 14, dtype=torch.float64)
        features = model.encode_image(images)
        features = features / features.norm(dim=1, keepdim=True)
        expected = 100 * features @ torch.stack(wanted).T
        torch.testing.assert_close(Classifier(model, texts)(images), expected, atol=1e-4, rtol=0)


def test_imagenet_has_clips_names_and_phrases():
    names = class_names(get_dataset("imagenet1k"))
    assert (len(names), names[0], names[2], names[-1]) == (
        1000, "tench", "great white shark", "toilet paper",
    )  # fmt: skip
    assert len(phrases("openai")) == 80
    assert "a bad photo of a {}." in phrases("openai")
    assert all(phrase.count("{}") == 1 for kind in ("openai", "simple") for phrase in phrases(kind))


# --- whole runs -----------------------------------------------------------


@pytest.fixture
def bring(plan, tmp_path):
    """`bring(model, chain, trial, **overrides)`: the prepared run, performed at smoke."""
    settings = plan.experiments.settings({"scale": "smoke", "data_root": str(tmp_path / "data")})

    def bring(model: str, chain: tuple = CHAIN, trial: str | None = None, **overrides):
        run = Run("smoke", model, 0, chain, trial)
        prepared = prepare(f"results/{run.folder('').as_posix()}", plan, overrides=overrides)
        perform(prepared, settings)
        return prepared

    return bring


def metrics_of(prepared) -> dict:
    return read_json(prepared.folder.metrics)["metrics"]


@pytest.mark.parametrize("model", [ALPHA, VIT])
def test_two_stages_and_their_zero_shot_accuracy(bring, plan, model):
    first, second = bring(model), bring(model, FINE)
    for prepared in (first, second):
        found = metrics_of(prepared)
        assert tuple(found) == tuple(sorted(prepared.resolved.recipe.METRICS))
        lines = [json.loads(line) for line in prepared.folder.history.read_text().splitlines()]
        assert lines[-1]["seen"] == prepared.resolved.recipe.updates * 32
        assert any("contrastive_loss" in line for line in lines)
    before, after = (read_weights(p.folder.weights) for p in (first, second))
    assert before["vision.positions"].shape[1] == 1 + 2 * 2
    assert after["vision.positions"].shape[1] == 1 + 4 * 4
    assert read_json(second.folder.record)["carried"]["resized"] == ["vision.positions"]
    frozen = [name for name in before if not name.startswith("vision.")]
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if not torch.equal(before[name], after.get(name, 0))]
    assert {name.split(".")[0] for name in moved} == {"vision"}

    costs = [cost(plan, p.resolved.run).train_flops for p in (first, second)]
    totals = [metrics_of(p)["train_flops"] for p in (first, second)]
    assert totals == [costs[0], sum(costs)]
    assert cost(plan, second.resolved.run).parameters == sum(t.numel() for t in after.values())

    looked = metrics_of(bring(model, (*FINE, "imagenet1k_zeroshot")))
    assert set(looked) == set(plan.experiments.recipe("imagenet1k_zeroshot", "smoke").METRICS)
    assert looked["images"] == 512
    new = metrics_of(bring(model, trial="new", updates=0))
    assert metrics_of(first)["contrastive_loss"] < new["contrastive_loss"] - 0.1


def test_a_text_tower_from_an_official_file(bring, tmp_path):
    torch.manual_seed(3)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 7, "image_size": 28}
    text = {"embed_dim": 32, "text_dim": 32, "text_depth": 2, "text_heads": 2}
    words = {"vocab_size": 49_408, "context_length": 32}
    official = create_model(ALPHA, **sizes | text | words)
    name = "crate_alpha_CLIPA_L14.pth"
    with pytest.raises(
        RunError, match=r"the text tower's file is missing; download it from model hub"
    ):
        bring(ALPHA, trial="missing", text_tower=name)
    path = tmp_path / "data" / "released" / name
    path.parent.mkdir(parents=True)
    manifest = tmp_path / "experiments" / "released.yaml"
    listed = yaml.safe_load(manifest.read_text())
    state = to_official(official.state_dict(), official.spec)
    torch.save(state, path)
    listed[name]["bytes"] = path.stat().st_size
    manifest.write_text(yaml.safe_dump(listed))
    trained = bring(ALPHA, trial="with", text_tower=name, freeze_text=True, updates=2)
    weights = read_weights(trained.folder.weights)
    for key, tensor in official.state_dict().items():
        if not key.startswith("vision."):
            assert torch.equal(weights[key], tensor), key
    # another vocabulary is told
    small = create_model(ALPHA, **sizes | text | words | {"vocab_size": 32_000})
    torch.save(to_official(small.state_dict(), small.spec), path)
    listed[name]["bytes"] = path.stat().st_size
    manifest.write_text(yaml.safe_dump(listed))
    with pytest.raises(
        UsageError, match=r"has 32,000 tokens of vocabulary, but the recipe needs 49,408"
    ):
        bring(ALPHA, trial="other", text_tower=name)
    with pytest.raises(UsageError, match=r"released.yaml does not list 'mine.pth'"):
        bring(ALPHA, trial="unlisted", text_tower="mine.pth")


def test_another_tokenizer_than_it_was_trained_with_is_told(bring, tmp_path):
    bring(ALPHA)
    vocabulary = tmp_path / "data" / "bert-base-uncased" / "vocab.txt"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "boot"]))
    with pytest.raises(RunError, match="has 49,408 tokens and the tokenizer 'bert' 32,000"):
        bring(ALPHA, (*CHAIN, "imagenet1k_zeroshot_84"), trial="bert", tokenizer="bert")


@pytest.mark.parametrize(
    ("model", "chain", "told"),
    [
        ("crate_alpha_large_patch14", CHAIN, "needs a contrastive model; crate_alpha_large_patc"),
        (ALPHA, ("imagenet21k", "voc2012_attention"), f"needs a vision model; {ALPHA} is a con"),
        (ALPHA, ("datacomp1b_finetune",), "cannot begin a chain"),
        (ALPHA, (*CHAIN, "imagenet1k_zeroshot"), "cannot follow 'datacomp1b'"),
    ],
)
def test_chains_that_make_no_sense_are_told_in_one_line(plan, model, chain, told):
    with pytest.raises(UsageError) as caught:
        plan.resolve(Run("mini", model, 0, chain))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_of_pairs_is_for_contrastive_steps_alone(folder):
    path = folder / "scales" / "smoke.yaml"
    text = path.read_text()
    path.write_text(text.replace("imagenet1k: fashion_mnist_tiny", "imagenet1k: captioned_tiny"))
    run = Run("smoke", "vit_base_patch16", 0, ("imagenet1k_untrained",))
    told = r"'imagenet1k_untrained' needs a data set of images; .* has pairs"
    with pytest.raises(UsageError, match=told):
        Plan(Experiments(folder)).resolve(run)


@pytest.mark.slow
def test_two_processes_train_as_one(folder, tmp_path):
    """The loss is over the pairs of both, and chunks of features change nothing."""
    path = folder / "scales" / "smoke.yaml"
    content = yaml.safe_load(path.read_text())
    # with Adam's usual ε the rounding of gradients near 0 becomes whole steps
    short = {"updates": 12, "eps": 1e-4, "compute": {"autocast": "float32"}}
    content["steps"]["datacomp1b"] |= short
    path.write_text(yaml.safe_dump(content))
    alone = tmp_path / "alone" / "smoke" / "runs" / ALPHA / "seed0" / "datacomp1b"
    ranks = tmp_path / "ranks" / "smoke" / "runs" / ALPHA / "seed0" / "datacomp1b"
    assert launch(alone)[0] == 0
    content["steps"]["datacomp1b"]["compute"]["micro_batch"] = 5  # 16 pairs each: 5 + 5 + 5 + 1
    path.write_text(yaml.safe_dump(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRATE_RANKS": "1"}
    both = [start(ranks, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in (0, 1)]
    for process in both:
        assert process.wait(120) == 0, process.stderr.read()
    one, two = (
        [json.loads(line) for line in (each / "train.jsonl").read_text().splitlines()]
        for each in (alone, ranks)
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
    weights = read_weights(ranks / "weights.safetensors")
    for name, tensor in read_weights(alone / "weights.safetensors").items():
        if not name.endswith(
            "qkv.bias"
        ):  # keys' has no gradient but rounding, which Adam scales up
            torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=1e-3, msg=name)
    found = [read_json(each / "metrics.json")["metrics"] for each in (alone, ranks)]
    assert found[1]["contrastive_loss"] == pytest.approx(found[0]["contrastive_loss"], abs=1e-3)
    assert found[1]["pairs"] == found[0]["pairs"]


def start(where, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "crate", "run", str(where)],
        env=os.environ | environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def launch(where, **environment) -> tuple[int, str]:
    process = start(where, **environment)
    error = process.communicate(timeout=120)[1]
    return process.returncode, error
