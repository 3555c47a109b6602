"""Denoising diffusion restoration (Kawar et al. 2022, arXiv 2201.11793, equations 7 and 8).

In every singular mode k of the operator, with u = v_k . z / alpha, c = v_k . zhat_0 and y_k, tau_k
the mode's datum and its noise:

    unseen:        u_s = c + (1 - eta^2)^1/2 rho_s / rho_t (u_t - c) + eta rho_s eps
    rho_s < tau_k: u_s = c + (1 - eta^2)^1/2 rho_s / tau_k (y_k - c) + eta rho_s eps
    else:          u_s = c + eta_b (y_k - c) + (rho_s^2 - eta_b^2 tau_k^2)^1/2 eps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invprob.baselines._modes import Modes
from invprob.baselines.base import Baseline, Limits
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class DDRM(Baseline):
    """DDRM with the paper's `eta`, and `eta_b` for modes that are seen above their noise."""

    summary = "blend of clean estimate and data, mode by mode"
    needs_linear = True
    needs_svd = True
    needs_pixels = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    limits: ClassVar[Limits] = {"eta": (0, 1), "eta_b": (0, 1)}
    steps: int = 20
    eta: float = 0.85
    eta_b: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DDRM as the sampler of one likelihood."""
        times, schedule, modes = self.times(prior), prior.schedule, Modes(prior, likelihood)
        kept = (1 - self.eta**2) ** 0.5

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, s = prior.denoise(z, t), times[i + 1]
            rho, now = schedule.rho(s), schedule.rho(t)
            unseen = kept * rho / now * (z / schedule.alpha(t) - clean)
            off = modes.y - modes.of(clean)
            loud = rho < modes.tau
            gain = torch.where(loud, kept * rho / modes.tau, self.eta_b)
            left = (rho**2 - (self.eta_b * modes.tau) ** 2).clamp(min=0).sqrt()
            spread = torch.where(loud, self.eta * rho, left)

            def leap(noise: Noise) -> Tensor:
                eps = noise()
                free = unseen + self.eta * rho * eps
                seen = gain * off + spread * modes.of(eps)
                inside = torch.where(modes.seen, seen - modes.of(free), 0.0)
                after: Tensor = schedule.alpha(s) * (clean + free + modes.state(inside))
                return after

            return Move(clean, leap=leap)

        return move
