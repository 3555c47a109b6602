"""Samples of any sampler, with the weights of their paths.

Sampling goes in batches that bound memory; sample i has a generator of its own, so that it is the
same in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob.certificate import Certificate, misfit, reliable
from invprob.correction import Islands, resample
from invprob.likelihood import Likelihood
from invprob.rtb import Progress
from invprob.trajectory import Move, Propose, batches, rollout
from operators.errors import NumericalError
from priors.base import Prior
from priors.process import generators

CORRECTIONS = ("auto", "none", "psis", "smc")
IN_FLIGHT = 32 * 64 * 64  # values of x in one batch: bounds memory, changes no result

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draws:
    """Posterior samples x (n, *x_shape) in physical units with their weights, each (n,)."""

    x: NDArray[np.float32]
    log_likelihood: Array
    log_weight: Array  # log w of the path; NaN where the sampler has no density
    chi2: Array  # per unmasked pixel
    island: int = 1  # particles that SMC resampled together; 1: independent samples

    def resampled(self, seed: int) -> Draws:
        """Return as many samples of equal weight: the log of the mean of the weights of these."""
        index, level = resample(self.log_weight, seed)
        return replace(
            self,
            x=self.x[index],
            log_likelihood=self.log_likelihood[index],
            log_weight=np.full(len(index), level),
            chi2=self.chi2[index],
        )


def draw(
    prior: Prior,
    likelihood: Likelihood,
    sampler: Callable[[Likelihood], Propose],
    times: tuple[float, ...],
    n: int,
    seed: int,
    eta: float = 1.0,
    progress: Progress | None = None,
    smc: bool = False,
) -> Draws:
    """Return n samples of the sampler for each observation of the likelihood, one after another.

    Sample i is the same for every batch size, and with one observation for every n, up to rounding.
    With `smc`, and one observation, the samples of a batch are particles of one island, and their
    weights those of SMC.
    """
    total = n * len(likelihood.y)

    def watched(propose: Propose, rows: range) -> Propose:
        """Report progress, in samples, as the chains of a batch advance."""

        def move(z: Tensor, t: float, i: int) -> Move:
            if progress:
                progress("sample", rows.start + int(len(rows) * i / len(times)), total, {})
            return propose(z, t, i)

        return move

    parts = []
    size = max(1, min(1024, IN_FLIGHT // math.prod(prior.x_shape)))
    for rows in batches(total, size):
        many = replace(likelihood, y=likelihood.y[torch.tensor(rows) // n])
        islands = Islands(len(rows), seed + rows.start) if smc else None
        path = rollout(
            prior, watched(sampler(many), rows), generators(seed, rows), times, eta, False, islands
        )
        x = prior.decode(path.final)
        parts.append((x, many.log_prob(x), path.log_weight(prior, many), many.chi2(x)))
    if progress:
        progress("sample", total, total, {})
    images, log_likelihood, log_weight, chi2 = (
        torch.cat(column).numpy() for column in zip(*parts, strict=True)
    )
    return Draws(images, log_likelihood, log_weight, chi2, island=size if smc else 1)


def corrected(
    draws: Draws, known: Certificate, pixels: int, how: str, seed: int
) -> tuple[Draws, Certificate]:
    """Return draws and their certificate, corrected by one of `CORRECTIONS`.

    "psis" draws the samples again by importance, and so does "smc" the particles it was drawn
    with; "auto" is "psis" where the weights are reliable and "none" otherwise. `pixels` counts the
    unmasked data. Raises NumericalError where the weights are not finite.
    """
    trusted = reliable(known.ess, known.pareto_k)
    if how == "auto":
        how = "psis" if trusted else "none"
    if how == "none":
        return draws, known
    if known.ess is None:
        raise NumericalError("path weights are not finite: nothing to correct by; train again")
    draws = draws.resampled(seed)
    fit, verdict = float(draws.chi2.mean()), known.verdict
    if trusted and draws.island == 1:
        evenness = f"Pareto k {known.pareto_k:.2f}, ESS {known.ess:.0f} of {known.n}"
        verdict = misfit(fit, pixels) or f"trust the corrected samples ({how}: {evenness})"
    return draws, replace(known, chi2_per_pixel=fit, corrected=how, verdict=verdict)
