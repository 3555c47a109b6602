"""Noise with outliers: y = mean + scale * Student's t with dof degrees of freedom.

    log p = log G((dof + 1) / 2) - log G(dof / 2) - log(pi dof scale^2) / 2
            - (dof + 1) / 2 log(1 + u^2 / dof),          u = (y - mean) / scale
    score = w (y - mean),   w = (dof + 1) / (dof + u^2) / scale^2
    information = (dof + 1) / (dof + 3) / scale^2

(Lange, Little & Taylor 1989, doi:10.2307/2290063.) Steps take w for the curvature, not Fisher's
information: the quadratic of weight w bounds -log p from above, while scoring overshoots near the
data and crawls far from them. The variance is infinite for dof <= 2, so
residuals are whitened by quantiles: r is the normal deviate of the same probability as u. That
makes chi2 per pixel 1 with variance 2 at any dof, and an outlier counts by how rare it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.special import ndtri, ndtri_exp, stdtr
from torch import Tensor

from operators.noise.base import Pixelwise

__all__ = ["StudentT"]

LARGE_DOF = 1e6
TINY = 1e-290  # probability


@dataclass(frozen=True, eq=False)
class StudentT(Pixelwise):
    """Independent Student-t noise; scale in the data's unit, dof its degrees of freedom.

    dof of 3 to 5 suits data with outliers, 1 is a Cauchy law, and a large one is Gaussian noise.
    """

    summary: ClassVar[str] = "Student's t, for data with outliers"

    dof: float | Tensor
    scale: float | Tensor
    mask: Tensor | None = None

    @classmethod
    def default(cls, peak: float) -> Self:
        """Three degrees of freedom, and a scale of 5% of the peak."""
        return cls(3.0, 0.05 * peak)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws by the polar method, `(B, *y_shape)`; masked pixels keep the mean.

        t = sqrt(dof (U^(-2 / dof) - 1)) cos(2 pi V), U and V uniform (Bailey 1994,
        doi:10.2307/2153537).
        """
        self._check(tuple(mean.shape[1:]))
        dof, scale = self._given(mean)
        source = mean.device if generator is None else generator.device
        u, v = (
            torch.rand(mean.shape, generator=generator, dtype=torch.float64, device=source)
            for _ in range(2)
        )
        u, v = u.to(mean.device), v.to(mean.device)
        # 1 - U lies in (0, 1]: its power is finite, and expm1 keeps the small draws
        square = dof * torch.expm1(-2 / dof * torch.log1p(-u))
        draws = scale * square.sqrt() * (2 * math.pi * v).cos()
        return mean + self._kept_only(draws).to(mean.dtype)

    def curvature(self, y: Tensor, mean: Tensor) -> Tensor:
        """The weight w, `(B, *y_shape)`: small for outliers."""
        return self._kept_only(self._weight(*self._wide(y, mean))).to(mean.dtype)

    def _log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        dof, scale = self._given(mean)
        u = (y - mean) / scale
        # of a large dof the difference cancels: its series leaves 1e-19 there
        normaliser = torch.where(
            dof > LARGE_DOF,
            (dof / 2).log() / 2 - 1 / (4 * dof),
            torch.lgamma((dof + 1) / 2) - torch.lgamma(dof / 2),
        )
        normaliser = normaliser - (math.pi * dof * scale**2).log() / 2
        return normaliser - (dof + 1) / 2 * torch.log1p(u**2 / dof)

    def _score(self, y: Tensor, mean: Tensor) -> Tensor:
        return self._weight(y, mean) * (y - mean)

    def _information(self, mean: Tensor) -> Tensor:
        dof, scale = self._given(mean)
        return (dof + 1) / (dof + 3) / scale**2

    def _weight(self, y: Tensor, mean: Tensor) -> Tensor:
        dof, scale = self._given(mean)
        return (dof + 1) / (dof * scale**2 + (y - mean) ** 2)

    def _whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        device, y, mean = mean.device, y.detach().cpu(), mean.detach().cpu()
        freedom, scale = self._given(mean)
        u, dof = ((y - mean) / scale).numpy(), freedom.numpy()
        # by the lower tail alone, whose probabilities are exact however rare
        low, size = stdtr(dof, -abs(u)), abs(u)
        with np.errstate(divide="ignore"):
            # beyond the least number the tail is density times width, to a share of dof / u^2
            log_density = self._log_density(y, mean) + scale.log()
            far = log_density.numpy() + np.log1p(size**2 / dof) - np.log(size)
            rare = np.where(low > TINY, -ndtri(low), -ndtri_exp(far))
        return torch.copysign(torch.from_numpy(rare), torch.from_numpy(u)).to(device)
