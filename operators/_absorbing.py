"""The Laplacian inside a perfectly matched layer, where waves leave without an echo.

In the layer, derivatives along x become those of a coordinate that dampens at the rate zx, and so
along y. With s = d/dt that is laplacian p + d/dx wx + d/dy wy with

    s wx = -zx wx + (zy - zx) dp/dx,    s wy = -zy wy + (zx - zy) dp/dy

beside (s + zx)(s + zy) p / c^2 on the other side (Grote & Sim 2010, arXiv:1001.0319). One step h:

    w' = a w + b D p,    a = (1 - h z / 2) / (1 + h z / 2),    b = h (z' - z) / (1 + h z / 2)
    q  = L p - D^T (w + w') / 2

D is the forward difference, L the Laplacian of fourth order, (-1, 16, -30, 16, -1) / 12 along each
axis (Fornberg 1988, doi:10.1090/S0025-5718-1988-0935077-0); both in pixels. The map from p and w to
q and w' is linear, and so has a hand-written adjoint. Numba on the CPU, torch elsewhere. The outer
`FRAME` pixels of every image are zero and stay so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators._compiled import compiled

__all__ = ["FRAME", "Layer", "damped_laplacian", "layer"]

FRAME = 2  # pixels on every side
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """Coefficients a and b (4, H, W): ax, ay, bx, by; and how many outer pixels the layer has."""

    coefficients: Tensor
    width: int


def layer(rates: Tensor, ahead: Tensor, step: float, width: int) -> Layer:
    """The layer of damping rates zx, zy (2, H, W), 1/s, for steps of `step` seconds.

    ahead: zx half a pixel further along x, where wx lies, and zy half a pixel further along y.
    """
    half = 1 + step * ahead / 2
    own, other = (1 - step * ahead / 2) / half, step * (rates.flip(0) - ahead) / half
    return Layer(torch.cat([own, other]), width)


def damped_laplacian(p: Tensor, w: Tensor, absorbing: Layer) -> tuple[Tensor, Tensor]:
    """q (K, H, W) and w' (K, 2, H, W) of p and w; differentiable to any order."""
    # torch leaves apply untyped
    result: tuple[Tensor, Tensor] = _Damped.apply(p, w, absorbing, False)  # type: ignore[no-untyped-call]
    return result


