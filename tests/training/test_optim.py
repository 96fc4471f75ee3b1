"""Optimisers against torch's own, the schedule against hand-worked points, the decay mask."""

import subprocess
import sys

import lion_pytorch
import pytest
import torch
from torch import nn

from crate.models.build import create_model
from crate.recipes import Training
from crate.training.optim import AdamW, Lion, learning_rate, make_optimizer, parameter_groups

TINY = {"num_classes": 3, "image_size": 14, "dim": 8, "depth": 1, "heads": 2, "patch_size": 7}


def make_recipe(**keys) -> Training:
    base = {"task": "any", "dataset": "any", "follows": [], "epochs": 1.0, "batch_size": 1}
    return Training(**base | {"lr": 1e-3} | keys)


def random_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (5,), (33, 17), (1, 1, 4)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(step: int, *sets: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(step)
    for same in zip(*sets, strict=True):
        gradient = torch.randn(same[0].shape, generator=generator)
        for parameter in same:
            parameter.grad = gradient.clone()


def grouped(parameters: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": parameters[:2], "weight_decay": 0.1, "lr": 1.0},
        {"params": parameters[2:], "weight_decay": 0.0, "lr": 1.0},
    ]


@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_adamw_is_torchs(kernel):
    mine, theirs = random_parameters(), random_parameters()
    ours = AdamW(grouped(mine), betas=[0.9, 0.95], eps=1e-8)
    torchs = torch.optim.AdamW(grouped(theirs), lr=1.0, betas=(0.9, 0.95), **{kernel: True})
    for step in range(20):
        for group in ours.param_groups + torchs.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        set_gradients(step, mine, theirs)
        if step == 5:  # a parameter that got no gradient is left alone, its own clock too
            mine[1].grad = theirs[1].grad = None
        ours.step()
        torchs.step()
    for a, b, start in zip(mine, theirs, random_parameters(), strict=True):
        tolerance = {} if kernel == "foreach" else {"rtol": 0, "atol": 0}  # bit-equal if fused
        torch.testing.assert_close(a, b, **tolerance)
        assert not torch.equal(a, start)


def test_lion_is_bit_equal_to_lion_pytorchs():
    mine, theirs = random_parameters(), random_parameters()
    ours = Lion(grouped(mine), betas=[0.9, 0.99])
    published = lion_pytorch.Lion(grouped(theirs), lr=1.0, betas=(0.9, 0.99))
    for step in range(20):
        for group in ours.param_groups + published.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        set_gradients(step, mine, theirs)
        if step == 5:
            mine[1].grad = theirs[1].grad = None
        ours.step()
        published.step()
    for a, b, start in zip(mine, theirs, random_parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)


def test_adamw_goes_on_from_its_saved_state():
    whole, halves = random_parameters(), random_parameters()
    straight = AdamW(grouped(whole), betas=[0.9, 0.999], eps=1e-8)
    first = AdamW(grouped(halves), betas=[0.9, 0.999], eps=1e-8)
    second = AdamW(grouped(halves), betas=[0.9, 0.999], eps=1e-8)
    for step in range(6):
        if step == 3:
            second.load_state_dict(first.state_dict())
        set_gradients(step, whole, halves)
        straight.step()
        (first if step < 3 else second).step()
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_lion_decays_the_kernels_group_only():
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    recipe = make_recipe(
        optimizer="lion", lr=0.1, weight_decay=0.5, decay="kernels", betas=[0.9, 0.99]
    )
    optimizer = make_optimizer(model, recipe)
    # By hand: p ← (1 − lr wd) p − lr sign(0.9 m + 0.1 g), then m ← 0.99 m + 0.01 g.
    for gradient, weight, bias in [
        (2.0, 0.95 - 0.1, 1 - 0.1),
        (-1.0, 0.85 * 0.95 + 0.1, 0.9 + 0.1),  # sign(0.9 · 0.02 − 0.1) = −1
    ]:
        model.weight.grad = torch.full((1, 1), gradient)
        model.bias.grad = torch.full((1,), gradient)
        optimizer.step()
        assert model.weight.item() == pytest.approx(weight, abs=1e-6)
        assert model.bias.item() == pytest.approx(bias, abs=1e-6)


@pytest.mark.parametrize(
    ("index", "rate"),
    [
        (0, 0.25),  # first of four warm-up updates
        (2, 0.75),
        (3, 1.0),  # warm-up ends at the peak
        (4, 1.0),  # the cosine starts there
        (8, 0.1 + 0.45 * (1 + 0.5**0.5)),  # a quarter of the way: cos 45°
        (12, 0.55),  # half-way between peak and end
        (16, 0.1 + 0.45 * (1 - 0.5**0.5)),
        (20, 0.1),
    ],
)
def test_schedule_by_hand(index, rate):
    recipe = make_recipe(lr=1.0, min_lr=0.1, epochs=2, warmup_updates=4)
    assert learning_rate(recipe, index, 10) == pytest.approx(rate, abs=1e-12)


def test_schedule_without_warm_up_or_cosine():
    assert learning_rate(make_recipe(lr=2.0), 0, 5) == 2.0
    assert learning_rate(make_recipe(lr=2.0, warmup_updates=5), 4, 5) == 2.0  # all of it warm-up
    linear = make_recipe(lr=1.0, min_lr=0.2, schedule="linear", warmup_updates=2)
    rates = [learning_rate(linear, index, 12) for index in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2])


