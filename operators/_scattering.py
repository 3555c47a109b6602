"""Waves scattered by a contrast in two dimensions: what the full and the Born operator share.

    u = u_in + k^2 integral of g(r - r') chi(r') u(r') dr',   g(r) = i/4 H_0(k |r|)
    y = k^2 integral of g(r_j - r') chi(r') u(r') dr'         at the receivers r_j

chi = contrast * x is the relative permittivity less 1, constant on each pixel, which stands for a
disc of its area (Richmond 1965, doi:10.1109/TAP.1965.1138427), radius a:

    k^2 integral of g over a disc = i pi k a / 2 J_1(k a) H_0(k r)    outside of it
                                  = i pi k a / 2 H_1(k a) - 1         at its centre

Time goes as exp(-i omega t), H is Hankel's function of the first kind. Transmitters are line
sources, each with |u_in| = 1 at the centre; they and the receivers stand evenly on a circle about
it, the first on the +x axis. Complex numbers are pairs (real, imaginary) on a trailing axis of 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import hankel1, j1
from torch import Tensor

from operators import _parameters
from operators._rays import pixel_centres
from operators.base import ForwardOperator

__all__ = ["Scattering"]


@dataclass(frozen=True, eq=False)
class Scattering(ForwardOperator):
    """Scattered fields (transmitters, receivers, 2) of images `(H, W)` of the contrast.

    shape: (H, W), x_shape.
    transmitters, receivers: numbers of them, >= 1.
    wavelength, pixel_size, radius: in the background, of x, and of the circle of antennas; cm, > 0.
        The circle lies outside the image.
    contrast: relative permittivity less 1 per unit of x, > 0.
    Raises `ObservationError` on values out of range, NaN, and units that do not convert.
    """

    axes: ClassVar[tuple[str, str]] = ("receiver", "transmitter")
    data_unit: ClassVar[str | None] = "field, real part"

    shape: tuple[int, int]
    transmitters: int = 20
    receivers: int = 180
    wavelength: float = 5.0
    pixel_size: float = 18.0 / 64
    radius: float = 160.0
    contrast: float = 0.1

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        for name in ("transmitters", "receivers"):
            count = _parameters.whole(name, getattr(self, name), at_least=1, at_most=10**5)
            set_(self, name, count)
        for name in ("wavelength", "pixel_size"):
            set_(self, name, _parameters.number(name, getattr(self, name), unit="cm", above=0))
        outside = self.pixel_size * math.hypot(*self.shape) / 2
        set_(self, "radius", _parameters.number("radius", self.radius, unit="cm", above=outside))
        set_(self, "contrast", _parameters.number("contrast", self.contrast, above=0))

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """An object of 18 cm, 6 GHz in air, 20 transmitters and 180 receivers 1.6 m away."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width), pixel_size=18.0 / max(height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.transmitters, self.receivers, 2

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The real part of the fields."""
        return y[..., 0]

    def _radiated(self, current: Tensor) -> Tensor:
        """The field (B, T, R, 2) at the receivers of chi u (B, T, H, W)."""
        return torch.view_as_real(current.flatten(2) @ self._table("_to_receivers", current).T)

    @property
    def _wave_number(self) -> float:
        return 2 * math.pi / self.wavelength

    @property
    def _disc(self) -> float:
        """k a."""
        return self._wave_number * self.pixel_size / math.sqrt(math.pi)

    def _distances(self, antennas: int) -> npt.NDArray[np.float64]:
        """k times the distance of each antenna to each pixel, (antennas, H W)."""
        angle = 2 * math.pi * np.arange(antennas)[:, None] / antennas
        y, x = (pixel_centres(n, self.pixel_size) for n in self.shape)
        x, y = (grid.ravel() for grid in np.meshgrid(x, y))
        far = np.hypot(x - self.radius * np.cos(angle), y - self.radius * np.sin(angle))
        return np.asarray(self._wave_number * far)

    @cached_property
    def _incident(self) -> Tensor:
        """u_in, (1, T, H, W)."""
        field = hankel1(0, self._distances(self.transmitters))
        field /= abs(hankel1(0, self._wave_number * self.radius))
        return torch.from_numpy(field).view(1, self.transmitters, *self.shape)

    @cached_property
    def _to_receivers(self) -> Tensor:
        """k^2 times the integral of g, (R, H W), without the contrast."""
        weight = 0.5j * math.pi * self._disc * j1(self._disc)
        return torch.from_numpy(weight * hankel1(0, self._distances(self.receivers)))

    @cached_property
    def _to_pixels(self) -> Tensor:
        """Fourier transform (2H, 2W) of k^2 times the integral of g from pixel to pixel."""
        rows, columns = (np.fft.fftfreq(2 * n, 1 / (2 * n)) for n in self.shape)
        far = self._wave_number * self.pixel_size * np.hypot(rows[:, None], columns)
        far[0, 0] = 1.0  # any: replaced
        kernel = 0.5j * math.pi * self._disc * j1(self._disc) * hankel1(0, far)
        kernel[0, 0] = 0.5j * math.pi * self._disc * hankel1(1, self._disc) - 1
        spectrum: Tensor = torch.fft.fft2(torch.from_numpy(kernel))
        return spectrum
