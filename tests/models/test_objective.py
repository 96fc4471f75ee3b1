"""Coding rates against closed forms and literal equations; the terms of a layer against records."""

import math

import pytest
import torch

from crate.errors import RunError, UsageError
from crate.models.objective import (
    coding_rate,
    compression,
    layer_terms,
    nonzeros,
    principal_colours,
    sparse_rate_reduction,
    subspaces_of,
)
from crate.models.vision import VisionTransformer
from crate.models.zoo import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal_rate(z, epsilon):
    """½ logdet(I + d/(N ε²) Zᵀ Z), tokens as the columns of Z."""
    z = z.T
    d, n = z.shape
    return 0.5 * torch.logdet(torch.eye(n, dtype=z.dtype) + d / (n * epsilon**2) * z.T @ z)


# --- matrices whose rate is known ----------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5), (6, 6)])
def test_the_rate_of_known_matrices(n, d):
    alpha = d / (n * 0.3**2)

    def rate(z):
        return coding_rate(z, epsilon=0.3).item()

    assert rate(torch.zeros(n, d)) == 0
    # orthogonal directions of length 2, as many as there may be
    least = min(n, d)
    orthogonal = torch.zeros(n, d)
    orthogonal[range(least), range(least)] = 2.0
    assert rate(orthogonal) == pytest.approx(least / 2 * math.log1p(alpha * 4), rel=1e-13)
    # rank one: a bᵀ
    a, b = random(n), random(d, seed=1)
    known = 0.5 * math.log1p(alpha * (a @ a).item() * (b @ b).item())
    assert rate(a[:, None] * b) == pytest.approx(known, rel=1e-12)


def test_rank_deficient_tokens_of_any_size_are_counted_once():
    """All tokens alike: one eigenvalue; what rounding makes of the others must not count."""
    token = random(64)
    for size in (1e-6, 1.0, 1e6):
        z = (size * token).expand(200, 64)
        known = 0.5 * math.log1p(64 / 0.1**2 * (size * token).square().sum().item())
        assert coding_rate(z).item() == pytest.approx(known, rel=1e-12)


def test_small_directions_beside_a_large_token_count_as_far_as_float32_tells_them():
    """The limit that is stated: singular values below some 1e-7 of the largest are zeros."""
    z = torch.eye(3, 5, dtype=torch.float64)
    alpha = 5 / (3 * 0.1**2)
    for large, told in ((1e6, 2), (1e9, 0)):
        z[0, 0] = large
        known = 0.5 * (math.log1p(alpha * large**2) + told * math.log1p(alpha))
        assert coding_rate(z).item() == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_the_rate_is_the_equation_whichever_gram_is_smaller(shape):
    z = random(3, 2, *shape)
    found = coding_rate(z, epsilon=0.5)
    assert found.shape == (3, 2)
    assert found.dtype == torch.float64
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(found[i, j], literal_rate(z[i, j], 0.5))


def test_rotations_change_no_rate_and_subspaces_turn_with_the_tokens():
    z, subspaces = random(10, 6), random(3, 6, 2, seed=1)
    turn = torch.linalg.qr(random(6, 6, seed=2)).Q
    torch.testing.assert_close(coding_rate(z @ turn), coding_rate(z))
    torch.testing.assert_close(compression(z @ turn, turn.T @ subspaces), compression(z, subspaces))
    assert not torch.isclose(compression(z @ turn, subspaces), compression(z, subspaces))


def test_compression_is_the_sum_over_heads_with_their_own_dimension():
    """p/(N ε²), not d/(N ε²); orthogonal subspaces that hold one token each are known."""
    z, subspaces = random(5, 6), random(3, 6, 2, seed=1)
    known = sum(literal_rate(z @ u, 0.2) for u in subspaces)
    torch.testing.assert_close(compression(z, subspaces, epsilon=0.2), known)
    bases = torch.eye(6).view(6, 3, 2).permute(1, 0, 2)  # e1 e2 | e3 e4 | e5 e6
    z = torch.zeros(3, 6)
    z[0, 0] = z[1, 2] = z[2, 4] = 1.0
    found = compression(z, bases, epsilon=0.1).item()
    assert found == pytest.approx(3 * 0.5 * math.log1p(2 / (3 * 0.01)))


def test_the_named_option_is_the_official_helper():
    """vis_utils/coding_rate.py, rewritten: unit projections, p/(m eps) with eps 0.01, N x N."""
    z, subspaces = random(2, 5, 6), random(3, 6, 2, seed=1)
    for picture, found in zip(z, compression(z, subspaces, normalised=True), strict=True):
        total = 0.0
        for u in subspaces:
            x = picture @ u
            x = x / x.norm(dim=-1, keepdim=True)
            w = x.T  # (p, m)
            p, m = w.shape
            identity = torch.eye(m, dtype=w.dtype)
            total += torch.logdet(identity + p / (m * 0.01) * (w.T @ w)) / 2
        torch.testing.assert_close(found, total)
    assert compression(torch.zeros(5, 6), subspaces, normalised=True) == 0  # the helper's is NaN


def test_gradients_are_finite_and_those_of_the_equation():
    z = random(4, 7).requires_grad_()
    assert torch.autograd.gradcheck(coding_rate, z)
    alike = torch.ones(6, 4, requires_grad=True)  # rank one, equal eigenvalues
    coding_rate(alike, normalised=True).backward()
    assert alike.grad.isfinite().all()
    zeros = torch.zeros(6, 4, requires_grad=True)
    sparse_rate_reduction(zeros, random(2, 4, 2), weight=0.1).backward()
    assert zeros.grad.isfinite().all()


