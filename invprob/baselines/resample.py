"""ReSample: hard data consistency in latent space (Song et al. 2024, arXiv 2307.08123, alg. 1).

    z'   = deterministic (DDIM) step - zeta alpha_t^2 grad_{z_t} |y - A(D(zhat_0(z_t)))|
    z^_0 = argmin_z -log p(y | D(z)), from zhat_0, until the data are fitted     (some steps)
    z_s  ~ N( (c alpha_s z^_0 + sigma_s^2 z') / (c + sigma_s^2), c sigma_s^2 / (c + sigma_s^2) )

with c = `strength` times the variance of the ancestral step. z^_0 is taken every `every` steps: in
the second third of the chain over x, encoded then, in the last over z, and at the end. Adam stops
for each sample where its residuals are those of noise, chi-square per datum = temperature^2. The
authors' code stops at a mean square of 1e-6 in the prior's unit, whatever the noise: then
`temperature` is 1e-3 over the noise in that unit, 0.02 for data of 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, misfit_slope
from invprob.likelihood import Likelihood, column
from invprob.trajectory import Move, Noise, Propose
from priors.base import Prior


@dataclass(frozen=True)
class ReSample(Baseline):
    """ReSample with step `zeta`, and hard consistency of `iterations` of Adam `every` steps.

    pixel_rate, latent_rate: of Adam, in the prior's unit and in that of its codes.
    strength: how far a consistent estimate outweighs the chain's own state.
    temperature: factor of the noise's standard deviation at which the data count as fitted.
    """

    summary = "latent dps, optimised now and then until the data are fitted, and noised again"
    needs_latent = True
    step_size = "zeta"
    paper = "steps=500,iterations=500"
    steps: int = 100
    every: int = 10
    zeta: float = 0.5
    iterations: int = 100
    pixel_rate: float = 0.01
    latent_rate: float = 0.005
    strength: float = 40.0
    temperature: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return ReSample as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        last = len(times) - 2

        def fitted(clean: Tensor, i: int) -> Tensor:
            if 3 * i >= 2 * last:
                return self._consistent(likelihood, prior.decode, clean, self.latent_rate)
            x = self._consistent(
                likelihood, lambda u: prior.scale * u, prior.decode(clean) / prior.scale,
                self.pixel_rate,
            )  # fmt: skip
            return prior.encode(prior.scale * x)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, slope = misfit_slope(prior, likelihood, z, t)
            s = times[i + 1]
            step = schedule.kernel(t, s, eta=0.0).mean(z, clean)
            step = step - self.zeta * schedule.alpha(t) ** 2 * slope
            if i == last:
                end = schedule.alpha(s) * fitted(step / schedule.alpha(s), i)
                return Move(clean, leap=lambda noise: end)
            if 3 * i < last or (i + 1) % self.every:
                return Move(clean, leap=lambda noise: step)
            best, own = fitted(clean, i), schedule.sigma(s) ** 2
            trust = self.strength * schedule.kernel(t, s).variance

            def leap(noise: Noise) -> Tensor:
                mean = (trust * schedule.alpha(s) * best + own * step) / (trust + own)
                spread: float = (trust * own / (trust + own)) ** 0.5
                return mean + spread * noise()

            return Move(clean, leap=leap)

        return move

    def _consistent(
        self,
        likelihood: Likelihood,
        decode: Callable[[Tensor], Tensor],
        start: Tensor,
        rate: float,
    ) -> Tensor:
        """Return u (B, ...) from `start` by Adam on -log p(y | decode(u)), until the data fit."""
        noise, shape = likelihood.noise, likelihood.operator.y_shape
        u = start.detach().clone()
        adam = torch.optim.Adam([u], rate)
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = u.detach().requires_grad_()
                mean = likelihood.operator(decode(leaf))
                y = likelihood.y.expand_as(mean)
                (u.grad,) = torch.autograd.grad(noise.misfit(y, mean).sum(), leaf)
            residual = noise.whitened(y, mean.detach()).flatten(1).double()
            done = residual.square().sum(1) <= noise.count(shape) * self.temperature**2
            if done.all():
                break
            before = u.clone()
            adam.step()
            u.copy_(torch.where(column(done, u) > 0, before, u))
        return u
