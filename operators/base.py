"""Forward operators y = A(x): what every instrument has in common.

An operator is a frozen dataclass of physical parameters. Calling it maps a batch of unknowns
`(B, *x_shape)` to a batch of noise-free data `(B, *y_shape)`. A linear one adds the adjoint and

    solve(r2, noise, v) = (r2 A A^T + Sigma)^-1 v
                        = W^1/2 (r2 W^1/2 A A^T W^1/2 + 1)^-1 W^1/2 v,     W = Sigma^-1,

the matrix of Gaussian guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models for
inverse problems", ICLR; Boys et al. 2023, arXiv:2310.06721). The second form is exact with masks:
W is zero there.

`linearise` gives any differentiable operator near x as A(x) and a linear operator J = dA/dx, so
that what is written for linear operators serves all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from operators import _parameters
from operators._autograd import apply_linear, apply_solve
from operators._conjugate_gradients import conjugate_gradients
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from operators.noise import Gaussian

__all__ = ["SVD", "Covariance", "ForwardOperator", "LinearOperator"]

Covariance = Callable[[Tensor], Tensor]  # u -> R u, (B, *x_shape), symmetric and not negative


class ForwardOperator(ABC):
    """y = A(x). Subclasses are frozen dataclasses and implement `_forward` and `default`."""

    default_prior: ClassVar[str]
    summary: ClassVar[str]
    differentiable: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    @property
    @abstractmethod
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one unknown."""

    @property
    @abstractmethod
    def y_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""

    @classmethod
    @abstractmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A sensible instrument for unknowns of `x_shape`: what `invprob simulate` uses."""

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """A(x) for a checked batch in float32 or float64."""

    @property
    def data_mask(self) -> Tensor | None:
        """Boolean `(*y_shape)`, True where the data carry no information by construction."""
        return None

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), `(B, *y_shape)`, for x `(B, *x_shape)`; dtype and device are those of x.

        Half precision is computed in float32. Raises `ObservationError` on another shape or dtype.
        """
        return self._run(self._forward, x, self.x_shape, "x")

    def linearise(self, x: Tensor) -> tuple[Tensor, LinearOperator]:
        """A(x), `(B, *y_shape)`, and J = dA/dx, which acts on batches of B; detached from x.

        Raises `NotDifferentiable` where the operator has no gradient.
        """
        from operators._jacobian import Jacobian  # here: it builds on this module

        if not self.differentiable:
            raise NotDifferentiable(
                f"{type(self).__name__} has no gradient, and this method needs one: "
                "use a method that only evaluates the operator"
            )
        jacobian = Jacobian(self, x)
        return jacobian.mean, jacobian

    def config(self) -> dict[str, Any]:
        """The dataclass fields as JSON-able values or numpy arrays; `from_config` inverts it."""
        return {f.name: _plain(getattr(self, f.name)) for f in _parameters.fields(type(self))}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The operator that `config` describes.

        Raises `ObservationError` naming an unknown key (and the nearest valid one) or a missing
        one, and whatever the constructor finds wrong with the values.
        """
        _parameters.refuse_keys(cls, config)
        return cls(**config)

    @classmethod
    def remodelled(cls, part: Mapping[str, Any], model: str) -> dict[str, Any]:
        """The config of one part (a lens, ...) as another `model`, keeping what both describe."""
        return {**part, "model": model}

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

    def _table(self, name: str, like: Tensor) -> Tensor:
        """The tensor `self.<name>` on the device of `like`, in its precision; moved once."""
        key = (name, like.dtype, like.device)
        if key not in self._moved:
            table: Tensor = getattr(self, name)
            dtype = like.dtype.to_complex() if table.is_complex() else like.dtype
            with torch.inference_mode(False):  # else autograd could not use it later
                self._moved[key] = table.to(dtype=dtype, device=like.device)
        return self._moved[key]

    @cached_property
    def _moved(self) -> dict[tuple[str, torch.dtype, torch.device], Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class SVD:
    """Thin singular value decomposition A = sum_k u_k s_k v_k^T, k = 1..K, as functions.

    values: s, (K,) float64, not negative, in no particular order.
    u: (B, K) -> (B, *y_shape) and its transpose ut; v: (B, K) -> (B, *x_shape) and vt. The u_k are
    orthonormal, and so are the v_k; what they do not span is the null space.
    """

    values: Tensor
    u: Callable[[Tensor], Tensor]
    ut: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    vt: Callable[[Tensor], Tensor]


class LinearOperator(ForwardOperator):
    """y = A x. Subclasses implement `_apply` and `_apply_adjoint`, without autograd in mind."""

    linear: ClassVar[bool] = True
    has_svd: ClassVar[bool] = False

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """A x, `(B, *x_shape)` to `(B, *y_shape)`, float32 or float64."""

    @abstractmethod
    def _apply_adjoint(self, y: Tensor) -> Tensor:
        """A^T y, `(B, *y_shape)` to `(B, *x_shape)`, float32 or float64."""

    def linearise(self, x: Tensor) -> tuple[Tensor, LinearOperator]:
        """A x, `(B, *y_shape)`, and this operator, which is its own derivative."""
        return self(x), self

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

    def svd(self) -> SVD:
        """The singular value decomposition, where `has_svd`; otherwise raises `UnknownName`."""
        raise UnknownName(
            f"{type(self).__name__} has no cheap SVD (has_svd is False); "
            "choose a method that needs only the adjoint or solve()"
        )

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

        def product(p: Tensor) -> Tensor:
            back = self._apply_adjoint(root * p)
            spread = r2 * back if isinstance(r2, Tensor) else r2(back)
            return p + root * self._apply(spread)

        whitened = torch.where(root > 0, root * v, 0.0)
        if start is not None:
            start = torch.where(root > 0, start / root, 0.0)
        return root * conjugate_gradients(product, whitened, iterations, tolerance, start)


def _plain(value: Any) -> Any:
    """`value` as something JSON or HDF5 can store; nested objects give their own `config()`."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return value.config() if hasattr(value, "config") else value
