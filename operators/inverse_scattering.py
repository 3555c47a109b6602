"""Inverse scattering: y = G(chi u), u = u_in + G(chi u), with all orders of scattering.

The Lippmann-Schwinger equation (1950, doi:10.1103/PhysRev.79.469) in two dimensions; geometry,
units and Green's function as `operators._scattering` has them. M = 1 - G chi is solved for all
transmitters at once by BiCGSTAB (van der Vorst 1992, doi:10.1137/0913035), G by FFT.

Derivative by the adjoint state, for a gradient v of the field u = M^-1 b: G is symmetric, so

    w = conj( M^-1 G conj(v) ),    d/d chi = Re( conj(u) w ),    d/db = M^-H v = v + chi w

one more solve of the same equation; it is built of differentiable steps, hence has derivatives of
its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from operators._scattering import Scattering

__all__ = ["InverseScattering"]

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative residual of the fields
LIMIT = 500  # iterations


@dataclass(frozen=True, eq=False)
class InverseScattering(Scattering):
    """Scattered fields (transmitters, receivers, 2), all orders of scattering; see `Scattering`."""

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "scattered waves of any contrast (Lippmann-Schwinger); not linear"

    def _forward(self, x: Tensor) -> Tensor:
        chi = self.contrast * x[:, None]
        incident = self._table("_incident", x).expand(len(x), -1, -1, -1)
        return self._radiated(chi * _total(chi, incident, self))

    def _scattered(self, current: Tensor) -> Tensor:
        """G of chi u (B, T, H, W) at the pixels."""
        height, width = self.shape
        waves = torch.fft.fft2(current, s=(2 * height, 2 * width))
        field: Tensor = torch.fft.ifft2(waves * self._table("_to_pixels", current))
        return field[..., :height, :width]


class _Total(torch.autograd.Function):
    """chi (B, 1, H, W) real, b (B, T, H, W) complex -> u with u - G(chi u) = b."""

    @staticmethod
    def forward(chi: Tensor, b: Tensor, operator: InverseScattering) -> Tensor:
        return _bicgstab(lambda u: u - operator._scattered(chi * u), b, TOLERANCE[chi.dtype])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        chi, _, ctx.operator = inputs
        ctx.save_for_backward(chi, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (v,), (chi, u) = gradients, ctx.saved_tensors
        w = _total(chi, ctx.operator._scattered(v.conj()), ctx.operator).conj()
        return (u.conj() * w).real.sum(1, keepdim=True), v + chi * w, None


def _total(chi: Tensor, b: Tensor, operator: InverseScattering) -> Tensor:
    # torch leaves apply untyped
    result: Tensor = _Total.apply(chi, b, operator)  # type: ignore[no-untyped-call]
    return result


def _bicgstab(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float) -> Tensor:
    """u with |product(u) - b| <= tolerance |b| for every field of b (B, T, H, W), then left alone.

    Warns where that is not reached; a field that is not finite is NaN.
    """
    size = b.abs().amax((-2, -1), keepdim=True)  # squares of small fields would underflow
    size = torch.where(size > 0, size, 1.0)
    return size * _unit_bicgstab(product, b / size, tolerance)


def _unit_bicgstab(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float) -> Tensor:
    """u of `_bicgstab` for fields of size 1."""
    u = torch.zeros_like(b)
    r = p = b
    shadow = b.conj()
    goal = tolerance * _norm(b)
    u = torch.where(torch.isfinite(goal), u, torch.nan)
    active = _norm(r) > goal
    rho = _sum(shadow * r)
    for _ in range(LIMIT):
        if not bool(active.any()):
            return u
        ap = product(p)
        alpha = rho / _sum(shadow * ap)
        s = r - alpha * ap
        a_s = product(s)
        size = _norm(a_s) ** 2  # zero where this half step was already exact
        omega = torch.where(size > 0, _sum(a_s.conj() * s) / size, 0.0)
        u = torch.where(active, u + alpha * p + omega * s, u)
        r = torch.where(active, s - omega * a_s, r)
        active = active & (_norm(r) > goal)
        new = _sum(shadow * r)
        p = torch.where(active, r + new / rho * alpha / omega * (p - omega * ap), 0.0)
        rho = new
    warnings.warn(
        f"scattering: {int(active.sum())} of {active.numel()} fields above the relative residual "
        f"{tolerance:g} after {LIMIT} iterations; the contrast may be too strong",
        RuntimeWarning,
        stacklevel=2,
    )
    return u


def _sum(a: Tensor) -> Tensor:
    return a.sum((-2, -1), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return a.abs().square().sum((-2, -1), keepdim=True).sqrt()
