"""Diagnosis of a trained posterior: is it calibrated on data like those it was trained on?

Truths are drawn by the prior's own chain, so each is an exact draw, and data are simulated from
them with the run's operator and noise. A policy reads the data only through guidance, so the one
that was trained draws from every simulated posterior. `invprob.calibration` then asks whether truth
and samples can be told apart.

What this measures is the policy as it serves any data of this instrument. Its RTB steps were taken
on the run's own observation, whose fit is checked on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob.calibration import Calibration, Check, calibrate
from invprob.draws import Draws, draw
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.posterior import Posterior
from invprob.ranks import Pair
from invprob.summaries import Summary, summarise
from invprob.trajectory import Move, Progress, Propose
from operators.errors import NumericalError

OWN, SIMULATED = "this observation", "simulated observations"  # stages of progress
OWN_REMEDY = "check the noise level and the flux scale of the data, or train longer"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Checks of a posterior, and the calibration behind them."""

    checks: tuple[Check, ...]
    calibration: Calibration

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def diagnose(
    posterior: Posterior,
    observations: int = 64,
    n: int = 19,
    seed: int = 0,
    summary: Mapping[str, Summary] | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Return the diagnosis from n samples for each of so many simulated observations.

    summary: functions of x (n, *x_shape) that return (n,) or (n, k), checked beside the built-in
        ones. Costs observations * n samples. With n + 1 a multiple of 20, 90% intervals are exact.
    Raises ObservationError on a summary that does not fit or a policy that does not read data,
    NumericalError on samples that are not finite.
    """
    own_seed, truth_seed, noise_seed, sample_seed, point_seed, rank_seed = (
        int(s) for s in np.random.SeedSequence(seed).generate_state(6)
    )
    posterior.policy.refuse_other_data()
    prior, observation, summary = posterior.prior, posterior.observation, summary or {}
    times = posterior.times

    def unguided(likelihood: Likelihood) -> Propose:
        return lambda z, t, i: Move(prior.denoise(z, t))

    def guided(likelihood: Likelihood) -> Propose:
        return posterior.policy.propose(prior, likelihood)

    truths = draw(
        prior, posterior.likelihood, unguided, times, observations, truth_seed,
        progress=_renamed(progress, "truths"),
    )  # fmt: skip
    likelihood = simulated(observation, truths.x, noise_seed)
    of_truth = summarise(truths.x, summary)  # before the samples: a wrong one is told at once
    own = posterior.draw(n, own_seed, _renamed(progress, OWN))
    draws = draw(
        prior, likelihood, guided, times, n, sample_seed, progress=_renamed(progress, SIMULATED)
    )
    broken = sum(int((~np.isfinite(found.chi2)).sum()) for found in (own, draws))
    if broken:
        raise NumericalError(
            f"{broken} of {n + len(draws.x)} samples are not finite: check the noise level and the "
            "flux scale of the data, and train again"
        )
    shape = (observations, n)
    of_samples = summarise(draws.x, summary)
    summaries = {
        name: Pair(value, of_samples[name].reshape(shape)) for name, value in of_truth.items()
    }
    references = prior.decode(prior.draw(observations, point_seed)).numpy()
    calibration = calibrate(
        Pair(truths.x.reshape(observations, -1), draws.x.reshape(*shape, -1)),
        references.reshape(observations, -1),
        summaries,
        fits(likelihood, truths.x, draws, n),
        draws.log_weight.reshape(shape),
        rank_seed,
    )
    return Diagnosis((own_fit(own), *calibration.checks), calibration)


def simulated(observation: Observation, x: NDArray[np.float32], seed: int) -> Likelihood:
    """Return the likelihood of data simulated from x (M, *x_shape), one observation of each."""
    with torch.no_grad():
        mean = observation.operator(torch.from_numpy(x))
        y = observation.noise.sample(mean, torch.Generator().manual_seed(seed))
    return Likelihood(observation.operator, observation.noise, y)


def fits(
    likelihood: Likelihood, truth: NDArray[np.float32], draws: Draws, n: int
) -> dict[str, Pair]:
    """Return the quantities that compare x with its data: chi-square and, of images, structure.

    Structure is the mean product of neighbouring whitened residuals, 0 for white ones.
    """
    x, count = torch.from_numpy(truth), len(truth)
    found = {"fit chi2": Pair(likelihood.fit(x)[1].numpy(), draws.chi2.reshape(count, n))}
    if len(likelihood.operator.y_shape) > 1:
        drawn = torch.from_numpy(draws.x).view(count, n, *truth.shape[1:])
        samples = [
            neighbours(replace(likelihood, y=y[None]), many)
            for y, many in zip(likelihood.y, drawn, strict=True)
        ]
        found["fit structure"] = Pair(neighbours(likelihood, x), np.stack(samples))
    return found


def neighbours(likelihood: Likelihood, x: Tensor) -> NDArray[np.float64]:
    """Return the mean product of neighbouring whitened residuals of x (B, *x_shape), (B,)."""
    with torch.no_grad():
        r = likelihood.whitened(x).double()
    kept = likelihood.noise.kept(tuple(r.shape[1:]))[None].double()

    def products(a: Tensor) -> Tensor:
        across, along = a[..., 1:] * a[..., :-1], a[..., 1:, :] * a[..., :-1, :]
        return across.flatten(1).sum(1) + along.flatten(1).sum(1)

    mean: NDArray[np.float64] = (products(r) / products(kept).clamp(min=1)).numpy()
    return mean


def own_fit(draws: Draws) -> Check:
    """Return the check that the run's own data are fitted, by the certificate's bound."""
    statistic = abs(draws.fit - 1)
    verdict = f"chi2 per pixel {draws.fit:.3f} where 1.000 is expected"
    if draws.fits:
        return Check("own chi2", statistic, draws.scatter, True, verdict)
    verdict = f"{'over' if draws.fit < 1 else 'under'}-fitted: {verdict}"
    return Check("own chi2", statistic, draws.scatter, False, verdict, OWN_REMEDY)


def _renamed(progress: Progress | None, stage: str) -> Progress | None:
    """Return the progress callback of one stage."""
    if progress is None:
        return None
    return lambda _, done, total, figures: progress(stage, done, total, figures)
