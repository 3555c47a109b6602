"""Counts: y ~ Poisson(rate), rate = max(exposure * mean + background, floor).

    log p = y log(rate) - rate - log y!,   score = exposure (y / rate - 1)
    information = exposure^2 / rate,       whitened = (y - rate) / sqrt(rate)

The mean is A(x) per unit of exposure; y and background are counts. A prior may draw x whose rate is
not positive, where Poisson noise has no meaning: the rate is then `floor`, a part of the model, so
densities and samples agree. The score there is that at the floor, not the zero of a constant, and
so leads back to positive rates. Pearson's residual has variance 1 at any rate; that of its square
is 2 + 1/rate, so chi2 is a sharp check only where about a count or more is expected in a pixel:
its degrees of freedom say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import ObservationError
from operators.noise.base import Pixelwise

__all__ = ["Poisson"]

MOST_COUNTS = 1e15  # whole numbers of float64 and int64 end soon beyond


@dataclass(frozen=True, eq=False)
class Poisson(Pixelwise):
    """Independent counts.

    exposure: expected counts per unit of A(x). background: counts expected without a signal, >= 0.
    floor: least expected counts of a pixel.
    """

    summary: ClassVar[str] = "counts, with an exposure and a background"
    may_be_zero: ClassVar[tuple[str, ...]] = ("background",)

    exposure: float | Tensor = 1.0
    background: float | Tensor = 0.0
    floor: float | Tensor = 1e-3
    mask: Tensor | None = None

    @classmethod
    def default(cls, peak: float) -> Self:
        """An exposure that gives the peak 100 counts."""
        return cls(100 / peak)

    def expected(self, mean: Tensor) -> Tensor:
        """The rate in counts, `(B, *y_shape)`."""
        return self._rate(mean.double()).to(mean.dtype)

    def likeliest(self, y: Tensor) -> Tensor:
        """The mean whose rate is y, or the floor."""
        exposure, background, _ = self._given(y)
        return (y - background) / exposure

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Counts, `(B, *y_shape)`, in the mean's dtype; masked pixels have their rate.

        Raises `ObservationError` on rates above `MOST_COUNTS`.
        """
        self._check(tuple(mean.shape[1:]))
        rate = self._rate(mean.double())
        if bool((rate > MOST_COUNTS).any()):
            raise ObservationError(
                f"{float(rate.max()):.3g} counts are expected in a pixel, at most "
                f"{MOST_COUNTS:.0e} can be drawn: lower the exposure, or scale x"
            )
        source = rate.device if generator is None else generator.device
        counts = torch.poisson(rate.to(source), generator=generator).to(rate.device)
        return (rate + self._kept_only(counts - rate)).to(mean.dtype)

    def degrees(self, mean: Tensor) -> Tensor:
        """Degrees of freedom of chi2 per kept pixel, (B,) float64; see `NoiseModel`."""
        count = self.count(tuple(mean.shape[1:]))
        excess = self._kept_only(1 / self._rate(mean.double())).flatten(1).sum(1)
        return 2 * count**2 / (2 * count + excess)

    def refuse_data(self, data: NDArray[Any]) -> None:
        """Raise `ObservationError` on data that are not counts."""
        bad = (data < 0) | (data != np.floor(data))
        if bad.any():
            raise ObservationError(
                f"data have {int(bad.sum())} values that are no counts, such as "
                f"{float(data[bad][0]):g}; Poisson noise needs whole numbers of at least 0: undo "
                "the calibration and give it as exposure and background, or use poisson_gaussian"
            )

    def _log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        rate = self._rate(mean)
        return torch.xlogy(y, rate) - rate - torch.lgamma(y + 1)

    def _score(self, y: Tensor, mean: Tensor) -> Tensor:
        return self._given(mean)[0] * (y / self._rate(mean) - 1)

    def _information(self, mean: Tensor) -> Tensor:
        return self._given(mean)[0] ** 2 / self._rate(mean)

    def _whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        rate = self._rate(mean)
        return (y - rate) * rate.rsqrt()

    def _rate(self, mean: Tensor) -> Tensor:
        exposure, background, floor = self._given(mean)
        return (exposure * mean + background).maximum(floor)
