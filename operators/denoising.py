"""The identity: y = x.

(r2 A A^T + Sigma)^-1 v = v W / (1 + r2 W),     W = 1/sigma^2, zero at masked pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators import _parameters
from operators.base import SVD, LinearOperator
from operators.noise import Gaussian

__all__ = ["Denoising"]


@dataclass(frozen=True, eq=False)
class Denoising(LinearOperator):
    """y = x for unknowns of any `shape`.

    shape: positive ints; x_shape and y_shape. Raises `ObservationError` otherwise.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "identity: the data are the unknown plus noise"
    has_svd: ClassVar[bool] = True

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _parameters.shape("shape", self.shape))

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """The identity on `x_shape`."""
        return cls(x_shape)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.shape

    def _apply(self, x: Tensor) -> Tensor:
        return x.clone()

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return y.clone()

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor:
        w = noise.precision_as(v)
        return torch.where(w > 0, v, 0.0) * w / (1 + r2 * w)

    def svd(self) -> SVD:
        """Pixels themselves: every singular value is 1."""

        def flat(a: Tensor) -> Tensor:
            return a.flatten(1)

        def image(c: Tensor) -> Tensor:
            return c.reshape(-1, *self.shape)

        values = torch.ones(math.prod(self.shape), dtype=torch.float64)
        return SVD(values=values, u=image, ut=flat, v=image, vt=flat)
