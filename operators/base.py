"""Forward operators y = A(x): what every instrument has in common.

An operator is a frozen dataclass of physical parameters. Calling it maps a batch of unknowns
`(B, *x_shape)` to a batch of noise-free data `(B, *y_shape)`. A linear one has the adjoint and
the solve of `operators._maps` too.

`linearise` gives any differentiable operator near x as A(x) and a linear map J = dA/dx, so that
what is written for linear maps serves all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators import _parameters
from operators._jacobian import Jacobian
from operators._maps import LinearMap, Map
from operators.errors import NotDifferentiable, UnknownName

__all__ = ["SVD", "ForwardOperator", "LinearOperator"]


class ForwardOperator(Map):
    """y = A(x). Subclasses are frozen dataclasses and implement `_forward` and `default`."""

    default_prior: ClassVar[str]
    summary: ClassVar[str]
    differentiable: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    noise_fraction: ClassVar[float] = 0.05  # of the peak datum: what `simulate` adds by default
    axes: ClassVar[tuple[str, str]] = ("", "")  # of a figure of y, across and up; "": pixels
    data_unit: ClassVar[str | None] = None  # of a figure of y; None: the unit of x

    @classmethod
    @abstractmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A sensible instrument for unknowns of `x_shape`: what `invprob simulate` uses."""

    @property
    def data_mask(self) -> Tensor | None:
        """Boolean `(*y_shape)`, True where the data carry no information by construction."""
        return None

    def simulated_sigma(self, x: Tensor, mean: Tensor, fraction: float) -> float | Tensor:
        """Standard deviation, one number or `(*y_shape)`, of the Gaussian noise of a simulation.

        That is `fraction` of the largest datum of mean = A(x), both batches of one, unless the
        instrument's noise has a pattern of its own.
        """
        return fraction * float(mean.abs().max())

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The part of data `(*y_shape)` that a figure shows: an image, or a line."""
        return y if y.ndim == 1 else y.reshape(-1, *y.shape[-2:])[0]

    def linearise(self, x: Tensor) -> tuple[Tensor, LinearMap]:
        """A(x), `(B, *y_shape)`, and J = dA/dx, which acts on batches of B; detached from x.

        Raises `NotDifferentiable` where the operator has no gradient.
        """
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


class LinearOperator(LinearMap, ForwardOperator):
    """An instrument whose map is linear."""

    linear: ClassVar[bool] = True
    has_svd: ClassVar[bool] = False

    def linearise(self, x: Tensor) -> tuple[Tensor, LinearOperator]:
        """A x, `(B, *y_shape)`, and this operator, which is its own derivative."""
        return self(x), self

    def svd(self) -> SVD:
        """The singular value decomposition, where `has_svd`; otherwise raises `UnknownName`."""
        raise UnknownName(
            f"{type(self).__name__} has no cheap SVD (has_svd is False); "
            "choose a method that needs only the adjoint or solve()"
        )


def _plain(value: Any) -> Any:
    """`value` as something JSON or HDF5 can store; nested objects give their own `config()`."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return value.config() if hasattr(value, "config") else value
