"""An instrument as a function of a prior's own state z: y = A(x(z)).

    A(x(z + e)) = A(x(z)) + J_A J_x e + O(e^2)

For priors whose decoder has no inverse (`Prior.guided_in_x`): guidance then works in z, and so does
the covariance that it assumes. Both Jacobians are kept apart: where A is linear its own adjoint
serves, and x(z) is evaluated once for each linearisation.
"""

from __future__ import annotations

from torch import Tensor

from operators._jacobian import Jacobian
from operators._maps import LinearMap, Map
from operators.base import ForwardOperator
from priors.base import Prior


class Decoded(Map):
    """z (B, *z_shape) to A(x(z)), (B, *y_shape)."""

    linear = False

    def __init__(self, operator: ForwardOperator, prior: Prior) -> None:
        """See `operator` through the decoder of `prior`."""
        self._operator, self._decoder = operator, _Decoder(prior)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._decoder.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._operator.y_shape

    def linearise(self, z: Tensor) -> tuple[Tensor, LinearMap]:
        """Return A(x(z)), (B, *y_shape), and its derivative in z; raises NotDifferentiable."""
        inner = Jacobian(self._decoder, z)
        mean, outer = self._operator.linearise(inner.mean)
        return mean, _Chained(outer, inner)

    def _forward(self, x: Tensor) -> Tensor:
        return self._operator(self._decoder(x))


class _Decoder(Map):
    """z to x(z)."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._prior.z_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._prior.x_shape

    def _forward(self, x: Tensor) -> Tensor:
        return self._prior.decode(x)


class _Chained(LinearMap):
    """The product of two linear maps, `inner` first."""

    def __init__(self, outer: LinearMap, inner: LinearMap) -> None:
        self._outer, self._inner = outer, inner

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._inner.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._outer.y_shape

    def _apply(self, x: Tensor) -> Tensor:
        return self._outer._apply(self._inner._apply(x))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._inner._apply_adjoint(self._outer._apply_adjoint(y))
