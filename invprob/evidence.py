"""Evidence: which operator, noise or prior do the data prefer, and is that decided?

    Z = p(y | model) = E_q[ w ],     ln B = log Z_1 - log Z_2

log Z is estimated where its error can be trusted: by importance weights whose Pareto shape is below
min(1 - 1 / log10 n, 0.7) (Vehtari et al. 2024, arXiv 1507.02646), else by independent runs of SMC
whose estimates spread by less than 1 nat, as far as eight runs can tell (what pseudo-marginal
samplers ask for: Doucet et al. 2015, doi:10.1093/biomet/asu075). Otherwise it is only bounded, from
below by the ELBO, and from above by

    log Z <= ELBO + the most that a gap may be beside those of twins    where the data are fitted
    log Z <= max_x [ log p(y | x) - |x|^2 / (2 r2) ] + log E_p exp(|x|^2 / (2 r2))        always

The second holds for every r2 > 0, since p(y | x) is at most the exponential of the maximum times
exp(|x|^2 / (2 r2)). For a linear operator the maximum is -y^T (r2 A A^T + Sigma)^-1 y / 2 plus the
noise's constant, and conjugate gradients approach it from above, so a truncated solve is a bound
too. It is what convicts a model that cannot fit: its data are unlike its twins, whose gap then says
nothing. A Bayes factor has a grade of Kass & Raftery (1995, doi:10.1080/01621459.1995.10476572)
only where its whole interval has it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from invprob.observation import Observation
from invprob.path_weights import PARETO_LIMIT, log_mean, log_mean_se
from invprob.posterior import Posterior
from invprob.trajectory import Progress
from operators.base import LinearOperator
from operators.errors import NumericalError, ObservationError
from operators.noise import Gaussian

SIGMAS = 3.0  # half-width of intervals, in standard errors that are known well; see `_sigmas`
SMC_RUNS = 8  # independent runs, which share the n particles
SMC_SPREAD = 0.55  # nats, std of 8 runs' log Z up to which it is below 1 in 19 of 20 cases
CEILING_DRAWS = 256  # of the prior, behind E exp(|x|^2 / (2 r2))
CEILING_ITERATIONS = 500  # of conjugate gradients, at most
GRADES = (  # least ln B of each
    (5.0, "very strong"),
    (3.0, "strong"),
    (1.0, "positive"),
    (0.0, "not worth more than a bare mention"),
)
UNDECIDED = "not decided"


@dataclass(frozen=True)
class Evidence:
    """log Z of one model in nats: an estimate with its error, or None and an interval alone."""

    name: str
    method: str  # "importance" or "smc" where log Z is estimated, else "bounds"
    log_z: float | None
    log_z_se: float | None
    low: float  # log Z -+ `SIGMAS` of its error, else the bounds with theirs
    high: float
    elbo: float
    eubo: float | None  # by even weights or twins, None where the data are not fitted
    chi2_per_pixel: float
    fitted: bool  # chi2 is that of data explained to their noise
    n: int  # samples, and particles, that it rests on

    @property
    def level(self) -> float:
        """What models are ranked by: log Z, or what it surely reaches."""
        return self.low if self.log_z is None else self.log_z


@dataclass(frozen=True)
class BayesFactor:
    """ln B = log Z_1 - log Z_2 in nats, its interval, and what may be said of it."""

    log_b: float | None  # None where a model has bounds alone
    log_b_se: float | None
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The grade of Kass & Raftery that the whole interval supports, or "not decided"."""
        if self.low <= 0:
            return UNDECIDED
        return next(grade for least, grade in GRADES if self.low >= least)

    @property
    def decided(self) -> bool:
        """Whether the first model is the better one."""
        return self.low > 0


def evidence(
    models: Mapping[str, Posterior], n: int = 256, seed: int = 0, progress: Progress | None = None
) -> list[Evidence]:
    """Return the evidence of every model, by n samples of its trained posterior.

    Every model must explain the same data: raises ObservationError where data or mask differ, and
    NumericalError on weights that are not finite. Where importance weights are too uneven another
    n particles are drawn by SMC. Every model has its own randomness, by its name: a Bayes factor
    takes their errors to be independent.
    """
    refuse_other_data({name: posterior.observation for name, posterior in models.items()})
    return [
        measure(name, posterior, n, _own_seed(seed, name), progress and _labelled(progress, name))
        for name, posterior in models.items()
    ]


def refuse_other_data(models: Mapping[str, Observation]) -> None:
    """Raise ObservationError where not all explain the same values: no ratio of evidences then."""
    seen = {
        name: np.where(observation.noise.kept(observation.operator.y_shape), observation.y, np.nan)
        for name, observation in models.items()
    }
    (first, values), *others = seen.items()
    for name, other in others:
        if not np.array_equal(values, other, equal_nan=True):
            counts = [int(np.isfinite(v).sum()) for v in (values, other)]
            raise ObservationError(
                f"{first!r} explains {counts[0]} data and {name!r} {counts[1]}, not the same ones: "
                "evidences compare only on the same data, so give all models one mask"
            )


