"""Conjugate gradients for a batch of symmetric positive definite systems, M x_i = b_i.

Hestenes and Stiefel 1952, doi:10.6028/jres.049.044. Every scalar belongs to one item and an item
that has converged is frozen, so the answer for item i never depends on its batch mates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradients"]

LIMIT = 500


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int | None,
    tolerance: float,
    start: Tensor | None = None,
) -> Tensor:
    """x `(B, *shape)` with norm(M x_i - b_i) <= tolerance * norm(b_i) for every item i.

    product: the map p -> M p, `(B, *shape)` to `(B, *shape)`.
    iterations: at most; None: `LIMIT`, with a `RuntimeWarning` where that was not enough.
    start: the first iterate; None: zero.
    An item that has not converged returns its last iterate; one that is not finite returns NaN.
    """
    x = torch.zeros_like(b) if start is None else start
    residual = b if start is None else b - product(start)
    direction = residual
    size = _dot(residual, residual)
    goal = tolerance**2 * _dot(b, b)
    x = torch.where(torch.isfinite(size), x, torch.nan)
    active = size > goal
    for _ in range(LIMIT if iterations is None else iterations):
        if not bool(active.any()):
            break
        image = product(direction)
        step = (size / _dot(direction, image)).to(b.dtype)
        x = torch.where(active, x + step * direction, x)
        residual = torch.where(active, residual - step * image, residual)
        new_size = _dot(residual, residual)
        ratio = (new_size / size).to(b.dtype)
        direction = torch.where(active, residual + ratio * direction, direction)
        size = torch.where(active, new_size, size)
        active = active & (size > goal)
    if iterations is None and bool(active.any()):
        warnings.warn(
            f"conjugate gradients: {int(active.sum())} of {len(b)} items above the relative "
            f"residual {tolerance:g} after {LIMIT} iterations; raise `iterations`",
            RuntimeWarning,
            stacklevel=2,
        )
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each item, `(B, 1, ..., 1)`, summed in float64 where the device has it."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    total = (a * b).flatten(1).sum(1, dtype=wide)
    return total.view(-1, *[1] * (a.ndim - 1))
