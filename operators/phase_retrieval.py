"""Phase retrieval: y = |F(pad x)|, the magnitudes of an oversampled Fourier transform.

What a detector in the far field of a coherently lit object records, its phases lost. F is unitary,
so |y|^2 sums to |x|^2; zero-padding to twice the size or more makes the phases recoverable, up to
what leaves every magnitude as it is: a shift within the padding, the point reflection x(-r), and
the sign (Fienup 1982, doi:10.1364/AO.21.002758; Bates 1982, Optik 61, 247). The prior decides among
these; where it is blind to one, as galaxies are to a half turn, the posterior has several modes.

|.| has no derivative at 0. There the gradient is taken as 0, the mean over all directions, so it is
bounded by 1 per Fourier mode everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators import _parameters
from operators.base import ForwardOperator

__all__ = ["PhaseRetrieval"]


@dataclass(frozen=True, eq=False)
class PhaseRetrieval(ForwardOperator):
    """Fourier magnitudes of real images `(H, W)`, zero frequency at the centre.

    shape: (H, W), x_shape.
    oversampling: padded size over image size on each axis, >= 1; y_shape is (H, W) times this,
        rounded up. Every magnitude of a real image stands twice, at k and -k, as on a detector.
    Raises `ObservationError` on values out of range.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "magnitudes of an oversampled Fourier transform; not linear"
    axes: ClassVar[tuple[str, str]] = ("kx", "ky")
    data_unit: ClassVar[str | None] = "magnitude"

    shape: tuple[int, int]
    oversampling: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        oversampling = _parameters.number("oversampling", self.oversampling, at_least=1, at_most=16)
        object.__setattr__(self, "oversampling", oversampling)

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Twice oversampled on both axes."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        # 50 * 1.1 is 55, and a little more in floating point
        return tuple(math.ceil(n * self.oversampling - 1e-9) for n in self.shape)

    def _forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.fft2(x, s=self.y_shape, norm="ortho")
        magnitudes: Tensor = torch.fft.fftshift(waves.abs(), dim=(-2, -1))
        return magnitudes
