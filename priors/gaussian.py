"""Gaussian prior N(mean, covariance): its denoiser is known in closed form.

E[z_0 | z_t] = mu + alpha C (alpha^2 C + sigma^2 I)^-1 (z_t - alpha mu)
Cov(z_0 | z_t) = sigma^2 C (alpha^2 C + sigma^2 I)^-1
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import ObservationError
from priors.base import Prior
from priors.process import Schedule, generators, randn


class Gaussian(Prior):
    """x ~ N(mean, covariance) on vectors (d,) or images, float64 inside the eigenbasis."""

    summary = "correlated Gaussian vector; exact denoiser and posterior"

    def __init__(
        self,
        mean: NDArray[np.float64],
        covariance: NDArray[np.float64],
        steps: int = 100,
    ) -> None:
        """Set up N(mean (*x_shape), covariance (d, d)); raises ObservationError if not valid."""
        mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
        d = mean.size
        if covariance.shape != (d, d) or not np.allclose(covariance, covariance.T):
            raise ObservationError(
                f"covariance must be a symmetric ({d}, {d}) matrix, found {covariance.shape}"
            )
        values, vectors = np.linalg.eigh(covariance)
        if values[0] <= 0:
            raise ObservationError(f"covariance must be positive definite, found {values[0]:.3g}")
        self.x_shape = self.z_shape = mean.shape
        self.scale = float(np.sqrt(values.mean()))
        spread = values / self.scale**2
        self.schedule = Schedule(
            rho_min=0.03 * float(np.sqrt(spread.min())),
            rho_max=20 * float(np.sqrt(spread.max() + np.square(mean / self.scale).sum())),
        )
        self.steps = steps
        self.mean = torch.from_numpy(mean.ravel() / self.scale)
        self.values = torch.from_numpy(spread)
        self.vectors = torch.from_numpy(vectors)

    @classmethod
    def default(cls, x_shape: tuple[int, ...] = (16,)) -> Gaussian:
        """Return a standard-deviation-1 prior, correlated over 3 neighbours in raveled order."""
        d = int(np.prod(x_shape))
        lag = np.subtract.outer(np.arange(d), np.arange(d))
        return cls(np.zeros(x_shape), np.exp(-np.abs(lag) / 3.0))

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, *z_shape)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        flat = z.flatten(1).double() - alpha * self.mean
        clean = self.mean + ((flat @ self.vectors) * gain) @ self.vectors.T
        return clean.to(z.dtype).view_as(z)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the exact Cov(x | z_t), the same for every z."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        spread = sigma**2 * self.values / (alpha**2 * self.values + sigma**2) * self.scale**2

        def apply(u: Tensor) -> Tensor:
            out = ((u.flatten(1).double() @ self.vectors) * spread) @ self.vectors.T
            return out.to(u.dtype).view_as(u)

        return apply

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, *z_shape)."""
        eps = randn((self.mean.numel(),), generators(seed, range(n)), self.mean)
        z0 = self.mean + (eps * self.values.sqrt()) @ self.vectors.T
        return z0.float().view(n, *self.z_shape)
