"""Gaussian prior, linear operator, Gaussian noise: every quantity in closed form.

The discretised chain is linear-Gaussian as well, so the evidence is also known for the chain that
a method really runs: log N(y; 0, A C_chain A^T + Sigma), with C_chain from `chain_covariance`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.stats import multivariate_normal

from invprob.suites.base import Array, Mixture, Suite, conditioned, linear_likelihood
from priors.gaussian import Gaussian
from priors.gaussian_mixture import GaussianMixture

SIGMA = 0.2  # noise; the prior has standard deviation 1


class GaussianSuite(Suite):
    """d = 2, 16, 256 correlated over three neighbours, seen through d / 2 random projections."""

    summary = "Gaussian prior and linear operator, d = 2, 16, 256: all in closed form"
    names = ("d2", "d16", "d256")

    def load(self, name: str) -> Mixture:
        """Return the problem of dimension d, its matrix and data drawn from seed d."""
        d = int(name[1:])
        rng = np.random.default_rng(d)
        prior = Gaussian.default((d,))
        matrix = rng.normal(size=(d // 2, d)) / np.sqrt(d)
        covariance = (prior.vectors * prior.values) @ prior.vectors.T * prior.scale**2
        truth = np.linalg.cholesky(covariance.numpy()) @ rng.normal(size=d)
        y = matrix @ truth + SIGMA * rng.normal(size=d // 2)
        means, weights, covariances, log_z = conditioned(
            np.zeros((1, d)), np.ones(1), covariance.numpy()[None], matrix, SIGMA, y
        )
        posterior = GaussianMixture(means, weights, covariances=covariances, chain=prior)
        likelihood = linear_likelihood(prior, matrix, SIGMA, y)
        chain = chain_covariance(prior, prior.steps)
        data = matrix @ chain @ matrix.T + SIGMA**2 * np.eye(d // 2)
        log_z_chain = float(multivariate_normal.logpdf(y, cov=data))
        name = f"gaussian/{name}"
        return Mixture(name, prior, likelihood, log_z, posterior, log_z_chain=log_z_chain)


def chain_covariance(prior: Gaussian, steps: int) -> Array:
    """Return the covariance (d, d) of x under the discretised chain.

    The chain is linear in the state and the clean estimate before it, for every eigenvector alone.
    """
    schedule, values = prior.schedule, prior.values.numpy()

    def gain(t: float) -> Array:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        ratio: Array = alpha * values / (alpha**2 * values + sigma**2)
        return ratio

    times = schedule.grid(steps)
    spread = np.zeros((len(values), 2, 2))
    spread[:, 0, 0] = schedule.sigma(1.0) ** 2
    for i, (t, s) in enumerate(pairwise(times)):
        kernel, last = schedule.kernel(t, s), (times[i - 1], torch.zeros(1)) if i else None
        lead = float(schedule.led(torch.ones(1), last, t, s)) - 1
        step = np.zeros_like(spread)
        step[:, 0, 0] = kernel.carry + kernel.pull * (1 + lead) * gain(t)
        step[:, 0, 1] = -kernel.pull * lead
        step[:, 1, 0] = gain(t)
        spread = step @ spread @ step.transpose(0, 2, 1)
        spread[:, 0, 0] += kernel.variance
    vectors = prior.vectors.numpy()
    covariance: Array = (vectors * (gain(0.0) ** 2 * spread[:, 0, 0])) @ vectors.T * prior.scale**2
    return covariance
