"""Two overlapping modes in 16 dimensions (Qiu et al. 2026, arXiv 2602.04189).

    p(x) = 0.8 N(0, I) + 0.2 N((3, 3), 2 I) on the first two dimensions, N(0, I) on the others

The small mode overlaps the large one, which a sampler that seeks one mode does not show in its
residuals. The matrices are ours: `mix` reads 8 random projections that include the two dimensions;
`blind` reads the other 14 only, so the data say nothing of the modes and the prior must.
"""

from __future__ import annotations

import numpy as np

from invprob.suites.base import Mixture, Suite, linear_problem
from priors.gaussian_mixture import GaussianMixture

SIGMA = 0.3
D = 16


class Mixture16(Suite):
    """The mixture through two matrices."""

    summary = "0.8 N(0, I) + 0.2 N((3, 3), 2 I) on two of 16 dimensions"
    names = ("mix", "blind")

    def load(self, name: str) -> Mixture:
        """Return the problem of one matrix, drawn with its data from seed 16."""
        means = np.zeros((2, D))
        means[1, :2] = 3
        covariances = np.stack([np.eye(D), np.diag([2.0, 2.0] + [1.0] * (D - 2))])
        weights = np.array([0.8, 0.2])
        rng = np.random.default_rng(D)
        matrix = rng.normal(size=(D // 2, D)) / np.sqrt(D) if name == "mix" else np.eye(D)[2:]
        truth = rng.multivariate_normal(means[1], covariances[1])
        y = matrix @ truth + SIGMA * rng.normal(size=len(matrix))
        prior = GaussianMixture(means, weights, covariances=covariances)
        return linear_problem(f"mixture16/{name}", prior, matrix, SIGMA, y)