def test_the_objective_is_its_three_terms():
    z, subspaces = random(5, 6).clamp(min=0), random(3, 6, 2, seed=1)
    count = int((z != 0).sum())
    assert nonzeros(z) == count < 30
    known = coding_rate(z) - compression(z, subspaces) - 0.1 * count
    torch.testing.assert_close(sparse_rate_reduction(z, subspaces, weight=0.1), known)
    with pytest.raises(UsageError, match="epsilon must be positive, got 0"):
        coding_rate(z, epsilon=0)


# --- of a network ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["crate_tiny_patch8", "crate_alpha_tiny_patch8", "vit_tiny_patch8", "crate_tiny_patch8_mhsa"],
)
def test_terms_of_layers_are_those_of_the_records(name):
    torch.manual_seed(0)
    spec = resolve(name, dim=12, depth=3, heads=2)
    model = VisionTransformer(spec, num_classes=3, image_size=24).eval()
    images = random(2, 3, 24, 24).float()
    with torch.no_grad():
        records = model.layer_records(images)
        found = [terms for terms, _ in layer_terms(model, images, weight=0.2, epsilon=0.4)]
        entering = [model.embed(images), *(record["output"] for record in records)]
    assert len(found) == 3
    for block, before, record, terms in zip(
        model.blocks, entering[:3], records, found, strict=True
    ):
        u = subspaces_of(block.attention)
        assert u.shape == (2, 12, 6)
        for b in range(2):
            half = record["attention_output"][b].double()
            after = record["output"][b].double()
            attended = block.norm1(before[b]).double()
            heads = [each.double() for each in u]
            known = sum(literal_rate(half @ each, 0.4) for each in heads)
            torch.testing.assert_close(terms["compression"][b], known)
            unit = [torch.nn.functional.normalize(attended @ each, dim=-1) for each in heads]
            known = sum(literal_rate(each, 0.1) for each in unit)
            torch.testing.assert_close(terms["official"][b], known)
            share = (after != 0).double().mean()
            torch.testing.assert_close(terms["sparsity"][b], share)
            known = literal_rate(after, 0.4) - 0.2 * share * after.numel()
            known -= sum(literal_rate(after @ each, 0.4) for each in heads)
            torch.testing.assert_close(terms["objective"][b], known)
            torch.testing.assert_close(terms["norms"][b], after.norm(dim=-1))
        assert ("codes" in terms) == (spec.feedforward != "MLP")
        if spec.feedforward == "ISTA":  # its codes are the layer's output
            torch.testing.assert_close(terms["codes"], terms["sparsity"])
            assert (terms["sparsity"] < 1).all()
        if spec.feedforward == "ODL":
            assert (terms["codes"] < 1).all()
            assert (terms["sparsity"] == 1).all()


def test_tokens_that_are_not_finite_are_one_line():
    spec = resolve("crate_tiny_patch8", dim=12, depth=2, heads=2)
    model = VisionTransformer(spec, num_classes=3, image_size=24).eval()
    with torch.no_grad():
        model.blocks[1].attention.projection.weight[0, 0] = math.nan
        layers = layer_terms(model, random(1, 3, 24, 24).float(), weight=0.1)
        next(layers)
        with pytest.raises(RunError, match="the network's tokens are not finite"):
            next(layers)


def test_half_precision_changes_the_network_and_no_rate():
    z, subspaces = random(5, 6).float(), random(3, 6, 2, seed=1).float()
    known = sparse_rate_reduction(z, subspaces, weight=0.1)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert sparse_rate_reduction(z, subspaces, weight=0.1) == known


def test_subspaces_are_what_attention_projects_on():
    x = random(4, 12).float()
    for name in ("crate_tiny_patch8", "vit_tiny_patch8"):
        spec = resolve(name, dim=12, depth=1, heads=3)
        model = VisionTransformer(spec, num_classes=3, image_size=8)
        attention = model.blocks[0].attention
        if name.startswith("crate"):
            known = attention.subspaces(x)
        else:
            torch.nn.init.zeros_(attention.qkv.bias)
            known = attention.qkv(x)[:, 12:24]  # keys
        found = torch.cat([x @ u for u in subspaces_of(attention)], dim=1)
        torch.testing.assert_close(found, known)


# --- colours ----------------------------------------------------------------------------------


def test_colours_are_the_principal_components():
    from sklearn.decomposition import PCA

    """The official recipe: four components over all images, the last three scaled by image."""
    keys = random(2, 40, 8) * torch.tensor([9.0, 5, 3, 2, 1, 1, 1, 1])
    keys[1] *= 3  # an image of larger features has colours as strong
    known = PCA(4).fit_transform(keys.flatten(0, 1).numpy())[:, 1:].reshape(2, 40, 3)
    found = principal_colours(keys)
    for image in range(2):
        for k in range(3):  # a component has no sign
            theirs = torch.tensor(known[image, :, k])
            theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
            mine = found[image, :, k]
            assert min((mine - theirs).abs().max(), (1 - mine - theirs).abs().max()) < 1e-9
    torch.testing.assert_close(principal_colours(keys), found, atol=0, rtol=0)
    flat = principal_colours(torch.ones(1, 5, 8))
    assert (flat == 0.5).all()
    assert principal_colours(random(1, 5, 2)).shape == (1, 5, 3)
