"""Weights carried from parent to child: exact, adapted or refused, never half-loaded."""

import pytest
import torch
import torch.nn.functional as F

from crate.errors import RunError, UsageError
from crate.models.build import create_model
from crate.models.transfer import transfer_weights


def make(seed: int, name: str = "crate_alpha_base_patch32", **changes):
    torch.manual_seed(seed)
    tiny = {"num_classes": 4, "image_size": 24, "dim": 8, "depth": 2, "heads": 2, "patch_size": 6}
    return create_model(name, **tiny | changes)


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict, b: dict) -> set[str]:
    """Names whose tensors are equal."""
    return {name for name in a if torch.equal(a[name], b[name])}


def test_the_same_architecture_is_copied_exactly():
    parent, child = make(0), make(1)
    told = transfer_weights(child, state(parent), [])
    assert same(state(child), state(parent)) == set(state(parent))
    assert told == {"new": [], "resized": []}
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(child.eval()(images), parent.eval()(images))


def test_dont_load_names_exactly_or_by_prefix():
    parent, child = make(0, num_classes=4), make(1, num_classes=7)
    before = state(child)
    told = transfer_weights(child, state(parent), ["head", "patch_embedding.projection.weight"])
    kept = ["patch_embedding.projection.weight", "head.weight", "head.bias"]
    assert told == {"new": kept, "resized": []}
    after = state(child)
    assert all(torch.equal(after[name], before[name]) for name in kept)
    rest = set(after) - set(kept)
    assert same({name: after[name] for name in rest}, state(parent)) == rest


@pytest.mark.parametrize("entry", ["hed", "blocks.0.norm", "head.weigh"])
def test_a_misspelt_dont_load_is_refused(entry):
    child = make(1)
    before = state(child)
    with pytest.raises(UsageError, match=rf"dont_load: the model has no '{entry}'") as caught:
        transfer_weights(child, state(make(0)), [entry])
    assert "did you mean" in str(caught.value)
    assert same(state(child), before) == set(before)


def test_positions_are_resized_to_a_finer_grid():
    parent, child = make(0), make(1, image_size=48)  # grid 4 → 8
    weights = state(parent)
    # A slope over the grid: bicubic follows it within a small ripple, away from the borders.
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    weights["positions"][0, 1:, 0] = (10 * rows + columns).flatten()
    told = transfer_weights(child, weights, [])
    assert told == {"new": [], "resized": ["positions"]}
    positions = child.positions.detach()
    assert positions.shape == (1, 65, 8)
    assert torch.equal(positions[:, 0], weights["positions"][:, 0])  # the class token's
    got = positions[0, 1:, 0].view(8, 8)
    centres = (torch.arange(8) + 0.5) / 2 - 0.5
    plane = 10 * centres[:, None] + centres
    assert torch.allclose(got[2:6, 2:6], plane[2:6, 2:6], atol=1.0)
    assert torch.allclose(got, -got.flip(0, 1) + 33, atol=1e-4)  # as symmetric as the slope


def test_patch_kernels_are_resized():
    parent, child = make(0), make(1, patch_size=3, image_size=12)  # the grid stays 4 x 4
    name = "patch_embedding.projection.weight"
    told = transfer_weights(child, state(parent), [])
    assert told == {"new": [], "resized": [name]}
    kernels = state(parent)[name]
    expected = F.interpolate(kernels, (3, 3), mode="bilinear", antialias=True)
    assert torch.equal(state(child)[name], expected)
    # and a flat kernel stays flat, whatever the interpolation
    weights = state(parent)
    weights[name] = torch.ones_like(weights[name]) * 0.5
    transfer_weights(child, weights, [])
    assert torch.allclose(state(child)[name], torch.full((8, 3, 3, 3), 0.5), atol=1e-6)


def lose_a_tensor(weights: dict) -> None:
    del weights["blocks.1.norm1.weight"]


def add_a_tensor(weights: dict) -> None:
    weights["blocks.2.norm1.weight"] = torch.ones(8)


def widen_the_head(weights: dict) -> None:
    weights["head.weight"] = torch.ones(5, 8)


def widen_positions(weights: dict) -> None:
    weights["positions"] = torch.ones(1, 17, 16)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lose_a_tensor, "have no 'blocks.1.norm1.weight'"),
        (add_a_tensor, "have 'blocks.2.norm1.weight', which this model lacks"),
        (widen_the_head, r"'head.weight' has shape \(5, 8\), this model needs \(4, 8\)"),
        (widen_positions, r"'positions' has shape \(1, 17, 16\)"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_untouched(damage, told):
    child, weights = make(1), state(make(0))
    before = state(child)
    damage(weights)
    with pytest.raises(RunError, match=told) as caught:
        transfer_weights(child, weights, [])
    assert "\n" not in str(caught.value)
    assert same(state(child), before) == set(before)


def test_another_architecture_is_refused():
    child = make(1)
    before = state(child)
    with pytest.raises(RunError, match="give a parent of the same architecture"):
        transfer_weights(child, state(make(0, "vit_base_patch32")), [])
    assert same(state(child), before) == set(before)
