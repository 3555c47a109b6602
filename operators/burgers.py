"""Burgers' equation: a wave that steepens, seen at time T, from its shape at time 0.

    du/dt + u du/dx = nu d2u/dx2    on the periodic line [0, 2 pi)

Burgers 1948, doi:10.1016/S0065-2156(08)70100-5. The smallest of the flows here, with a closed form
(Hopf 1950; Cole 1951): good for tests and teaching. Pseudo-spectral, the products' upper third of
modes removed, in exponential steps of third order (`operators._evolution`). Each item of a batch
has the time step that its own speed asks for: at most `COURANT` points are crossed in one.
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

__all__ = ["Burgers"]

COURANT = 0.5
LEAST_STEPS = 16


@dataclass(frozen=True, eq=False)
class Burgers(ForwardOperator):
    """Velocities (points / subsampling,) after `duration` of velocities (points,) on [0, 2 pi).

    points: of x, even, >= 4. viscosity: nu > 0. duration: T > 0.
    subsampling: every how many-th point is seen; divides points.
    steps: of time; None: as many as each item needs.
    Raises `ObservationError` on values out of range, `NumericalError` on x so fast that too many
    steps would be needed.
    """

    default_prior: ClassVar[str] = "gaussian"
    summary: ClassVar[str] = "a steepening wave at a later time (Burgers), subsampled; not linear"

    points: int
    viscosity: float = 0.1
    duration: float = 1.0
    subsampling: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        set_, whole = object.__setattr__, _parameters.whole
        set_(self, "points", whole("points", self.points, at_least=4, at_most=10**7))
        for name in ("viscosity", "duration"):
            set_(self, name, _parameters.number(name, getattr(self, name), above=0))
        set_(self, "subsampling", whole("subsampling", self.subsampling, at_least=1))
        if self.steps is not None:
            set_(self, "steps", whole("steps", self.steps, at_least=1, at_most=10**6))
        if self.points % 2 or self.points % self.subsampling:
            raise ObservationError(
                f"points is {self.points}; needed an even number, a multiple of subsampling = "
                f"{self.subsampling}"
            )

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Viscosity 0.1, one time unit, every second point."""
        (points,) = _parameters.shape("x_shape", x_shape, ndim=1)
        return cls(points)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.points,)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.points // self.subsampling,)

    def _forward(self, x: Tensor) -> Tensor:
        if self.steps is not None:
            return self._after(x, self.steps)
        crossed = x.detach().abs().amax(1) * self.duration * self.points / (2 * math.pi)
        return in_groups(self._after, x, steps_needed(crossed / COURANT, LEAST_STEPS))

    def _after(self, x: Tensor, steps: int) -> Tensor:
        """The velocity at the points seen, after `steps` equal steps."""
        step = exponential(self._decay, self.duration / steps, self._tendency, x)
        (spectrum,), _ = evolve(lambda _, now: (step(now[0]),), (torch.fft.rfft(x),), steps)
        velocity: Tensor = torch.fft.irfft(spectrum, n=self.points)
        return velocity[:, :: self.subsampling].contiguous()

    def _tendency(self, spectrum: Tensor) -> Tensor:
        """-d(u^2/2)/dx of the spectrum (B, points/2+1) of u."""
        square: Tensor = torch.fft.rfft(torch.fft.irfft(spectrum, n=self.points) ** 2)
        return square * self._table("_slope", spectrum.real)

    @cached_property
    def _waves(self) -> Tensor:
        return torch.arange(self.points // 2 + 1, dtype=torch.float64)

    @cached_property
    def _decay(self) -> Tensor:
        return self.viscosity * self._waves**2

    @cached_property
    def _slope(self) -> Tensor:
        """-(1/2) d/dx at the modes that products keep, below two thirds of the highest."""
        return -0.5j * torch.where(self._waves < self.points / 3, self._waves, 0.0)
