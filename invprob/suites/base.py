"""Problems whose exact posterior is known, and what a method is measured against.

Prior sum_k w_k N(mu_k, C_k), data y = A x + n with n ~ N(0, Sigma). The posterior is a mixture too:

    G_k = C_k A^T (A C_k A^T + Sigma)^-1
    p(x | y) = sum_k w'_k N(mu_k + G_k (y - A mu_k), C_k - G_k A C_k)
    w'_k proportional to w_k N(y; A mu_k, A C_k A^T + Sigma),   Z = the sum of these

(Cardoso et al. 2023, arXiv 2308.07983, appendix B.) The *oracle* is the posterior's own denoiser on
the prior's chain: what a perfectly trained policy would do, so its distance to the posterior is the
chain's own error.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from torch import Tensor

from invprob import obs_file
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from operators.linear import Linear
from operators.noise import Gaussian
from priors.base import Prior
from priors.gaussian_mixture import GaussianMixture

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem(ABC):
    """A prior, one observation, and a way to draw from its exact posterior."""

    name: str
    prior: Prior
    likelihood: Likelihood
    log_z: float | None  # log p(y) under the exact prior, where that is known
    _: KW_ONLY
    log_z_chain: float | None = None  # under the discretised chain, where that is known
    view: Array | None = None  # (m, d): samples are compared as view @ x; None: as x

    @abstractmethod
    def sample(self, n: int, seed: int) -> Array:
        """Return n exact independent draws of the posterior, (n, d)."""

    @abstractmethod
    def reference(self, n: int, seed: int) -> Array:
        """Return n exact draws, as even as can be, that distances are taken to, (n, d)."""

    def dealt(self, seed: int) -> Problem:
        """Return the problem with its stored exact draws in another order, if it has such."""
        return self

    def mode_weight_error(self, x: Array) -> float | None:
        """Return the total variation between the modes' weights and their shares of x (n, d).

        None where the posterior has one mode, or its modes are not known.
        """
        return None

    def oracle(self, likelihood: Likelihood) -> Propose:
        """Return the posterior's own denoiser as a sampler on the prior's chain.

        Raises NotDifferentiable where there is none.
        """
        raise NotDifferentiable(
            f"oracle needs the posterior's own denoiser, but that of {self.name} is known by "
            "stored draws alone: leave it out"
        )

    def viewed(self, x: Array) -> Array:
        """Return samples x (n, d) as they are compared, (n, m)."""
        return x if self.view is None else x @ self.view.T


@dataclass(frozen=True, eq=False)
class Mixture(Problem):
    """A problem whose exact posterior is a mixture on the prior's chain."""

    posterior: GaussianMixture

    def sample(self, n: int, seed: int) -> Array:
        """Return n exact independent draws of the posterior, (n, d)."""
        return self._decoded(self.posterior.draw(n, seed))

    def reference(self, n: int, seed: int) -> Array:
        """Return n exact draws with as many of each mode as its weight says, (n, d).

        Without the chance of independent mode counts, distances to it are steadier. Counts are
        rounded by largest remainder.
        """
        wanted = n * self.weights / self.weights.sum()  # rounding only
        counts = np.floor(wanted).astype(int)
        counts[np.argsort(counts - wanted)[: n - counts.sum()]] += 1
        which = np.repeat(np.arange(len(counts)), counts)
        return self._decoded(self.posterior.draw_modes(which, seed))

    @property
    def weights(self) -> Array:
        """The exact weights of the posterior's modes, (K,)."""
        weights: Array = self.posterior.log_weights.exp().numpy()
        return weights

    def mode_weight_error(self, x: Array) -> float | None:
        """Return the error of the modes' weights in x (n, d), None for a posterior of one mode."""
        return None if len(self.weights) == 1 else _variation(self.posterior, x, self.weights)

    def oracle(self, likelihood: Likelihood) -> Propose:
        """Return the posterior's own denoiser as a sampler on the prior's chain."""
        times, schedule = self.prior.schedule.grid(self.prior.steps), self.prior.schedule
        last: tuple[float, Tensor] | None = None

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal last
            clean = self.prior.denoise(z, t)
            shift = self.posterior.denoise(z, t) - clean
            led = schedule.led(shift, last, t, times[i + 1])  # as the chain leads `clean`
            last = (t, shift)
            return Move(clean, led)

        return move

    def _decoded(self, z: Tensor) -> Array:
        x: Array = self.prior.decode(z).double().numpy()
        return x


