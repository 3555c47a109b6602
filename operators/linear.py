"""A dense matrix: y = A x for vectors.

Small problems whose exact posterior is known (Gaussian mixtures) use it. With whitened
B = W^1/2 A and B B^T = Q diag(l) Q^T,

    (r2 A A^T + Sigma)^-1 = W^1/2 Q diag(1 / (1 + r2 l)) Q^T W^1/2     (any mask, any r2 per item).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators import _parameters
from operators.base import SVD, LinearOperator
from operators.errors import ObservationError
from operators.noise import Gaussian

__all__ = ["Linear"]


@dataclass(frozen=True, eq=False)
class Linear(LinearOperator):
    """y = matrix @ x.

    matrix: `(dy, dx)`, finite; kept as a read-only float64 numpy array. x_shape is `(dx,)`,
        y_shape `(dy,)`. Raises `ObservationError` when it is not such an array.
    """

    default_prior: ClassVar[str] = "gaussian_mixture"
    summary: ClassVar[str] = "dense matrix, for small problems with known posteriors"
    has_svd: ClassVar[bool] = True

    matrix: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _parameters.array("matrix", self.matrix, ndim=2))

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """One fixed random projection to half the dimensions, entries N(0, 1/dx), seed 0."""
        if len(x_shape) != 1:
            raise ObservationError(f"linear needs vectors, x_shape (dx,); got {x_shape}")
        (dx,) = x_shape
        matrix = np.random.default_rng(0).standard_normal((max(1, dx // 2), dx))
        return cls(matrix / np.sqrt(dx))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[1],)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    def _apply(self, x: Tensor) -> Tensor:
        return x @ self._table("_matrix", x).T

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return y @ self._table("_matrix", y)

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor:
        root, q, eigenvalues = (t.to(v.device) for t in self._whitened(noise))
        whitened = torch.where(root > 0, root * v.double(), 0.0)
        shrunk = (whitened @ q) / (1 + r2.double() * eigenvalues)
        return (root * (shrunk @ q.T)).to(v.dtype)

    def svd(self) -> SVD:
        """Dense thin SVD, K = min(dy, dx), values in decreasing order."""
        u, values, vt = self._decomposition
        return SVD(
            values=values,
            u=lambda c: c @ u.to(c).T,
            ut=lambda y: y @ u.to(y),
            v=lambda c: c @ vt.to(c),
            vt=lambda x: x @ vt.to(x).T,
        )

    def _whitened(self, noise: Gaussian) -> tuple[Tensor, Tensor, Tensor]:
        """W^1/2, Q and l of the module docstring, kept for the noise model used last."""
        last = self._last_noise
        if not last or last[0][0] is not noise:
            root = noise.precision.cpu().sqrt().expand(self.y_shape)
            b = root[:, None] * self._matrix
            eigenvalues, q = torch.linalg.eigh(b @ b.T)
            last[:] = [(noise, root, q, eigenvalues.clamp_min(0))]
        return last[0][1:]

    @cached_property
    def _last_noise(self) -> list[tuple[Gaussian, Tensor, Tensor, Tensor]]:
        return []

    @cached_property
    def _matrix(self) -> Tensor:
        return torch.from_numpy(self.matrix.copy())

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor, Tensor]:
        u, values, vt = torch.linalg.svd(self._matrix, full_matrices=False)
        return u, values, vt
