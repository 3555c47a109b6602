"""A sparse matrix times a batch of vectors, in compressed sparse rows (CSR).

On the CPU numba multiplies with the batch innermost, so that each weight is read once and the
inner loop is contiguous; elsewhere torch multiplies the same matrix. Both sum each row in the
same order, whatever the batch, so item i does not depend on its batch mates.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from operators._compiled import compiled

__all__ = ["SparseMatrix"]


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """CSR arrays: `weights[indptr[i]:indptr[i+1]]` in columns `indices[...]` are row i."""

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float64]
    shape: tuple[int, int]

    @cached_property
    def transpose(self) -> SparseMatrix:
        """The transposed matrix, in CSR again."""
        csr = scipy.sparse.csr_array((self.weights, self.indices, self.indptr), shape=self.shape)
        turned = csr.T.tocsr()
        return SparseMatrix(
            turned.indptr.astype(np.int64),
            turned.indices.astype(np.int32),
            turned.data.astype(np.float64),
            (self.shape[1], self.shape[0]),
        )

    def times(self, x: Tensor) -> Tensor:
        """The products `(B, rows)` of the matrix and each row of x `(B, columns)`."""
        return self.times_numba(x) if x.device.type == "cpu" else self.times_torch(x)

    def times_numba(self, x: Tensor) -> Tensor:
        """`times` for a CPU tensor of float32 or float64."""
        if len(x) < 8:  # too few to fill a vector register
            rows = np.empty((len(x), self.shape[0]), dtype=_numpy_dtype(x))
            _multiply_rows(self.indptr, self.indices, self._cast(x), x.contiguous().numpy(), rows)
            return torch.from_numpy(rows)
        out = np.empty((len(x), self.shape[0]), dtype=_numpy_dtype(x))
        turned = x.T.contiguous().numpy()
        _multiply_columns(self.indptr, self.indices, self._cast(x), turned, out)
        return torch.from_numpy(out)

    def times_torch(self, x: Tensor) -> Tensor:
        """`times` on any device."""
        key = (x.dtype, x.device)
        if key not in self._moved:
            with warnings.catch_warnings(), torch.inference_mode(False):
                warnings.filterwarnings(
                    "ignore", message="Sparse (CSR tensor support|invariant checks)"
                )
                self._moved[key] = torch.sparse_csr_tensor(
                    torch.from_numpy(self.indptr),
                    torch.from_numpy(self.indices.astype(np.int64)),
                    torch.from_numpy(self.weights),
                    size=self.shape,
                    dtype=x.dtype,
                    device=x.device,
                    check_invariants=False,
                )
        product: Tensor = self._moved[key] @ x.T
        return product.T

    def _cast(self, x: Tensor) -> npt.NDArray[Any]:
        return self._float32 if x.dtype is torch.float32 else self.weights

    @cached_property
    def _float32(self) -> npt.NDArray[np.float32]:
        return self.weights.astype(np.float32)

    @cached_property
    def _moved(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}


def _numpy_dtype(x: Tensor) -> type[np.floating[Any]]:
    return np.float32 if x.dtype is torch.float32 else np.float64


@compiled
def _multiply_rows(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int32],
    weights: npt.NDArray[Any],
    x: npt.NDArray[Any],
    out: npt.NDArray[Any],
) -> None:
    for item in range(x.shape[0]):
        for row in range(out.shape[1]):
            total = out.dtype.type(0)
            for k in range(indptr[row], indptr[row + 1]):
                total += weights[k] * x[item, indices[k]]
            out[item, row] = total


@compiled
def _multiply_columns(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int32],
    weights: npt.NDArray[Any],
    x: npt.NDArray[Any],
    out: npt.NDArray[Any],
) -> None:
    batch = x.shape[1]
    total = np.empty(batch, out.dtype)
    for row in range(out.shape[1]):
        total[:] = 0
        for k in range(indptr[row], indptr[row + 1]):
            weight, column = weights[k], x[indices[k]]
            for item in range(batch):
                total[item] += weight * column[item]
        for item in range(batch):  # as many streams of writes as items, each in order
            out[item, row] = total[item]
