"""Where a truth lies among samples: its rank, and what exact samples would give.

If L samples are exact posterior draws, truth and samples are exchangeable given the data. Over M
independent observations the ranks of the truth are then uniform on 0..L (Talts et al. 2018, arXiv
1804.06788, theorem 1), and their empirical CDF stays within simultaneous bands (Sailynoja,
Buerkner & Vehtari 2022, arXiv 2103.10522); and any mean over observations is distributed as when
another of the L + 1 members were the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

Array = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]

RESAMPLED = 10_000  # draws behind the band of a mean


@dataclass(frozen=True, eq=False)
class Pair:
    """A quantity of M truths and of the L samples that belong to each."""

    truth: Array  # (M, ...)
    samples: Array  # (M, L, ...)

    @property
    def members(self) -> Array:
        """Truth and samples together, (M, L + 1, ...), the truth first."""
        return np.concatenate([self.truth[:, None], self.samples], 1)

    @classmethod
    def split(cls, members: Array) -> Pair:
        """Return the pair whose members, (M, L + 1, ...), have the truth first."""
        return cls(members[:, 0], members[:, 1:])


def rank(pair: Pair, rng: np.random.Generator) -> Counts:
    """Return the ranks (M,) of truths among their samples, 0..L; ties are broken at random."""
    truth = pair.truth[:, None]
    below, ties = (pair.samples < truth).sum(1), (pair.samples == truth).sum(1)
    ranks: Counts = below + rng.integers(0, ties + 1)
    return ranks


def ecdf(ranks: Counts, samples: int) -> Counts:
    """Return the counts of ranks <= j for j = 0..L-1, (L,)."""
    counts: Counts = np.bincount(ranks, minlength=samples + 1).cumsum()[:-1]
    return counts


@lru_cache(maxsize=64)
def band(observations: int, samples: int, rate: float) -> tuple[Counts, Counts]:
    """Return the least and greatest `ecdf` that exact ranks leave with probability <= rate.

    Pointwise binomial intervals of one level for all j, the widest level that keeps the rate. The
    ECDF is a Markov chain in j with binomial steps, so the rate is exact, not simulated.
    """
    z = np.arange(1, samples + 1) / (samples + 1)
    counts = np.arange(observations + 1)
    step, left = counts - counts[:, None], (observations - counts)[:, None]
    moves = [binom.pmf(step, left, 1 / (samples + 1 - j)) for j in range(1, samples)]

    def limits(level: float) -> tuple[Counts, Counts]:
        low, high = binom.ppf(level / 2, observations, z), binom.isf(level / 2, observations, z)
        return low.astype(np.int64), high.astype(np.int64)

    def alarm(level: float) -> float:
        inside = [(counts >= a) & (counts <= b) for a, b in zip(*limits(level), strict=True)]
        chance = binom.pmf(counts, observations, z[0]) * inside[0]
        for move, kept in zip(moves, inside[1:], strict=True):
            chance = (chance @ move) * kept
        return 1 - float(chance.sum())

    narrow, wide = math.log(rate), math.log(rate / samples)  # Bonferroni over j is wide enough
    for _ in range(40):
        middle = (narrow + wide) / 2
        if alarm(math.exp(middle)) <= rate:
            wide = middle
        else:
            narrow = middle
    return limits(math.exp(wide))


def excess(ranks: Counts, samples: int, rate: float) -> tuple[float, int]:
    """Return the ECDF's largest deviation as a multiple of its band, and the j where it is."""
    low, high = band(len(ranks), samples, rate)
    expected = len(ranks) * np.arange(1, samples + 1) / (samples + 1)
    off = ecdf(ranks, samples) - expected
    ratio = np.where(off > 0, off / (high - expected), off / (low - expected))
    return float(ratio.max()), int(ratio.argmax())


def shape(ranks: Counts, samples: int) -> int:
    """Return how ranks depart most from uniform: 0 low, 1 high, 2 both ends, 3 the middle."""
    u = (ranks + 0.5) / (samples + 1) - 0.5
    tilt = u.mean() * math.sqrt(12)  # in standard deviations over sqrt(M)
    bow = (12 * u.var() - 1) / math.sqrt(0.8)  # Var (12 u^2) = 0.8 of a uniform u
    if abs(tilt) >= abs(bow):
        return int(tilt > 0)
    return 2 if bow > 0 else 3


def exchanged(members: Array, rate: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return the mean over observations of the truths' values, and its band, each (...).

    members: (M, L + 1, ...), the truth first. An exact sampler lies within the band with
    probability 1 - rate at each entry: it is the distribution of that mean when any of the L + 1
    exchangeable members is taken for the truth, independently for every observation.
    """
    exact = np.zeros((RESAMPLED, *members.shape[2:]))
    for values in members:
        exact += values[rng.integers(len(values), size=RESAMPLED)]
    exact /= len(members)
    low = np.quantile(exact, rate / 2, axis=0, method="lower")
    high = np.quantile(exact, 1 - rate / 2, axis=0, method="higher")
    return members[:, 0].mean(0), low, high


def beyond(found: float, expected: float, low: float, high: float) -> tuple[float, float, bool]:
    """Return how far a mean is off, how far its band reaches on that side, and whether it holds."""
    off, reach = abs(found - expected), abs((low if found < expected else high) - expected)
    return off, reach, off <= reach + 1e-9  # rounding of a mean over observations
