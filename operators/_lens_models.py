"""Deflection fields of gravitational lenses: beta = theta - alpha(theta), alpha reduced.

Angles in arcsec, phi in radians from +x to the MAJOR axis, counter-clockwise, q = minor/major.
In the rotated frame, xr = c (x-x0) + s (y-y0) and yr = -s (x-x0) + c (y-y0), c + is = exp(i phi):

    SIE    Kormann, Schneider & Bartelmann 1994, A&A 284, 285; with a core, Keeton & Kochanek
           1998, arXiv:astro-ph/9705194, after eq. 8
    EPL    Tessore & Metcalf 2015, arXiv:1507.01819, eqs. 2, 22 and 23
    Shear  the tidal field of everything far away

A lens model can be evaluated anywhere: at its centre, where some deflections have no limit, it
gives zero, as symmetry demands.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators import _lens_conventions as conventions
from operators import _lens_kernels as kernels
from operators._parameters import number

__all__ = ["EPL", "SIE", "SIS", "LensModel", "Shear"]

Array = npt.NDArray[np.float64]


class LensModel(ABC):
    """A frozen dataclass of numbers; quantities with units are converted when it is made."""

    @abstractmethod
    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        """Fill ax, ay (flat, arcsec) with the deflection at x, y (flat, arcsec)."""

    def deflection(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        """(ax, ay), float64 arcsec, at the positions x, y in arcsec (any shapes that broadcast)."""
        wide = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, np.float64))
        flat_x, flat_y = (np.ascontiguousarray(a).ravel() for a in wide)
        ax, ay = np.empty_like(flat_x), np.empty_like(flat_y)
        self._deflect(flat_x, flat_y, ax, ay)
        return ax.reshape(wide[0].shape), ay.reshape(wide[0].shape)

    def config(self) -> dict[str, Any]:
        """{"model": class name, parameter: value, ...}: what JSON and HDF5 store."""
        return {"model": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    def _set(
        self,
        name: str,
        unit: str | None,
        above: float = -math.inf,
        below: float = math.inf,
        at_least: float = -math.inf,
        at_most: float = math.inf,
    ) -> None:
        clean = number(
            name,
            getattr(self, name),
            unit=unit,
            above=above,
            below=below,
            at_least=at_least,
            at_most=at_most,
        )
        object.__setattr__(self, name, clean)


@dataclass(frozen=True)
class SIS(LensModel):
    """Singular isothermal sphere: alpha = theta_E (x, y) / r.

    theta_E: Einstein radius, arcsec, > 0. x0, y0: centre, arcsec.
    Raises `ObservationError` on values out of range, NaN, or units that do not convert.
    """

    theta_E: float
    x0: float = 0.0
    y0: float = 0.0

    def __post_init__(self) -> None:
        self._set("theta_E", "arcsec", above=0)
        for name in ("x0", "y0"):
            self._set(name, "arcsec")

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        kernels.sie(x, y, self.theta_E, 1.0, 0.0, self.x0, self.y0, 0.0, ax, ay)


@dataclass(frozen=True)
class SIE(LensModel):
    """Isothermal ellipsoid, kappa = theta_E / (2 sqrt(q (xr^2 + s^2) + yr^2 / q)).

    theta_E: arcsec, > 0 (the geometric-mean radius of the critical curve when s = 0).
    q: axis ratio, 0 < q <= 1. phi: radians. x0, y0: centre, arcsec. s: core radius along the
    major axis, arcsec, >= 0.
    Raises `ObservationError` on values out of range, NaN, or units that do not convert.
    """

    theta_E: float
    q: float
    phi: float
    x0: float = 0.0
    y0: float = 0.0
    s: float = 0.0

    def __post_init__(self) -> None:
        _set_ellipse(self)
        self._set("s", "arcsec", at_least=0)

    @classmethod
    def from_ellipticity(
        cls,
        theta_E: float,
        e1: float,
        e2: float,
        x0: float = 0.0,
        y0: float = 0.0,
        s: float = 0.0,
    ) -> SIE:
        """From e1, e2 = (1-q)/(1+q) (cos 2 phi, sin 2 phi)."""
        q, phi = conventions.from_ellipticity(e1, e2)
        return cls(theta_E, q, phi, x0, y0, s)

    @classmethod
    def from_position_angle(
        cls,
        theta_E: float,
        q: float,
        position_angle: float,
        x0: float = 0.0,
        y0: float = 0.0,
        s: float = 0.0,
        cd: npt.ArrayLike | None = None,
    ) -> SIE:
        """From the major axis' position angle, degrees east of north.

        cd: WCS CD matrix (2, 2); None means north up and east left.
        """
        return cls(theta_E, q, conventions.from_position_angle(position_angle, cd), x0, y0, s)

    @classmethod
    def from_velocity_dispersion(
        cls,
        velocity_dispersion: float,
        z_lens: float,
        z_source: float,
        q: float,
        phi: float,
        x0: float = 0.0,
        y0: float = 0.0,
        s: float = 0.0,
        cosmology: Any = None,
    ) -> SIE:
        """From the velocity dispersion, km/s; see `einstein_radius`."""
        theta_e = conventions.einstein_radius(velocity_dispersion, z_lens, z_source, cosmology)
        return cls(theta_e, q, phi, x0, y0, s)

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        kernels.sie(x, y, self.theta_E, self.q, self.phi, self.x0, self.y0, self.s, ax, ay)


@dataclass(frozen=True)
class EPL(LensModel):
    """Elliptical power law, kappa = (3-gamma)/2 (theta_E / sqrt(q xr^2 + yr^2/q))^(gamma-1).

    theta_E: arcsec, > 0. q: axis ratio, 0 < q <= 1. phi: radians. gamma: slope of the
    three-dimensional density, 1 < gamma < 3 (2 is the SIE). x0, y0: centre, arcsec.
    Raises `ObservationError` on values out of range, NaN, or units that do not convert.
    """

    theta_E: float
    q: float
    phi: float
    gamma: float
    x0: float = 0.0
    y0: float = 0.0

    def __post_init__(self) -> None:
        _set_ellipse(self)
        self._set("gamma", None, above=1, below=3)

    @classmethod
    def from_ellipticity(
        cls,
        theta_E: float,
        e1: float,
        e2: float,
        gamma: float,
        x0: float = 0.0,
        y0: float = 0.0,
    ) -> EPL:
        """From e1, e2 = (1-q)/(1+q) (cos 2 phi, sin 2 phi)."""
        q, phi = conventions.from_ellipticity(e1, e2)
        return cls(theta_E, q, phi, gamma, x0, y0)

    @classmethod
    def from_position_angle(
        cls,
        theta_E: float,
        q: float,
        position_angle: float,
        gamma: float,
        x0: float = 0.0,
        y0: float = 0.0,
        cd: npt.ArrayLike | None = None,
    ) -> EPL:
        """From the position angle, degrees east of north; `cd` as for `SIE`."""
        return cls(theta_E, q, conventions.from_position_angle(position_angle, cd), gamma, x0, y0)

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        terms = kernels.epl_terms(self.q)
        shape = (self.theta_E, self.q, self.phi, self.gamma)
        kernels.epl(x, y, *shape, self.x0, self.y0, terms, ax, ay)


@dataclass(frozen=True)
class Shear(LensModel):
    """External shear: alpha = (g1 dx + g2 dy, g2 dx - g1 dy), about (x0, y0) in arcsec.

    Raises `ObservationError` on NaN, or units that do not convert.
    """

    gamma1: float
    gamma2: float
    x0: float = 0.0
    y0: float = 0.0

    def __post_init__(self) -> None:
        for name, unit in (("gamma1", None), ("gamma2", None), ("x0", "arcsec"), ("y0", "arcsec")):
            self._set(name, unit)

    @classmethod
    def from_polar(cls, gamma: float, phi: float) -> Shear:
        """From its strength and direction: g1 = gamma cos 2 phi, g2 = gamma sin 2 phi."""
        return cls(gamma * math.cos(2 * phi), gamma * math.sin(2 * phi))

    def _deflect(self, x: Array, y: Array, ax: Array, ay: Array) -> None:
        dx, dy = x - self.x0, y - self.y0
        ax[:] = self.gamma1 * dx + self.gamma2 * dy
        ay[:] = self.gamma2 * dx - self.gamma1 * dy


def _set_ellipse(model: SIE | EPL) -> None:
    model._set("theta_E", "arcsec", above=0)
    model._set("q", None, at_least=1e-4, at_most=1)
    model._set("phi", "rad")
    for name in ("x0", "y0"):
        model._set(name, "arcsec")
