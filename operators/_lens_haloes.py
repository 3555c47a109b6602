"""Deflections of dark haloes, and of what makes a lens neither round nor elliptical.

    NFW        alpha = alpha_Rs h(x) / (x h(1)),    x = r / Rs
               h = ln(x/2) + arccosh(1/x) / sqrt(1-x^2), its continuation for x > 1
               (Navarro, Frenk & White 1997, arXiv:astro-ph/9611107; Bartelmann 1996,
               arXiv:astro-ph/9602053); alpha_Rs = 4 rho_0 Rs^2 (1 + ln(1/2)) / (Sigma_cr D_l)
    Multipole  psi = r a_m / (1-m^2) cos m(phi - phi_m), an isothermal one
               (Xu et al. 2015, arXiv:1410.3282, appendix B)

Angles and conventions as in `operators._lens_models`; a lens gives zero at its own centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators._lens_models import LensModel
from operators._parameters import whole

__all__ = ["NFW", "Multipole"]

Array = npt.NDArray[np.float64]
SMALL = 1e-2  # x below which h, a difference of large terms, is taken from its series


@dataclass(frozen=True)
class NFW(LensModel):
    """Spherical halo of Navarro, Frenk and White.

    Rs: scale radius, arcsec, > 0. alpha_Rs: deflection there, arcsec, > 0. x0, y0: centre, arcsec.
    Raises `ObservationError` on values out of range, NaN, or units that do not convert.
    """

    Rs: float
    alpha_Rs: float
    x0: float = 0.0
    y0: float = 0.0

    def __post_init__(self) -> None:
        for name in ("Rs", "alpha_Rs"):
            self._set(name, "arcsec", above=0)
        for name in ("x0", "y0"):
            self._set(name, "arcsec")

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        dx, dy = x - self.x0, y - self.y0
        radius = np.hypot(dx, dy) / self.Rs
        away = np.where(radius > 0, radius, 1.0)
        # over r twice: for the deflection, and for its direction
        strength = self.alpha_Rs / (self.Rs * _enclosed(np.ones(1))) * _enclosed(away) / away**2
        ax[:], ay[:] = strength * dx, strength * dy


@dataclass(frozen=True)
class Multipole(LensModel):
    """Departure of order m from an ellipse, of an isothermal profile.

    m: order, whole, >= 2. a_m: strength, arcsec. phi_m: direction, radians. x0, y0: centre, arcsec.
    Raises `ObservationError` on values out of range, NaN, or units that do not convert.
    """

    m: int
    a_m: float
    phi_m: float
    x0: float = 0.0
    y0: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", whole("m", self.m, at_least=2))
        self._set("phi_m", "rad")
        for name in ("a_m", "x0", "y0"):
            self._set(name, "arcsec")

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        dx, dy = x - self.x0, y - self.y0
        radius, turn = np.hypot(dx, dy), self.m * (np.arctan2(dy, dx) - self.phi_m)
        away = np.where(radius > 0, radius, 1.0)
        # d psi / dr, and d psi / d phi over r
        outward = self.a_m / (1 - self.m**2) * np.cos(turn)
        around = -self.m * self.a_m / (1 - self.m**2) * np.sin(turn)
        ax[:] = (outward * dx - around * dy) / away
        ay[:] = (outward * dy + around * dx) / away


def _enclosed(x: Array) -> Array:
    """h(x) for x > 0, proportional to the mass within x."""
    u = 1 - x**2
    inside, outside = np.sqrt(np.maximum(u, 1e-300)), np.sqrt(np.maximum(-u, 1e-300))
    near = sum(u**k / (2 * k + 1) for k in range(8))  # artanh(sqrt u) / sqrt u, whatever its sign
    ratio = np.where(
        np.abs(u) < SMALL,
        near,
        np.where(u > 0, np.arccosh(1 / np.minimum(x, 1)) / inside, np.arctan(outside) / outside),
    )
    # the next term is below 1e-14 of the first
    log = np.log(2 / x)
    series = x**2 * (log / 2 - 1 / 4) + x**4 * (3 * log / 8 - 7 / 32)
    series += x**6 * (5 * log / 16 - 37 / 192)
    return np.asarray(np.where(x < SMALL, series, np.log(x / 2) + ratio))