def test_warm_up_from_zero_is_one_update_behind():
    """The JAX code's rate is that of the updates before: 0 at the first, the peak after them."""
    recipe = make_recipe(lr=1.0, epochs=2, warmup_updates=4, warmup_from_zero=True)
    rates = [learning_rate(recipe, index, 10) for index in (0, 1, 3, 4, 12, 20)]
    assert rates == pytest.approx([0, 0.25, 0.75, 1.0, 0.5, 0.0])


def test_the_schedule_of_2023_by_epoch():
    """min((e + 1) / warm-up, cosine of e / epochs), constant within an epoch."""
    recipe = make_recipe(
        lr=2.0, epochs=200, warmup_epochs=20, schedule="cosine_by_epoch", batch_size=512
    )
    rates = [learning_rate(recipe, index, 10) for index in range(2000)]
    for epoch, share in ((0, 1 / 20), (9, 0.5), (100, 0.5), (199, 6.168e-5)):
        assert rates[10 * epoch : 10 * epoch + 10] == [pytest.approx(2 * share, rel=1e-4)] * 10
    # a cosine that begins after the warm-up, moving with each update, has 9.7 % more in sum
    ours = make_recipe(lr=2.0, epochs=200, warmup_epochs=20)
    more = sum(learning_rate(ours, index, 10) for index in range(2000)) / sum(rates)
    assert more == pytest.approx(1.097, abs=0.002)


def test_length_in_epochs_or_updates():
    assert make_recipe(epochs=1.5).total_updates(10) == 15
    counted = make_recipe(epochs=None, updates=7, warmup_updates=9)
    assert (counted.total_updates(10), counted.warmup(10)) == (7, 7)
    assert make_recipe(epochs=4, warmup_epochs=0.26).warmup(10) == 3
    assert make_recipe(epochs=None, updates=7).trains
    assert not make_recipe(epochs=None, updates=0).trains
    for wrong in ({"epochs": 1, "updates": 5}, {"epochs": None}):
        with pytest.raises(ValueError, match="one of 'epochs' and 'updates'"):
            make_recipe(**wrong)


KERNELS = {
    "crate_alpha_base_patch32": {
        "patch_embedding.projection.weight",
        "blocks.0.attention.subspaces.weight",
        "blocks.0.attention.projection.weight",
        "head.weight",
    },
    "vit_base_patch32": {
        "patch_embedding.projection.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.projection.weight",
        "blocks.0.feedforward.hidden.weight",
        "blocks.0.feedforward.output.weight",
        "head.weight",
    },
}


@pytest.mark.parametrize("name", KERNELS)
def test_decay_touches_kernels_or_everything(name):
    model = create_model(name, **TINY)
    names = {id(parameter): key for key, parameter in model.named_parameters()}

    def decayed(decay: str) -> set[str]:
        groups = parameter_groups(model, make_recipe(weight_decay=0.3, decay=decay))
        assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0][: 1 + (decay != "all")]
        return {names[id(parameter)] for parameter in groups[0]["params"]}

    assert decayed("kernels") == KERNELS[name]
    assert decayed("all") == set(names.values())


def test_layer_decay_by_hand():
    """BEiT's: with 2 blocks the head has factor 1, the last block 0.5, the stem 0.125."""
    model = create_model("crate_alpha_base_patch32", **(TINY | {"depth": 2}))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = parameter_groups(
        model, make_recipe(weight_decay=0.3, decay="matrices", layer_decay=0.5)
    )
    scale = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    assert {scale[n] for n in names.values() if n.startswith("blocks.1.")} == {0.5}
    assert {scale[n] for n in names.values() if n.startswith("blocks.0.")} == {0.25}
    below = {n for n in scale if n.split(".")[0] in ("positions", "class_token", "patch_embedding")}
    assert {scale[n] for n in below} == {0.125}
    assert {scale[n] for n in scale if n.startswith(("norm", "head"))} == {1.0}
    assert {n for n, value in decay.items() if value} == KERNELS["crate_alpha_base_patch32"] | {
        "blocks.0.feedforward.dictionary",
        "blocks.0.feedforward.decoder",
        "blocks.1.feedforward.dictionary",
        "blocks.1.feedforward.decoder",
        "blocks.1.attention.subspaces.weight",
        "blocks.1.attention.projection.weight",
    }


def test_training_imports_neither_the_compiler_nor_torchvision():
    code = """
import sys, torch
import crate.training.loop, crate.tasks.classification.task
from crate.training.optim import AdamW, Lion
p = torch.nn.Parameter(torch.ones(2))
p.grad = torch.ones(2)
AdamW([{"params": [p], "weight_decay": 0.1, "lr": 0.1}], betas=[0.9, 0.999], eps=1e-8).step()
Lion([{"params": [p], "weight_decay": 0.1, "lr": 0.1}], betas=[0.9, 0.99]).step()
assert p[0] < 1
print([name for name in ("torch._dynamo", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
