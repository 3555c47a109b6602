"""Denoising diffusion for plug-and-play restoration (Zhu et al. 2023, arXiv 2305.08995, alg. 1).

    z~_0  = argmin_u [ -log p(y | x(u)) + lambda |u - zhat_0|^2 / (2 rho_t^2) ]
    eps^  = (z_t - alpha_t z~_0) / sigma_t
    z_s   = alpha_s z~_0 + sigma_s ( (1 - zeta)^1/2 eps^ + zeta^1/2 eps )

The proximal step is in closed form for linear operators and Gaussian noise, else by Gauss-Newton
steps (`invprob.proximal`); of a latent prior it is taken in the codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invprob.baselines.base import Baseline, Limits
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Noise, Propose, proximal
from priors.base import Prior


@dataclass(frozen=True)
class DiffPIR(Baseline):
    """DiffPIR with weight `strength` (lambda) of the denoiser and share `zeta` of fresh noise."""

    summary = "denoised estimate, proximal step to the data, noise again"
    needs_network_gradient = False
    step_size = "strength"
    limits: ClassVar[Limits] = {"strength": (1e-6, math.inf), "zeta": (0, 1)}
    steps: int = 100
    strength: float = 7.0
    zeta: float = 0.1

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DiffPIR as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule

        def move(z: Tensor, t: float, i: int) -> Move:
            clean = prior.denoise(z, t)
            unit = prior.scale if prior.guided_in_x else 1.0
            variance = (unit * schedule.rho(t)) ** 2 / self.strength
            fitted = clean + proximal(prior, likelihood, clean, variance)[0]
            old = (z - schedule.alpha(t) * fitted) / schedule.sigma(t)
            s = times[i + 1]

            def leap(noise: Noise) -> Tensor:
                eps = (1 - self.zeta) ** 0.5 * old + self.zeta**0.5 * noise()
                return schedule.noise(fitted, s, eps)

            return Move(clean, leap=leap)

        return move
