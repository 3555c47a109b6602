"""RePaint (Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1).

    unseen pixels:  z_s by the kernel
    seen pixels:    z_s = alpha_s y + (sigma_s^2 - alpha_s^2 sigma^2)^1/2 eps

with jumps back up the chain, so that the two agree. The paper's data have no noise; those of noise
sigma are a state of the chain at rho = sigma, so below that level the kernel goes on alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines._modes import Modes
from invprob.baselines.base import Baseline, time_travel
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Noise, Propose
from operators.base import ForwardOperator
from operators.inpainting import Inpainting
from operators.noise import NoiseModel
from priors.base import Prior


@dataclass(frozen=True)
class RePaint(Baseline):
    """RePaint that walks every `jump` levels `walks` times."""

    summary = "seen pixels replaced by the noised data, levels walked several times; inpainting"
    needs_linear = True
    needs_svd = True
    needs_pixels = True
    needs_gaussian = True
    needs_gradient = False
    needs_network_gradient = False
    paper = "steps=250,walks=10"
    steps: int = 50
    jump: int = 10
    walks: int = 5

    def lacks(self, prior: Prior, operator: ForwardOperator, noise: NoiseModel) -> str | None:
        """Return what the method needs and a problem does not have, None where it can run."""
        if not isinstance(operator, Inpainting):
            return f"is for inpainting alone, this is {type(operator).__name__}"
        return super().lacks(prior, operator, noise)

    def times(self, prior: Prior) -> tuple[float, ...]:
        """Return the grid, every block of `jump` levels walked `walks` times."""
        return time_travel(prior.schedule.grid(self.steps), self.jump, self.walks)

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return RePaint as the sampler of one likelihood."""
        times, schedule, modes = self.times(prior), prior.schedule, Modes(prior, likelihood)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, s = prior.denoise(z, t), times[i + 1]
            kernel, alpha, sigma = schedule.kernel(t, s), schedule.alpha(s), schedule.sigma(s)
            left = sigma**2 - (alpha * modes.tau) ** 2

            def leap(noise: Noise) -> Tensor:
                after = kernel.mean(z, clean) + kernel.variance**0.5 * noise()
                seen = alpha * modes.y + left.clamp(min=0).sqrt() * modes.of(noise())
                change = modes.state(torch.where(left >= 0, seen - modes.of(after), 0.0))
                replaced: Tensor = after + change
                return replaced

            return Move(clean, leap=leap)

        return move
