"""MCGDiff (Cardoso et al. 2024, arXiv 2308.07983, section 3).

Noisy data are a state of the chain: the datum of a mode k, y_k = v_k . z_0 + N(0, tau_k^2), is what
the chain itself has at the time T_k where rho = tau_k. Above it, particles are proposed and
weighted by how well they lead there, and below it the mode is free:

    psi_t = prod_k N(alpha_t y_k; v_k . z_t, w_k),   T_k <= t
    w_k   = sigma_t^2 - (alpha_t rho(T_k))^2 + alpha_t^2 max(tau_k^2 - rho(T_k)^2, kappa)
    proposal: p(z_s | z_t) psi_s over its integral, a Gaussian in each mode k

The datum is met once: p(y | x_0) does not weigh the end again, as it does in the authors' code. A
grid has no time at tau_k: T_k is the last one with more noise that is still less than that of the
datum, and w_k has the rest. A datum of less noise than the chain has at its last step is met there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from invprob.baselines._modes import CUTOFF_EXACT, Modes
from invprob.baselines.base import Baseline, Limits
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose, Twisted
from priors.base import Prior


@dataclass(frozen=True)
class MCGDiff(Baseline):
    """MCGDiff with data met within the variance `kappa` at least."""

    summary = "SMC: steps led to the data, each mode met as a state of the chain at its own noise"
    needs_linear = True
    needs_svd = True
    needs_pixels = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    particles = True
    limits: ClassVar[Limits] = {"steps": (3, math.inf)}
    steps: int = 100
    kappa: float = 1e-4

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return MCGDiff as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        alone = replace(likelihood, y=likelihood.y[:1])  # particles share their data
        modes = Modes(prior, alone, CUTOFF_EXACT)
        rho = torch.tensor([schedule.rho(t) for t in times[1:-1]]).to(modes.tau)
        # place of T_k in the grid: past the ends of it, the nearest
        place = 1 + (rho > modes.tau[:, None]).sum(1).clamp(max=len(rho) - 1)
        own = rho[place - 1].square()
        rest = (modes.tau.square() - own).clamp(min=self.kappa)
        x = torch.zeros(1, *prior.x_shape).to(likelihood.y)
        at_zero = _log_density(modes.y, modes.tau.square(), modes.seen)
        constant = float(alone.log_prob(x) - at_zero)  # of data that no mode sees, and of units

        def width(t: float) -> Tensor:
            alpha2 = schedule.alpha(t) ** 2
            return schedule.sigma(t) ** 2 + alpha2 * (rest - own)

        def move(z: Tensor, t: float, i: int) -> Move:
            s, alpha = times[i + 1], schedule.alpha(t)
            off = modes.y - modes.of(z) / alpha
            ahead, here = modes.seen & (place > i), modes.seen & (place == i)

            def twist(mean: Tensor, variance: float) -> Twisted:
                known = torch.where(ahead, width(s), torch.inf)
                return modes.conditioned(mean, variance, schedule.alpha(s) * modes.y, known)

            met = _log_density(off, rest, here) + (constant if i == 0 else 0.0)
            foreseen = _log_density(off, width(t) / alpha**2, ahead)
            return Move(prior.denoise(z, t), twist=twist, foreseen=foreseen, met=met)

        return move


def _log_density(off: Tensor, variance: Tensor, modes: Tensor) -> Tensor:
    """Return log N(off; 0, variance), (B,) float64, of `modes` among (B, K)."""
    logs = off.square() / variance + (2 * torch.pi * variance).log()
    return -torch.where(modes, logs, 0.0).double().sum(1) / 2
