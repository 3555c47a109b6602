"""Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687, algorithm 1).

    z_s = (ancestral step) - zeta grad_{z_t} |y - A(x(zhat_0(z_t)))|

The norm is taken per sample. The step is a Gaussian kernel around a shifted mean, so DPS gets the
same path weights, and the same certificate, as a trained posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invprob.baselines.base import Baseline, misfit_slope
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior


@dataclass(frozen=True)
class DPS(Baseline):
    """DPS with step size `zeta` on the gradient of the norm of the residual."""

    summary = "ancestral step plus the gradient of the data misfit through the denoiser"
    steps: int = 300  # the paper: 1000
    zeta: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DPS as the sampler of one likelihood."""
        times = self.times(prior)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, slope = misfit_slope(prior, likelihood, z, t)
            pull = prior.schedule.kernel(t, times[i + 1]).pull
            return Move(clean, -self.zeta * slope / pull)

        return move
