"""The shift of guidance, denoised: what the prior makes of an image that the data have changed.

    delta  <-  delta + s [ D'(zhat_0 + delta) - D'(zhat_0) - delta ]

D' is the denoiser at a noise ratio rho' well below that of the state. Guidance takes the error of
zhat_0 for Gaussian, and leaves in zhat_0 + delta what no draw of the prior has; D' takes that out.
The difference of two, not D'(zhat_0 + delta) alone: a chain's later steps may not agree with zhat_0
(for a learned denoiser they do not), and where the data say nothing a policy should be the prior.

rho' and the share s are measured on simulated pairs, as those that bring zhat_0 + delta nearest to
z_0; s is 0 where that gains nothing worth two evaluations, so an exact guidance stays exact and
costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from invprob.likelihood import Likelihood
from invprob.trajectory import Guidance, guide
from priors.base import Prior

NODES = 12  # steps of the chain at which rho' and s are measured; between them interpolated
FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # rho' / rho_min that are tried
BELOW = 0.5  # rho' / rho at most
SIGMAS = 3.0  # a gain of less than so many standard errors is none
WORTH = 0.01  # nats of EUBO that a step must gain

Simulate = Callable[[int, int], tuple[Tensor, Likelihood]]  # number, seed -> z_0 and their data


def denoised(prior: Prior, met: Guidance, level: float, share: float) -> Guidance:
    """Return guidance whose shift is denoised at the noise ratio `level`: two evaluations."""
    with torch.no_grad():
        change = _change(prior, met, level)
    return replace(met, delta=met.delta + share * change)


def measured(
    prior: Prior, times: tuple[float, ...], simulate: Simulate, pairs: int
) -> tuple[list[float], list[float]]:
    """Return rho' and s of every time of a chain, 0 where the shift stays as it is.

    pairs: simulated at each of the times where both are measured, at least 2.
    """
    steps, nodes = np.arange(len(times)), np.unique(np.linspace(0, len(times) - 1, NODES).round())
    ends = (*times[1:], 0.0)
    found = {
        i: _best(prior, (times[i], ends[i]), simulate(pairs, i), i) for i in map(int, nodes)
    }  # fmt: skip
    known = [i for i, (_, share) in found.items() if share]
    if not known:
        return [0.0] * len(times), [0.0] * len(times)
    levels, shares = zip(*(found[i] for i in known), strict=True)
    share = np.interp(steps, known, shares, left=0.0, right=0.0)
    level = np.exp(np.interp(steps, known, np.log(levels)))
    return (level * (share > 0)).tolist(), share.tolist()


def _best(
    prior: Prior, step: tuple[float, float], pairs: tuple[Tensor, Likelihood], seed: int
) -> tuple[float, float]:
    """Return rho' and s that bring zhat_0 + delta nearest to z_0 where a step begins."""
    z0, likelihood = pairs
    t, kernel = step[0], prior.schedule.kernel(*step)
    nats = kernel.pull**2 / (2 * kernel.variance)
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
    met = guide(prior, likelihood, prior.schedule.noise(z0, t, eps), t)
    error = (z0 - met.clean - met.delta).flatten(1).double()
    best, found = WORTH, (0.0, 0.0)
    for factor in FACTORS:
        level = factor * prior.schedule.rho_min
        if level > BELOW * prior.schedule.rho(t):
            break
        with torch.no_grad():
            change = _change(prior, met, level).flatten(1).double()
        share = float(((change * error).sum() / change.square().sum()).nan_to_num().clamp(0, 1))
        gain = nats * (error.square() - (error - share * change).square()).sum(1)
        mean, spread = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        if mean > max(best, SIGMAS * spread):
            best, found = mean, (level, share)
    return found


def _change(prior: Prior, met: Guidance, level: float) -> Tensor:
    """Return D'(zhat_0 + delta) - D'(zhat_0) - delta, (B, *z_shape)."""
    t = prior.schedule.time(level)
    pair = prior.schedule.alpha(t) * torch.cat([met.clean + met.delta, met.clean])
    shifted, plain = prior.denoise(pair, t).chunk(2)
    return shifted - plain - met.delta
