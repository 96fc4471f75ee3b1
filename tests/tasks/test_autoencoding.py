"""Masked autoencoders as runs: hidden patches, masks, scores, chains against what is worked out."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from crate.costs.cost import cost
from crate.data.augment import normalise
from crate.data.catalogue import get_dataset
from crate.data.examples import read_examples
from crate.data.images import MemoryImages, open_split
from crate.errors import UsageError
from crate.launch.run import perform, prepare
from crate.models.build import create_model
from crate.models.flops import autoencoder_macs, macs
from crate.records import read_json
from crate.runs import Run
from crate.runtime import Runtime, generator_for
from crate.tasks.autoencoding.recipe import Autoencoding
from crate.tasks.autoencoding.task import AutoencodingStage, evaluate, examples
from crate.tasks.base import Resolved
from crate.tasks.frozen import evenly_spaced
from crate.training import loop as train
from crate.training.optim import parameter_groups
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RANKS = [dataclasses.replace(CPU, rank=rank, world=2) for rank in (0, 1)]
TINY = get_dataset("fashion_mnist_tiny")
SIDE, PATCH = 28, 7
PATCHES = (SIDE // PATCH) ** 2
pytestmark = pytest.mark.usefixtures("one_thread")


def make_recipe(**changes) -> Autoencoding:
    values = {"dataset": TINY.name, "follows": ["start"], "updates": 1, "batch_size": 8}
    return Autoencoding(**values | {"lr": 1e-3, "image_size": SIDE, "crop_area_min": 0.2} | changes)


def network(name: str = "crate_mae_base", **changes):
    torch.manual_seed(0)
    sizes = {"image_size": SIDE, "patch_size": PATCH, "dim": 16, "depth": 2, "heads": 2}
    decoder = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
    return create_model(name, **sizes | (decoder if name.startswith("vit") else {}) | changes)


def pictures(count: int, runtime: Runtime = CPU, channels: int = 1) -> MemoryImages:
    shape = (count, channels, SIDE, SIDE)
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8))
    return MemoryImages(pixels, torch.zeros(count), size=SIDE, runtime=runtime)


def stage(model, recipe: Autoencoding, seed: int = 0, runtime: Runtime = CPU) -> AutoencodingStage:
    """The training of a network that is there."""
    run = Run("test", "crate_mae_base", seed, ("imagenet1k_mae",))
    found = AutoencodingStage(Resolved(run, model.spec, recipe, {}, ""), runtime, "data")
    found.model = model
    return found


def batches(recipe: Autoencoding, seed: int, updates: range, runtime: Runtime = CPU) -> list:
    source = pictures(40, runtime)
    training = stage(network(), recipe, seed, runtime)
    return list(training.batches(source, updates.start, updates.stop))


# --- training -----------------------------------------------------------


def test_masks_depend_on_seed_and_update_alone():
    recipe = make_recipe()
    whole = batches(recipe, 0, range(7))  # from one epoch into the next
    later = batches(recipe, 0, range(4, 7))  # a resumed run
    for ours, theirs in zip(whole[4:], later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    halves = [batches(recipe, 0, range(7), rank) for rank in RANKS]
    for both, first, second in zip(whole, *halves, strict=True):
        for k in (0, 1):
            assert torch.equal(torch.cat([first[k], second[k]]), both[k])
    noise = torch.cat([noise for _, noise in whole + batches(recipe, 1, range(7))])
    assert len(noise.unique(dim=0)) == len(noise) == 14 * 8  # each picture its own, each time
    assert 0.45 < float(noise.mean()) < 0.55


@pytest.mark.parametrize("name", ["crate_mae_base", "vit_mae_base_asymmetric"])
@pytest.mark.parametrize("normalise_patches", [False, True])
def test_parts_of_a_batch_have_its_loss_and_gradient(name, normalise_patches):
    model = network(name, normalise_patches=normalise_patches)
    ((images, noise),) = batches(make_recipe(), 0, range(1))
    training = stage(model, make_recipe())

    def gradient(parts: list) -> tuple[float, list]:
        model.zero_grad()
        losses = [training.loss(model, (images[p], noise[p])) for p in parts]
        loss = sum(value * len(images[p]) for value, p in zip(losses, parts, strict=True)) / 8
        loss.backward()
        return loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    whole = gradient([slice(0, 8)])
    parts = gradient([slice(0, 5), slice(5, 8)])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for ours, theirs in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["crate_mae_base", "vit_mae_base_asymmetric"])
def test_tokens_do_not_decay_as_matrices_do(name):
    model = network(name)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    recipe = make_recipe(weight_decay=0.1, decay="matrices")
    decayed, kept = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(model, recipe)
    )
    assert {"class_token", "mask_token"} < kept
    assert {key.split(".")[-1] for key in decayed} <= {"weight", "dictionary"}
    assert all(model.get_parameter(key).dim() == 1 for key in kept - {"class_token", "mask_token"})
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert decayed | kept == trained  # not what is fixed


# --- evaluation -----------------------------------------------------------


class Share(Runtime):
    """A rank whose sums are its own share: nobody else is there to add to them."""

    def all_reduce_sum(self, values):
        return values


def constant(value: float, **changes):
    """An autoencoder that predicts one value everywhere."""
    model = network(**changes)
    with torch.no_grad():
        model.decoder_prediction.weight.zero_()
        model.decoder_prediction.bias.fill_(value)
    return model


def hidden_by_hand(place: int) -> np.ndarray:
    """(S, S) bool: all pixels but those of the quarter of patches with the smallest noise."""
    noise = torch.rand(PATCHES, generator=generator_for("mask", place)).numpy()
    kept = np.argsort(noise)[: PATCHES // 4]
    grid = np.ones(PATCHES, bool)
    grid[kept] = False
    return np.kron(grid.reshape(SIDE // PATCH, -1), np.ones((PATCH, PATCH), bool))


def scores_by_hand(source: MemoryImages, value: float) -> list[float]:
    images = (source.pixels.numpy()[:, 0] / 255.0 - TINY.mean[0]) / TINY.std[0]
    return [((x[hidden_by_hand(k)] - value) ** 2).mean() for k, x in enumerate(images)]


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_scores_by_hand_in_batches_and_by_ranks(micro_batch):
    recipe = make_recipe(compute={"micro_batch": micro_batch})
    each = scores_by_hand(pictures(11), 0.3)
    model = constant(0.3)
    assert evaluate(model, pictures(11), recipe, TINY, CPU) == pytest.approx(
        np.mean(each), rel=1e-5
    )
    for rank in RANKS:
        alone = Share(CPU.device, CPU.dtype, "test", rank.rank, rank.world)
        found = evaluate(model, pictures(11, alone), recipe, TINY, alone)
        assert found == pytest.approx(np.mean(each[rank.rank :: 2]), rel=1e-5)


def test_a_normalised_patch_predicted_by_its_mean_has_its_variance():
    found = evaluate(constant(0.0, normalise_patches=True), pictures(5), make_recipe(), TINY, CPU)
    count = 3 * PATCH**2  # the variance is that over one less
    assert found == pytest.approx((count - 1) / count, rel=1e-5)


def test_spaced_indices_are_distinct_and_reach_over_all():
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    for count in range(1, 40):
        for wanted in range(1, count + 1):
            assert len(set(evenly_spaced(count, wanted))) == wanted


@pytest.mark.parametrize("normalise_patches", [False, True])
def test_examples_show_what_was_hidden_and_what_was_predicted(normalise_patches):
    source = pictures(13)
    model = constant(0.0, normalise_patches=normalise_patches)
    found = examples(model, source, make_recipe(), TINY, RANKS[0])  # a rank sees all of them
    assert len(found) == 6
    for place, example in zip(evenly_spaced(13, 6), found, strict=True):
        hidden = hidden_by_hand(place)
        original = source.pixels[place, 0].numpy()
        whole = normalise(source.pixels[place : place + 1], TINY)
        with torch.no_grad():  # nothing is hidden from the encoder here
            weights = model.layer_records(whole)[-1]["attention"][0]  # (K, 1 + N, 1 + N)
        attention = weights[:, 0, 1:].reshape(2, SIDE // PATCH, SIDE // PATCH).numpy()
        assert example["attention"].dtype == np.float16
        assert example.pop("attention") == pytest.approx(attention, rel=1e-3)
        for name, picture in example.items():
            assert picture.shape == (SIDE, SIDE, 3)
            assert (picture == picture[..., :1]).all()  # grey
            assert (picture[..., 0] == original)[~hidden].all(), name
        assert (example["image"][..., 0] == original).all()
        assert (example["masked"][hidden] == 128).all()
        wanted = np.full((SIDE, SIDE), 255 * TINY.mean[0])
        if normalise_patches:  # each patch's own mean
            tiles = original.reshape(SIDE // PATCH, PATCH, -1, PATCH).mean((1, 3))
            wanted = np.kron(tiles, np.ones((PATCH, PATCH)))
        assert abs(example["reconstruction"][..., 0] - wanted)[hidden].max() <= 0.501


# --- whole runs -----------------------------------------------------------

CHAIN = ("imagenet1k_mae",)


@pytest.fixture
def bring(plan, tmp_path):
    """`bring(model, chain, trial, **overrides)`: the prepared run, performed at smoke."""
    settings = plan.experiments.settings({"scale": "smoke"})

    def bring(model: str, chain: tuple = CHAIN, trial: str | None = None, **overrides):
        run = Run("smoke", model, 0, chain, trial)
        prepared = prepare(f"results/{run.folder('').as_posix()}", plan, overrides=overrides)
        perform(prepared, settings)
        return prepared

    return bring


def metrics_of(prepared) -> dict:
    return read_json(prepared.folder.metrics)["metrics"]


def test_a_killed_run_ends_bit_for_bit_the_same(bring, monkeypatch):
    changes = {"epochs": 0.5, "evaluate_epochs": None, "evaluate_updates": 3}
    changes["compute"] = {"checkpoint_seconds": 0.0}
    whole = bring("vit_mae_base_asymmetric", trial="whole", **changes)

    class Killed(BaseException):
        pass

    updates = iter(range(3 + 2))

    def kill(*arguments):
        if next(updates, None) is None:
            raise Killed
        return train_update(*arguments)

    train_update = train.update
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", kill)
        with pytest.raises(Killed):
            bring("vit_mae_base_asymmetric", trial="cut", **changes)
    cut = bring("vit_mae_base_asymmetric", trial="cut", **changes)
    for name in ("metrics.json", "weights.safetensors", "examples.npz"):
        files = [prepared.folder.folder / name for prepared in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    histories = []
    for prepared in (whole, cut):
        lines = [json.loads(text) for text in prepared.folder.history.read_text().splitlines()]
        keys = ("step", "loss", "lr", "reconstruction")
        histories.append([{key: line.get(key) for key in keys} for line in lines])
    assert histories[0] == histories[1]
    assert [line["step"] for line in histories[0]] == [3, 6, 8]


def test_a_chain_from_pre_training_to_transfer(bring, plan):
    trained = bring("crate_mae_base")
    found, spec = metrics_of(trained), trained.resolved.spec
    assert tuple(found) == tuple(sorted(trained.resolved.recipe.METRICS))
    forward = 2 * autoencoder_macs(spec, image_size=SIDE, mask_ratio=0.75)
    assert (found["images"], found["flops"]) == (512, forward)
    assert found["train_flops"] == 3 * forward * 2 * 1024
    assert cost(plan, trained.resolved.run).train_flops == found["train_flops"]
    untrained = bring("crate_mae_base", ("imagenet1k_mae_untrained",))
    assert found["reconstruction"] < 0.9 * metrics_of(untrained)["reconstruction"]

    # training pictures are looked at as the others are: whole, as they are
    model = network(dim=32)
    model.load_state_dict(read_weights(trained.folder.weights))
    opened = {"size": SIDE, "runtime": CPU, "data_root": "data"}
    source = open_split(TINY, "train", **opened)
    chosen = MemoryImages(source.pixels[::2], source.labels[::2], size=SIDE, runtime=CPU)
    for pictures, key in (
        (chosen, "train_reconstruction"),
        (open_split(TINY, "test", **opened), "reconstruction"),
    ):
        again = evaluate(model, pictures, trained.resolved.recipe, TINY, CPU)
        assert again == pytest.approx(found[key], abs=2e-6)
    assert [set(e) for e in read_examples(trained.folder.examples)] == 6 * [
        {"image", "masked", "reconstruction", "attention"}
    ]

    # its encoder as a classifier: every weight as it was, and a head of its own; the control's too
    for parent in (untrained, trained):
        chain = (*parent.resolved.run.chain, "cifar10_mae")
        transferred = bring("crate_mae_base", chain, "as_it_is", epochs=0.0)
        before, after = (read_weights(p.folder.weights) for p in (parent, transferred))
        encoder = [name for name in before if not name.startswith(("decoder_", "mask_token"))]
        assert set(after) == {*encoder, "head.weight", "head.bias"}
        assert all(torch.equal(before[name], after[name]) for name in encoder)
        record = read_json(transferred.folder.record)
        assert record["carried"] == {"new": ["head.weight", "head.bias"], "resized": []}
    assert metrics_of(transferred)["train_flops"] == found["train_flops"]
    classifier = 2 * macs(spec, image_size=SIDE, num_classes=10)
    assert metrics_of(transferred)["flops"] == classifier
    assert cost(plan, dataclasses.replace(transferred.resolved.run, trial=None)).parameters == sum(
        tensor.numel() for tensor in after.values()
    )


@pytest.mark.parametrize(
    ("model", "chain", "told"),
    [
        ("crate_base_patch16", CHAIN, "needs a masked autoencoder; crate_base_patch16 is a vision"),
        ("gpt2_base", CHAIN, "'imagenet1k_mae' needs a masked autoencoder; gpt2_base is a languag"),
        ("crate_mae_base", ("throughput",), "needs a vision model; crate_mae_base is a masked aut"),
        ("vit_mae_small", ("voc2012_attention",), "; vit_mae_small is a masked autoencoder"),
        ("crate_mae_base", ("pets_mae",), "'pets_mae' cannot begin a chain; it follows: imagenet1"),
        ("crate_mae_base", (*CHAIN, "pets_crate"), "'pets_crate' cannot follow 'imagenet1k_mae'"),
        ("vit_base_patch16", (*CHAIN, "pets_mae"), "imagenet1k_mae: 'imagenet1k_mae' needs a mas"),
    ],
)
def test_chains_that_make_no_sense_are_told_in_one_line(plan, model, chain, told):
    for scale in ("paper", "mini", "smoke"):
        with pytest.raises(UsageError) as caught:
            plan.resolve(Run(scale, model, 0, chain))
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_mask_must_hide_some_patches_and_keep_some(plan):
    run = Run("smoke", "crate_mae_base", 0, CHAIN, "trial")
    with pytest.raises(UsageError, match=r"imagenet1k_mae: mask_ratio 0.97 masks all of 16"):
        plan.resolve(run, {"mask_ratio": 0.97})


def test_the_published_recipe_and_sizes(plan):
    recipe = plan.experiments.recipe("imagenet1k_mae", "paper")
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size) == (3e-5, 0.1, 4096)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.mask_ratio) == (800, 40, 0.75)
    printed = {
        "crate_mae_small": 25.4,
        "crate_mae_base": 44.6,
        "vit_mae_small": 47.6,
        "vit_mae_base": 143.8,
    }
    for name, millions in printed.items():
        run = Run("mini", name, 0, ("architecture",))
        found = cost(plan, run).parameters
        assert round(found / 1e6, 1) == millions
        pretraining = cost(plan, Run("paper", name, 0, CHAIN))
        assert pretraining.parameters == found
        classifier = cost(plan, Run("paper", name, 0, (*CHAIN, "pets_mae")))
        assert classifier.parameters < found  # no decoder
        looks = 800 // 50
        assert pretraining.eval_flops * pretraining.examples * 3 == pytest.approx(
            pretraining.train_flops * 50_000 * (looks + 1)
        )
