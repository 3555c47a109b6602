"""Compiled deflections of elliptical lenses, arcsec, in float64.

    SIE   psi = sqrt(q^2 (xr^2 + s^2) + yr^2), f = sqrt(1 - q^2):
          ax = theta_E sqrt(q)/f atan(f xr / (psi + s))
          ay = theta_E sqrt(q)/f atanh(f yr / (psi + q^2 s))
    EPL   t = gamma - 1, z = q xr + i yr, w_0 = z:
          alpha = 2/(1+q) (theta_E sqrt(q)/abs(z))^t sum_i w_i
          w_i = w_{i-1} (2i - (2-t))/(2i + (2-t)) (-(1-q)/(1+q)) z/conj(z)

both rotated back by phi. SIE: Keeton & Kochanek 1998, arXiv:astro-ph/9705194, after eq. 8; EPL:
Tessore & Metcalf 2015, arXiv:1507.01819, eqs. 22 and 23.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from operators._compiled import compiled

__all__ = ["epl", "epl_terms", "sie"]

Array = npt.NDArray[np.float64]


def epl_terms(q: float, precision: float = 1e-15) -> int:
    """Terms of the EPL series that leave a relative remainder below `precision`.

    Its terms shrink at least as fast as f^n, f = (1-q)/(1+q), so the remainder after n of them is
    below f^n / (1-f).
    """
    f = (1 - q) / (1 + q)
    if f * 1e3 < precision:
        return 1
    return max(1, math.ceil(math.log(precision * (1 - f)) / math.log(f)))


@compiled
def sie(
    x: Array, y: Array, theta_e: float, q: float, phi: float, x0: float, y0: float, core: float,
    ax: Array, ay: Array,
) -> None:  # fmt: skip
    """Isothermal ellipsoid with a core: fill ax, ay (arcsec) at x, y (arcsec), all flat."""
    c, s = math.cos(phi), math.sin(phi)
    f = math.sqrt((1 - q) * (1 + q))
    strength = theta_e * math.sqrt(q)
    for i in range(x.size):
        dx, dy = x[i] - x0, y[i] - y0
        xr, yr = c * dx + s * dy, c * dy - s * dx
        psi = math.hypot(q * math.hypot(xr, core), yr)
        if psi == 0.0:
            ax[i] = ay[i] = 0.0
            continue
        u, w = xr / (psi + core), yr / (psi + q * q * core)
        # atan(f u)/f and atanh(f w)/f by their series where f -> 0 (q -> 1) would divide 0 by 0
        tu, tw = f * u, f * w
        if abs(tu) < 1e-3:
            au = u * (1 - tu * tu * (1 / 3 - tu * tu * (1 / 5 - tu * tu / 7)))
        else:
            au = math.atan(tu) / f
        if abs(tw) < 1e-3:
            aw = w * (1 + tw * tw * (1 / 3 + tw * tw * (1 / 5 + tw * tw / 7)))
        else:
            aw = math.atanh(tw) / f
        ax[i] = strength * (c * au - s * aw)
        ay[i] = strength * (s * au + c * aw)


@compiled
def epl(
    x: Array, y: Array, theta_e: float, q: float, phi: float, gamma: float, x0: float, y0: float,
    terms: int, ax: Array, ay: Array,
) -> None:  # fmt: skip
    """Elliptical power law by `terms` terms: fill ax, ay (arcsec) at x, y (arcsec), all flat."""
    c, s = math.cos(phi), math.sin(phi)
    t = gamma - 1
    f = (1 - q) / (1 + q)
    strength = 2 / (1 + q) * (theta_e * math.sqrt(q)) ** t
    for i in range(x.size):
        dx, dy = x[i] - x0, y[i] - y0
        zr, zi = q * (c * dx + s * dy), c * dy - s * dx
        radius = math.hypot(zr, zi)
        if radius == 0.0:
            ax[i] = ay[i] = 0.0
            continue
        er, ei = zr / radius, zi / radius
        turn_r, turn_i = -f * (er * er - ei * ei), -2 * f * er * ei
        wr, wi = er, ei
        sum_r, sum_i = wr, wi
        for n in range(1, terms):
            factor = (2 * n - (2 - t)) / (2 * n + (2 - t))
            wr, wi = factor * (wr * turn_r - wi * turn_i), factor * (wr * turn_i + wi * turn_r)
            sum_r += wr
            sum_i += wi
        scale = strength * radius ** (1 - t)
        ax[i] = scale * (c * sum_r - s * sum_i)
        ay[i] = scale * (s * sum_r + c * sum_i)
