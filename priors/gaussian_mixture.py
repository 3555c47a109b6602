"""Gaussian mixture prior sum_k w_k N(mu_k, C_k): density, denoiser and covariance in closed form.

    S_k = alpha^2 C_k + sigma^2 I
    E[z_0 | z_t, k] = mu_k + alpha C_k S_k^-1 (z_t - alpha mu_k)
    E[z_0 | z_t] = sum_k p(k | z_t) E[z_0 | z_t, k]
    p(k | z_t) proportional to w_k N(z_t; alpha mu_k, S_k)

    Cov(z_0 | z_t) = sum_k p(k | z_t) sigma^2 C_k S_k^-1 + Cov_k [ E[z_0 | z_t, k] ]

Everything is diagonal in the eigenbasis of C_k: one for all modes where they share a covariance
(none at all where that is isotropic), else one each. A posterior under a linear operator and
Gaussian noise is such a mixture too (Cardoso et al. 2023, arXiv 2308.07983, whose benchmark the
25-mode grid is).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import ObservationError
from priors.base import Prior
from priors.process import Schedule, generators, randn

Array = NDArray[np.float64]


class GaussianMixture(Prior):
    """x ~ sum_k weights_k N(means_k, covariances_k) on vectors (d,)."""

    summary = "Gaussian mixture; exact denoiser and posterior"

    def __init__(
        self,
        means: Array,
        weights: Array,
        std: float = 1.0,
        steps: int = 100,
        covariances: Array | None = None,
        chain: Prior | None = None,
    ) -> None:
        """Set up the mixture of means (K, d) and weights (K,), which are normalised.

        Every mode has covariance std^2 I, or one of `covariances` (K, d, d), or all share one
        (1, d, d). The unit z, the process and the number of steps suit the mixture, or are those
        of `chain`: so a posterior can run on its prior's chain. Raises ObservationError.
        """
        means, weights = np.asarray(means, float), np.asarray(weights, float)
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise ObservationError(
                f"means must be (K, d) and weights (K,), found {means.shape} and {weights.shape}"
            )
        if not (weights >= 0).all() or weights.sum() <= 0 or std <= 0:
            raise ObservationError("mixture weights must be >= 0 with a positive sum, and std > 0")
        count, d = means.shape
        if covariances is None:
            values, vectors = np.full((1, d), std**2), None
        else:
            values, vectors = _eigenbases(np.asarray(covariances, float), count, d)
        self.x_shape = self.z_shape = (d,)
        power = np.square(means).mean(1) + values.mean(1)
        self.scale = chain.scale if chain else float(np.sqrt(np.average(power, weights=weights)))
        self.values = torch.from_numpy(values / self.scale**2)  # (M, d), M = 1 or K
        self.vectors = None if vectors is None else torch.from_numpy(vectors)  # (M, d, d)
        self.schedule = (
            chain.schedule
            if chain
            else Schedule(
                rho_min=0.03 * float(self.values.min().sqrt()), rho_max=40 * float(np.sqrt(d))
            )
        )
        self.steps = chain.steps if chain else steps
        self.means = torch.from_numpy(means / self.scale)
        self.log_weights = torch.from_numpy(weights / weights.sum()).log()
        centres = self.means.view(len(values), -1, d)  # (M, K / M, d), in the modes' bases
        self.centres = centres if self.vectors is None else centres @ self.vectors

    @classmethod
    def default(cls, x_shape: tuple[int, ...] = (8,)) -> GaussianMixture:
        """Return 25 equal modes at (-8i, -8j), i, j in -2..2, repeated over the d dimensions."""
        return cls(mode_grid(x_shape[0]), np.full(25, 1 / 25))

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, d)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        here, share = self._coordinates(z), self._grouped(self._shares(z, alpha, sigma))
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        centre = torch.einsum("bmj,mjd->bmd", share, self.centres)
        within = share.sum(2, keepdim=True) * gain * here + (1 - alpha * gain) * centre
        return self._turned_back(within).sum(1).to(z.dtype)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the exact Cov(x | z_t = z): within the modes and between them."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        share = self._shares(z, alpha, sigma)
        total = alpha**2 * self.values + sigma**2
        gain = (alpha * self.values / total)[:, None]
        modes = gain * self._coordinates(z)[:, :, None] + (1 - alpha * gain) * self.centres
        modes = self._turned_back(modes).flatten(1, 2)
        apart = self.scale * (modes - torch.einsum("bk,bkd->bd", share, modes)[:, None])
        spread = self.scale**2 * sigma**2 * self.values / total
        within = self._grouped(share).sum(2, keepdim=True) * spread  # (B, M, d)

        def apply(u: Tensor) -> Tensor:
            wide = u.double()
            along = share * torch.einsum("bkd,bd->bk", apart, wide)
            inside = self._turned_back(within * self._coordinates(wide)).sum(1)
            return (inside + torch.einsum("bk,bkd->bd", along, apart)).to(u.dtype)

        return apply

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,) float64, for x (B, d) in physical units; differentiable."""
        joint = self._log_joint(self.encode(x.double()), 1.0, 0.0)
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.scale)
        return joint.logsumexp(1) - x.shape[1] * constant

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return p(k | x), (B, K) float64, for x (B, d) in physical units."""
        return self._shares(self.encode(x.double()), 1.0, 0.0)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, d)."""
        chances = self.log_weights.exp().cpu().numpy()
        which = np.random.default_rng(seed).choice(len(chances), n, p=chances / chances.sum())
        return self.draw_modes(which, seed)

    def draw_modes(self, which: NDArray[np.int64], seed: int) -> Tensor:
        """Return one exact draw of z_0 from each of the modes `which` (n,), (n, d)."""
        eps = randn(self.z_shape, generators(seed, range(len(which))), self.means)
        modes = torch.from_numpy(which).to(self.device)
        group = modes // self.centres.shape[1]
        inner = self.values[group].sqrt() * eps
        if self.vectors is not None:
            for m, basis in enumerate(self.vectors):
                inner[group == m] = inner[group == m] @ basis.T
        return (self.means[modes] + inner).float()

    def _shares(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return p(k | z_t), (B, K) float64."""
        return torch.softmax(self._log_joint(z, alpha, sigma), dim=1)

    def _log_joint(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return log w_k N(z_t; alpha mu_k, S_k) but for (2 pi)^(d/2), (B, K) float64."""
        total = alpha**2 * self.values + sigma**2
        here = self._coordinates(z)
        # the square is expanded: products of matrices instead of an array (B, K, d); in float64
        # what cancels is some 1e-11 even at the last noise level
        own = (here.square() / total).sum(2)[:, :, None]
        cross = torch.einsum("bmd,mjd->bmj", here / total, alpha * self.centres)
        fixed = (alpha**2 * self.centres.square() / total[:, None]).sum(2)
        volume = total.log().sum(1)[:, None]
        return self.log_weights - ((own - 2 * cross + fixed + volume) / 2).flatten(1)

    def _grouped(self, a: Tensor) -> Tensor:
        """Return a (B, K) as (B, M, K / M): modes by the basis they use."""
        return a.view(len(a), *self.centres.shape[:2])

    def _coordinates(self, z: Tensor) -> Tensor:
        """Return z (B, d) in every basis, (B, M, d) float64."""
        wide = z.double()
        if self.vectors is None:
            return wide[:, None]
        return torch.einsum("bd,mde->bme", wide, self.vectors)

    def _turned_back(self, a: Tensor) -> Tensor:
        """Return a (B, M, ..., d), coordinates in each basis, in the axes of z."""
        if self.vectors is None:
            return a
        return torch.einsum("bm...e,mde->bm...d", a, self.vectors)


def mode_grid(d: int) -> Array:
    """Return the means (25, d) at (-8i, -8j), i, j in -2..2, repeated over the d dimensions."""
    grid = np.array([(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
    return np.resize(grid.T, (d, 25)).T


def _eigenbases(covariances: Array, count: int, d: int) -> tuple[Array, Array]:
    """Return eigenvalues (M, d) and eigenvectors (M, d, d); raises ObservationError."""
    if covariances.shape not in ((count, d, d), (1, d, d)):
        raise ObservationError(
            f"covariances must be ({count}, {d}, {d}), one of each mode, or (1, {d}, {d}), "
            f"found {covariances.shape}"
        )
    if not np.allclose(covariances, covariances.transpose(0, 2, 1)):
        raise ObservationError("covariances must be symmetric")
    values, vectors = np.linalg.eigh(covariances)
    if not values.min() > 0:
        raise ObservationError(
            f"covariances must be positive definite, found the eigenvalue {values.min():.3g}"
        )
    return values, vectors
