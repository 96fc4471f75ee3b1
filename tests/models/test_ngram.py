"""The counting controls against their equations, written out over a dictionary."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from crate.models import ngram

RNG = np.random.RandomState(0)
VOCABULARY = 7
TEXT = RNG.choice(VOCABULARY - 1, 400, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]).astype(np.uint16)


def reference(text, before, after, order):
    """p(after | before) as the module's docstring has it."""
    single, pairs = Counter(text.tolist()), Counter(itertools.pairwise(text.tolist()))
    unigram = (single[after] + 1) / (len(text) + VOCABULARY)
    total = sum(count for (a, _), count in pairs.items() if a == before)
    if order == 1 or total == 0:
        return unigram
    followers = len({b for a, b in pairs if a == before})
    seen = max(pairs[before, after] - 0.75, 0) / total
    return seen + 0.75 * followers / total * unigram


@pytest.mark.parametrize("order", [1, 2])
def test_probabilities_are_the_equations_and_sum_to_one(order):
    counted = ngram.count(TEXT, VOCABULARY, order)
    for before in range(VOCABULARY):  # the last token never comes: only the unigram knows it
        ids = np.array([[before, after] for after in range(VOCABULARY)], np.uint16)
        found = [math.exp(counted.log_probabilities(pair)[0]) for pair in ids]
        wanted = [reference(TEXT, before, after, order) for after in range(VOCABULARY)]
        assert found == pytest.approx(wanted, rel=1e-12)
        assert sum(found) == pytest.approx(1, rel=1e-12)


def test_a_text_read_in_pieces_counts_the_same(monkeypatch):
    whole = ngram.count(TEXT, VOCABULARY, 2)
    monkeypatch.setattr(ngram, "CHUNK", 37)
    pieces = ngram.count(TEXT, VOCABULARY, 2)
    for name, array in whole.state().items():
        assert (array == pieces.state()[name]).all()
    assert whole.tokens.sum() == len(TEXT)
    assert whole.counts.sum() == len(TEXT) - 1


def test_counts_survive_a_weights_file_and_a_network_is_none():
    counted = ngram.count(TEXT, VOCABULARY, 2)
    again = ngram.from_state(counted.state() | {"other": np.zeros(1)})
    assert (again.log_probabilities(TEXT) == counted.log_probabilities(TEXT)).all()
    assert ngram.from_state({"token_embedding.weight": np.zeros((7, 2))}) is None


def test_a_bigram_knows_what_a_unigram_does_not():
    """Of a text that alternates, the next token is all but certain to it, a coin to the other."""
    text = np.tile(np.array([0, 1], np.uint16), 500)
    one, two = (ngram.count(text, 2, order).log_probabilities(text).mean() for order in (1, 2))
    assert one == pytest.approx(-math.log(2), abs=1e-6)
    assert two > -0.01
