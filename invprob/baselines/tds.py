"""Twisted diffusion sampler (Wu et al. 2023, arXiv 2306.17775, algorithm 1).

    psi_t = log N(y; A x(zhat_0(z_t)), A R A^T + Sigma),   R as in `pigdm`
    proposal: the prior's kernel, its clean estimate moved by sigma_t^2 / alpha_t grad_{z_t} psi_t
    weight:   p / q exp(psi_s - psi_t),   and at the end p(y | x_0) / exp(psi)

The paper's twist is p(y | zhat_0), R = `none`; with the covariance of the denoiser's error fewer
particles do. Exact for many particles, whatever R.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.baselines.pigdm import known_residual, twisted
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior


@dataclass(frozen=True)
class TDS(Baseline):
    """TDS with the covariance R `calibrated`, PiGDM's `guess` or the paper's `none`."""

    summary = "SMC: particles guided as by pigdm, and weighted by what the data say of them"
    particles = True
    paper = "residual=none"
    steps: int = 100
    residual: str = "calibrated"

    def __post_init__(self) -> None:
        super().__post_init__()
        known_residual(self.residual)

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return TDS as the sampler of one likelihood."""

        def move(z: Tensor, t: float, i: int) -> Move:
            clean, shift, potential = twisted(prior, likelihood, z, t, self.residual)
            return Move(clean, shift, foreseen=potential)

        return move
