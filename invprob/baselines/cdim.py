"""Constrained diffusion implicit models (Jayaram et al. 2024, arXiv 2411.00359, algorithm 1).

    z_s = deterministic (DDIM) step; then, up to `updates` times while |y - A z_s|^2 > limit_s,
    z_s <- z_s - eta grad_{z_s} |y - A zhat_0(z_s)|

The limit is the mean, and c standard deviations, of what a noised truth leaves. With n the noise in
y and alpha, sigma those of s, y - A z_s = (1 - alpha) y + alpha n - sigma A eps, and for known y

    mean = (1 - alpha)^2 |y|^2 + (1 - (1 - alpha)^2) tr Sigma + sigma^2 tr A A^T

eta is the least that reaches the limit, or else the one that comes nearest: |y - A z_s|^2 is a
parabola in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, misfit_slope
from invprob.likelihood import Likelihood, column
from invprob.trajectory import Move, Propose
from priors.base import Prior

PROBES = 64  # draws of n and eps behind trace and standard deviation, the same for all samples


@dataclass(frozen=True)
class CDIM(Baseline):
    """CDIM with at most `updates` K per level, down to `limit` c standard deviations."""

    summary = "deterministic steps, each moved until the residual is as noise leaves it"
    needs_linear = True
    needs_gaussian = True
    needs_pixels = True
    steps: int = 25
    updates: int = 20
    limit: float = 0.1

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return CDIM as the sampler of one likelihood."""
        times, schedule = self.times(prior), prior.schedule
        kept = likelihood.noise.kept(likelihood.operator.y_shape).to(likelihood.y.device)
        y = torch.where(kept, likelihood.y, 0.0).flatten(1).double()

        def seen(z: Tensor) -> Tensor:
            return torch.where(kept, likelihood.operator(prior.decode(z)), 0.0).flatten(1).double()

        allowed = self._allowed(prior, likelihood, seen, y)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, s = prior.denoise(z, t), times[i + 1]
            after = schedule.kernel(t, s, eta=0.0).mean(z, clean)
            each = (a.expand(len(z), *a.shape[1:]) for a in (allowed(s), likelihood.y, y))
            target, data, wanted = each
            rows = torch.arange(len(z), device=z.device)  # of those that still move
            for _ in range(self.updates):
                off = wanted[rows] - seen(after[rows])
                excess = off.square().sum(1) - target[rows]
                far = excess > 0
                rows, off, excess = rows[far], off[far], excess[far]
                if not len(rows):
                    break
                alone = replace(likelihood, y=data[rows])
                slope = misfit_slope(prior, alone, after[rows], s)[1]
                gained = seen(slope)
                tilt, bend = (off * gained).sum(1), gained.square().sum(1)
                root = (tilt.square() - bend * excess).clamp(min=0).sqrt()
                falls = tilt < 0
                eta = torch.where(falls, (-tilt - root) / bend, 0.0)
                after = after.index_add(0, rows, -column(eta, slope) * slope)
                rows = rows[falls]
                if not len(rows):
                    break
            return Move(clean, leap=lambda noise: after)

        return move

    def _allowed(
        self, prior: Prior, likelihood: Likelihood, seen: Callable[[Tensor], Tensor], y: Tensor
    ) -> Callable[[float], Tensor]:
        """Return the limit of |y - A z_s|^2, (B,) float64, as a function of the time s."""
        source = torch.Generator().manual_seed(0)
        eps = torch.randn((PROBES, *prior.z_shape), generator=source).to(prior.device)
        blurred = seen(eps)
        zero = torch.zeros((PROBES, *likelihood.operator.y_shape))
        n = likelihood.noise.sample(zero, source).flatten(1).to(blurred)
        loud, trace = n.square().sum(1).mean(), blurred.square().sum(1).mean()

        def allowed(s: float) -> Tensor:
            alpha, sigma = prior.schedule.alpha(s), prior.schedule.sigma(s)
            short, jitter = 1 - alpha, alpha * n - sigma * blurred
            mean = short**2 * y.square().sum(1) + (1 - short**2) * loud + sigma**2 * trace
            squares = jitter.square().sum(1) + 2 * short * y @ jitter.T  # less what is constant
            limit: Tensor = mean + self.limit * squares.std(1)
            return limit

        return allowed
