"""A detector that saturates: y = response(k * x), k the point spread function.

    soft    c tanh(b / c)                  b the blurred image, c the full well
    clip    b clamped to between -c and c

Both are b while |b| is well below c. Where a pixel is clipped it has no gradient: there only the
prior, and pixels beside it that the blur reaches, tell what lies above.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from operators import _parameters
from operators.base import ForwardOperator
from operators.blur import Blur

__all__ = ["HDR"]


@dataclass(frozen=True, eq=False)
class HDR(ForwardOperator):
    """Images `(H, W)` blurred, dark outside, on a detector of limited range.

    shape: (H, W), x_shape and y_shape.
    full_well: c, in the unit of x, > 0.
    kind: "soft" or "clip".
    fwhm: of the Gaussian point spread function, pixels, > 0.
    psf: odd-sized array instead of it; its sum is kept.
    Raises `ObservationError` on values out of range.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "saturating detector after a blur; not linear"

    shape: tuple[int, int]
    full_well: float = 0.3
    kind: str = "soft"
    fwhm: float = 2.0
    psf: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        well = _parameters.number("full_well", self.full_well, above=0)
        object.__setattr__(self, "full_well", well)
        _parameters.choice("kind", self.kind, ("soft", "clip"))
        for name in ("shape", "fwhm"):
            object.__setattr__(self, name, getattr(self._blur, name))
        object.__setattr__(self, "psf", self._blur.kernel)

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A soft limit at 0.3 behind a Gaussian of FWHM 2 pixels."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.shape

    def _forward(self, x: Tensor) -> Tensor:
        blurred, c = self._blur(x), self.full_well
        return blurred.clamp(-c, c) if self.kind == "clip" else c * (blurred / c).tanh()

    @cached_property
    def _blur(self) -> Blur:
        return Blur(self.shape, fwhm=self.fwhm, kernel=self.psf, border="zero")
