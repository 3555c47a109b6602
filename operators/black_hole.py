"""Interferometry by closures, as of black holes: what the atmosphere and gains cannot corrupt.

    V_ij = sum over pixels of x exp(-2 pi i (u_ij l + v_ij m))     visibility of stations i, j
    closure phase           V_ij V_jk conj(V_ik), as its cosine and sine
    log closure amplitude   log( |V_ij V_kl| / |V_ik V_jl| )
    total flux              sum over pixels of x

Chael et al. 2018, arXiv:1803.07088. Phases are data on the unit circle: with Gaussian noise of
standard deviation sigma on cosine and sine, chi2 is 2 (1 - cos(difference)) / sigma^2, theirs,
which knows no jump at 180 degrees. Real phases have no noise across the circle, so a perfect model
of them has chi2 1/2 per number; simulated ones have 1.

Arrays are [y, x], origin lower, north up and east to the LEFT: l = -x. A shifted image has the same
closures, so only the prior knows where the image is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators import _parameters
from operators._baselines import EHT_2017, EHT_2017_SEFD, Scan, scans
from operators._rays import pixel_centres
from operators.base import ForwardOperator
from operators.errors import ObservationError

__all__ = ["BlackHole"]

NOISIEST = 1.0  # relative error of a visibility at most, in the noise that is simulated


@dataclass(frozen=True, eq=False)
class BlackHole(ForwardOperator):
    """Closure data of an image `(H, W)`: [cosines, sines, log closure amplitudes, flux].

    shape: (H, W), x_shape; x is flux per pixel.
    field_of_view: of the longer side, microarcseconds, > 0.
    wavelength: mm, > 0.
    declination: of the source, degrees.
    first_hour, last_hour: hour angles of the source at Greenwich, hours; last_hour after first.
    times: number of scans, evenly from the first hour to the last, >= 1.
    elevation: least one at which a station observes, degrees.
    stations: (S, 3) geocentric, metres, S >= 4; None: those of the Event Horizon Telescope in 2017.
    sefd: (S,) Jy, > 0, what makes some stations noisier than others; None: all alike for stations
        that are given.
    floor: flux below which an amplitude is taken to be noise, so that its logarithm stays finite.
    Raises `ObservationError` on values out of range, and where no four stations see the source.
    """

    default_prior: ClassVar[str] = "blackhole-32"
    summary: ClassVar[str] = "closure phases and amplitudes of an interferometer; not linear"
    noise_fraction: ClassVar[float] = 0.005
    axes: ClassVar[tuple[str, str]] = ("cosines and sines of phases, log amplitudes", "")
    data_unit: ClassVar[str | None] = "closures"

    shape: tuple[int, int]
    field_of_view: float = 160.0
    wavelength: float = 1.3
    declination: float = 12.391
    first_hour: float = 0.5
    last_hour: float = 9.5
    times: int = 12
    elevation: float = 10.0
    stations: npt.NDArray[np.float64] | None = None
    sefd: npt.NDArray[np.float64] | None = None
    floor: float = 1e-6

    def __post_init__(self) -> None:
        set_, number = object.__setattr__, _parameters.number
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        set_(
            self, "field_of_view", number("field_of_view", self.field_of_view, unit="uas", above=0)
        )
        set_(self, "wavelength", number("wavelength", self.wavelength, unit="mm", above=0))
        for name in ("declination", "elevation"):
            angle = number(name, getattr(self, name), unit="deg", at_least=-90, at_most=90)
            set_(self, name, angle)
        set_(self, "first_hour", number("first_hour", self.first_hour, unit="hourangle"))
        last = number("last_hour", self.last_hour, unit="hourangle", at_least=self.first_hour)
        set_(self, "last_hour", last)
        set_(self, "times", _parameters.whole("times", self.times, at_least=1, at_most=10**4))
        set_(self, "floor", number("floor", self.floor, above=0))
        for name, ndim in (("stations", 2), ("sefd", 1)):
            if getattr(self, name) is not None:
                set_(self, name, _parameters.array(name, getattr(self, name), ndim=ndim))
        places, noise = self._places, self._noise
        if places.shape[1] != 3 or noise.shape != (len(places),) or not (noise > 0).all():
            raise ObservationError(
                f"stations have shape {places.shape} and sefd {noise.shape}; needed (S, 3) and "
                "(S,), all sefd above 0"
            )
        if not sum(len(scan.quadrangles) for scan in self._scans):
            raise ObservationError(
                "no four stations see the source together: change hours, declination or elevation"
            )

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """M87 as the Event Horizon Telescope saw it in 2017, 160 microarcseconds wide."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (2 * len(self._triangles) + len(self._quadrangles) + 1,)

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The closures; the flux is of another size."""
        return y[:-1]

    def visibilities(self, x: Tensor) -> Tensor:
        """V (B, n, 2), real and imaginary parts, of every pair of every scan."""
        return (x.flatten(1) @ self._table("_waves", x)).reshape(len(x), -1, 2)

    @property
    def uv(self) -> npt.NDArray[np.float64]:
        """Baselines (n, 2) of every pair of every scan, wavelengths."""
        return np.concatenate([scan.uv for scan in self._scans]) / (self.wavelength * 1e-3)

    def simulated_sigma(self, x: Tensor, mean: Tensor, fraction: float) -> Tensor:
        """That of thermal noise, `fraction` of the flux on a typical pair, carried to the closures.

        A visibility's goes with the root of the product of its stations' SEFDs; its relative error
        is taken to be at most 1, beyond which closures are not Gaussian.
        """
        flux = x.double().abs().sum()
        pairs = np.concatenate([scan.pairs for scan in self._scans])
        root = np.sqrt(self._noise[pairs].prod(1))
        thermal = fraction * flux * torch.from_numpy(root / np.median(root))
        amplitude = self.visibilities(x.double())[0].norm(dim=1)
        relative = thermal / torch.maximum(amplitude, thermal / NOISIEST)
        phase, amplitudes = (
            relative[closure].square().sum(1).sqrt()
            for closure in (self._triangles, self._quadrangles)
        )
        return torch.cat([phase, phase, amplitudes, fraction * flux.view(1)])

    def _forward(self, x: Tensor) -> Tensor:
        parts = self.visibilities(x)
        power = parts.square().sum(2) + self.floor**2
        turn = torch.view_as_complex(parts / power.sqrt()[..., None])  # no product underflows
        first, second, third = turn[:, self._triangles].unbind(2)
        phase = first * second * third.conj()
        a, b, c, d = (0.5 * power.log())[:, self._quadrangles].unbind(2)
        flux = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([phase.real, phase.imag, a + b - c - d, flux], 1)

    @property
    def _places(self) -> npt.NDArray[np.float64]:
        return EHT_2017 if self.stations is None else self.stations

    @property
    def _noise(self) -> npt.NDArray[np.float64]:
        if self.sefd is None:
            return EHT_2017_SEFD if self.stations is None else np.ones(len(self.stations))
        return self.sefd

    @cached_property
    def _scans(self) -> list[Scan]:
        hours = np.linspace(self.first_hour, self.last_hour, self.times) * math.pi / 12
        declination, elevation = math.radians(self.declination), math.radians(self.elevation)
        return scans(self._places, declination, hours, elevation)

    def _numbered(self, closures: list[npt.NDArray[np.int64]]) -> Tensor:
        """Closures of the scans as indices into all visibilities."""
        starts = np.cumsum([0] + [len(scan.uv) for scan in self._scans])
        return torch.from_numpy(
            np.concatenate([c + start for c, start in zip(closures, starts, strict=False)])
        )

    @cached_property
    def _triangles(self) -> Tensor:
        return self._numbered([scan.triangles for scan in self._scans])

    @cached_property
    def _quadrangles(self) -> Tensor:
        return self._numbered([scan.quadrangles for scan in self._scans])

    @cached_property
    def _waves(self) -> Tensor:
        """The transform (H W, 2n) from pixels to real and imaginary parts."""
        pixel = math.radians(self.field_of_view / max(self.shape) / 3.6e9)
        m, x = (pixel_centres(n, pixel) for n in self.shape)
        turns = m[:, None, None] * self.uv[:, 1] - x[:, None] * self.uv[:, 0]
        waves = np.exp(-2j * math.pi * turns).reshape(-1, len(self.uv))
        return torch.from_numpy(waves.view(np.float64))