class _Damped(torch.autograd.Function):
    """The map or its transpose; the derivative of either is the other."""

    @staticmethod
    def forward(p: Tensor, w: Tensor, absorbing: Layer, transposed: bool) -> tuple[Tensor, Tensor]:
        if p.device.type == "cpu":
            return by_numba(p, w, absorbing, transposed)
        return by_torch(p, w, absorbing, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.layer, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # torch leaves apply untyped
        p, w = _Damped.apply(*gradients, ctx.layer, not ctx.transposed)  # type: ignore[no-untyped-call]
        return p, w, None, None


def by_numba(p: Tensor, w: Tensor, absorbing: Layer, transposed: bool) -> tuple[Tensor, Tensor]:
    """The map, or its transpose, of CPU tensors of float32 or float64."""
    given_p, given_w = p.contiguous().numpy(), w.contiguous().numpy()
    coefficients = absorbing.coefficients.to(p.dtype).numpy()
    out_p, out_w = np.zeros_like(given_p), np.zeros_like(given_w)
    _stencil(given_p, out_p)
    kernel = _layer_back if transposed else _layer
    kernel(given_p, given_w, coefficients, absorbing.width, out_p, out_w)
    return torch.from_numpy(out_p), torch.from_numpy(out_w)


def by_torch(p: Tensor, w: Tensor, absorbing: Layer, transposed: bool) -> tuple[Tensor, Tensor]:
    """The map, or its transpose, on any device."""
    a, b = absorbing.coefficients.to(p).view(2, 2, *p.shape[1:])
    q = torch.zeros_like(p)
    inner = (..., slice(FRAME, -FRAME), slice(FRAME, -FRAME))
    for axis in (1, 2):
        for shift, weight in ((0, -5 / 2), (1, 4 / 3), (-1, 4 / 3), (2, -1 / 12), (-2, -1 / 12)):
            q[inner] += weight * p.roll(shift, axis)[inner]
    # D and D^T along x, then y; what wraps around is zero
    ahead = [p.roll(-1, axis) - p for axis in (2, 1)]
    if not transposed:
        new = a * w + b * torch.stack(ahead, 1)
        mean = (w + new) / 2
        for i, axis in enumerate((2, 1)):
            q += mean[:, i] - mean[:, i].roll(1, axis)
        return q, new
    pulled = w - torch.stack(ahead, 1) / 2
    for i, axis in enumerate((2, 1)):
        flow = b[i] * pulled[:, i]
        q += flow.roll(1, axis) - flow
    return q, a * pulled - torch.stack(ahead, 1) / 2


@compiled
def _stencil(p: Array, q: Array) -> None:
    near, far, here = p.dtype.type(4 / 3), p.dtype.type(-1 / 12), p.dtype.type(-5)
    for k in range(p.shape[0]):
        for i in range(2, p.shape[1] - 2):
            for j in range(2, p.shape[2] - 2):
                q[k, i, j] = (
                    here * p[k, i, j]
                    + near * (p[k, i - 1, j] + p[k, i + 1, j] + p[k, i, j - 1] + p[k, i, j + 1])
                    + far * (p[k, i - 2, j] + p[k, i + 2, j] + p[k, i, j - 2] + p[k, i, j + 2])
                )


@compiled
def _layer(p: Array, w: Array, c: Array, width: int, q: Array, new: Array) -> None:
    """Fill w' in the layer and add -D^T (w + w') / 2 to q there."""
    rows, columns = p.shape[1] - 1, p.shape[2] - 1
    half = p.dtype.type(0.5)
    for k in range(p.shape[0]):
        for i in range(1, rows):
            near = columns if i <= width or i >= rows - width else width + 1
            for start, stop in ((1, near), (max(near, columns - width), columns)):
                for j in range(start, stop):
                    here, right, above = p[k, i, j], p[k, i, j + 1], p[k, i + 1, j]
                    new[k, 0, i, j] = c[0, i, j] * w[k, 0, i, j] + c[2, i, j] * (right - here)
                    new[k, 1, i, j] = c[1, i, j] * w[k, 1, i, j] + c[3, i, j] * (above - here)
                    q[k, i, j] += half * (
                        w[k, 0, i, j] + new[k, 0, i, j] - w[k, 0, i, j - 1] - new[k, 0, i, j - 1]
                        + w[k, 1, i, j] + new[k, 1, i, j] - w[k, 1, i - 1, j] - new[k, 1, i - 1, j]
                    )  # fmt: skip


@compiled
def _layer_back(p: Array, w: Array, c: Array, width: int, q: Array, new: Array) -> None:
    """The transpose of `_layer`: adds D^T (b v) to q and fills a v - D p / 2, v = w - D p / 2."""
    rows, columns = p.shape[1] - 1, p.shape[2] - 1
    half = p.dtype.type(0.5)
    for k in range(p.shape[0]):
        for i in range(1, rows):
            near = columns if i <= width or i >= rows - width else width + 1
            for start, stop in ((1, near), (max(near, columns - width), columns)):
                for j in range(start, stop):
                    right = half * (p[k, i, j + 1] - p[k, i, j])
                    above = half * (p[k, i + 1, j] - p[k, i, j])
                    along, across = w[k, 0, i, j] - right, w[k, 1, i, j] - above
                    new[k, 0, i, j] = c[0, i, j] * along - right
                    new[k, 1, i, j] = c[1, i, j] * across - above
                    q[k, i, j] -= c[2, i, j] * along + c[3, i, j] * across
                    q[k, i, j + 1] += c[2, i, j] * along
                    q[k, i + 1, j] += c[3, i, j] * across
