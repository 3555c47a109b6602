"""Gaussian noise of a known standard deviation.

    log p = -1/2 sum over kept pixels of [ (y - mean)^2 / sigma^2 + log(2 pi sigma^2) ]

The precision 1/sigma^2 is exactly zero where a pixel is masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators.errors import ObservationError
from operators.noise.base import NoiseModel, standard_normal

__all__ = ["Gaussian"]


@dataclass(frozen=True, eq=False)
class Gaussian(NoiseModel):
    """Independent Gaussian noise; sigma: standard deviation in the data's unit."""

    summary: ClassVar[str] = "Gaussian of a known standard deviation"

    sigma: float | Tensor
    mask: Tensor | None = None

    @classmethod
    def default(cls, peak: float) -> Self:
        """5% of the peak."""
        return cls(0.05 * peak)

    @property
    def uniform(self) -> float | None:
        """Sigma where it is one number and nothing is masked, otherwise None."""
        return self.sigma if isinstance(self.sigma, float) and self.mask is None else None

    @cached_property
    def precision(self) -> Tensor:
        """1/sigma^2, zero where masked; float64, `()` or `(*y_shape)`."""
        sigma = torch.as_tensor(self.sigma, dtype=torch.float64)
        if self.mask is None:
            return sigma**-2
        return torch.where(self.mask, 0.0, sigma**-2)

    def precision_as(self, like: Tensor) -> Tensor:
        """`precision` with the dtype and device of `like`, converted once and kept.

        Raises `ObservationError` where that dtype cannot hold it.
        """
        key = (like.dtype, like.device)
        if key not in self._moved:
            with torch.inference_mode(False):  # else autograd could not use it later
                moved = self.precision.to(dtype=like.dtype, device=like.device)
                held = (moved > 0).cpu() == (self.precision > 0).cpu()
                if not (held.all() and moved.isfinite().all()):
                    raise ObservationError(
                        f"1 / sigma^2 of the noise is out of the range of {like.dtype}: "
                        "rescale data and noise alike to a unit in which they are about 1"
                    )
                self._moved[key] = moved
        return self._moved[key]

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density over the unmasked pixels, (B,) float64; see `NoiseModel`."""
        chi2 = (self._residual(y, mean) ** 2 * self.precision_as(mean)).flatten(1)
        return -0.5 * (chi2.sum(1, dtype=torch.float64) + self._log_normaliser(mean.shape[1:]))

    def misfit(self, y: Tensor, mean: Tensor) -> Tensor:
        """Half of chi2, (B,) float64."""
        return self.whitened(y, mean).flatten(1).double().square().sum(1) / 2

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Precision times (y - mean), `(B, *y_shape)`: the gradient of log p in the mean."""
        return self.precision_as(mean) * self._residual(y, mean)

    def whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        """(y - mean) / sigma, `(B, *y_shape)`, zero where masked."""
        precision = self.precision_as(mean)
        return torch.where(precision > 0, self.score(y, mean) * precision.rsqrt(), 0.0)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """mean + sigma * standard normal, `(B, *y_shape)`; masked pixels keep the mean."""
        self._check(tuple(mean.shape[1:]))
        precision = self.precision_as(mean)
        sigma = torch.where(precision > 0, precision, 1.0).rsqrt() * (precision > 0)
        noise = standard_normal(mean, generator)
        return mean + sigma * noise

    def expected_information(self, mean: Tensor) -> Tensor:
        """The precision, `(B, *y_shape)`."""
        self._check(tuple(mean.shape[1:]))
        return self.precision_as(mean).expand(mean.shape)

    def _residual(self, y: Tensor, mean: Tensor) -> Tensor:
        self._check_pair(y, mean)
        residual = y.to(dtype=mean.dtype, device=mean.device) - mean
        if self.mask is None:
            return residual
        return torch.where(self.precision_as(mean) > 0, residual, 0.0)

    def _log_normaliser(self, y_shape: tuple[int, ...]) -> float:
        count = self.count(y_shape)
        if isinstance(self.sigma, float):
            return count * math.log(2 * math.pi * self.sigma**2)
        return count * math.log(2 * math.pi) + self._sum_log_variance

    @cached_property
    def _sum_log_variance(self) -> float:
        precision = self.precision[self.precision > 0]
        return -float(precision.log().sum())

    @cached_property
    def _moved(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}
