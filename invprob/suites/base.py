"""Problems whose exact posterior is known, and what a method is measured against.

Prior sum_k w_k N(mu_k, C_k), data y = A x + n with n ~ N(0, Sigma). The posterior is a mixture too:

    G_k = C_k A^T (A C_k A^T + Sigma)^-1
    p(x | y) = sum_k w'_k N(mu_k + G_k (y - A mu_k), C_k - G_k A C_k)
    w'_k proportional to w_k N(y; A mu_k, A C_k A^T + Sigma),   Z = the sum of these

(Cardoso et al. 2023, arXiv 2308.07983, appendix B.) The *oracle* is the posterior's own denoiser on
the prior's chain: what a perfectly trained policy would do, so its distance to the posterior is the
chain's own error.

Where operator or noise are not linear or Gaussian the posterior is known by exact draws of it that
are stored with their evidence, and no oracle exists.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
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


HELD = 2000  # stored draws of a posterior that serve as exact samples; the others are its reference


@dataclass(frozen=True, eq=False)
class Stored:
    """A posterior known by exact independent draws (N, d) and the weights (K,) of its modes.

    The modes are those of the prior: which of them x comes from does not depend on the data.
    """

    draws: Array
    weights: Array
    prior: GaussianMixture

    def sample(self, n: int, seed: int) -> Array:
        """Return n of the `HELD` draws, (n, d); raises ObservationError where n is more."""
        if n > HELD:
            raise ObservationError(
                f"{n} samples cannot be held against {HELD} exact draws that are stored: "
                f"ask for at most {HELD}"
            )
        which = np.random.default_rng(seed).choice(HELD, n, replace=False)
        return self.draws[which]

    def reference(self, n: int) -> Array:
        """Return up to n of the other draws, (at most n, d)."""
        return self.draws[HELD : HELD + n]


@dataclass(frozen=True, eq=False)
class Problem:
    """A prior, one observation and the exact posterior: a mixture on the prior's chain or draws."""

    name: str
    prior: Prior
    likelihood: Likelihood
    posterior: GaussianMixture | Stored
    log_z: float  # log p(y) under the exact prior
    log_z_chain: float | None = None  # under the discretised chain, where that is known

    def sample(self, n: int, seed: int) -> Array:
        """Return n exact independent draws of the posterior, (n, d)."""
        if isinstance(self.posterior, Stored):
            return self.posterior.sample(n, seed)
        return self._decoded(self.posterior.draw(n, seed))

    def reference(self, n: int, seed: int) -> Array:
        """Return n exact draws with as many of each mode as its weight says, (n, d).

        Without the chance of independent mode counts, distances to it are steadier. Counts are
        rounded by largest remainder. Stored draws are as they are, and may be fewer.
        """
        if isinstance(self.posterior, Stored):
            return self.posterior.reference(n)
        wanted = n * self.weights / self.weights.sum()  # rounding only
        counts = np.floor(wanted).astype(int)
        counts[np.argsort(counts - wanted)[: n - counts.sum()]] += 1
        which = np.repeat(np.arange(len(counts)), counts)
        return self._decoded(self.posterior.draw_modes(which, seed))

    @property
    def weights(self) -> Array:
        """The exact weights of the posterior's modes, (K,)."""
        if isinstance(self.posterior, Stored):
            return self.posterior.weights
        weights: Array = self.posterior.log_weights.exp().numpy()
        return weights

    def mode_weight_error(self, x: Array) -> float | None:
        """Return the total variation between the modes' weights and their shares of x (n, d).

        A sample belongs to a mode by its responsibility: wholly where modes lie apart, and without
        bias where they overlap. None for a posterior of one mode.
        """
        if len(self.weights) == 1:
            return None
        modes = self.posterior.prior if isinstance(self.posterior, Stored) else self.posterior
        shares = modes.responsibilities(torch.from_numpy(x)).mean(0).numpy()
        return float(np.abs(shares - self.weights).sum() / 2)

    def oracle(self, likelihood: Likelihood) -> Propose:
        """Return the posterior's own denoiser as a sampler on the prior's chain.

        Raises NotDifferentiable where the posterior is known by draws alone.
        """
        exact = self.posterior
        if isinstance(exact, Stored):
            raise NotDifferentiable(
                f"oracle needs the posterior's own denoiser, but that of {self.name} is known by "
                "stored draws alone: leave it out"
            )
        times, schedule = self.prior.schedule.grid(self.prior.steps), self.prior.schedule
        last: tuple[float, Tensor] | None = None

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal last
            clean = self.prior.denoise(z, t)
            shift = exact.denoise(z, t) - clean
            led = schedule.led(shift, last, t, times[i + 1])  # as the chain leads `clean`
            last = (t, shift)
            return Move(clean, led)

        return move

    def _decoded(self, z: Tensor) -> Array:
        x: Array = self.prior.decode(z).double().numpy()
        return x


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
) -> Problem:
    """Return the problem y = matrix x + N(0, sigma^2), matrix (dy, d), with its posterior."""
    likelihood = linear_likelihood(prior, matrix, sigma, y)
    means, weights, covariances, log_z = conditioned(*moments(prior), matrix, sigma, y)
    posterior = GaussianMixture(means, weights, covariances=covariances, chain=prior)
    return Problem(name, prior, likelihood, posterior, log_z)


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
    shrunk = covariances - gain @ reach.transpose(0, 2, 1)
    return after, np.exp(logs - log_z), (shrunk + shrunk.transpose(0, 2, 1)) / 2, log_z
