"""Decoupled annealing posterior sampling (Zhang et al. 2025, arXiv 2407.01521, algorithm 1).

    zhat_0 = probability flow from z_t to 0                      (a few steps)
    z_0   ~  p(y | x(z_0)) N(z_0; zhat_0, rho_t^2)               (Langevin)
    z_s    = alpha_s z_0 + sigma_s eps

The Langevin step is `rate` over the curvature of its target, 1 / rho_t^2 plus the largest of the
likelihood, which power iteration finds: the paper's rates are tuned on each of its operators. The
data term has the true noise; the authors' assumes sigma = 0.01 for data of 0.05 (`temperature`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invprob.baselines.base import Baseline, Limits, flowed, largest_eigenvalue
from invprob.decoded import Decoded
from invprob.likelihood import Likelihood, column
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class DAPS(Baseline):
    """DAPS on `steps` noise levels.

    flow_steps: network evaluations of the flow at every level.
    langevin_steps: at every level, of size `rate` over the largest curvature.
    temperature: factor of the noise's standard deviation; 1 is the true one, the authors' 0.2.
    """

    summary = "flow to a clean estimate, Langevin steps on the likelihood around it, noise again"
    needs_network_gradient = False
    paper = "steps=200,langevin_steps=100"
    limits: ClassVar[Limits] = {"temperature": (1e-6, math.inf)}
    steps: int = 50
    flow_steps: int = 5
    langevin_steps: int = 50
    rate: float = 0.2
    temperature: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DAPS as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, spread = flowed(prior, z, t, self.flow_steps), schedule.rho(t)
            s = times[i + 1]

            def leap(noise: Noise) -> Tensor:
                drawn = langevin(
                    prior, likelihood, clean, spread, noise, self.langevin_steps, self.rate,
                    self.temperature**-2,
                )  # fmt: skip
                return schedule.noise(drawn, s, noise())

            return Move(clean, leap=leap)

        return move


def langevin(
    prior: Prior,
    likelihood: Likelihood,
    centre: Tensor,
    spread: float,
    noise: Noise,
    steps: int,
    rate: float,
    weight: float = 1.0,
) -> Tensor:
    """Return z (B, *z_shape) near p(y | x(z))^weight N(z; centre, spread^2), by Langevin steps."""
    curvature = spread**-2 + weight * steepest(prior, likelihood, centre)
    step = column(rate / curvature, centre)
    z = centre
    for _ in range(steps):
        data = prior.pull(z, likelihood.score(prior.decode(z)))
        slope = weight * data + (centre - z) / spread**2
        z = z + step * slope + (2 * step).sqrt() * noise()
    return z


def steepest(prior: Prior, likelihood: Likelihood, z: Tensor) -> Tensor:
    """Return the largest curvature of -log p(y | x(z)) at z (B, *z_shape), expected, (B,) float64.

    That of J^T W J, J the derivative of A(x(z)) and W the information of the data.
    """
    mean, jacobian = Decoded(likelihood.operator, prior).linearise(z)
    information = likelihood.noise.expected_information(mean)
    return largest_eigenvalue(lambda v: jacobian.adjoint(information * jacobian(v)), z)
