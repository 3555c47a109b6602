"""Noise models p(y | mean), where mean = A(x).

    Gaussian:  log p = -1/2 sum over kept pixels of [ (y - mean)^2 / sigma^2 + log(2 pi sigma^2) ]

A masked pixel carries no information: its precision 1/sigma^2 is exactly zero, it adds neither to
the residual nor to the normalisation, and whatever is stored there (NaN too) has no effect.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.errors import ObservationError

__all__ = ["Gaussian", "NoiseModel"]


class NoiseModel(ABC):
    """Density and sampler of y given its noise-free mean. Device and dtype follow the inputs."""

    @abstractmethod
    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density, (B,) float64, of y `(*y_shape)` or `(B, *y_shape)` given mean.

        `mean` is `(B, *y_shape)`; the sum over pixels is in float64. Differentiable in both.
        """

    @abstractmethod
    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of y, `(B, *y_shape)`, for each mean `(B, *y_shape)`."""

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Gradient of `log_prob` with respect to `mean`, `(B, *y_shape)`, by autograd."""
        with torch.enable_grad():
            leaf = mean.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(y, leaf).sum(), leaf)
        return gradient


@dataclass(frozen=True, eq=False)
class Gaussian(NoiseModel):
    """Independent Gaussian noise, `sigma` in the data's unit.

    sigma: standard deviation, one number or a map `(*y_shape)`; positive and finite at every
        pixel that is not masked. A number is kept as a float, a map as a float64 tensor.
    mask: boolean `(*y_shape)`, True = excluded, or None.
    Raises `ObservationError`, naming the field, on sigma <= 0, NaN or Inf, on shapes that differ,
    and on a mask that excludes everything.
    """

    sigma: float | Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        sigma = _tensor(self.sigma, "noise sigma").double()
        mask = None if self.mask is None else _tensor(self.mask, "mask")
        if mask is not None:
            if mask.dtype is not torch.bool:
                raise ObservationError(
                    f"mask has dtype {mask.dtype}; needed: bool, True where a pixel is excluded"
                )
            if sigma.ndim and sigma.shape != mask.shape:
                raise ObservationError(
                    f"noise sigma has shape {tuple(sigma.shape)} but mask {tuple(mask.shape)}; "
                    "both must have the shape of the data"
                )
            if bool(mask.all()):
                raise ObservationError("mask excludes every pixel; no data are left to fit")
            mask = mask.to(sigma.device)
        bad = ~(torch.isfinite(sigma) & (sigma > 0))
        if mask is not None and sigma.ndim:
            bad &= ~mask
        if bool(bad.any()):
            first = tuple(int(i) for i in bad.nonzero()[0])
            where = f" at {int(bad.sum())} pixels, first {first}" if first else ""
            raise ObservationError(
                f"noise sigma is {float(sigma[first])}{where}; it must be positive and finite: "
                "give the standard deviation in the data's unit, or mask those pixels"
            )
        object.__setattr__(self, "sigma", sigma if sigma.ndim else float(sigma))
        object.__setattr__(self, "mask", mask)

    @property
    def uniform(self) -> float | None:
        """Sigma where it is one number and nothing is masked, otherwise None."""
        return self.sigma if isinstance(self.sigma, float) and self.mask is None else None

    @cached_property
    def precision(self) -> Tensor:
        """1/sigma^2, zero where masked; float64, `()` or `(*y_shape)`."""
        sigma = torch.as_tensor(self.sigma, dtype=torch.float64)
        if self.mask is None:
            return sigma**-2
        return torch.where(self.mask, 0.0, sigma**-2)

    def precision_as(self, like: Tensor) -> Tensor:
        """`precision` with the dtype and device of `like`, converted once and kept."""
        key = (like.dtype, like.device)
        if key not in self._moved:
            with torch.inference_mode(False):  # else autograd could not use it later
                self._moved[key] = self.precision.to(dtype=like.dtype, device=like.device)
        return self._moved[key]

    def count(self, y_shape: tuple[int, ...]) -> int:
        """Number of pixels of `y_shape` that are not masked."""
        self._check(tuple(y_shape))
        return math.prod(y_shape) if self.mask is None else int((~self.mask).sum())

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density over the unmasked pixels, (B,) float64; see `NoiseModel`."""
        precision = self.precision_as(mean)
        residual = self._residual(y, mean)
        chi2 = (residual**2 * precision).flatten(1).sum(1, dtype=torch.float64)
        return -0.5 * (chi2 + self._log_normaliser(tuple(mean.shape[1:])))

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Precision times (y - mean), `(B, *y_shape)`: the gradient of log p in the mean."""
        return self.precision_as(mean) * self._residual(y, mean)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """mean + sigma * standard normal, `(B, *y_shape)`; masked pixels keep the mean."""
        self._check(tuple(mean.shape[1:]))
        precision = self.precision_as(mean)
        sigma = torch.where(precision > 0, precision, 1.0).rsqrt() * (precision > 0)
        source = mean.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=source)
        return mean + sigma * noise.to(mean.device)

    def _residual(self, y: Tensor, mean: Tensor) -> Tensor:
        self._check(tuple(mean.shape[1:]))
        if y.shape not in (mean.shape, mean.shape[1:]):
            raise ObservationError(
                f"y has shape {tuple(y.shape)}, the mean {tuple(mean.shape)}; "
                "y must have that shape, with or without the batch dimension"
            )
        residual = y.to(dtype=mean.dtype, device=mean.device) - mean
        if self.mask is None:
            return residual
        return torch.where(self.precision_as(mean) > 0, residual, 0.0)

    def _check(self, y_shape: tuple[int, ...]) -> None:
        own = tuple(self.precision.shape)
        if own not in ((), y_shape):
            raise ObservationError(
                f"noise sigma or mask has shape {own} but the data {y_shape}; "
                "give one number, or a map of the data's shape"
            )

    def _log_normaliser(self, y_shape: tuple[int, ...]) -> float:
        count = self.count(y_shape)
        if isinstance(self.sigma, float):
            return count * math.log(2 * math.pi * self.sigma**2)
        return count * math.log(2 * math.pi) + self._sum_log_variance

    @cached_property
    def _sum_log_variance(self) -> float:
        precision = self.precision[self.precision > 0]
        return -float(precision.log().sum())

    @cached_property
    def _moved(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}


def _tensor(value: Any, field: str) -> Tensor:
    """`value` as a tensor; numpy arrays of any byte order are accepted."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ObservationError(f"{field} has dtype {array.dtype}; needed: real numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
