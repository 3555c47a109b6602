"""Independent increments of a Lévy process: a denoiser of one dimension, exact, for every law.

With m = z_t / alpha and s = sigma / alpha, every increment is seen as m = z_0 + s eps alone. All
laws have unit variance in z.

    gauss              z_0 | m ~ N(m / (1 + s^2), s^2 / (1 + s^2))
    student            z_0 ~ N(0, w) with w inverse-gamma; given w as above, and w by quadrature:
                       the trapezoid rule in log w, which converges geometrically
    laplace            z_0 | m is N(m -+ s^2 / b, s^2) cut at zero, z_0 > 0 or < 0, with weights
                       exp(a^2 / 2) Phi(a),   a = +-m / s - s / b
    bernoulli_laplace  the same and z_0 = 0 exactly, of weight (1 - p) / p  2 b / (s sqrt(2 pi))

(Bohra et al. 2022, arXiv 2203.09920, for the laws; Zach et al. 2025, arXiv 2509.12821.) The process
is the cumulative sum of x; it belongs to the operator, so that here x = scale * z.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import UnknownName
from priors.base import Prior
from priors.process import Schedule

Array = NDArray[np.float64]

NODES = (-4.5, 20.0, 64)  # of log w: first, last, count; errors of denoised values are under 1e-9
TAIL = -5.0  # of a half normal: below it the ratio of Mills comes from its continued fraction
FRACTIONS = 25  # of it: enough for full precision below the tail


class Law(ABC):
    """The law of one increment, of unit variance."""

    @abstractmethod
    def moments(self, m: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Return mean and variance of z_0 given m = z_0 + s eps, float64, each shaped as m."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent draws of z_0."""


@dataclass(frozen=True)
class Gauss(Law):
    """N(0, 1)."""

    def moments(self, m: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Return the moments of the module docstring."""
        return m / (1 + s**2), torch.full_like(m, s**2 / (1 + s**2))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent draws of z_0."""
        return rng.normal(size=shape)


@dataclass(frozen=True)
class Student(Law):
    """Student's t of 3 degrees of freedom, scaled to unit variance."""

    freedom: ClassVar[float] = 3.0

    def moments(self, m: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Return the moments over the nodes of w, which act on m as Gaussian denoisers."""
        log_w = torch.linspace(*NODES, dtype=m.dtype, device=m.device)
        w = log_w.exp()
        log_density = -self.freedom / 2 * log_w - (self.freedom / 2 - 1) / w
        total = w + s**2
        logs = log_density - total.log() / 2 - m.square()[..., None] / (2 * total)
        loss = s**2 / total  # of m, what a Gaussian denoiser takes off
        first, second = (torch.softmax(logs, -1) @ torch.stack([loss, loss**2], -1)).unbind(-1)
        return m * (1 - first), s**2 * (1 - first) + m.square() * (second - first**2)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent draws of z_0."""
        return rng.standard_t(self.freedom, shape) * math.sqrt(1 - 2 / self.freedom)


@dataclass(frozen=True)
class Laplace(Law):
    """Laplace with probability `share`, else zero."""

    share: float = 1.0

    @property
    def width(self) -> float:
        """Mean absolute value b of what is not zero."""
        return 1 / math.sqrt(2 * self.share)

    def moments(self, m: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """Return the moments of the mixture of two cut normals and zero."""
        b = self.width
        a = torch.stack([m / s, -m / s], -1) - s / b
        logs = torch.special.log_ndtr(a) + a.square() / 2
        means, variances = _half_normal(a)
        means = means * means.new_tensor([1.0, -1.0])
        if self.share < 1:
            odds = (1 - self.share) / self.share * 2 * b / (s * math.sqrt(2 * math.pi))
            logs = torch.cat([logs, torch.full_like(m, math.log(odds))[..., None]], -1)
            means, variances = (
                torch.cat([one, torch.zeros_like(m)[..., None]], -1) for one in (means, variances)
            )
        weights = torch.softmax(logs, -1)
        mean = (weights * means).sum(-1)
        spread = (weights * (variances + (means - mean[..., None]).square())).sum(-1)
        return s * mean, s**2 * spread

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent draws of z_0."""
        return rng.laplace(scale=self.width, size=shape) * (rng.random(shape) < self.share)


LAWS = {
    "gauss": Gauss(),
    "laplace": Laplace(),
    "bernoulli_laplace": Laplace(share=0.1),
    "student": Student(),
}


class Increments(Prior):
    """x on vectors (d,): independent increments of one of `LAWS`, of standard deviation scale."""

    summary = "independent increments of a Lévy process (Laplace); exact denoiser"

    def __init__(
        self, law: str = "laplace", d: int = 64, scale: float = 1.0, steps: int = 100
    ) -> None:
        """Set up d increments; raises UnknownName with the list for another law."""
        if law not in LAWS:
            raise UnknownName(f"no law of increments named {law!r}. Known: {', '.join(LAWS)}")
        self.law, self.scale, self.steps = LAWS[law], scale, steps
        self.x_shape = self.z_shape = (d,)
        self.schedule = Schedule(rho_min=0.02, rho_max=20 * math.sqrt(d))

    @classmethod
    def default(cls, x_shape: tuple[int, ...] = (64,)) -> Increments:
        """Return Laplace increments of standard deviation 1."""
        return cls(d=x_shape[0])

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, d)."""
        return self._moments(z, t)[0].to(z.dtype)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the exact Cov(x | z_t = z), which is diagonal."""
        spread = self.scale**2 * self._moments(z, t)[1]
        return lambda u: spread.to(u.dtype) * u

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, d)."""
        return torch.from_numpy(
            self.law.draw(np.random.default_rng(seed), (n, *self.z_shape))
        ).float()

    def _moments(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self.law.moments(z.double() / self.schedule.alpha(t), self.schedule.rho(t))


def _half_normal(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of N(a, 1) cut to positive values, float64, each shaped as a.

    With q_n = E[v^n] / (n E[v^(n-1)]), 1 / q_(n-1) = n q_n - a: run downwards from a high n it
    loses nothing in the tail a << 0, where a + phi(a) / Phi(a) and its variance cancel.
    """
    near = a.clamp(min=TAIL)
    ratio = (-near.square() / 2 - torch.special.log_ndtr(near)).exp() / math.sqrt(2 * math.pi)
    mean = near + ratio
    far = a.clamp(max=TAIL)
    first = second = -1 / far
    for n in range(FRACTIONS, 1, -1):
        first, second = 1 / (n * first - far), first
    tail = a < TAIL
    return (
        torch.where(tail, first, mean),
        torch.where(tail, first * (2 * second - first), 1 - ratio * mean),
    )