def measure(
    name: str, posterior: Posterior, n: int, seed: int, progress: Progress | None = None
) -> Evidence:
    """Return the evidence of one model."""
    draws = posterior.draw(n, seed, progress)
    known = posterior.certify(draws)
    if known.elbo is None or known.elbo_se is None or known.log_z is None:
        raise NumericalError(f"{name}: path weights are not finite; train again, or for longer")
    low, top, gaps = known.elbo - SIGMAS * known.elbo_se, ceiling(posterior, seed), posterior.gaps
    if draws.fits and gaps is not None:
        top = min(top, known.elbo + by_twins(gaps) + SIGMAS * known.elbo_se)
    method, log_z, error, sigmas = "importance", known.log_z, known.log_z_se, SIGMAS
    if known.pareto_k is None or known.pareto_k >= min(PARETO_LIMIT, 1 - 1 / math.log10(n)):
        runs = smc_estimates(posterior, max(2, n // SMC_RUNS), seed, progress)
        spread = float(runs.std(ddof=1))
        sigmas = _sigmas(SMC_RUNS)
        low = max(low, float(runs.mean()) - sigmas * spread / math.sqrt(SMC_RUNS))
        method, log_z, error = "smc", log_mean(runs), log_mean_se(runs)
        # runs that agree below what single paths bound have all lost the same
        if not spread <= SMC_SPREAD or log_z + sigmas * (error or 0.0) < low:
            method, error = "bounds", None
    facts = (known.elbo, known.eubo if draws.fits else None, known.chi2_per_pixel, draws.fits, n)
    if error is None:
        return Evidence(name, method, None, None, low, max(low, top), *facts)
    width = sigmas * error
    return Evidence(name, method, log_z, error, log_z - width, log_z + width, *facts)


def by_twins(gaps: NDArray[np.float64]) -> float:
    """Return what the gap EUBO - ELBO of these data does not exceed, given those of twins (n,).

    It is one more draw beside theirs, of a spread that is known from them alone.
    """
    spread = float(gaps.std(ddof=1)) * math.sqrt(1 + 1 / len(gaps))
    return float(gaps.mean()) + _sigmas(len(gaps)) * spread


def smc_estimates(
    posterior: Posterior, particles: int, seed: int, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return log Z by `SMC_RUNS` independent runs of SMC: each unbiased in Z, (SMC_RUNS,)."""
    seeds = np.random.SeedSequence([seed, 9]).generate_state(SMC_RUNS)
    runs = (posterior.draw(particles, int(s), progress, smc=True) for s in seeds)
    return np.array([log_mean(draws.log_weight) for draws in runs])


def ceiling(posterior: Posterior, seed: int = 0) -> float:
    """Return an upper bound of log Z, whatever the policy: the best fit of any plausible x.

    r2 is the largest |x|^2 among draws of the prior. For an operator that is not linear, or noise
    that is not Gaussian, it is the density of a perfect fit.
    """
    likelihood, noise = posterior.likelihood, posterior.likelihood.noise
    perfect = float(noise.log_prob(likelihood.y, noise.likeliest(likelihood.y.double())))
    if not (isinstance(likelihood.operator, LinearOperator) and isinstance(noise, Gaussian)):
        return perfect
    x = posterior.prior.decode(posterior.prior.draw(CEILING_DRAWS, seed)).double().flatten(1)
    power = x.square().sum(1)
    r2 = float(power.max())
    y = likelihood.y.double()
    solved = likelihood.operator.solve(r2, noise, y, iterations=CEILING_ITERATIONS)
    return perfect - float((y * solved).sum()) / 2 + log_mean((power / (2 * r2)).numpy())


def best(found: Sequence[Evidence]) -> Evidence:
    """Return the model that the others are held against: the first with the highest level."""
    return max(found, key=lambda model: model.level)


def bayes_factor(one: Evidence, two: Evidence) -> BayesFactor:
    """Return the Bayes factor of one model over another; their errors are independent."""
    if one.log_z is None or two.log_z is None or one.log_z_se is None or two.log_z_se is None:
        return BayesFactor(None, None, one.low - two.high, one.high - two.low)
    log_b, error = one.log_z - two.log_z, math.hypot(one.log_z_se, two.log_z_se)
    width = math.hypot(one.high - one.log_z, two.high - two.log_z)
    return BayesFactor(log_b, error, log_b - width, log_b + width)


def verdict(found: Sequence[Evidence]) -> str:
    """Return one sentence: the winner and its least grade, or the models not decided between."""
    top = best(found)
    others = [(other, bayes_factor(top, other)) for other in found if other is not top]
    rivals = [other for other, factor in others if not factor.decided]
    poor = "" if top.fitted else f"; no model fits: chi2 per pixel {top.chi2_per_pixel:.2f}"
    if not rivals:
        factor = min((factor for _, factor in others), key=lambda factor: factor.low)
        return f"{top.name}: {factor.verdict} evidence against every other model{poor}"
    names = ", ".join(model.name for model in (top, *rivals))
    bounded = any(model.log_z is None for model in (top, *rivals))
    cure = "; log Z is only bounded: train longer, or draw more samples" if bounded else ""
    return f"{UNDECIDED} between {names}{cure}{poor}"


def _sigmas(count: int) -> float:
    """Return the half-width that holds as much as `SIGMAS`, of errors that `count` values tell."""
    return float(student.ppf(norm.cdf(SIGMAS), count - 1))


def _own_seed(seed: int, name: str) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def _labelled(progress: Progress, name: str) -> Progress:
    """Return the progress callback of one model."""
    return lambda stage, done, total, figures: progress(f"{name}: {stage}", done, total, figures)
