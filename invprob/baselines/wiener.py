"""Wiener filter: the posterior of a Gaussian prior of the same mean and covariance.

    x = x' + C A^T (A C A^T + Sigma)^-1 (y + n' - A x'),   x' ~ prior,  n' ~ noise

(Matheron's rule: Hoffman & Ribak 1991, doi:10.1086/186160.) x' is a draw of the prior's chain and
C = Cov(x | z_t) at t = 1, where the state says nothing yet. Exact for a Gaussian prior; for another
one it is the update of an ensemble Kalman filter, linear in the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Noise, Propose, proximal
from operators.noise import Gaussian
from priors.base import Covariance, Prior


@dataclass(frozen=True)
class Wiener(Baseline):
    """The Wiener filter on draws of the prior's chain of `steps`."""

    summary = "closed form of a Gaussian prior of this mean and covariance"
    needs_linear = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    steps: int = 100

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return the Wiener filter as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        covariance: Covariance = 0.0

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal covariance
            clean, s = prior.denoise(z, t), times[i + 1]
            if i == 0:
                covariance = prior.covariance(z, t, clean)
            if i < len(times) - 2:
                return Move(clean)
            kernel = schedule.kernel(t, s)

            def leap(noise: Noise) -> Tensor:
                drawn = kernel.mean(z, clean) + kernel.variance**0.5 * noise()
                noised = replace(likelihood, y=likelihood.y + _noise(likelihood, noise))
                change = proximal(prior, noised, prior.denoise(drawn, s), covariance)[0]
                moved: Tensor = drawn + schedule.alpha(s) * change
                return moved

            return Move(clean, leap=leap)

        return move


def _noise(likelihood: Likelihood, noise: Noise) -> Tensor:
    """Return a draw of the data's Gaussian noise, (B, *y_shape), zero where masked."""
    model = likelihood.noise
    assert isinstance(model, Gaussian)  # a capability that the method declares
    shape = likelihood.operator.y_shape
    wanted = torch.Size(shape).numel()
    eps = noise().flatten(1)
    while eps.shape[1] < wanted:
        eps = torch.cat([eps, noise().flatten(1)], 1)
    precision = model.precision_as(eps)
    sigma = torch.where(precision > 0, precision.rsqrt(), 0.0)
    return sigma * eps[:, :wanted].reshape(-1, *shape)
