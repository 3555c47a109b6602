"""A linear map with the unknown itself as further data: [A; I / c^1/2], as one vector.

    (u - x)^T R^-1 (u - x) with R = (S^-1 + I/c)^-1  is  (u - x)^T S^-1 (u - x) + |u - x|^2 / c

so a covariance bounded by c is that of S once x / c^1/2 itself counts as data of unit variance.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from operators._maps import LinearMap
from operators.noise import Gaussian

__all__ = ["Stacked"]


class Stacked(LinearMap):
    """x (B, *x_shape) to (A x, x / limit^1/2), flattened: (B, n), the data of A first."""

    def __init__(self, operator: LinearMap, limit: float) -> None:
        """Stack a linear map and the identity, scaled."""
        self._operator = operator
        self._weight: float = limit**-0.5
        self.data = torch.Size(operator.y_shape).numel()  # values that belong to A

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._operator.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.data + torch.Size(self.x_shape).numel(),)

    def noise(self, noise: Gaussian) -> Gaussian:
        """Return the noise of the data of A and of x itself."""
        return _stacked(noise, self._operator.y_shape, self.y_shape[0] - self.data)

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([self._operator._apply(x).flatten(1), self._weight * x.flatten(1)], 1)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        data, own = y[:, : self.data], y[:, self.data :]
        back = self._operator._apply_adjoint(data.reshape(len(y), *self._operator.y_shape))
        return back + self._weight * own.view_as(back)


@lru_cache(maxsize=1)  # one observation's noise serves all steps of all its chains
def _stacked(noise: Gaussian, shape: tuple[int, ...], own: int) -> Gaussian:
    """Return `noise` of data of a shape, flattened, and unit noise of `own` values more."""
    mask = torch.zeros(shape, dtype=torch.bool) if noise.mask is None else noise.mask
    sigma = torch.where(mask, 1.0, noise.sigma * torch.ones(shape, dtype=torch.float64))
    return Gaussian(
        torch.cat([sigma.flatten(), torch.ones(own, dtype=torch.float64)]),
        torch.cat([mask.flatten(), torch.zeros(own, dtype=torch.bool)]),
    )
