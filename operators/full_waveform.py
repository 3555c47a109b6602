"""Seismic waves through the ground: shot gathers of an acoustic medium, from its velocity.

    (1 / c^2) d^2p/dt^2 = laplacian p + s(t) delta(r - r_shot),     y = p at the receivers
    c = slowest + (fastest - slowest) / (1 + exp(-x)),    s = Ricker wavelet

s(t) = (1 - 2 a) exp(-a), a = (pi f t - 1.5 pi)^2 (Ricker 1953, doi:10.1190/1.1437843). Finite
differences of second order in time and fourth in space (Alford et al. 1974, doi:10.1190/1.1440470).
Around the image waves leave through a perfectly matched layer (`operators._absorbing`), whose
damping grows as the square of the depth, to a peak that would return `REFLECTED` of a wave at
normal incidence (Collino & Tsogka 2001, doi:10.1190/1.1444908). The logistic keeps any x between
two velocities, so every x is stable: the step is `COURANT` of a pixel at the fastest, and the
scheme is stable up to sqrt(3/8).

Arrays are [y, x]; the surface, with its shots and receivers, is the top: the last rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from operators import _parameters
from operators._absorbing import FRAME, Layer, damped_laplacian, layer
from operators._evolution import evolve
from operators.base import ForwardOperator

__all__ = ["FullWaveform"]

COURANT = 0.5
REFLECTED = 1e-3
DELAY = 1.5  # periods from the start to the wavelet's peak: it begins at 1e-8 of that


@dataclass(frozen=True, eq=False)
class FullWaveform(ForwardOperator):
    """Shot gathers (shots, samples, receivers) of the velocity under a surface, images `(H, W)`.

    shape: (H, W), x_shape; x is dimensionless, see `velocity`.
    slowest, fastest: km/s, 0 < slowest < fastest.
    pixel_size: m, at most half of the shortest wavelength, slowest / (2.5 frequency); a quarter of
        it is accurate.
    frequency: of the wavelet's peak, Hz, > 0.
    duration: s, > 0. samples: recorded in it, evenly, >= 1.
    shots, receivers: evenly along the surface, >= 1.
    depth: of both below the top row, pixels.
    absorbing: width of the layer around the image, pixels, >= 1.
    Raises `ObservationError` on values out of range, NaN, and units that do not convert.
    """

    default_prior: ClassVar[str] = "random_field"
    summary: ClassVar[str] = "seismic shot gathers of the velocity in the ground; not linear"
    noise_fraction: ClassVar[float] = 0.01
    axes: ClassVar[tuple[str, str]] = ("receiver", "sample")
    data_unit: ClassVar[str | None] = "pressure"

    shape: tuple[int, int]
    slowest: float = 1.5
    fastest: float = 4.5
    pixel_size: float = 20.0
    frequency: float = 8.0
    duration: float = 1.0
    samples: int = 125
    shots: int = 4
    receivers: int = 32
    depth: int = 1
    absorbing: int = 15

    def __post_init__(self) -> None:
        set_, number, whole = object.__setattr__, _parameters.number, _parameters.whole
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        set_(self, "slowest", number("slowest", self.slowest, unit="km/s", above=0))
        fastest = number("fastest", self.fastest, unit="km/s", above=self.slowest)
        set_(self, "fastest", fastest)
        set_(self, "frequency", number("frequency", self.frequency, unit="Hz", above=0))
        finest = 1e3 * self.slowest / (2.5 * self.frequency)  # m: the shortest wavelength
        size = number("pixel_size", self.pixel_size, unit="m", above=0, at_most=finest / 2)
        set_(self, "pixel_size", size)
        set_(self, "duration", number("duration", self.duration, unit="s", above=0))
        for name in ("samples", "shots", "receivers", "absorbing"):
            set_(self, name, whole(name, getattr(self, name), at_least=1, at_most=10**5))
        set_(self, "depth", whole("depth", self.depth, at_least=0, at_most=self.shape[0] - 1))

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Four shots, one second, pixels of 20 m, 1.5 to 4.5 km/s, a wavelet of 8 Hz."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width), receivers=min(32, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.shots, self.samples, self.receivers

    def velocity(self, x: Tensor) -> Tensor:
        """c, km/s, of x, of the same shape."""
        return self.slowest + (self.fastest - self.slowest) * torch.sigmoid(x)

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The gather of the middle shot."""
        gather: npt.NDArray[Any] = y[len(y) // 2]
        return gather

    def _forward(self, x: Tensor) -> Tensor:
        every, step = self._substeps
        rim = self.absorbing + FRAME
        # the ground goes on as it is at the image's edge
        c = pad(self.velocity(x)[:, None], (rim,) * 4, mode="replicate")
        inside, before, after = self._table("_factors", x).unbind(0)
        gain = (1e3 * c * step / self.pixel_size) ** 2 * after
        source, wavelet = self._table("_sources", x), self._table("_wavelet", x)
        absorbing, listen = self._absorbing, self._listening

        def advance(n: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            p, last, w = state
            bent, w = damped_laplacian(p.flatten(0, 1), w, absorbing)
            free = torch.addcmul(inside * p, before, last, value=-1)
            return torch.addcmul(free, gain, bent.view_as(p) + wavelet[n] * source), p, w

        quiet = x.new_zeros(len(x), self.shots, *c.shape[-2:])
        still = x.new_zeros(len(x) * self.shots, 2, *c.shape[-2:])
        _, heard = evolve(
            advance, (quiet, quiet, still), self.samples * every,
            lambda state: state[0][..., listen[0], listen[1]], every,
        )  # fmt: skip
        return torch.stack(heard, 2)

    @property
    def _substeps(self) -> tuple[int, float]:
        """Steps to a sample, and their length in seconds."""
        interval = self.duration / self.samples
        every = math.ceil(interval * 1e3 * self.fastest / (COURANT * self.pixel_size))
        return every, interval / every

    @property
    def _padded(self) -> tuple[int, int]:
        rim = 2 * (self.absorbing + FRAME)
        return self.shape[0] + rim, self.shape[1] + rim

    def _along_the_surface(self, number: int) -> tuple[npt.NDArray[np.int64], ...]:
        """Row and column of `number` places in the padded image."""
        rim, (height, width) = self.absorbing + FRAME, self.shape
        columns = np.floor((np.arange(number) + 0.5) * width / number).astype(int)
        return np.full(number, rim + height - 1 - self.depth), rim + columns

    @cached_property
    def _listening(self) -> tuple[Tensor, Tensor]:
        rows, columns = self._along_the_surface(self.receivers)
        return torch.from_numpy(rows), torch.from_numpy(columns)

    @cached_property
    def _sources(self) -> Tensor:
        """1 at the pixel of each shot, (shots, *padded): the wavelet times the pixel's area."""
        delta = torch.zeros(self.shots, *self._padded, dtype=torch.float64)
        rows, columns = self._along_the_surface(self.shots)
        delta[np.arange(self.shots), rows, columns] = 1.0
        return delta

    @cached_property
    def _wavelet(self) -> Tensor:
        every, step = self._substeps
        time = torch.arange(self.samples * every, dtype=torch.float64) * step
        a = (math.pi * (self.frequency * time - DELAY)) ** 2
        return (1 - 2 * a) * torch.exp(-a)

    def _rates(self, ahead: float) -> Tensor:
        """Damping rates (2, *padded), 1/s, along x and y: each `ahead` pixels further that way."""
        width = self.absorbing * self.pixel_size
        peak = -3 * math.log(REFLECTED) * 1e3 * self.fastest / (2 * width)
        rim = self.absorbing + FRAME
        rows, columns = (
            np.maximum(rim - (np.arange(n) + ahead), np.arange(n) + ahead - (n - 1 - rim))
            for n in self._padded
        )
        depth = np.stack(np.broadcast_arrays(columns, rows[:, None]))
        return torch.from_numpy(peak * (np.clip(depth / self.absorbing, 0, 1)) ** 2)

    @cached_property
    def _damping(self) -> Tensor:
        return self._rates(0)

    @cached_property
    def _absorbing(self) -> Layer:
        made = layer(self._damping, self._rates(0.5), self._substeps[1], self.absorbing + FRAME)
        return replace(made, coefficients=made.coefficients * self._inside)

    @cached_property
    def _factors(self) -> Tensor:
        """Coefficients (3, *padded) of p, of p before, and of c^2 (laplacian p + s)."""
        step = self._substeps[1]
        once, twice = self._damping.sum(0) * step / 2, self._damping.prod(0) * step**2 / 2
        # the product's term as a mean of before and after: stable however strong the damping
        after = 1 / (1 + once + twice)
        return torch.stack([2 * after, (1 - once + twice) * after, after]) * self._inside

    @cached_property
    def _inside(self) -> Tensor:
        """0 in the frame, 1 elsewhere."""
        frame = torch.zeros(self._padded, dtype=torch.float64)
        frame[FRAME:-FRAME, FRAME:-FRAME] = 1.0
        return frame
