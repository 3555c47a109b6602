"""Gaussian mixture prior sum_k w_k N(mean_k, s^2 I): denoiser and posteriors in closed form.

    E[z_0 | z_t, k] = mu_k + alpha s^2 (z_t - alpha mu_k) / (alpha^2 s^2 + sigma^2)
    E[z_0 | z_t] = sum_k p(k | z_t) E[z_0 | z_t, k]
    p(k | z_t) proportional to w_k N(z_t; alpha mu_k, (alpha^2 s^2 + sigma^2) I)

    Cov(z_0 | z_t) = s^2 sigma^2 / (alpha^2 s^2 + sigma^2) I + Cov_k [ E[z_0 | z_t, k] ]

The 25-mode grid is the benchmark of Cardoso et al. (2023, arXiv 2308.07983).
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


class GaussianMixture(Prior):
    """x ~ sum_k weights_k N(means_k, std^2 I) on vectors (d,)."""

    summary = "isotropic Gaussian mixture; exact denoiser and posterior"

    def __init__(
        self,
        means: NDArray[np.float64],
        weights: NDArray[np.float64],
        std: float = 1.0,
        steps: int = 100,
    ) -> None:
        """Set up the mixture of means (K, d) and weights (K,), which are normalised."""
        means, weights = np.asarray(means, float), np.asarray(weights, float)
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise ObservationError(
                f"means must be (K, d) and weights (K,), found {means.shape} and {weights.shape}"
            )
        if not (weights >= 0).all() or weights.sum() <= 0 or std <= 0:
            raise ObservationError("mixture weights must be >= 0 with a positive sum, and std > 0")
        d = means.shape[1]
        self.x_shape = self.z_shape = (d,)
        self.scale = float(np.sqrt(np.square(means).mean() + std**2))
        self.std = std / self.scale
        self.schedule = Schedule(rho_min=0.03 * self.std, rho_max=40 * float(np.sqrt(d)))
        self.steps = steps
        self.means = torch.from_numpy(means / self.scale)
        self.log_weights = torch.from_numpy(np.log(weights / weights.sum()))

    @classmethod
    def default(cls, x_shape: tuple[int, ...] = (8,)) -> GaussianMixture:
        """Return 25 equal modes at (-8i, -8j), i, j in -2..2, repeated over the d dimensions."""
        grid = np.array([(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
        return cls(np.resize(grid.T, (x_shape[0], 25)).T, np.full(25, 1 / 25))

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, d)."""
        alpha, total = self.schedule.alpha(t), self._total(t)
        mean = self._shares(z, t) @ self.means
        clean = mean + (alpha * self.std**2 / total) * (z.double() - alpha * mean)
        return clean.to(z.dtype)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the exact Cov(x | z_t = z): within the modes and between them."""
        total, share = self._total(t), self._shares(z, t)
        within = (self.std * self.schedule.sigma(t) * self.scale) ** 2 / total
        lever = (
            self.schedule.sigma(t) ** 2 / total * self.scale
        )  # of a mode's mean on E[x | z_t, k]
        apart = lever * (self.means - (share @ self.means)[:, None])  # (B, K, d)

        def apply(u: Tensor) -> Tensor:
            wide = u.double()
            along = share * torch.einsum("bkd,bd->bk", apart, wide)
            return (within * wide + torch.einsum("bk,bkd->bd", along, apart)).to(u.dtype)

        return apply

    def _total(self, t: float) -> float:
        """Return the variance of z_t within a mode."""
        return (self.schedule.alpha(t) * self.std) ** 2 + self.schedule.sigma(t) ** 2

    def _shares(self, z: Tensor, t: float) -> Tensor:
        """Return p(k | z_t), (B, K) float64."""
        centres = self.schedule.alpha(t) * self.means
        distance = (z.double()[:, None] - centres).square().sum(2)
        return torch.softmax(self.log_weights - distance / (2 * self._total(t)), dim=1)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, d)."""
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.means), n, p=self.log_weights.exp().numpy())
        eps = randn(self.z_shape, generators(seed, range(n)), self.means)
        return (self.means[torch.from_numpy(which)] + self.std * eps).float()
