"""Fifty updates of the whole recipe against literal references, in float64.

The references are the papers' update rules written out with loops: CRATE-alpha's (its JAX code:
clipping, Adam, the decay mask, a schedule from rate 0) and CRATE's of 2023 (Lion, its schedule).
"""

import math

import pytest
import torch
import torch.nn.functional as F

from crate.models.build import create_model
from crate.planning.loader import Experiments
from crate.runtime import Runtime
from crate.training.loop import update
from crate.training.optim import learning_rate, make_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES, PER_EPOCH = 50, 5
SIZE = {"num_classes": 5, "image_size": 14, "dim": 12, "depth": 2, "heads": 2, "patch_size": 7}
CPU = Runtime(torch.device("cpu"), torch.float32, "test")


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(name, **SIZE).double()


def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(8, 3, 14, 14, dtype=torch.float64, generator=generator)
    return images, torch.randint(5, (8,), generator=generator)


def loss(model: torch.nn.Module, examples: tuple) -> torch.Tensor:
    # large enough that gradients are clipped in most updates
    return 20 * F.cross_entropy(model(examples[0]), examples[1])


def ours(name: str, recipe) -> dict[str, torch.Tensor]:
    model = tiny(name)
    optimizer = make_optimizer(model, recipe)
    for index in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, index, PER_EPOCH) * group["scale"]
        update(model, optimizer, loss, batch(index), 3, recipe, CPU)
    return dict(model.named_parameters())


def equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name].data, value, atol=1e-10, rtol=0)


@pytest.fixture(scope="module")
def experiments() -> Experiments:
    return Experiments()


def test_crate_alpha(experiments):
    name = "crate_alpha_base_patch16"
    recipe = experiments.recipe("imagenet21k", "paper").model_copy(
        update={"epochs": UPDATES / PER_EPOCH, "warmup_epochs": 2, "lr": 8e-4}
    )
    peak, least, decay, clip, b1, b2 = 8e-4, 1e-6, 0.1, 1.0, 0.9, 0.95
    model = tiny(name)
    parameters = dict(model.named_parameters())
    # the mask `.*/kernel$`: flax calls weights of linear maps and convolutions kernels
    kernels = {
        f"{module}.weight"
        for module, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert any("dictionary" in each for each in parameters.keys() - kernels)
    first = {each: torch.zeros_like(value) for each, value in parameters.items()}
    second = {each: torch.zeros_like(value) for each, value in parameters.items()}
    clipped = 0
    for index in range(UPDATES):
        gradients = torch.autograd.grad(loss(model, batch(index)), list(parameters.values()))
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        clipped += norm > clip
        warm, total = 2 * PER_EPOCH, UPDATES
        share = min(1.0, max(0.0, (index - warm) / (total - warm)))
        floor = least / peak
        rate = peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
        rate *= min(1.0, index / warm)
        for (each, value), gradient in zip(parameters.items(), gradients, strict=True):
            gradient = gradient * (clip / norm) if norm > clip else gradient
            first[each] = b1 * first[each] + (1 - b1) * gradient
            second[each] = b2 * second[each] + (1 - b2) * gradient**2
            mean = first[each] / (1 - b1 ** (index + 1))
            square = second[each] / (1 - b2 ** (index + 1))
            step = mean / (square.sqrt() + 1e-8)
            if each in kernels:
                step = step + decay * value.data
            value.data -= rate * step
    assert clipped > UPDATES / 2
    equal(ours(name, recipe), {each: value.data for each, value in parameters.items()})


def test_crate_of_2023(experiments):
    name = "crate_base_patch16"
    recipe = experiments.recipe("imagenet1k_lion", "paper").model_copy(
        update={"epochs": UPDATES / PER_EPOCH, "warmup_epochs": 3}
    )
    peak, decay, b1, b2 = 2.4e-4, 0.5, 0.9, 0.99
    model = tiny(name)
    parameters = dict(model.named_parameters())
    momentum = {each: torch.zeros_like(value) for each, value in parameters.items()}
    for index in range(UPDATES):
        gradients = torch.autograd.grad(loss(model, batch(index)), list(parameters.values()))
        epoch, epochs = index // PER_EPOCH, UPDATES / PER_EPOCH
        rate = peak * min((epoch + 1) / 3, 0.5 * (1 + math.cos(math.pi * epoch / epochs)))
        for (each, value), gradient in zip(parameters.items(), gradients, strict=True):
            sign = torch.sign(b1 * momentum[each] + (1 - b1) * gradient)
            value.data = value.data * (1 - rate * decay) - rate * sign
            momentum[each] = b2 * momentum[each] + (1 - b2) * gradient
    equal(ours(name, recipe), {each: value.data for each, value in parameters.items()})
