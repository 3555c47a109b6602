"""The toy of the RTB papers: 25 modes become 9 (Venkatraman et al. 2024, arXiv 2405.20971).

Prior: 25 equal modes on {-10, -5, 0, 5, 10}^2, covariance 0.3 I. Posterior: nine of them, weights
[4, 10, 4, 5, 10, 5, 4, 15, 4] / 61. The papers define the reward r = p_9 / p_25, so Z = 1. Here the
same r is the likelihood of one datum y = 0 with unit noise, through its deviance

    A(x) = sqrt(2 (log c - log r(x))),   p(y | x) = N(0; A(x), 1) = r(x) / (c sqrt(2 pi))

(McCullagh & Nelder 1989, section 2.3). Any c >= max r gives the same posterior; c = 2 max r keeps
A >= sqrt(2 log 2), away from the square root's kink. So log Z = -log c - log(2 pi) / 2.

A is not linear: guidance takes Gauss-Newton steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from invprob.likelihood import Likelihood
from invprob.suites.base import Mixture, Suite
from operators.base import ForwardOperator
from operators.noise import Gaussian
from priors.gaussian_mixture import GaussianMixture

STD = math.sqrt(0.3)
MODES = {  # of the posterior, with 61 times their weights, as in the authors' code
    (-10, -5): 4, (-5, -10): 10, (-5, 0): 4, (10, -5): 5, (0, 0): 10, (0, 5): 5,
    (5, -5): 4, (5, 0): 15, (5, 10): 4,
}  # fmt: skip


class GMM25to9(Suite):
    """One problem."""

    summary = "25 modes to 9 of other weights, the RTB papers' toy"
    names = ("d2",)

    def load(self, name: str) -> Mixture:
        """Return the toy."""
        operator = Deviance.default((2,))
        likelihood = Likelihood(operator, Gaussian(1.0), torch.zeros(1, 1))
        log_z = -operator.log_ceiling - 0.5 * math.log(2 * math.pi)
        return Mixture(f"gmm25to9/{name}", operator.below, likelihood, log_z, operator.above)


@dataclass(frozen=True, eq=False)
class Deviance(ForwardOperator):
    """A(x) = sqrt(2 (log_ceiling - log r(x))) of the density ratio r = above / below."""

    summary: ClassVar[str] = "deviance of a density ratio"
    default_prior: ClassVar[str] = "gaussian_mixture"

    above: GaussianMixture
    below: GaussianMixture
    log_ceiling: float

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """The deviance of the toy; raises ValueError for other than two dimensions."""
        if x_shape != (2,):
            raise ValueError(f"the toy has two dimensions, not {x_shape}")
        return cls(*mixtures(), log_ceiling=math.log(2 * 25 * max(MODES.values()) / 61))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one unknown."""
        return self.below.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return (1,)

    def _forward(self, x: Tensor) -> Tensor:
        ratio = self.above.log_prob(x) - self.below.log_prob(x)
        return (2 * (self.log_ceiling - ratio)).sqrt()[:, None].to(x.dtype)


def mixtures() -> tuple[GaussianMixture, GaussianMixture]:
    """Return the posterior of nine modes, on its prior's chain, and the prior of 25."""
    grid = np.array(list(product((-10.0, -5.0, 0.0, 5.0, 10.0), repeat=2)))
    prior = GaussianMixture(grid, np.ones(25), std=STD)
    means, weights = np.array(list(MODES), float), np.array(list(MODES.values()), float)
    return GaussianMixture(means, weights, std=STD, chain=prior), prior
