"""Manifold constrained gradients (Chung et al. 2022, arXiv 2206.00941, algorithm 1).

    z'  = (ancestral step) - zeta grad_{z_t} |y - A(x(zhat_0(z_t)))|
    z_s = argmin_z |z - z'|^2 / sigma_s^2 + (y_s - A z)^T Sigma^-1 (y_s - A z) / alpha_s^2
    y_s = alpha_s y + sigma_s A eps

The paper projects z' on A z = y_s by a pseudo-inverse, which is this for noise-free data; with
noise that would divide it by every small singular value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from invprob.baselines.base import Baseline, misfit_slope
from invprob.likelihood import Likelihood
from invprob.proximal import proximal_shift
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class MCG(Baseline):
    """MCG with step size `zeta` on the gradient of the norm of the residual."""

    summary = "DPS with each state projected on the noised data"
    needs_linear = True
    needs_gaussian = True
    needs_pixels = True
    step_size = "zeta"
    paper = "steps=1000"
    steps: int = 300
    zeta: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return MCG as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, slope = misfit_slope(prior, likelihood, z, t)
            s = times[i + 1]
            kernel, alpha, rho = schedule.kernel(t, s), schedule.alpha(s), schedule.rho(s)

            def leap(noise: Noise) -> Tensor:
                after = kernel.mean(z, clean) + kernel.variance**0.5 * noise() - self.zeta * slope
                noised = likelihood.operator(prior.decode(rho * noise()))
                seen = replace(likelihood, y=likelihood.y + noised)
                x = prior.decode(after) / alpha
                delta, _, _ = proximal_shift(seen, x, (prior.scale * rho) ** 2)
                return alpha * prior.encode(x + delta)

            return Move(clean, leap=leap)

        return move
