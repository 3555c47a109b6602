"""Posterior sampling with latent diffusion (Rout et al. 2023, arXiv 2307.00619, algorithm 2).

    z_s = (ancestral step) - omega grad_{z_t} |y - A x| - gamma grad_{z_t} |zhat_0 - E(x_y)|
    x = D(zhat_0(z_t)),   x_y = x + A^T (y - A x) / |A|^2

The second term glues: codes must be a fixed point of decoder and encoder, the data put in place of
what A sees. The paper has A A^T = 1, where |A| = 1 and x_y is that projection; for another A it is
the steepest step towards it. Both norms are in model units, per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline, largest_eigenvalue, missing
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from operators.base import LinearOperator
from priors.base import Prior


@dataclass(frozen=True)
class PSLD(Baseline):
    """PSLD with step `omega` on the residual and `gamma` on the gluing term."""

    summary = "latent dps that keeps codes a fixed point of decoder and encoder"
    needs_linear = True
    needs_latent = True
    step_size = "omega"
    paper = "steps=1000"
    steps: int = 300
    omega: float = 0.1
    gamma: float = 0.1

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return PSLD as the sampler of one likelihood."""
        times, operator = self.times(prior), likelihood.operator
        assert isinstance(operator, LinearOperator)  # a capability that the method declares
        probe = torch.empty(1, *prior.x_shape, device=prior.device)
        size = float(largest_eigenvalue(lambda v: operator.adjoint(operator(v)), probe))

        def move(z: Tensor, t: float, i: int) -> Move:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                clean = prior.denoise(leaf, t)
                x = prior.decode(clean)
                off = missing(likelihood, x)
                glued = prior.encode(x + operator.adjoint(off) / size)
                residual, gap = (
                    torch.linalg.vector_norm(error.flatten(1), dim=1)
                    for error in (off / prior.scale, clean - glued)
                )
                value = self.omega * residual + self.gamma * gap
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            return Move(clean.detach(), -slope / prior.schedule.kernel(t, times[i + 1]).pull)

        return move
