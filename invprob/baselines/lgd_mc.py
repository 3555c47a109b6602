"""Loss-guided diffusion by Monte Carlo (Song et al. 2023, "Loss-guided diffusion models for
plug-and-play controllable generation", ICML).

    log p(y | z_t) = log mean_i p(y | x_i),   x_i = x(zhat_0 + r eps_i),   r^2 ~ Var(z_0 | z_t)

The gradient in z_t of the log of the mean (not the mean of gradients) weighs the x_i by their
likelihood, w_i. Its length is that of DPS, as implementations of the paper have it:

    z_s = (ancestral step) - zeta grad_{z_t} (sum_i w_i |y - A x_i|^2)^(1/2),   w held fixed

which is DPS for r = 0. The eps_i of a step are drawn once and shared by all samples, so the shift
is a function of the state, and the path has a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, misfit
from invprob.baselines.pigdm import guess, known_residual
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior


@dataclass(frozen=True)
class LGDMC(Baseline):
    """LGD-MC with `draws` n, step `zeta` and r^2 `calibrated`, the paper's `guess` or `none`."""

    summary = "DPS on the likelihood averaged over noised clean estimates"
    step_size = "zeta"
    paper = "steps=1000,residual=guess"
    steps: int = 300
    draws: int = 8
    zeta: float = 1.0
    residual: str = "calibrated"

    def __post_init__(self) -> None:
        super().__post_init__()
        known_residual(self.residual)

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return LGD-MC as the sampler of one likelihood."""
        times, many = self.times(prior), likelihood.repeat(self.draws)

        def move(z: Tensor, t: float, i: int) -> Move:
            source = torch.Generator().manual_seed(i)
            eps = torch.randn((self.draws, *prior.z_shape), generator=source, dtype=z.dtype)
            r2 = {
                "calibrated": lambda: prior.residual_variance(t),
                "guess": lambda: guess(prior, t),
                "none": lambda: 0.0,
            }[self.residual]()
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                clean = prior.denoise(leaf, t)
                around = (clean[:, None] + r2**0.5 * eps.to(z)).flatten(0, 1)
                squares = misfit(prior, many, around).view(-1, self.draws)
                with torch.no_grad():
                    logs = many.log_prob(prior.decode(around)).view(-1, self.draws)
                    weights = torch.softmax(logs, 1).to(z.dtype)
                norm = (weights * squares).sum(1).sqrt()
                (slope,) = torch.autograd.grad(norm.sum(), leaf)
            pull = prior.schedule.kernel(t, times[i + 1]).pull
            return Move(clean.detach(), -self.zeta * slope / pull)

        return move
