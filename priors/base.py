"""The one interface that inference sees of a prior.

A prior is a diffusion process (`Schedule`), a denoiser E[z_0 | z_t] and a decoder z -> x:

    pixel        x = scale * U z,   U orthogonal (identity or space-to-depth)
    latent       x = D(z), and z = E(x), nearly, by an autoencoder
    outsourced   x = f(z), any generator, with no way back

Model units (z, about unit variance) and physical units (x) meet only in `encode` and `decode`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from priors.process import Schedule, generators, randn

RESIDUAL_TIMES = 41  # times at which the residual variance is tabulated


@dataclass(frozen=True)
class Bounded:
    """The covariance (S^-1 + I / limit)^-1: as wide as S, where that is less than the limit.

    `tangent`: a better one, which costs a network evaluation each time; this one stands in for it.
    """

    spread: Callable[[Tensor], Tensor]  # u -> S u on (B, *x_shape)
    limit: float
    tangent: Callable[[Tensor], Tensor] | None = None  # the same shapes


Covariance = float | Callable[[Tensor], Tensor] | Bounded


class Prior(ABC):
    """A diffusion prior over images or vectors x."""

    summary: ClassVar[str] = ""
    learned: bool = False  # its denoiser is an approximation
    isometric: bool = True  # x is z, turned and scaled: errors of z are those of x
    has_encoder: bool = True  # there is a way back from x to z
    schedule: Schedule
    z_shape: tuple[int, ...]
    x_shape: tuple[int, ...]
    guided_in_x: bool = True  # `encode` takes shifts of x to z; else guidance works in z itself
    steps: int = 40  # default length of the chain
    scale: float = 1.0  # x per unit z: the typical size of x, where the decoder is not linear
    unit: str = ""
    bank: Tensor | None = None  # stored draws of the chain, for priors too dear to run often
    device: torch.device = torch.device("cpu")  # of all that inference computes
    precision: torch.dtype = torch.float32  # inside a network; its output is float32 again

    @abstractmethod
    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, *z_shape)."""

    @abstractmethod
    def draw(self, n: int, seed: int) -> Tensor:
        """Return n draws of z_0, (n, *z_shape): exact ones where known, else stored ones."""

    def to(self, device: str, precision: str = "float32") -> Self:
        """Move this prior, in place, and return it; a network computes in `precision` from now on.

        Chains follow their prior: noise, data, policy and weights are where it is. Draws are made
        on the CPU and moved, so they are the same on every device.
        """
        for name, value in vars(self).items():
            if isinstance(value, Tensor | torch.nn.Module):
                setattr(self, name, value.to(device))
        self.device, self.precision = torch.device(device), getattr(torch, precision)
        return self

    def on(self, x_shape: tuple[int, ...]) -> Prior:
        """Return this prior for unknowns of another shape: itself, where it has one alone."""
        return self

    def decode(self, z: Tensor) -> Tensor:
        """Return x in physical units, (B, *x_shape), of z (B, *z_shape)."""
        return self.scale * z

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, *z_shape) of x (B, *x_shape): what undoes `decode`, where anything does."""
        return x / self.scale

    def pull(self, z: Tensor, u: Tensor) -> Tensor:
        """Return J^T u, (B, *z_shape), of u (B, *x_shape), J the derivative of x = decode(z)."""
        if self.isometric:
            return self.scale**2 * self.encode(u)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (back,) = torch.autograd.grad(self.decode(leaf), leaf, u)
        return back

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Covariance:
        """Return the covariance that guidance assumes: r2 of r2 I, u -> R u, or bounded.

        That is Cov(x | z_t = z), u is (B, *x_shape) in physical units; or Cov(z_0 | z_t = z) where
        guidance works in z. `clean` is denoise(z, t). A prior that knows its covariance, or has
        measured it, says so here; the fallback is isotropic and calibrated.
        """
        unit = self.scale if self.guided_in_x else 1.0
        return unit**2 * self.residual_variance(t)

    @cached_property
    def residuals(self) -> tuple[float, ...]:
        """E|z_0 - E[z_0 | z_t]|^2 / d on even times from 0 to 1, measured on noised draws."""
        z0 = self.draw(256, seed=0)
        eps = randn(self.z_shape, generators(1, range(len(z0))), z0)
        errors = []
        denoise = type(self).denoise  # past what counts: no method's own evaluations
        with torch.no_grad():
            for t in map(float, np.linspace(0, 1, RESIDUAL_TIMES)):
                clean = denoise(self, self.schedule.noise(z0, t, eps), t)
                errors.append(float((clean - z0).double().square().mean()))
        return tuple(errors)

    def residual_variance(self, t: float) -> float:
        """Return r2(t) = E|z_0 - zhat_0|^2 / d, the denoiser's mean squared error (model units).

        Measured, not guessed: interpolated in log r2 from `residuals`.
        """
        times = np.linspace(0, 1, len(self.residuals))
        return float(np.exp(np.interp(t, times, np.log(self.residuals))))


def denoised_draws(
    prior: Prior, count: int, seed: int, times: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield draws z_0 and their estimates zhat_0, (count, *z_shape), at even times from 0 to 1."""
    z0 = prior.draw(count, seed)
    sources = generators(seed + 1, range(count))
    denoise = type(prior).denoise  # past what counts: no method's own evaluations
    for t in np.linspace(0, 1, times).tolist():
        zt = prior.schedule.noise(z0, t, randn(prior.z_shape, sources, z0))
        with torch.no_grad():
            clean = denoise(prior, zt, t)
        yield z0, clean