@dataclass(frozen=True, eq=False)
class Sampled(Problem):
    """A problem whose exact posterior is known by stored samples, nearly independent ones.

    One half of them is the reference, the other stands for fresh draws.
    """

    samples: Array  # (N, d) in physical units
    weights: Array | None = None  # (K,) of the prior's modes, where x belongs to one for any data

    def mode_weight_error(self, x: Array) -> float | None:
        """Return the error of the modes' weights in x (n, d), None where they are not stored."""
        if self.weights is None or not isinstance(self.prior, GaussianMixture):
            return None
        return _variation(self.prior, x, self.weights)

    def dealt(self, seed: int) -> Sampled:
        """Return the problem with other halves of its draws, chosen by the seed."""
        order = np.random.default_rng(seed).permutation(len(self.samples))
        return replace(self, samples=self.samples[order])

    def sample(self, n: int, seed: int) -> Array:
        """Return n different draws of the second half, (n, d); raises ObservationError past it."""
        fresh = self.samples[len(self.samples) // 2 :]
        if n > len(fresh):
            raise ObservationError(
                f"{self.name} stores {len(fresh)} draws to measure the floor with, {n} are asked "
                f"for: use --n {len(fresh)} or fewer"
            )
        return fresh[np.random.default_rng(seed).permutation(len(fresh))[:n]]

    def reference(self, n: int, seed: int) -> Array:
        """Return the first half, each draw as often as makes n, (n, d)."""
        half = len(self.samples) // 2
        return self.samples[np.arange(n) * half // n]


class Suite(ABC):
    """A family of problems, the smallest first; a new suite is one file with one class."""

    summary: ClassVar[str]

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the problems, the smallest first."""

    @abstractmethod
    def load(self, name: str) -> Problem:
        """Return the problem of one of `names`."""

    def problem(self, name: str | None = None) -> Problem:
        """Return the problem of that name, or the first; raises UnknownName with the list."""
        known = self.names
        if name is None or name in known:
            return self.load(name or known[0])
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UnknownName(f"no problem named {name!r}{hint} Known: {', '.join(known)}")


def _variation(modes: GaussianMixture, x: Array, weights: Array) -> float:
    """Return the total variation between weights (K,) and the shares that modes have of x (n, d).

    A sample belongs to a mode by its responsibility: wholly where modes lie apart, and without bias
    where they overlap.
    """
    shares = modes.responsibilities(torch.from_numpy(x)).mean(0).numpy()
    return float(np.abs(shares - weights).sum() / 2)


def read_fields(path: Path, dimensions: Mapping[str, int]) -> dict[str, Array]:
    """Return the arrays of a stored problem, float64, by their names and numbers of dimensions.

    Raises ObservationError naming the field that is missing, malformed or not finite.
    """
    fields: dict[str, Array] = {}
    with obs_file.opened(path) as file:
        for key, wanted in dimensions.items():
            array = obs_file.array(file, key, path)
            if array is None:
                raise ObservationError(
                    f"{path} has no /{key}; an instance holds {', '.join(dimensions)}"
                )
            if array.ndim != wanted or array.size == 0:
                raise ObservationError(
                    f"{path}: /{key} has shape {array.shape}; needed {wanted} dimensions, "
                    "none of them empty"
                )
            if not np.isfinite(array).all():
                raise ObservationError(f"{path}: /{key} is not finite; store real numbers")
            fields[key] = array.astype(float)
    return fields


def linear_problem(
    name: str, prior: GaussianMixture, matrix: Array, sigma: float, y: Array
) -> Mixture:
    """Return the problem y = matrix x + N(0, sigma^2), matrix (dy, d), with its posterior."""
    likelihood = linear_likelihood(prior, matrix, sigma, y)
    means, weights, covariances, log_z = conditioned(*moments(prior), matrix, sigma, y)
    posterior = GaussianMixture(means, weights, covariances=covariances, chain=prior)
    return Mixture(name, prior, likelihood, log_z, posterior)


def linear_likelihood(prior: Prior, matrix: Array, sigma: float, y: Array) -> Likelihood:
    """Return N(y; matrix x, sigma^2); raises ObservationError where shapes do not fit."""
    operator, noise = Linear(matrix), Gaussian(sigma)
    if operator.x_shape != prior.x_shape or operator.y_shape != y.shape:
        raise ObservationError(
            f"the operator maps {operator.x_shape} to {operator.y_shape}, but x is "
            f"{prior.x_shape} and the data are {y.shape}: store them in matching shapes"
        )
    return Likelihood(operator, noise, torch.from_numpy(y[None]).float())


def moments(prior: GaussianMixture) -> tuple[Array, Array, Array]:
    """Return means (K, d), weights (K,) and covariances (1 or K, d, d) in physical units."""
    diagonal = torch.diag_embed(prior.values)
    basis = prior.vectors
    covariances = diagonal if basis is None else basis @ diagonal @ basis.mT
    means = (prior.scale * prior.means).numpy()
    return means, prior.log_weights.exp().numpy(), (prior.scale**2 * covariances).numpy()


def conditioned(
    means: Array, weights: Array, covariances: Array, matrix: Array, sigma: float, y: Array
) -> tuple[Array, Array, Array, float]:
    """Return means, weights and covariances of the mixture given y, and log Z (see the module)."""
    reach = covariances @ matrix.T  # C_k A^T, (M, d, dy)
    data = matrix @ reach + sigma**2 * np.eye(len(y))
    gain = np.linalg.solve(data, reach.transpose(0, 2, 1)).transpose(0, 2, 1)
    residual = y - means @ matrix.T
    modes = range(len(means))
    own = [k % len(data) for k in modes]  # of mode k: one covariance each, or one for all
    with np.errstate(divide="ignore"):  # a mode of no weight has none afterwards
        logs = np.log(weights) + np.array(
            [multivariate_normal.logpdf(residual[k], cov=data[own[k]]) for k in modes]
        )
    log_z = float(np.logaddexp.reduce(logs))
    after = np.array([means[k] + gain[own[k]] @ residual[k] for k in modes])
    # Joseph's form: what quiet data leave is no small difference of large numbers
    kept = np.eye(matrix.shape[1]) - gain @ matrix
    shrunk = kept @ covariances @ kept.transpose(0, 2, 1) + sigma**2 * gain @ gain.transpose(
        0, 2, 1
    )
    return after, np.exp(logs - log_z), (shrunk + shrunk.transpose(0, 2, 1)) / 2, log_z
