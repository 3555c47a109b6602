"""Counts behind an absorber: y ~ Poisson(rate).

    rate  = max(exposure exp(-mean) + background, floor)
    score = -signal (y / rate - 1),   information = signal^2 / rate,   signal = rate - background

The mean is A(x), the line integrals of tomography (Beer-Lambert law; Lange & Carson 1984, J.
Comput. Assist. Tomogr. 8, 306). Exposure is what is counted without an object. Else as `poisson`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators.noise.poisson import Poisson

__all__ = ["Transmission"]

LEAST = 1e-12  # counts of signal taken for the likeliest mean, where data are below the background


@dataclass(frozen=True, eq=False)
class Transmission(Poisson):
    """Independent counts that fall exponentially with A(x).

    exposure: expected counts where A(x) is 0. background: counts expected in any case, >= 0.
    floor: least expected counts of a pixel.
    """

    summary: ClassVar[str] = "counts behind an absorber, with an exposure and a background"

    @classmethod
    def default(cls, peak: float) -> Self:
        """An exposure that leaves 100 counts behind the peak."""
        return cls(100 * math.exp(peak))

    def likeliest(self, y: Tensor) -> Tensor:
        """The mean whose rate is y, or nearly the background."""
        exposure, background, _ = self._given(y)
        return torch.log(exposure / (y - background).clamp_min(LEAST))

    def _score(self, y: Tensor, mean: Tensor) -> Tensor:
        rate = self._rate(mean)
        return (self._given(mean)[1] - rate) * (y / rate - 1)

    def _information(self, mean: Tensor) -> Tensor:
        rate = self._rate(mean)
        return (rate - self._given(mean)[1]) ** 2 / rate

    def _rate(self, mean: Tensor) -> Tensor:
        exposure, background, floor = self._given(mean)
        return (exposure * torch.exp(-mean) + background).maximum(floor)
