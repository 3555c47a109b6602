"""A linear operator with the unknown itself as further data: [A; I], as one vector.

    (u - x)^T R^-1 (u - x) with R = (S^-1 + I/c)^-1  is  (u - x)^T S^-1 (u - x) + |u - x|^2 / c

so a covariance bounded by c is that of S once x itself counts as data with variance c.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from operators.base import LinearOperator
from operators.errors import ObservationError
from operators.noise import Gaussian

__all__ = ["Stacked"]


class Stacked(LinearOperator):
    """x (B, *x_shape) to (A x, x), flattened: (B, n), the data of A first."""

    def __init__(self, operator: LinearOperator) -> None:
        """Stack an operator and the identity."""
        self._operator = operator
        self.data = torch.Size(operator.y_shape).numel()  # values that belong to A

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Raise ObservationError: it belongs to an operator."""
        raise ObservationError("a Stacked has no default: give it an operator")

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._operator.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.data + torch.Size(self.x_shape).numel(),)

    def noise(self, noise: Gaussian, variance: float) -> Gaussian:
        """Return the noise of the data of A and of x itself."""
        shape = self._operator.y_shape
        like = torch.ones(shape, dtype=torch.float64)
        mask = torch.zeros(shape, dtype=torch.bool) if noise.mask is None else noise.mask
        sigma = torch.where(mask, 1.0, noise.sigma * like).flatten()
        own = torch.full((self.y_shape[0] - self.data,), variance**0.5, dtype=torch.float64)
        kept = torch.zeros(len(own), dtype=torch.bool)
        return Gaussian(torch.cat([sigma, own]), torch.cat([mask.flatten(), kept]))

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([self._operator._apply(x).flatten(1), x.flatten(1)], 1)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        data, own = y[:, : self.data], y[:, self.data :]
        back = self._operator._apply_adjoint(data.reshape(len(y), *self._operator.y_shape))
        return back + own.view_as(back)
