"""Initial weights that are paired by seed."""

import pytest
import torch

from crate.models.build import create_model
from crate.models.initial import PairedDraws

SIZE = {"num_classes": 7, "image_size": 12, "dim": 8, "depth": 2, "heads": 2, "patch_size": 3}
VISION = ("crate_base_patch16", "crate_alpha_base_patch16", "vit_base_patch16")


def weights(name: str, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(len(changes) + 17)  # what was drawn before does not matter
    with PairedDraws(seed):
        return create_model(name, **SIZE | changes).state_dict()


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("change", [{"image_size": 24}, {"num_classes": 3}, {"depth": 3}])
def test_weights_agree_where_shapes_do(name, change):
    first, other = weights(name), weights(name, **change)
    shared = [key for key in first if key in other and first[key].shape == other[key].shape]
    assert len(shared) > len(first) // 2
    for key in shared:
        assert torch.equal(first[key], other[key]), key


@pytest.mark.parametrize("name", VISION)
def test_a_seed_decides_and_another_differs(name):
    first, again, other = weights(name), weights(name), weights(name, seed=1)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        if value.unique().numel() > 1:
            assert not torch.equal(value, other[key]), key
    drawn = [value for value in first.values() if value.unique().numel() > 1]
    for k, value in enumerate(drawn):  # tensors of one shape are not copies of each other
        assert not any(value.shape == rest.shape and torch.equal(value, rest) for rest in drawn[:k])


def test_values_have_the_scheme_of_the_model():
    plain = create_model("crate_alpha_base_patch16", **SIZE | {"dim": 64}).state_dict()
    paired = weights("crate_alpha_base_patch16", dim=64)
    for key, value in plain.items():
        if value.numel() > 1000:
            assert paired[key].std() == pytest.approx(value.std().item(), rel=0.1), key


def test_rows_of_an_ablation_share_what_they_share():
    """The variants of a table's rows: the same stem, attention and head for a seed."""
    alpha, plain = (
        weights("crate_alpha_base_patch16"),
        weights("crate_alpha_base_patch16", residual=False),
    )
    assert alpha.keys() == plain.keys()
    assert all(torch.equal(alpha[key], plain[key]) for key in alpha)
