"""Maps x -> A(x) of batches, and linear ones, which add the adjoint and

    solve(r2, noise, v) = (r2 A A^T + Sigma)^-1 v
                        = W^1/2 (r2 W^1/2 A A^T W^1/2 + 1)^-1 W^1/2 v,     W = Sigma^-1,

the matrix of Gaussian guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models for
inverse problems", ICLR; Boys et al. 2023, arXiv:2310.06721). The second form is exact with masks:
W is zero there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from operators._autograd import apply_linear, apply_solve
from operators._conjugate_gradients import conjugate_gradients
from operators.errors import ObservationError
from operators.noise import Gaussian

__all__ = ["Covariance", "LinearMap", "Map"]

Covariance = Callable[[Tensor], Tensor]  # u -> R u, (B, *x_shape), symmetric and not negative


class Map(ABC):
    """x to A(x) in batches of known shapes."""

    @property
    @abstractmethod
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one unknown."""

    @property
    @abstractmethod
    def y_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """A(x) for a checked batch in float32 or float64."""

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), `(B, *y_shape)`, for x `(B, *x_shape)`; dtype and device are those of x.

        Half precision is computed in float32. Raises `ObservationError` on another shape or dtype.
        """
        return self._run(self._forward, x, self.x_shape, "x")

    def _run(
        self, function: Callable[[Tensor], Tensor], a: Tensor, shape: tuple[int, ...], symbol: str
    ) -> Tensor:
        """function(a) once the shape is checked, in at least float32, cast back to a's dtype."""
        if tuple(a.shape[1:]) != shape or a.ndim != len(shape) + 1:
            raise ObservationError(
                f"{type(self).__name__} got {symbol} of shape {tuple(a.shape)}; "
                f"needed (B, {', '.join(map(str, shape))}), a batch of {shape}"
            )
        if not a.is_floating_point():
            raise ObservationError(
                f"{type(self).__name__} got {symbol} of dtype {a.dtype}; needed a real float type"
            )
        working = a if a.dtype in (torch.float32, torch.float64) else a.float()
        if not len(a):  # FFT libraries refuse an empty batch: compute one item, keep none
            return function(working.new_zeros(1, *shape))[:0].to(a.dtype)
        return function(working).to(a.dtype)


class LinearMap(Map):
    """y = A x. Subclasses implement `_apply` and `_apply_adjoint`, without autograd in mind."""

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """A x, `(B, *x_shape)` to `(B, *y_shape)`, float32 or float64."""

    @abstractmethod
    def _apply_adjoint(self, y: Tensor) -> Tensor:
        """A^T y, `(B, *y_shape)` to `(B, *x_shape)`, float32 or float64."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, `(B, *x_shape)`, for y `(B, *y_shape)`; differentiable to any order."""
        return self._run(lambda a: apply_linear(a, self, True), y, self.y_shape, "y")

    def solve(
        self,
        r2: float | Tensor | Covariance,
        noise: Gaussian,
        v: Tensor,
        *,
        iterations: int | None = None,
        tolerance: float = 1e-6,
        start: Tensor | None = None,
    ) -> Tensor:
        """(r2 A A^T + Sigma)^-1 v, `(B, *y_shape)`; zero at the pixels that `noise` masks.

        r2: prior variance, a number or one per item `(B,)`, not negative; or any covariance R of
        x, as the map u -> R u on `(B, *x_shape)`: then (A R A^T + Sigma)^-1 v.
        iterations, tolerance: limit and relative residual of conjugate gradients on the whitened
        system, for operators and noise without a closed form (which ignores both). An item that
        has not converged returns its last iterate: with a `RuntimeWarning` after the default
        limit, without one after a limit that the caller chose.
        start: a guess of the solution `(B, *y_shape)`, where conjugate gradients begin.
        Differentiable in v (to any order), not in r2: gradients treat it as a constant.
        """
        noise.count(self.y_shape)
        if callable(r2):
            covariance = r2
            return self._run(
                lambda a: apply_solve(a, self, covariance, noise, iterations, tolerance, start),
                v,
                self.y_shape,
                "v",
            )
        r2 = torch.as_tensor(r2, dtype=torch.float64, device="cpu").detach()
        if r2.ndim > 1 or (r2.ndim == 1 and len(r2) != len(v)):
            raise ObservationError(
                f"r2 has shape {tuple(r2.shape)}; needed one number or one per item, ({len(v)},)"
            )
        if not bool(((r2 >= 0) & torch.isfinite(r2)).all()):
            raise ObservationError("r2 must be finite and not negative: it is a variance")
        column = r2.view(-1, *[1] * len(self.y_shape)) if r2.ndim else r2

        def solution(a: Tensor) -> Tensor:
            r2_here = column.to(dtype=a.dtype, device=a.device)
            return apply_solve(a, self, r2_here, noise, iterations, tolerance, start)

        return self._run(solution, v, self.y_shape, "v")

    def _forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self, False)

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor | None:
        """Closed form of `solve` for r2 `()` or `(B, 1, ...)`, or None where there is none."""
        return None

    def _solve(
        self,
        r2: Tensor | Covariance,
        noise: Gaussian,
        v: Tensor,
        iterations: int | None,
        tolerance: float,
        start: Tensor | None = None,
    ) -> Tensor:
        direct = self._solve_directly(r2, noise, v) if isinstance(r2, Tensor) else None
        if direct is not None:
            return direct
        root = noise.precision_as(v).sqrt()
        if isinstance(r2, Tensor) and r2.ndim:  # one per item, as x has dimensions
            r2 = r2.view(-1, *[1] * len(self.x_shape))

        def product(p: Tensor) -> Tensor:
            back = self._apply_adjoint(root * p)
            spread = r2 * back if isinstance(r2, Tensor) else r2(back)
            return p + root * self._apply(spread)

        whitened = torch.where(root > 0, root * v, 0.0)
        if start is not None:
            start = torch.where(root > 0, start / root, 0.0)
        return root * conjugate_gradients(product, whitened, iterations, tolerance, start)
