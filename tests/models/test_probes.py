"""Classifiers on features: against scikit-learn, at the optimum, against literal loops."""

import math

import pytest
import torch

from crate.errors import RunError, UsageError
from crate.models import probes
from crate.models.probes import TOLERANCE, LinearProbe, neighbour_votes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def problem():
    """Correlated features of unlike sizes, one of them constant: (240, 12), 4 classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (240,), generator=generator)
    centres = torch.randn(4, 12, generator=generator)
    noise = torch.randn(240, 12, generator=generator)
    mixing = torch.randn(12, 12, generator=generator) * torch.logspace(-2, 2, 12)
    features = (centres[labels] + 2 * noise) @ mixing + 3
    features[:, 5] = 7.0
    return features, labels


def objective(weight, bias, x, labels, penalty):
    """The stated loss, from its words."""
    cross_entropy = 0.0
    for row, label in zip(x, labels.tolist(), strict=True):
        logits = weight @ row + bias
        cross_entropy = cross_entropy - (logits[label] - logits.exp().sum().log())
    return cross_entropy / len(x) + penalty / 2 * (weight**2).sum()


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_logistic_regression_is_scikit_learns_and_at_its_optimum(problem, penalty):
    from sklearn.linear_model import LogisticRegression

    features, labels = problem
    probe = LinearProbe(features, labels, classes=4, penalty=penalty)
    x = features.double()
    x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
    weight, bias = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = objective(weight, bias, x, labels, penalty)
    loss.backward()
    largest = max(weight.grad.abs().max(), bias.grad.abs().max()).item()
    assert largest <= TOLERANCE
    assert probe.gradient == pytest.approx(largest, abs=1e-12)

    # its objective is C × the sum of cross-entropies + half the squared weights
    other = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-9, max_iter=20_000)
    other.fit(x.numpy(), labels.numpy())
    theirs = (torch.from_numpy(part) for part in (other.coef_, other.intercept_))
    assert objective(*theirs, x, labels, penalty).item() == pytest.approx(loss.item(), rel=1e-8)
    expected = torch.from_numpy(other.predict_proba(x.numpy()))
    found = probe.logits(features).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.argmax(1).tolist() == other.predict(x.numpy()).tolist()


def test_standardised_features_have_no_unit(problem):
    features, labels = problem
    one = LinearProbe(features, labels, classes=4, penalty=0.1).logits(features)
    scaled = 64 * features - 32
    other = LinearProbe(scaled, labels, classes=4, penalty=0.1).logits(scaled)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3)  # the 1e-6 in the variance


def test_what_cannot_be_fitted_is_one_line(problem, monkeypatch):
    features, labels = problem
    with pytest.raises(UsageError, match="a penalty must be above 0, got 0"):
        LinearProbe(features, labels, classes=4, penalty=0.0)
    with pytest.raises(RunError, match="not finite"):
        LinearProbe(features / 0, labels, classes=4, penalty=0.1)
    monkeypatch.setattr(probes, "ITERATIONS", 10)
    told = (
        r"penalty 0\.0001 did not converge: a gradient of .* after 10 iterations, "
        r"above 1e-07; leave this"
    )
    with pytest.raises(RunError, match=told):
        LinearProbe(features, labels, classes=4, penalty=1e-4)


def test_votes_are_the_literal_loop(monkeypatch):
    monkeypatch.setattr(probes, "CHUNK", 4)  # the last chunk is smaller
    generator = torch.Generator().manual_seed(1)
    queries, bank = (torch.randn(n, 5, generator=generator) for n in (10, 30))
    labels = torch.randint(6, (30,), generator=generator)
    found = neighbour_votes(queries, bank, labels, classes=6, neighbours=7, temperature=0.07)
    for query, votes in zip(queries.tolist(), found.tolist(), strict=True):
        cosines = [
            sum(a * b for a, b in zip(query, row, strict=True))
            / math.hypot(*query)
            / math.hypot(*row)
            for row in bank.tolist()
        ]
        expected = [0.0] * 6
        for index in sorted(range(30), key=lambda i: -cosines[i])[:7]:
            expected[labels[index]] += math.exp(cosines[index] / 0.07)
        assert votes == pytest.approx(expected, rel=1e-4)
    assert (found == 0).any()  # a class without a vote
    one = neighbour_votes(bank, bank, labels, classes=6, neighbours=1, temperature=0.07)
    assert one.argmax(1).tolist() == labels.tolist()  # each is nearest to itself
    told = "neighbours: 31 is more than the 30 training images; lower it"
    with pytest.raises(UsageError, match=told):
        neighbour_votes(queries, bank, labels, classes=6, neighbours=31, temperature=0.07)


def test_a_hand_worked_vote():
    bank = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    labels = torch.tensor([1, 0, 1])
    votes = neighbour_votes(
        torch.tensor([[3.0, 0.0]]), bank, labels, classes=3, neighbours=2, temperature=0.5
    )
    torch.testing.assert_close(votes, torch.tensor([[1.0, math.e**2, 0.0]]).double())
