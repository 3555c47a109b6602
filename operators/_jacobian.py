"""The derivative of a forward operator at a batch of points, as a linear map.

    A(x + e) = A(x) + J e + O(e^2)

J^T v is one backward pass. J e is a backward pass through that one, which is linear in v: the
derivative of <J^T v, e> in v (Townsend 2017, "A new trick for calculating Jacobian vector
products"). Both reuse one recorded evaluation of A, however many products are taken.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from operators._maps import LinearMap, Map

__all__ = ["Jacobian"]


class Jacobian(LinearMap):
    """dA/dx at x (B, *x_shape): acts on batches of B, item i by the derivative at x_i."""

    def __init__(self, operator: Map, x: Tensor) -> None:
        """Evaluate the operator at x, in float32 or float64, and record its graph."""
        self._operator = operator
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._mean = operator(self._x)

    @property
    def mean(self) -> Tensor:
        """A(x), (B, *y_shape)."""
        return self._mean.detach()

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._operator.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._operator.y_shape

    def _apply(self, x: Tensor) -> Tensor:
        back, v = self._transposed
        (product,) = torch.autograd.grad(back, v, x, retain_graph=True)
        return product

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self._mean, self._x, y, retain_graph=True)
        return product

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor]:
        """J^T v and the v it depends on, zero: being linear, any v serves."""
        with torch.enable_grad():
            v = torch.zeros_like(self._mean, requires_grad=True)
            (back,) = torch.autograd.grad(self._mean, self._x, v, create_graph=True)
        return back, v
