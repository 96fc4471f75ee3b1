"""What cannot work is told when the plan is made, before any parent trains; without torch."""

import subprocess
import sys

import pytest

from crate.errors import UsageError
from crate.runs import Run

ALPHA, GPT = "crate_alpha_tiny_patch16", "crate_gpt_base"
IMAGENET = ("imagenet21k", "imagenet1k")


def told(plan, scale: str, model: str, chain: tuple, **changes) -> str:
    with pytest.raises(UsageError) as caught:
        plan.resolve(Run(scale, model, 0, chain), changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("scale", "model", "chain", "changes", "reason"),
    [
        (
            "smoke",
            ALPHA,
            IMAGENET,
            {"batch_size": 1_025},
            "batch_size: 1,025 is more than the 1,024 training images of Fashion-MNIST",
        ),
        (
            "paper",
            ALPHA,
            ("imagenet21k", "imagenet1k", "flowers102"),
            {"batch_size": 1_021},
            "batch_size: 1,021 is more than the 1,020 training images of Oxford Flowers-102",
        ),
        (
            "paper",
            ALPHA,
            IMAGENET,
            {"batch_size": 1_271_168, "evaluate": "validation"},  # 10,000 are held out
            "batch_size: 1,271,168 is more than the 1,271,167 training images of ImageNet-1K",
        ),
        (
            "smoke",
            ALPHA,
            IMAGENET,
            {"epochs": 0.01, "updates": None, "batch_size": 512},
            "epochs: 0.01 of 1,024 training images in batches of 512 are not a single update",
        ),
        (
            "smoke",
            GPT,
            ("openwebtext",),
            {"block_size": 200_000},
            "block_size: one window needs 200,001 tokens, State of the Union addresses has 108,104",
        ),
        (
            "smoke",
            ALPHA,
            IMAGENET,
            {"dont_load": ["hed"]},
            "dont_load: the model has no 'hed'; did",
        ),
        (
            "paper",
            ALPHA,
            IMAGENET,
            {"dont_load": ["blocks.12"]},
            "the model has no 'blocks.12'; di",
        ),
        ("paper", GPT, ("openwebtext",), {"dont_load": ["head"]}, "the model has no 'head'"),
        (
            "paper",
            "crate_tiny_patch8",
            ("imagenet21k_cpal", "coco_maskcut_cpal"),
            {"layer": 12},
            "layer: 12 is not a layer of the model, which has 12, counted from 0",
        ),
        (
            "paper",
            "crate_tiny_patch8",
            ("imagenet21k_cpal", "voc2012_attention"),
            {"layer": 99},
            "layer: 99 is not a layer of the model, which has 12, counted from 0",
        ),
        (
            "paper",
            ALPHA,
            ("imagenet21k", "ade20k"),
            {"layers": [3, 5, 7, 12]},
            "layers: 12 is not a layer of the model, which has 12, counted from 0",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_told_by_the_plan(plan, scale, model, chain, changes, reason):
    message = told(plan, scale, model, chain, **changes)
    assert reason in message
    assert message.endswith(f"(scale {scale})")


def test_what_fits_is_planned(plan):
    for changes in ({"batch_size": 1_024}, {"dont_load": ["head", "blocks.1.attention.subspaces"]}):
        assert plan.resolve(Run("smoke", ALPHA, 0, IMAGENET), changes)
    # a control without a network, and a stage that trains nothing
    run = Run("paper", ALPHA, 0, ("released", "imagenet1k_evaluated"))
    assert plan.resolve(run, {"batch_size": 10**7})
    assert plan.resolve(Run("paper", ALPHA, 0, ("ade20k_whole_image",)), {"layers": [3, 5, 7, 99]})
    run = Run("paper", ALPHA, 0, ("imagenet21k", "ade20k_linear"))
    assert plan.resolve(run, {"layers": [3, 5, 99, 11]})  # the last alone is read


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"betas": [0.9, 1.0]}, "betas: [0.9, 1.0] should be two numbers from 0 to below 1"),
        ({"betas": [-0.1, 0.9]}, "betas: [-0.1, 0.9] should be two numbers from 0 to below 1"),
        ({"randaugment": [2, 11]}, "randaugment: [2, 11] should be [operations from 1, level from"),
        ({"randaugment": [2, -1]}, "randaugment: [2, -1] should be [operations from 1, level from"),
        ({"randaugment": [0, 9]}, "randaugment: [0, 9] should be [operations from 1, level from 0"),
    ],
)
def test_values_outside_their_range_are_told_by_the_plan(plan, changes, reason):
    with pytest.raises(UsageError) as caught:
        plan.resolve(Run("smoke", ALPHA, 0, IMAGENET), changes)
    assert reason in str(caught.value)
    plan.resolve(Run("smoke", ALPHA, 0, IMAGENET), {"betas": [0, 0.999], "randaugment": [1, 10]})
    torchvision = {"randaugment": [1, 30], "pipeline": "torchvision"}
    plan.resolve(Run("smoke", ALPHA, 0, IMAGENET), torchvision)


def test_it_needs_no_torch():
    code = "import sys; import crate.planning.feasible; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
