"""The certificate: what a posterior knows of its own error.

    ELBO = mean log w,   log Z = log mean exp(log w),   ESS = (sum w)^2 / sum w^2
    EUBO = mean log w over exact draws of the path posterior
    EUBO - ELBO = KL(q || posterior) + KL(posterior || q)

For data simulated from the prior's chain, the path that produced them is an exact draw from the
path posterior. So the gap EUBO - ELBO is measured on simulated twins of the observation (own
source, own data, same operator and noise) and no reference sampler is needed. It is a mean over
such data, not a bound for these: where the weights are reliable the EUBO is sum w log w / sum w,
of this observation itself. Whether they are, `invprob.path_weights` tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from invprob.path_weights import (
    MIN_ESS,
    PARETO_LIMIT,
    Array,
    log_mean,
    log_mean_se,
    pareto_k,
    reliable,
)

MARKOV = 20.0  # an unbiased estimate of Z exceeds Z by this factor in at most 1 run of as many
MIN_ISLANDS = 4  # of SMC, to tell how far their estimates of log Z spread
# of n samples or particles that must be worth exact draws, for a distance up to 3 times that of n.
# m of these lie sqrt(n / m) times as far, and where the weights of a few modes make the distance it
# scatters by three quarters of itself. What weights worth m draws do not show in samples left as
# they are is about 1 / m - 1 / n squared standard deviations: at n / 3 four of these are 8 / n
TRUSTED_SHARE = 1 / 3
LOST_SIGMAS = 3.0  # by which log Z of particles must lie below a lower bound to be called lost
CHI2_SIGMAS = 5.0  # how far chi2 per pixel may lie from what is expected


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """What is known of n samples besides themselves, each (n,) where not said otherwise."""

    log_likelihood: Array
    log_weight: Array  # log w of the path; NaN where the sampler has no density
    chi2: Array  # per unmasked pixel
    degrees: Array  # of freedom of chi2, see `NoiseModel.degrees`
    sketch: Array  # projections of x, (n, SKETCH): do path weights matter to them?
    island: int = 1  # particles that SMC resampled together; 1: independent samples

    @property
    def fit(self) -> float:
        """Mean chi2 per pixel."""
        return float(self.chi2.mean())

    @property
    def scatter(self) -> float:
        """How far from 1 the fit of data explained to their noise may lie."""
        return CHI2_SIGMAS * math.sqrt(2 / float(self.degrees.mean()))

    @property
    def fits(self) -> bool:
        """Whether the data are explained to their noise."""
        return abs(self.fit - 1) <= self.scatter

    def taken(self, index: NDArray[np.int64]) -> Self:
        """Return the samples `index` (n,)."""
        names = [f.name for f in fields(self) if f.name != "island"]
        return replace(self, **{name: getattr(self, name)[index] for name in names})


@dataclass(frozen=True)
class Certificate:
    """Quality of posterior samples, in nats where not said otherwise; None where not defined."""

    n: int  # samples it rests on
    elbo: float | None
    elbo_se: float | None
    eubo: float | None  # by reliable weights, else ELBO plus the gap of the simulated twins
    log_z: float | None
    log_z_se: float | None
    std_log_w: float | None
    ess: float | None  # out of n
    pareto_k: float | None
    chi2_per_pixel: float
    chi2_expected: float
    verdict: str
    corrected: str = "none"
    gap: float | None = None  # EUBO - ELBO, mean over twins
    gap_se: float | None = None
    gap_start: float | None = None  # the same before training

    @property
    def even(self) -> bool:
        """Whether path weights are even enough for log Z to come with its error.

        The last weights of particles do not tell, but their islands.
        """
        if self.corrected == "smc":
            return self.verdict.startswith("trust")
        return reliable(self.ess, self.pareto_k)

    @property
    def few(self) -> bool:
        """Whether these samples are too few to tell, though nothing is wrong with their weights."""
        return self.corrected != "smc" and needed(self.n, self.ess, self.pareto_k) is not None


def certify(
    scores: Scores, gaps: Array | None = None, gap_start: float | None = None
) -> Certificate:
    """Return the certificate of samples.

    `gaps` are EUBO - ELBO of simulated twins, of single paths. Weights that are NaN (a sampler
    without a density) leave the evidence undefined. Samples of SMC come in islands of a fixed
    number, whose particles are not independent: the error of log Z is that among whole islands,
    and the ELBO the estimate of log Z less log `MARKOV`. By Markov's inequality that lies below the
    true log Z in 19 of 20 runs, however few the islands. Their EUBO is that of single paths, see
    `carried`.
    """
    log_w, island = scores.log_weight, scores.island
    n, fit, wrong = len(log_w), scores.fit, misfit(scores)
    gap = None if gaps is None else float(np.mean(gaps))
    gap_se = None if gaps is None else float(np.std(gaps, ddof=1) / math.sqrt(len(gaps)))
    if not np.isfinite(log_w).all() or n < 2:
        return Certificate(
            n, None, None, None, None, None, None, None, None, fit, 1.0,
            wrong or judgement(n, None, None, gap), gap=gap, gap_se=gap_se,
        )  # fmt: skip
    top = log_w.max()
    weights = np.exp(log_w - top)
    whole = n - n % island or n
    log_means = np.array([log_mean(log_w[i : i + island]) for i in range(0, whole, island)])
    log_z = log_mean(log_w)
    elbo = log_z - math.log(MARKOV) if island > 1 else float(log_w.mean())
    std = float(log_means.std(ddof=1)) if len(log_means) > 1 else None
    ess = float(weights.sum() ** 2 / np.square(weights).sum())
    k = pareto_k(log_w)
    eubo = None if gap is None else elbo + gap
    if island == 1 and reliable(ess, k):
        eubo = float((weights * log_w).sum() / weights.sum())
    return Certificate(
        n=n,
        elbo=elbo,
        elbo_se=None if std is None or island > 1 else std / math.sqrt(n),
        eubo=eubo,
        log_z=log_z,
        log_z_se=log_mean_se(log_means),
        std_log_w=std,
        ess=ess,
        pareto_k=k,
        chi2_per_pixel=fit,
        chi2_expected=1.0,
        verdict=wrong or judgement(n, ess, k, gap, std, island, worthwhile(scores)),
        gap=gap,
        gap_se=gap_se,
        gap_start=gap_start,
    )


def carried(known: Certificate | None, particles: Certificate) -> Certificate:
    """Return the certificate of particles with what single paths of the policy gave.

    That is their EUBO, and a bound: particles whose log Z lies below the ELBO of single paths, by
    more than the error of either, have lost where the posterior is.
    """
    if known is None or known.elbo is None or particles.elbo is None or particles.log_z is None:
        return particles
    below = known.elbo - particles.log_z
    if known.eubo is not None:
        particles = replace(particles, eubo=known.eubo, gap=known.eubo - particles.elbo)
    error = math.hypot(known.elbo_se or 0.0, particles.log_z_se or 0.0)
    if not below > LOST_SIGMAS * error or particles.verdict.startswith("do not trust"):
        return particles
    return replace(
        particles,
        verdict=f"do not trust: log Z of the particles lies {below:.3g} nats below the ELBO of "
        "single paths, so resampling has lost what these find: leave them as they are (--correct "
        "none)",
    )


def needed(n: int, ess: float | None, k: float | None) -> int | None:
    """Return how many samples to draw where n with harmless weights fall short of `MIN_ESS`.

    Twice as many as would reach it, for ESS and k are estimates too; None where n are enough, or
    more of them would not help.
    """
    if ess is None or k is None or not k < PARETO_LIMIT or not TRUSTED_SHARE * n < ess < MIN_ESS:
        return None
    return math.ceil(2 * MIN_ESS * n / ess)


def worthwhile(scores: Scores) -> bool:
    """Return whether path weights move the sketch of samples by more than resampling blurs it.

    Of its means and squares: the squared shift by the weights, less what chance alone makes of it,
    against the variance that weighted means have beyond those of all samples.
    """
    log_w, sketch = scores.log_weight, scores.sketch
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    unit = (sketch - sketch.mean(0)) / np.maximum(sketch.std(0), np.finfo(float).tiny)
    features = np.concatenate([unit, unit**2], 1)
    apart = features - features.mean(0)
    extra = w - 1 / len(w)
    shift = extra @ apart
    bias = shift**2 - extra**2 @ apart**2
    blur = w**2 @ (apart - shift) ** 2 - np.square(apart).mean(0) / len(w)
    scale = np.maximum(apart.var(0), np.finfo(float).tiny)
    return bool((bias / scale).mean() > (blur / scale).mean())


def judgement(
    n: int,
    ess: float | None,
    k: float | None,
    gap: float | None,
    std: float | None = None,
    island: int = 1,
    mends: bool = False,
    kept: int | None = None,
) -> str:
    """Return one sentence on samples that fit: trust, use corrected samples or approximate.

    std: of log Z among the islands of SMC, or of log w. mends: correction is `worthwhile`, so that
    even weights are no sign of samples that need none. kept: how many of n particles become
    samples; by default all.
    """
    if island > 1 and ess is not None:
        return _island_verdict(std, max(n // island, 1), island, n / (kept or n))
    if ess is None and n > 1:
        return "no statement: this sampler has no path density, only its fit to the data is known"
    if k is None or ess is None:
        return f"no statement: {n} samples are too few to judge their weights; draw at least 25"
    if ess > 0.5 * n and reliable(ess, k) and not mends:
        return f"trust: path weights are almost even (ESS {ess / n:.0%} of {n}, Pareto k {k:.2f})"
    if reliable(ess, k):
        return (
            f"use corrected samples: importance weights are reliable (Pareto k {k:.2f}, "
            f"ESS {ess:.0f} of {n})"
        )
    if more := needed(n, ess, k):
        return (
            f"no statement: {n} samples are too few to correct by their weights (Pareto k {k:.2f}, "
            f"ESS {ess:.0f}, at least {MIN_ESS:.0f} is wanted); draw at least {more}"
        )
    bound = ""
    if gap is not None:
        bound = f"; twins lie within {gap:.0f} nats of exact: train longer for a tighter bound"
    return (
        f"approximate: the data are fitted, but path weights are too uneven to correct "
        f"(Pareto k {k:.2f}, ESS {ess:.1f} of {n}){bound}"
    )


def _island_verdict(spread: float | None, islands: int, size: int, oversample: float) -> str:
    """Return the sentence on particles of SMC, whose last weights say little of what was lost.

    Islands whose Z scatter by a share s settle what differs among them as well as islands / s^2
    exact draws do: these must be a share of the samples, one for `oversample` particles.
    """
    limit = math.sqrt(oversample / (TRUSTED_SHARE * size))
    if spread is None or islands < MIN_ISLANDS:
        return (
            f"approximate: {islands} island(s) of {size} particles are too few to tell the error "
            f"of log Z: draw {MIN_ISLANDS * size} samples or more"
        )
    if spread > limit:
        return (
            f"approximate: the spread of log Z over {islands} islands of particles is "
            f"{spread:.2g} nats, at most {limit:.2g} is wanted: train longer, take more steps, or "
            "choose from more particles (--oversample)"
        )
    return f"trust: {islands} islands of particles agree on log Z within {spread:.2f} nats"


def misfit(scores: Scores) -> str | None:
    """Return what is wrong with the fit to the data, None where nothing is."""
    if not math.isfinite(scores.fit):
        return "do not trust: samples are not finite; check the noise level and the flux scale"
    if scores.fits:
        return None
    side = "over" if scores.fit < 1 else "under"
    return (
        f"do not trust: chi2 per pixel {scores.fit:.2f} where 1.00 is expected, the data are "
        f"{side}-fitted; check the noise level and flux scale, or train longer"
    )
