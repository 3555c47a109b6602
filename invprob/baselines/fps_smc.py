"""Filtering by noised observations (Dou & Song 2024, "Diffusion posterior sampling for linear
inverse problem solving: a filtering perspective", ICLR).

    y_s = alpha_s y + sigma_s A eps:    psi_s = prod_k N(alpha_s y_k; v_k . z_s, w_k)
    proposal: p(z_s | z_t) psi_s over its integral, a Gaussian in each mode k

The paper draws one eps for all particles, w_k = alpha_s^2 tau_k^2; here it is integrated out, w_k =
alpha_s^2 tau_k^2 + sigma_s^2, so that psi ends as the likelihood and the path weights lead to the
exact posterior, not to that of one noised path. The proposal of MCGDiff (Cardoso et al. 2024, arXiv
2308.07983) is of this form; its noisy data stand for a state of the chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invprob.baselines._modes import CUTOFF_EXACT, Modes
from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose, Twisted
from priors.base import Prior


@dataclass(frozen=True)
class FPSSMC(Baseline):
    """FPS-SMC with the noise of the noised observations integrated out."""

    summary = "SMC: steps conditioned on the noised data, mode by mode"
    needs_linear = True
    needs_svd = True
    needs_pixels = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    particles = True
    steps: int = 100

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return FPS-SMC as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        alone = replace(likelihood, y=likelihood.y[:1])  # particles share their data
        modes = Modes(prior, alone, CUTOFF_EXACT)

        def width(t: float) -> Tensor:
            return (schedule.alpha(t) * modes.tau) ** 2 + schedule.sigma(t) ** 2

        def move(z: Tensor, t: float, i: int) -> Move:
            s = times[i + 1]
            off = schedule.alpha(t) * modes.y - modes.of(z)
            potential = torch.where(modes.seen, off.square() / width(t) + width(t).log(), 0.0)

            def twist(mean: Tensor, variance: float) -> Twisted:
                return modes.conditioned(mean, variance, schedule.alpha(s) * modes.y, width(s))

            foreseen = -potential.double().sum(1) / 2
            return Move(prior.denoise(z, t), twist=twist, foreseen=foreseen)

        return move
