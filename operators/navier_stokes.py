"""Two-dimensional turbulence: the vorticity at time T, seen on a coarser grid, of that at time 0.

    dw/dt + u . grad w = (1/Re) laplacian w - F cos(4 y),    u = (d psi/dy, -d psi/dx)
    laplacian psi = -w,    on the periodic square [0, 2 pi]^2

Kolmogorov flow, as in Kochkov et al. 2021, arXiv:2102.01010, without its drag. Pseudo-spectral,
the products' upper third of modes removed (Orszag 1971), in exponential steps of third order
(`operators._evolution`). Each item of a batch has the time step that its own speed asks for: at
most `COURANT` pixels are crossed in a step, along both axes together, by the flow that x sets off
and the forcing adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators import _parameters
from operators._evolution import evolve, exponential, in_groups, steps_needed
from operators.base import ForwardOperator
from operators.errors import ObservationError

__all__ = ["NavierStokes"]

COURANT = 0.5
LEAST_STEPS = 16
FORCED_MODE = 4  # waves of the forcing along y


@dataclass(frozen=True, eq=False)
class NavierStokes(ForwardOperator):
    """Vorticity after `duration` of vorticity fields `(H, W)` on [0, 2 pi]^2; arrays are [y, x].

    shape: (H, W), x_shape, both even and at least 4; H > 8 where there is forcing.
    reynolds: 1 / viscosity, > 0. forcing: F. duration: T > 0.
    subsampling: every how many-th pixel is seen along each axis; divides H and W.
    steps: of time; None: as many as each item needs.
    Raises `ObservationError` on values out of range, `NumericalError` on x so strong that too many
    steps would be needed.
    """

    default_prior: ClassVar[str] = "vorticity-64"
    summary: ClassVar[str] = "vorticity of a 2-D flow at a later time, subsampled; not linear"
    data_unit: ClassVar[str | None] = "vorticity"

    shape: tuple[int, int]
    reynolds: float = 200.0
    forcing: float = 4.0
    duration: float = 1.0
    subsampling: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        set_(self, "reynolds", _parameters.number("reynolds", self.reynolds, above=0))
        set_(self, "forcing", _parameters.number("forcing", self.forcing))
        set_(self, "duration", _parameters.number("duration", self.duration, above=0))
        set_(self, "subsampling", _parameters.whole("subsampling", self.subsampling, at_least=1))
        if self.steps is not None:
            set_(self, "steps", _parameters.whole("steps", self.steps, at_least=1, at_most=10**6))
        if any(n % self.subsampling or n % 2 or n < 4 for n in self.shape):
            raise ObservationError(
                f"shape is {self.shape}; needed even sizes of at least 4, multiples of "
                f"subsampling = {self.subsampling}"
            )
        if self.forcing and self.shape[0] <= 2 * FORCED_MODE:
            raise ObservationError(
                f"shape is {self.shape}; needed more than {2 * FORCED_MODE} rows to hold the "
                f"forcing's {FORCED_MODE} waves, or forcing = 0"
            )

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Re = 200, one time unit, every second pixel."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(n // self.subsampling for n in self.shape)

    def _forward(self, x: Tensor) -> Tensor:
        if self.steps is not None:
            return self._after(x, self.steps)
        return in_groups(self._after, x, steps_needed(self._crossed(x) / COURANT, LEAST_STEPS))

    def _after(self, x: Tensor, steps: int) -> Tensor:
        """The vorticity at the pixels seen, after `steps` equal steps."""
        step = exponential(self._decay, self.duration / steps, self._tendency, x)
        (spectrum,), _ = evolve(lambda _, now: (step(now[0]),), (torch.fft.rfft2(x),), steps)
        field: Tensor = torch.fft.irfft2(spectrum, s=self.shape)
        return field[:, :: self.subsampling, :: self.subsampling].contiguous()

    def _tendency(self, spectrum: Tensor) -> Tensor:
        """-u . grad w - F cos 4y of the spectrum (B, H, W/2+1) of w."""
        to_fields = self._table("_to_fields", spectrum.real)
        u, v, w_x, w_y = torch.fft.irfft2(spectrum[:, None] * to_fields, s=self.shape).unbind(1)
        advected: Tensor = torch.fft.rfft2(u * w_x + v * w_y)
        force = self._table("_force", spectrum.real)
        return force - advected * self._table("_resolved", spectrum.real)

    def _crossed(self, x: Tensor) -> Tensor:
        """Pixels that the fastest flow of each item crosses in the whole time, (B,)."""
        with torch.no_grad():
            flow = torch.fft.rfft2(x)[:, None] * self._table("_to_fields", x)[:2]
            speed: Tensor = torch.fft.irfft2(flow, s=self.shape).abs().sum(1).amax((1, 2))
        pushed = abs(self.forcing) / FORCED_MODE * self.duration
        return (speed + pushed) * self.duration * max(self.shape) / (2 * math.pi)

    @cached_property
    def _waves(self) -> tuple[Tensor, Tensor]:
        """Wave numbers ky (H, 1) and kx (1, W/2+1)."""
        height, width = self.shape
        ky = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)[:, None]
        kx = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)[None]
        return ky, kx

    @cached_property
    def _decay(self) -> Tensor:
        ky, kx = self._waves
        return (ky**2 + kx**2) / self.reynolds

    @cached_property
    def _to_fields(self) -> Tensor:
        """What turns the spectrum of w into those of u, v, dw/dx and dw/dy."""
        height, width = self.shape
        ky, kx = self._waves
        # the derivative of a real field has no component at the highest wave number
        dy = 1j * torch.where(ky.abs() == height // 2, 0.0, ky) + 0 * kx
        dx = 1j * torch.where(kx == width // 2, 0.0, kx) + 0 * ky
        square = ky**2 + kx**2
        psi = torch.where(square > 0, 1 / square, 0.0)
        return torch.stack([dy * psi, -dx * psi, dx, dy])

    @cached_property
    def _resolved(self) -> Tensor:
        """1 at the modes that products keep, below two thirds of the highest."""
        ky, kx = self._waves
        height, width = self.shape
        return ((ky.abs() < height / 3) & (kx < width / 3)).double()

    @cached_property
    def _force(self) -> Tensor:
        height, width = self.shape
        y = torch.arange(height, dtype=torch.float64) * (2 * math.pi / height)
        field = -self.forcing * torch.cos(FORCED_MODE * y)[:, None].expand(height, width)
        spectrum: Tensor = torch.fft.rfft2(field)
        return spectrum
