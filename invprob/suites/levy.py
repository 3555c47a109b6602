"""Lévy processes through four linear operators (Zach et al. 2025, arXiv 2509.12821).

    x = independent increments, each Gauss, Laplace, Bernoulli-Laplace (nine of ten are zero) or
    Student (3 degrees of freedom);   y = H cumsum(x) + N(0, sigma^2),   d = 64

    denoising    H = 1
    convolution  Gaussian kernel of 13 taps and standard deviation 2, where it lies inside
    imputation   26 of the 64 values, at random places
    fourier      the 8 lowest frequencies, real and imaginary parts

Laws, kernel and d are those of the authors' code; places, frequencies, borders and sigma, half a
standard deviation of an increment, are ours. The chain walks in the increments, where the denoiser
is exact; samples are compared as the process cumsum(x). A problem is one observation: the MMSE gap
averages the truth over the reference instead, and coverage is of single values, not of regions.

The posterior of the Gauss problems is in closed form. For the others
`examples/levy_references.py` drew it by Gibbs sampling and stored

    data (dy,)   truth (64,)   samples (N, 64) of x, nearly independent
    attributes: seed, chains, burn, sweeps, rhat, ess, ess_kept, log_z, log_z_se
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from scipy.linalg import convolution_matrix

from invprob import obs_file
from invprob.suites.base import (
    Array,
    Mixture,
    Problem,
    Sampled,
    Suite,
    conditioned,
    linear_likelihood,
)
from operators.errors import ObservationError
from priors.gaussian_mixture import GaussianMixture
from priors.increments import Increments

FOLDER = Path(__file__).parent / "instances" / "levy"
D = 64
PROCESS = np.tril(np.ones((D, D)))  # the cumulative sum
NOISE = 0.5  # sigma, in standard deviations of an increment
SCALES = {"gauss": 0.5, "laplace": 2**0.5, "bernoulli_laplace": 0.2**0.5, "student": 3**0.5}
OPERATORS = ("denoising", "convolution", "imputation", "fourier")


class Levy(Suite):
    """Every law through every operator."""

    summary = "Lévy processes of four laws through four linear operators, d = 64"
    names = tuple(f"{law}_{operator}" for law, operator in product(SCALES, OPERATORS))

    def load(self, name: str) -> Problem:
        """Return the problem of one law and operator."""
        prior, matrix, sigma = setting(name)
        full = f"levy/{name}"
        if not name.startswith("gauss"):
            path = FOLDER / f"{name}.h5"
            with obs_file.opened(path) as file:
                data, samples = (obs_file.array(file, key, path) for key in ("data", "samples"))
                log_z = float(file.attrs["log_z"])
            if data is None or samples is None:
                raise ObservationError(f"{path} holds no /data or /samples; install it again")
            likelihood = linear_likelihood(prior, matrix, sigma, data.astype(float))
            return Sampled(full, prior, likelihood, log_z, samples.astype(float), view=PROCESS)
        _, y = simulated(name)
        means, weights, covariances, log_z = conditioned(
            np.zeros((1, D)), np.ones(1), prior.scale**2 * np.eye(D)[None], matrix, sigma, y
        )
        posterior = GaussianMixture(means, weights, covariances=covariances, chain=prior)
        likelihood = linear_likelihood(prior, matrix, sigma, y)
        return Mixture(full, prior, likelihood, log_z, posterior, view=PROCESS)


def setting(name: str) -> tuple[Increments, Array, float]:
    """Return prior, matrix (dy, 64) from increments to noise-free data, and sigma of a problem."""
    law, _, operator = name.rpartition("_")
    prior = Increments(law, D, SCALES[law])
    return prior, measurement(operator) @ PROCESS, NOISE * prior.scale


def measurement(operator: str) -> Array:
    """Return the matrix H (dy, 64) of one of `OPERATORS`, acting on the process."""
    if operator == "convolution":
        kernel = np.exp(-(np.arange(-6, 7) ** 2) / 8)
        blur: Array = convolution_matrix(kernel / kernel.sum(), D, mode="valid")
        return blur
    if operator == "imputation":
        return np.eye(D)[np.sort(np.random.default_rng(D).permutation(D)[:26])]
    if operator == "fourier":
        low = np.fft.rfft(np.eye(D), norm="ortho")[:, :8].T
        # orthonormal rows: all but the mean share their power between two of them
        return np.vstack([low[:1].real, 2**0.5 * low[1:].real, 2**0.5 * low[1:].imag])
    return np.eye(D)


def simulated(name: str) -> tuple[Array, Array]:
    """Return increments (64,) and data (dy,) of a problem, from a seed of its own."""
    prior, matrix, sigma = setting(name)
    rng = np.random.default_rng([D, Levy.names.index(name)])
    x = prior.scale * prior.law.draw(rng, (D,))
    return x, matrix @ x + sigma * rng.normal(size=len(matrix))
