"""A linear map whose data are weighted: W^1/2 A, with weights of their own for every item.

    (A R A^T + W^-1)^-1 v  =  W^1/2 (W^1/2 A R A^T W^1/2 + 1)^-1 W^1/2 v

so data whose precision W differs between the items of a batch, as it does where the noise depends
on the mean, have unit noise here. A datum of weight 0 carries no information. Noise that data share
has a root W^1/2 of its own: `Whitened`.
"""

from __future__ import annotations

from torch import Tensor

from operators._maps import LinearMap
from operators.noise import Correlated

__all__ = ["Weighted", "Whitened"]


class Weighted(LinearMap):
    """x (B, *x_shape) to root * A x (B, *y_shape), root (B, *y_shape) that of the weights."""

    def __init__(self, operator: LinearMap, root: Tensor) -> None:
        """Weight the data of an operator."""
        self._operator, self._root = operator, root

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._operator.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._operator.y_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self._root * self._operator._apply(x)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._operator._apply_adjoint(self._root * y)


class Whitened(LinearMap):
    """x (B, *x_shape) to S A x (B, *y_shape), S^T S the inverse covariance of correlated noise."""

    def __init__(self, operator: LinearMap, noise: Correlated) -> None:
        """Whiten the data of an operator."""
        self._operator, self._noise = operator, noise

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._operator.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._operator.y_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self._noise.whiten(self._operator._apply(x))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._operator._apply_adjoint(self._noise.whiten_back(y))
