"""Plug-and-play diffusion, a split Gibbs sampler (Wu et al. 2024, arXiv 2405.18782, algorithm 1).

    x   ~  p(x | z) proportional to  p(x) N(z; x, rho^2)          the reverse chain from rho to 0
    z   ~  p(y | z) N(z; x, rho^2)                                Langevin steps

with rho annealed along the grid (the paper: from 10 to 0.02, by a factor of 0.9). The Langevin step
is that of `daps`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invprob.baselines.base import Baseline, flowed
from invprob.baselines.daps import langevin
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class PnPDM(Baseline):
    """PnP-DM on `steps` coupling strengths rho.

    flow_steps: network evaluations of the reverse chain at every one.
    langevin_steps: at every one, of size `rate` over the largest curvature.
    """

    summary = "split Gibbs: reverse chain from a noise level, Langevin on the likelihood around it"
    needs_network_gradient = False
    steps: int = 50  # the paper: 100
    flow_steps: int = 5
    langevin_steps: int = 50  # the paper: 100
    rate: float = 0.2

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return PnP-DM as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule

        def move(z: Tensor, t: float, i: int) -> Move:
            s = times[i + 1]

            def leap(noise: Noise) -> Tensor:
                x = flowed(prior, z, t, self.flow_steps, noise)
                coupled = langevin(
                    prior, likelihood, x, schedule.rho(s), noise, self.langevin_steps, self.rate
                )
                return schedule.alpha(s) * coupled

            return Move(z, leap=leap)

        return move
