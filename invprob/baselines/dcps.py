"""Divide-and-conquer posterior sampling (Janati et al. 2024, arXiv 2403.11407, algorithm 1).

The chain is cut in blocks. Each ends at a time l with the potential

    log g_l(z) = alpha_l^2 log p(y | x(z / alpha_l)),   g_t(z) = g_l( E[z_l | z_t = z] ) above it

and begins at its first time with Langevin steps on p_t g_t, tamed: no drift is longer than 1. From
there on a step is the Gaussian N(mu, diag exp(2 nu)) that is nearest to p(z_s | z_t) g_s(z_s) in
Kullback-Leibler divergence, by a few normalised gradient steps in mu and nu from the kernel's own.
The authors' steps have one length, 1.5, in every dimension and at every noise level; here it is a
multiple of the kernel's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood, column
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class DCPS(Baseline):
    """DCPS in `blocks`.

    langevin_steps, gamma: at the start of every block, and their size in units of sigma_t^2.
    gradient_steps, rate: of every transition; the root mean square change of a number of mu in
        units of the kernel's standard deviation, and of one of nu.
    """

    summary = "blocks of the chain: Langevin steps, then the nearest Gaussian to each step"
    step_size = "rate"
    paper = "steps=300"
    steps: int = 100
    blocks: int = 3
    langevin_steps: int = 5
    gamma: float = 1e-3
    gradient_steps: int = 2
    rate: float = 0.3

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DCPS as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        last = len(times) - 1
        ends = [round(last * j / self.blocks) for j in range(1, self.blocks + 1)]

        def potential(z: Tensor, t: float, end: float) -> tuple[Tensor, Tensor]:
            """Return log g_t(z) (B,) and zhat_0(z)."""
            clean, at_end = prior.denoise(z, t), z
            if t > end:
                at_end = schedule.kernel(t, end).mean(z, clean)
            alpha = schedule.alpha(end)
            return alpha**2 * likelihood.log_prob(prior.decode(at_end / alpha)), clean

        def langevin(z: Tensor, t: float, end: float, noise: Noise) -> Tensor:
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            gamma = self.gamma * sigma**2
            for _ in range(self.langevin_steps):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    value, clean = potential(leaf, t, end)
                    (slope,) = torch.autograd.grad(value.sum(), leaf)
                drift = slope + (alpha * clean.detach() - z) / sigma**2
                size = drift.flatten(1).norm(dim=1)
                z = z + column(gamma / (1 + gamma * size), z) * drift
                z = z + (2 * gamma) ** 0.5 * noise()
            return z

        def move(z: Tensor, t: float, i: int) -> Move:
            place = next(e for e in ends if e > i)
            s, end = times[i + 1], times[place]

            def leap(noise: Noise) -> Tensor:
                start = langevin(z, t, end, noise) if i in (0, *ends) else z
                kernel = schedule.kernel(t, s)
                own, std = kernel.mean(start, prior.denoise(start, t)), kernel.variance**0.5
                mu, nu = own, torch.zeros_like(own)  # in units of the kernel's
                for _ in range(self.gradient_steps):
                    with torch.enable_grad():
                        leaf = [a.detach().requires_grad_() for a in (mu, nu)]
                        value, _ = potential(leaf[0] + std * leaf[1].exp() * noise(), s, end)
                        spread = (2 * leaf[1]).exp() / 2 - leaf[1]
                        far = ((leaf[0] - own) / std).square() / 2
                        loss = (far + spread).flatten(1).double().sum(1) - value
                        slopes = torch.autograd.grad(loss.sum(), leaf)
                    mu = mu - std * self.rate * _direction(slopes[0])
                    nu = nu - self.rate * _direction(slopes[1])
                drawn: Tensor = mu + std * nu.exp() * noise()
                return drawn

            return Move(z, leap=leap)

        return move


def _direction(slope: Tensor) -> Tensor:
    """Return a gradient (B, ...) with the root mean square of each item 1, or 0 where it is."""
    size = slope.flatten(1).square().mean(1).sqrt()
    return slope / column(size.clamp(min=torch.finfo(slope.dtype).tiny), slope)
