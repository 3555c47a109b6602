"""The noise of a generator, inferred from what is seen of its output (Venkatraman et al. 2025,
arXiv 2502.06999): x = f(z), z ~ N(0, I), y = A x + N(0, sigma^2).

    linear       f(z) = W z, 8 to 12 dimensions, 6 of them seen: z is Gaussian, in closed form
    perceptron   f(z) = V tanh(W z + b), 3 to 6 dimensions, 2 seen: exact draws by rejection

Entries of W, V and A are normal and those of f are ours. Samples are compared as x.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from invprob.suites.base import (
    Array,
    Mixture,
    Problem,
    Sampled,
    Suite,
    conditioned,
    linear_likelihood,
)
from priors.gaussian_mixture import GaussianMixture
from priors.outsourced import Outsourced

SIGMA = 0.2
STEPS = 100  # of the chain, as in the suites of mixtures
HIDDEN = 16
TRIED = 2**19  # draws of the prior, of which the likelihood takes its share


class OutsourcedSuite(Suite):
    """A linear generator and a perceptron, seen through random projections."""

    summary = "standard normal noise under a linear generator and under a perceptron"
    names = ("linear", "perceptron")

    def load(self, name: str) -> Problem:
        """Return the problem of one generator, its matrices and data drawn from a seed."""
        rng = np.random.default_rng(8 + self.names.index(name))
        wide, full, seen = (8, 12, 6) if name == "linear" else (3, 6, 2)
        first = rng.normal(size=(full if name == "linear" else HIDDEN, wide)) / wide**0.5
        generator = Generator(first)
        if name == "perceptron":
            generator = Generator(2 * first, rng.normal(size=HIDDEN), _normal(rng, full, HIDDEN))
        prior = Outsourced(generator, (wide,), steps=STEPS)
        matrix = _normal(rng, seen, full)
        truth = generator(torch.from_numpy(rng.normal(size=(1, wide)))).numpy()[0]
        y = matrix @ truth + SIGMA * rng.normal(size=seen)
        likelihood = linear_likelihood(prior, matrix, SIGMA, y)
        if name == "perceptron":
            samples, log_z = rejection(prior, matrix, y)
            return Sampled(f"outsourced/{name}", prior, likelihood, log_z, samples)
        mean, weight, covariance, log_z = conditioned(
            np.zeros((1, wide)), np.ones(1), np.eye(wide)[None], matrix @ first, SIGMA, y
        )
        posterior = GaussianMixture(  # of z; a chain's mixtures are given in units of its scale
            prior.scale * mean, weight, covariances=prior.scale**2 * covariance, chain=prior
        )
        return Mixture(f"outsourced/{name}", prior, likelihood, log_z, posterior)


class Generator:
    """x = W z, or x = V tanh(W z + b)."""

    def __init__(self, first: Array, bias: Array | None = None, last: Array | None = None) -> None:
        """Take W, b and V."""
        self.layers = [None if a is None else torch.from_numpy(a) for a in (first, bias, last)]

    def __call__(self, z: Tensor) -> Tensor:
        """Return x (B, d) of z (B, *z_shape)."""
        first, bias, last = (None if a is None else a.to(z) for a in self.layers)
        assert first is not None
        x = z @ first.T
        return x if bias is None or last is None else torch.tanh(x + bias) @ last.T


def rejection(prior: Outsourced, matrix: Array, y: Array) -> tuple[Array, float]:
    """Return exact draws x of the posterior, (N, d), and log Z, from draws of the prior.

    A draw is taken with probability p(y | x) over the largest value that a Gaussian has.
    """
    rng = np.random.default_rng(TRIED)
    x = prior.decode(torch.from_numpy(rng.normal(size=(TRIED, *prior.z_shape)))).numpy()
    exponent = -np.square(y - x @ matrix.T).sum(1) / (2 * SIGMA**2)
    taken = rng.random(TRIED) < np.exp(exponent)
    peak = -len(y) / 2 * math.log(2 * math.pi * SIGMA**2)
    return x[taken], peak + float(np.logaddexp.reduce(exponent)) - math.log(TRIED)


def _normal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Return a matrix whose products with normal vectors have variance 1."""
    matrix: Array = rng.normal(size=(rows, columns)) / columns**0.5
    return matrix
