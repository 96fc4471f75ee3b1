"""Unigram and bigram language models: controls that a network must beat. No torch.

c(b) is how often token b comes, c(a, b) how often b follows a, c(a) = Σ_b c(a, b), n(a) the number
of different tokens that follow a; T tokens, a vocabulary of V.

    unigram   p(b) = (c(b) + 1) / (T + V)
    bigram    p(b | a) = max(c(a, b) − D, 0) / c(a) + D n(a) / c(a) · p(b),   p(b) where c(a) = 0

The bigram is absolute discounting (Ney, Essen & Kneser 1994) with D = 0.75, interpolated with the
unigram, whose counts are smoothed by one, so that no token has probability 0.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

DISCOUNT = 0.75
CHUNK = 1 << 26  # tokens counted at once: a training text does not fit in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Ngram:
    """Counts of tokens and pairs in a text.

    tokens: int64 (V,), the count of each token.
    pairs: int64 (P,) sorted, a · V + b of each pair that occurs; counts: int64 (P,), its count.
    Both are empty for a unigram.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of each token except the first: (T,) → (T − 1,)."""
        vocabulary = len(self.tokens)
        before, after = ids[:-1].astype(np.int64), ids[1:].astype(np.int64)
        unigram = (self.tokens + 1) / (self.tokens.sum() + vocabulary)
        if not len(self.pairs):
            return np.log(unigram[after])
        first = self.pairs // vocabulary
        total = np.bincount(first, self.counts, vocabulary)  # c(a)
        followers = np.bincount(first, minlength=vocabulary)  # n(a)
        keys = before * vocabulary + after
        place = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == keys, self.counts[place], 0)
        known = total[before] > 0
        given = np.where(known, total[before], 1)
        seen = np.maximum(count - DISCOUNT, 0) / given
        rest = np.where(known, DISCOUNT * followers[before] / given, 1.0)
        return np.log(seen + rest * unigram[after])

    def state(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a weights file."""
        return {f"ngram.{name}": array for name, array in dataclasses.asdict(self).items()}


def count(ids: np.ndarray, vocabulary: int, order: int) -> Ngram:
    """Count the tokens of a text (order 1), and its pairs (order 2).

    ids: (T,), possibly a memory-mapped file, read in pieces of `CHUNK`.
    """
    tokens = np.zeros(vocabulary, np.int64)
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(ids), CHUNK):
        piece = ids[start : start + CHUNK + 1].astype(np.int64)  # pairs reach into the next one
        tokens += np.bincount(piece[:CHUNK], minlength=vocabulary)
        if order == 2:
            new = np.unique(piece[:-1] * vocabulary + piece[1:], return_counts=True)
            pairs, counts = _merge((pairs, counts), new)
    return Ngram(tokens, pairs, counts)


def _merge(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple:
    """Sorted keys of both, with the sums of their counts."""
    keys, place = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    sums = np.zeros(len(keys), np.int64)
    np.add.at(sums, place, np.concatenate([a[1], b[1]]))
    return keys, sums


def from_state(state: Mapping[str, np.ndarray]) -> Ngram | None:
    """The counts in a weights file; None if it holds a network."""
    names = [field.name for field in dataclasses.fields(Ngram)]
    if not all(f"ngram.{name}" in state for name in names):
        return None
    return Ngram(*(np.asarray(state[f"ngram.{name}"]) for name in names))
