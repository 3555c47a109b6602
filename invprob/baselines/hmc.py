"""Hamiltonian Monte Carlo on the exact posterior (Neal 2011, arXiv 1206.1901, section 5.2).

    log p(u | y) = log p(y | x(u)) + log p(u) + const,   grad log p(u) = (zhat_0(u) - u) / rho^2

with the prior smoothed by the least noise of its process, rho = rho(0) (Tweedie's formula). The
score alone is enough for the Metropolis test: along a trajectory of leapfrog points u_j

    log p(u_L) - log p(u_0) = sum_j (u_{j+1} - u_j) . (score_j + score_{j+1}) / 2 + O(step^2)

which is exact for a Gaussian prior. Every sample is the end of a chain of its own from a draw of
the prior; the first half of the chain adapts its step to `ACCEPTANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, flowed
from invprob.likelihood import Likelihood, column
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior

ACCEPTANCE = 0.8
ADAPTATION = 0.6  # exponent of the steps of the stochastic approximation that finds it
START = 20  # network evaluations for the draw of the prior where a chain starts


@dataclass(frozen=True)
class HMC(Baseline):
    """HMC of `steps` - 1 trajectories, each of `leapfrogs` steps."""

    summary = "Hamiltonian Monte Carlo on the exact posterior, for priors known in closed form"
    needs_network_gradient = False
    needs_known_prior = True
    steps: int = 60
    leapfrogs: int = 20

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return HMC as the sampler of one likelihood."""
        alpha, rho, last = prior.schedule.alpha(0.0), prior.schedule.rho(0.0), self.steps - 2
        log_step = torch.empty(0)

        def prior_score(u: Tensor) -> Tensor:
            return (prior.denoise(alpha * u, 0.0) - u) / rho**2

        def score(u: Tensor, of_prior: Tensor) -> Tensor:
            return of_prior + prior.pull(u, likelihood.score(prior.decode(u)))

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal log_step
            u = z
            if i == 0:
                u, log_step = flowed(prior, z, t, START), z.new_zeros(len(z))

            def leap(noise: Noise) -> Tensor:
                nonlocal log_step
                step, momentum = column(log_step.exp(), u), noise()
                at, known, gained = u, prior_score(u), torch.zeros_like(log_step)
                p = momentum + step / 2 * score(at, known)
                for j in range(self.leapfrogs):
                    there = at + step * p
                    found = prior_score(there)
                    gained = gained + ((there - at) * (known + found)).flatten(1).sum(1) / 2
                    at, known = there, found
                    p = p + (step if j < self.leapfrogs - 1 else step / 2) * score(at, known)
                fit = likelihood.log_prob(prior.decode(at)) - likelihood.log_prob(prior.decode(u))
                kinetic = (momentum.square() - p.square()).flatten(1).sum(1) / 2
                log_ratio = (gained + fit + kinetic).nan_to_num(-torch.inf)  # a step too long
                taken = torch.special.log_ndtr(noise().flatten(1)[:, 0]) < log_ratio
                if i <= last // 2:
                    excess = log_ratio.clamp(max=0).exp().to(u.dtype) - ACCEPTANCE
                    log_step = log_step + excess / (i + 1) ** ADAPTATION
                after = torch.where(column(taken, u) > 0, at, u)
                return after if i < last else alpha * after

            return Move(u, leap=leap)

        return move
