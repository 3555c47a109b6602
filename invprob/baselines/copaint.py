"""CoPaint: coherent sampling by optimising the state itself (Zhang et al. 2023, arXiv 2304.03322).

    z_t <- argmin_z |y - A(x(zhat_0(z)))|^2 + lambda |z - z_t|^2     (a few gradient steps)
    z_s  = deterministic (DDIM) step,  with jumps back up the chain ("time travel")

Written for noise-free data: the misfit is not weighted by the noise. Its learning rate and
regularisation grow along the chain as in the paper's algorithm, whose chain has 250 steps; a step
that raises the objective is halved, at most `halvings` times (the authors' search takes .8 of it
until it does not).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, Limits, misfit, time_travel
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior

PAPER_STEPS = 250


@dataclass(frozen=True)
class CoPaint(Baseline):
    """CoPaint with `gradient_steps` G per level and jumps of `jump` levels (0: no time travel)."""

    summary = "optimises each state to fit the data, then steps deterministically; time travel"
    step_size = "rate"
    paper = "steps=250"
    limits: ClassVar[Limits] = {"jump": (0, math.inf), "halvings": (0, math.inf)}
    steps: int = 100
    gradient_steps: int = 2
    rate: float = 0.02
    rate_growth: float = 1.012
    penalty: float = 1e-4
    penalty_growth: float = 1.01
    jump: int = 10
    halvings: int = 5  # at most, of a step that raises the objective

    def times(self, prior: Prior) -> tuple[float, ...]:
        """Return the grid, every block of `jump` levels walked twice."""
        grid = prior.schedule.grid(self.steps)
        return time_travel(grid, self.jump, 2) if self.jump else grid

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return CoPaint as the sampler of one likelihood."""
        times = self.times(prior)

        def objective(z: Tensor, start: Tensor, t: float, penalty: float) -> Tensor:
            move = (z - start).square().flatten(1).sum(1)
            return misfit(prior, likelihood, prior.denoise(z, t)) + penalty * move

        def move(z: Tensor, t: float, i: int) -> Move:
            depth = (1 - t) * PAPER_STEPS
            penalty = self.penalty * self.penalty_growth**depth
            shape = (-1, *[1] * (z.ndim - 1))
            start = z
            for _ in range(self.gradient_steps):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    value = objective(leaf, start, t, penalty)
                    (gradient,) = torch.autograd.grad(value.sum(), leaf)
                value = value.detach()
                rate = torch.full_like(value, self.rate * self.rate_growth**depth)
                worse = torch.zeros_like(rate, dtype=torch.bool)
                for _ in range(self.halvings):
                    trial = z - rate.view(shape) * gradient
                    worse = ~(objective(trial, start, t, penalty) <= value)
                    if not worse.any():
                        break
                    rate = torch.where(worse, rate / 2, rate)
                z = z - torch.where(worse, 0.0, rate).view(shape) * gradient
            clean = prior.denoise(z, t)
            step = prior.schedule.kernel(t, times[i + 1], eta=0.0).mean(z, clean)
            return Move(clean, leap=lambda noise: step)

        return move
