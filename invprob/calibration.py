"""Calibration checks: is the truth one more draw of the sampler?

M truths come from the prior, each with its data y and L samples of the sampler. For an exact one
the ranks of test quantities f are uniform (`invprob.ranks`),

    rank = #{ l : f(x_l, y) < f(truth, y) }   uniform on 0..L, independently over observations

and which f tells what fails (Talts et al. 2018, arXiv 1804.06788; f that read the data: Modrak et
al. 2022, arXiv 2211.02383):

    sbc       a summary of x: over- or under-confident, biased
    tarp      distance to a reference point: expected coverage (Lemos et al. 2023, 2302.03026)
    fit       chi-square of the data, and the correlation of neighbouring residuals

Two more checks are means over observations: coverage, the share of all values of x within central
intervals, and spread, E|x - truth| / E|x - x'|, which sees collapse and lost modes. Their bands
take any member of an observation for its truth, so the correlation of pixels is allowed for.

Every check gets the same share of `FALSE_ALARM` (Bonferroni), so an exact sampler fails any of them
with at most that probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist, squareform

from invprob.path_weights import PARETO_LIMIT, pareto_k
from invprob.ranks import Array, Counts, Pair, beyond, excess, exchanged, rank, shape

FALSE_ALARM = 0.04  # of the family of checks; under 1 in 20 with the 5 sigma of `diagnosis`
LEVEL = 0.9  # of the intervals that are judged and quoted

LONGER = "train longer (more --warm-steps or --rtb-steps)"
MORE_PATHS = f"{LONGER} or raise --paths"
# kind: what truths say whose ranks are low, high, at both ends, in the middle; and the remedy
WORDS = {
    "sbc": (
        ("biased high", "biased low", "over-confident", "under-confident"),
        MORE_PATHS,
    ),
    "tarp": (
        ("too wide or biased", "too narrow or biased", "over-confident", "under-confident"),
        f"{LONGER} or raise --width",
    ),
    "fit": (
        ("under-fitted", "over-fitted", "fits vary too little", "fits vary too much"),
        f"{LONGER} or raise --steps",
    ),
}


@dataclass(frozen=True)
class Check:
    """One check: passed where statistic <= threshold; without a threshold it only informs."""

    name: str
    statistic: float
    threshold: float | None
    passed: bool
    verdict: str
    remedy: str | None = None  # where it failed


@dataclass(frozen=True, eq=False)
class Coverage:
    """Share of values inside central intervals, for each level, and the band of exact samplers."""

    levels: Array  # (A,), from wide to narrow
    found: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Calibration:
    """Checks, and what a figure of them needs."""

    checks: tuple[Check, ...]
    ranks: dict[str, Counts]  # of every check by ranks, (M,), 0..samples
    coverage: Coverage
    samples: int  # L
    rate: float  # false-alarm rate of each check


def calibrate(
    x: Pair,
    references: Array,
    summaries: Mapping[str, Pair],
    fits: Mapping[str, Pair] | None = None,
    log_weight: Array | None = None,
    seed: int = 0,
) -> Calibration:
    """Return all checks of samples x.samples (M, L, d) against truths x.truth (M, d).

    references: (M, d), one point per observation, independent of its truth and samples.
    summaries, fits: scalar quantities (M,) and (M, L) of x, and of x and its data.
    log_weight: log path weights (M, L), NaN where not defined. `seed` breaks ties.
    """
    rng = np.random.default_rng(seed)
    fits = fits or {}
    samples = x.samples.shape[1]
    rate = FALSE_ALARM / (len(summaries) + len(fits) + 3)
    quantities = [(f"sbc {name}", "sbc", pair) for name, pair in summaries.items()]
    quantities.append(("tarp", "tarp", distances(x, references)))
    quantities += [(name, "fit", pair) for name, pair in fits.items()]
    ranks = {name: rank(pair, rng) for name, _, pair in quantities}
    checks = [judge(name, kind, pair, ranks[name], rate) for name, kind, pair in quantities]
    covered = coverage(x, rate, rng)
    checks += [judge_coverage(covered), spread(x, rate, rng)]
    checks.append(contraction(summaries))
    if log_weight is not None:
        checks += path_weights(log_weight)
    return Calibration(tuple(checks), ranks, covered, samples, rate)


def distances(x: Pair, references: Array) -> Pair:
    """Return the distances of truths and samples to one reference point per observation."""
    return Pair.split(np.linalg.norm(x.members - references[:, None], axis=2))


def judge(name: str, kind: str, pair: Pair, ranks: Counts, rate: float) -> Check:
    """Return the check that ranks are uniform; its statistic is in units of the band."""
    samples = pair.samples.shape[1]
    statistic, where = excess(ranks, samples, rate)
    passed, side = statistic <= 1, shape(ranks, samples)
    if kind == "sbc":
        level, tail = interval(samples)
        inside = np.mean((ranks >= tail) & (ranks <= samples - tail))
        fact = f"{level:.0%} intervals cover {inside:.0%}"
        if not passed and side < 2:
            above = (ranks + 0.5).mean() / (samples + 1)
            fact = f"truths exceed {above:.0%} of their samples, 50% expected; {fact}"
    elif kind == "tarp":
        found, credible = np.mean(ranks <= where), (where + 1) / (samples + 1)
        fact = f"regions of credibility {credible:.0%} hold {found:.0%} of the truths"
    else:
        fact = f"samples give {pair.samples.mean():.3f}, truths {pair.truth.mean():.3f}"
    words, remedy = WORDS[kind]
    verdict = fact if passed else f"{words[side]}: {fact}"
    return Check(name, statistic, 1.0, passed, verdict, None if passed else remedy)


def interval(samples: int) -> tuple[float, int]:
    """Return the level nearest to `LEVEL` that L samples can express, and its tail in ranks.

    The interval runs between the order statistics tail and L + 1 - tail.
    """
    tail = max(1, round((samples + 1) * (1 - LEVEL) / 2))
    return 1 - 2 * tail / (samples + 1), tail


def spread(x: Pair, rate: float, rng: np.random.Generator) -> Check:
    """Return the check of E|x - truth| against E|x - x'|, equal for exact samples (collapse).

    Distances are in units of their mean over all pairs of members, per observation.
    """
    pairs = np.stack([squareform(pdist(members)) for members in x.members])
    apart = pairs.sum(2) / (pairs.shape[1] - 1)
    unit = apart.mean(1, keepdims=True)
    found, low, high = exchanged(apart / np.where(unit > 0, unit, 1.0), rate, rng)
    statistic, threshold, passed = beyond(float(found), 1.0, float(low), float(high))
    samples = x.samples.shape[1]
    others = (samples + 1 - 2 * found) / (samples - 1)  # E|x - x'| in the same unit
    fact = f"truths lie {found / others:.2f} times as far from samples as these from each other"
    if passed:
        return Check("spread", statistic, threshold, True, fact)
    word = "too narrow" if found > 1 else "too wide"
    return Check("spread", statistic, threshold, False, f"{word}: {fact}", MORE_PATHS)


def coverage(x: Pair, rate: float, rng: np.random.Generator) -> Coverage:
    """Return the share of all values of x that central intervals of samples hold, per level."""
    samples = x.samples.shape[1]
    tails = np.arange(1, (samples + 1) // 2 + 1)
    inside = np.empty((len(x.truth), samples + 1, len(tails)))
    for row, values in zip(inside, x.members, strict=True):
        order = rng.permutation(len(values))  # values that tie are ranked at random
        place = values[order].argsort(0, kind="stable").argsort(0)
        depth = np.minimum(place, samples - place)
        row[order] = np.stack([(depth >= tail).mean(1) for tail in tails], 1)
    return Coverage(1 - 2 * tails / (samples + 1), *exchanged(inside, rate, rng))


def judge_coverage(covered: Coverage) -> Check:
    """Return the check of the interval nearest to `LEVEL`: how far its coverage is off."""
    i = int(np.abs(covered.levels - LEVEL).argmin())
    level, found = float(covered.levels[i]), float(covered.found[i])
    statistic, threshold, passed = beyond(
        found, level, float(covered.low[i]), float(covered.high[i])
    )
    fact = f"{level:.0%} intervals cover {found:.0%} of all values"
    if passed:
        return Check("coverage", statistic, threshold, True, fact)
    word = "over-confident" if found < level else "under-confident"
    return Check("coverage", statistic, threshold, False, f"{word}: {fact}", MORE_PATHS)


def contraction(summaries: Mapping[str, Pair]) -> Check:
    """Return, for information, by how much the data shrink the variance of summaries."""
    shares = {}
    for name, pair in summaries.items():
        prior = pair.truth.var(ddof=1)
        left = pair.samples.var(1, ddof=1).mean() / prior if prior > 0 else 1.0
        shares[name] = 1 - float(left)
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    verdict = (
        f"the data take away {shares[least]:.0%} of the prior's variance of {least}, "
        f"{shares[most]:.0%} of {most}"
    )
    return Check("contraction", shares[least], None, True, verdict)


def path_weights(log_weight: Array) -> list[Check]:
    """Return, for information, Pareto k of path weights (M, L) pooled over observations.

    Weights are of whole paths, so uneven ones tell more than that x is off: they inform and never
    fail. Each observation's are centred on its own ELBO, for it has its own evidence. Empty where
    weights are not defined or too few.
    """
    if not np.isfinite(log_weight).all():
        return []
    k = pareto_k((log_weight - log_weight.mean(1, keepdims=True)).ravel())
    if k is None:
        return []
    weights = np.exp(log_weight - log_weight.max(1, keepdims=True))
    ess = float(np.median(weights.sum(1) ** 2 / np.square(weights).sum(1)))
    word = "reliable" if k < PARETO_LIMIT else "not reliable"
    verdict = (
        f"importance weights are {word}: Pareto k {k:.2f} (limit {PARETO_LIMIT}), "
        f"ESS {ess:.1f} of {log_weight.shape[1]}"
    )
    return [Check("path weights", k, None, True, verdict)]
