"""Denoising diffusion null-space model, DDNM+ (Wang et al. 2023, arXiv 2212.00490, section 3.3).

    zhat_0 -> zhat_0 + sum_k v_k l_k (y_k - v_k . zhat_0)         (range-space part from the data)
    z_s = kernel step from it, of noise g_k in mode k:   l_k^2 a^2 tau_k^2 + g_k^2 = v

with a and v the kernel's pull and variance, and y_k, tau_k the datum of a mode and its noise. l_k
is 1 where the chain's noise covers that of the data, else what it can cover, v^1/2 / (a tau_k).
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
class DDNM(Baseline):
    """DDNM+ with the kernel's noise scaled by `eta`."""

    summary = "clean estimate with its range-space part replaced by the data, mode by mode"
    needs_linear = True
    needs_svd = True
    needs_pixels = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    limits: ClassVar[Limits] = {"eta": (0, 1)}
    steps: int = 100
    eta: float = 0.85

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DDNM as the sampler of one likelihood."""
        times, modes = self.times(prior), Modes(prior, likelihood)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean = prior.denoise(z, t)
            kernel = prior.schedule.kernel(t, times[i + 1], self.eta)
            std: float = kernel.variance**0.5
            brought = kernel.pull * modes.tau  # noise that comes with the whole datum of a mode
            taken = (std / brought).clamp(max=1)
            left = torch.where(taken < 1, 0.0, (kernel.variance - brought**2).clamp(min=0).sqrt())
            left = torch.where(taken > 0, left, std)
            fitted = clean + modes.state(taken * (modes.y - modes.of(clean)))

            def leap(noise: Noise) -> Tensor:
                eps = noise()
                spread = std * eps + modes.state((left - std) * modes.of(eps))
                return kernel.mean(z, fitted) + spread

            return Move(clean, leap=leap)

        return move
