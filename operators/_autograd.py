"""Derivatives of linear maps: that of A is A^T, that of A^T is A, at every order.

One hand-written rule replaces the graph that autograd would record through FFTs, gathers and
iterative solves. Forward mode and `torch.func.vmap` follow the same rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from operators._maps import LinearMap

__all__ = ["apply_linear", "apply_solve"]


class _Linear(torch.autograd.Function):
    """A or A^T; the derivative of either is the other, so any order of derivative works."""

    @staticmethod
    def forward(a: Tensor, operator: LinearMap, transposed: bool) -> Tensor:
        result = operator._apply_adjoint(a) if transposed else operator._apply(a)
        return result.contiguous()  # not a view of a padded buffer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.operator, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return apply_linear(gradients[0], ctx.operator, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return apply_linear(tangent, ctx.operator, ctx.transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, ...], a: Tensor, operator: LinearMap, transposed: bool
    ) -> tuple[Tensor, int]:
        rows = a.movedim(in_dims[0], 0)
        result = apply_linear(rows.flatten(0, 1), operator, transposed)
        return result.reshape(*rows.shape[:2], *result.shape[1:]), 0


def apply_linear(a: Tensor, operator: LinearMap, transposed: bool) -> Tensor:
    """A a, or A^T a where `transposed`, for a checked batch; differentiable to any order."""
    # torch leaves apply untyped
    result: Tensor = _Linear.apply(a, operator, transposed)  # type: ignore[no-untyped-call]
    return result


class _Solve(torch.autograd.Function):
    """v -> (r2 A A^T + Sigma)^-1 v; a symmetric matrix, so the derivative is the same solve."""

    @staticmethod
    def forward(v: Tensor, operator: LinearMap, *arguments: Any) -> Tensor:
        r2, noise, iterations, tolerance, start = arguments
        return operator._solve(r2, noise, v, iterations, tolerance, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.operator, *ctx.arguments, _ = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # the start was a guess for v, not for its gradient
        solved = apply_solve(gradients[0], ctx.operator, *ctx.arguments, None)
        return solved, None, None, None, None, None, None


def apply_solve(v: Tensor, operator: LinearMap, *arguments: Any) -> Tensor:
    """`operator._solve` of v, differentiable in v.

    arguments: r2, noise, iterations, tolerance, start.
    """
    # torch leaves apply untyped
    result: Tensor = _Solve.apply(v, operator, *arguments)  # type: ignore[no-untyped-call]
    return result
