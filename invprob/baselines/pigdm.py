"""Pseudo-inverse guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse
problems", ICLR).

    grad_{z_t} log p(y | z_t) = J^T A^T (A R A^T + Sigma)^-1 (y - A x(zhat_0))

with J = d x(zhat_0) / d z_t moves the clean estimate by sigma_t^2 / alpha_t times this (Tweedie's
formula). R is the covariance of the denoiser's error: that of the prior where it knows or has
measured it, or the paper's guess rho_t^2 / (1 + rho_t^2), in units of the prior's variance. With a
Gaussian prior, a linear operator and the known R every step is exact. Where operator or noise are
not linear or Gaussian they are linearised about the proximal point (`invprob.proximal`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.decoded import Decoded
from invprob.likelihood import Likelihood
from invprob.proximal import proximal_pull
from invprob.trajectory import Move, Propose
from operators.errors import UnknownName
from priors.base import Covariance, Prior

RESIDUALS = ("calibrated", "guess", "none")


@dataclass(frozen=True)
class PiGDM(Baseline):
    """PiGDM with the covariance R `calibrated`, `guess` (the paper's) or `none`."""

    summary = "Gaussian likelihood of the clean estimate, through the denoiser"
    paper = "residual=guess"
    steps: int = 100
    residual: str = "calibrated"

    def __post_init__(self) -> None:
        super().__post_init__()
        known_residual(self.residual)

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return PiGDM as the sampler of one likelihood."""

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, shift, _ = twisted(prior, likelihood, z, t, self.residual)
            return Move(clean, shift)

        return move


def known_residual(name: str) -> None:
    """Raise UnknownName where `name` is none of `RESIDUALS`."""
    if name not in RESIDUALS:
        raise UnknownName(f"no residual covariance {name!r}: choose {', '.join(RESIDUALS)}")


def twisted(
    prior: Prior, likelihood: Likelihood, z: Tensor, t: float, residual: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return zhat_0, its shift by the data (B, *z_shape each) and log p(y | z_t) + const, (B,)."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        clean = prior.denoise(leaf, t)
        seen = prior.decode(clean) if prior.guided_in_x else clean
    known = clean.detach()
    within = None if prior.guided_in_x else Decoded(likelihood.operator, prior)
    covariance: Covariance = 0.0
    if residual == "guess":  # of x, or of z where it is guided there
        covariance = guess(prior, t) * (prior.scale**2 if prior.guided_in_x else 1.0)
    if residual == "calibrated":
        covariance = prior.covariance(z, t, known)
    pull, potential = proximal_pull(likelihood, seen.detach(), covariance, within)
    (slope,) = torch.autograd.grad(seen, leaf, pull)
    ratio = prior.schedule.sigma(t) ** 2 / prior.schedule.alpha(t)
    return known, ratio * slope, potential


def guess(prior: Prior, t: float) -> float:
    """Return the paper's variance of z_0 given z_t: that of a white prior."""
    rho2 = prior.schedule.rho(t) ** 2
    return rho2 / (1 + rho2)
