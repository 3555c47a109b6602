"""Inpainting of a three-mode mixture in ten dimensions (Crafts & Villa 2025, arXiv 2503.03007).

    p(x) = 0.4 N(-5, I) + 0.3 N(0, I) + 0.3 N(5, I),   the means constant over the dimensions

Pixels are dropped and the rest is seen with noise. The paper's Poisson x-ray and phase retrieval
problems need operators that are not linear and are not here. Which pixels are seen, and the noise,
are ours: `one` keeps one pixel under noise so strong that all three modes stay likely.
"""

from __future__ import annotations

import numpy as np

from invprob.suites.base import Mixture, Suite, linear_problem
from priors.gaussian_mixture import GaussianMixture

D = 10
SEEN = {"half": (tuple(range(0, D, 2)), 1.0), "one": ((0,), 5.0)}  # pixels, noise sigma


class Bipsda(Suite):
    """Inpainting with half of the pixels seen, or one."""

    summary = "three modes in ten dimensions, inpainting (BIPSDA)"
    names = tuple(SEEN)

    def load(self, name: str) -> Mixture:
        """Return the problem of one mask, its data drawn from seed 10."""
        pixels, sigma = SEEN[name]
        rng = np.random.default_rng(D)
        means = np.outer([-5.0, 0.0, 5.0], np.ones(D))
        matrix = np.eye(D)[list(pixels)]
        y = matrix @ (means[1] + rng.normal(size=D)) + sigma * rng.normal(size=len(pixels))
        prior = GaussianMixture(means, np.array([0.4, 0.3, 0.3]))
        return linear_problem(f"bipsda/{name}", prior, matrix, sigma, y)
