"""Photon noise and read-out noise: y ~ N(mean, v), v = gain max(mean, 0) + read^2.

    log p = -1/2 sum over kept pixels of [ (y - mean)^2 / v + log(2 pi v) ]
    information = 1 / v + (v' / v)^2 / 2,   v' = gain where mean > 0, else 0

The heteroscedastic normal approximation of y = gain * Poisson(mean / gain) + N(0, read^2) that
sensors are calibrated with (Foi et al. 2008, doi:10.1109/TIP.2008.2001399, eq. 5). It is a model of
its own: samples are drawn from it too, and its mean and variance are those of the convolution at
every positive mean. It is close to that where read noise or counts exceed a few electrons; below,
`poisson` with a background is the better model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators.noise.base import Pixelwise, standard_normal

__all__ = ["PoissonGaussian"]


@dataclass(frozen=True, eq=False)
class PoissonGaussian(Pixelwise):
    """Photon and read-out noise.

    gain: data units per detected photon, so that the variance grows by gain with the mean.
    read: standard deviation at mean 0, in the data's unit.
    """

    summary: ClassVar[str] = "photon noise with a gain, and Gaussian read-out noise"

    gain: float | Tensor
    read: float | Tensor
    mask: Tensor | None = None

    @classmethod
    def default(cls, peak: float) -> Self:
        """A peak of 100 photons, and read-out noise of 1% of it."""
        return cls(peak / 100, 0.01 * peak)

    def likeliest(self, y: Tensor) -> Tensor:
        """Where the score is 0: v^2 + gain^2 v = (gain y + read^2)^2 at positive means."""
        gain, read = self._given(y)
        floor = read**2
        root = (gain**4 + 4 * (gain * y + floor) ** 2).sqrt()
        variance = ((root - gain**2) / 2).maximum(floor)
        return torch.where(y < 0, y, (variance - floor) / gain)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """mean + sqrt(v) * standard normal, `(B, *y_shape)`; masked pixels keep the mean."""
        self._check(tuple(mean.shape[1:]))
        noise = standard_normal(mean, generator)
        return mean + self._kept_only(self._variance(mean.double()).sqrt().to(mean.dtype) * noise)

    def _log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        variance = self._variance(mean)
        return -0.5 * ((y - mean) ** 2 / variance + (2 * math.pi * variance).log())

    def _score(self, y: Tensor, mean: Tensor) -> Tensor:
        variance, slope = self._variance(mean), self._slope(mean)
        pull = (y - mean) / variance
        return pull + slope / 2 * (pull**2 - 1 / variance)

    def _information(self, mean: Tensor) -> Tensor:
        variance = self._variance(mean)
        return 1 / variance + (self._slope(mean) / variance) ** 2 / 2

    def _whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        return (y - mean) * self._variance(mean).rsqrt()

    def _variance(self, mean: Tensor) -> Tensor:
        gain, read = self._given(mean)
        return gain * mean.clamp(min=0) + read**2

    def _slope(self, mean: Tensor) -> Tensor:
        return self._given(mean)[0] * (mean > 0)
