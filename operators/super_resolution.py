"""Super-resolution: a coarse image of a fine one, y = R x C^T, with the same map along each axis.

    average    block means over factor x factor pixels
    bicubic    Keys' kernel, a = -1/2, stretched by the factor so that nothing aliases, its weights
               renormalised at the border (Keys 1981, doi:10.1109/TASSP.1981.1163711); what Pillow
               and torch do

With R = U_r S_r V_r^T and C likewise, A = (U_r x U_c)(S_r x S_c)(V_r x V_c)^T is its SVD, and for
uniform noise U_r x U_c diagonalises (r2 A A^T + sigma^2)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from operators import _parameters
from operators.base import SVD, LinearOperator
from operators.errors import ObservationError
from operators.noise import Gaussian

__all__ = ["SuperResolution"]


@dataclass(frozen=True, eq=False)
class SuperResolution(LinearOperator):
    """Images `(H, W)` seen on pixels `factor` times as large.

    shape: (H, W), x_shape; both multiples of factor. y_shape is (H / factor, W / factor).
    factor: whole number >= 1.
    kind: "average" or "bicubic".
    Raises `ObservationError` on values out of range.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "coarser pixels: block means or bicubic"
    has_svd: ClassVar[bool] = True

    shape: tuple[int, int]
    factor: int = 4
    kind: str = "average"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        object.__setattr__(self, "factor", _parameters.whole("factor", self.factor, at_least=1))
        _parameters.choice("kind", self.kind, ("average", "bicubic"))
        if any(n % self.factor for n in self.shape):
            raise ObservationError(
                f"shape {self.shape} is not a multiple of the factor {self.factor}: crop or pad x"
            )

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Means over 4 x 4 pixels, or over the largest of 3, 2 and 1 that divides `x_shape`."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        factor = next(f for f in (4, 3, 2, 1) if height % f == width % f == 0)
        return cls((height, width), factor)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(n // self.factor for n in self.shape)

    def _apply(self, x: Tensor) -> Tensor:
        return self._table("_rows", x) @ x @ self._table("_columns", x).T

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._table("_rows", y).T @ y @ self._table("_columns", y)

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor | None:
        if noise.uniform is None:
            return None
        svd = self.svd()
        values = svd.values.to(v)
        shrunk = svd.ut(v) / (r2.flatten(1) if r2.ndim else r2).mul(values**2).add(noise.uniform**2)
        return svd.u(shrunk)

    def svd(self) -> SVD:
        """Products of the two axes' singular vectors, K = number of data."""
        (ur, sr, vr), (uc, sc, vc) = self._decompositions
        ny, nx = self.y_shape

        def expand(c: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return left.to(c) @ c.reshape(-1, ny, nx) @ right.to(c).T

        def project(a: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return (left.to(a).T @ a @ right.to(a)).flatten(1)

        return SVD(
            values=torch.outer(sr, sc).flatten(),
            u=lambda c: expand(c, ur, uc),
            ut=lambda y: project(y, ur, uc),
            v=lambda c: expand(c, vr, vc),
            vt=lambda x: project(x, vr, vc),
        )

    def _axis(self, n: int) -> Tensor:
        """The map of one axis of n pixels, (n / factor, n) float64."""
        pixels = torch.eye(n, dtype=torch.float64)
        if self.kind == "average":
            return pixels.view(-1, self.factor, n).mean(1)
        size = (n // self.factor, n)
        image = interpolate(
            pixels[None, None], size, mode="bicubic", align_corners=False, antialias=True
        )
        return image[0, 0]

    @cached_property
    def _rows(self) -> Tensor:
        return self._axis(self.shape[0])

    @cached_property
    def _columns(self) -> Tensor:
        return self._axis(self.shape[1])

    @cached_property
    def _decompositions(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """U, S and V of each axis."""
        both = (torch.linalg.svd(m, full_matrices=False) for m in (self._rows, self._columns))
        return tuple((u, s, vt.T) for u, s, vt in both)
