"""Other ways in which the field states a lens, turned into q, phi (radians) and theta_E (arcsec).

A config may use any of them: {"model": "SIE", "velocity_dispersion": 250, "e1": 0.1, "e2": 0}.

e1, e2 = (1-q)/(1+q) (cos 2 phi, sin 2 phi)
phi    = position angle + 90 deg (mod 180) for north up, east left; else by the WCS CD matrix
theta_E = 4 pi (sigma/c)^2 D_ls/D_s (Narayan & Bartelmann 1996, arXiv:astro-ph/9606001)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from operators._parameters import array, number
from operators.errors import ObservationError

__all__ = ["Distances", "einstein_radius", "from_ellipticity", "from_position_angle", "usual"]


@dataclass(frozen=True)
class Distances:
    """What turns a velocity dispersion into an angle; the redshifts may be unknown."""

    z_lens: float | None = None
    z_source: float | None = None
    cosmology: str = "Planck18"


def usual(given: Mapping[str, Any], distances: Distances) -> dict[str, Any]:
    """The config of one lens with q, phi, theta_E, gamma1 and gamma2 for all that stands for them.

    e1, e2: for q and phi. position_angle (degrees east of north), with cd: for phi. For a Shear,
    gamma and one of phi, position_angle: for its components. velocity_dispersion: for theta_E,
    which wins where it is given too.
    Raises `ObservationError` where two of them say the same, or one is not enough.
    """
    found = dict(given)
    if "e1" in found or "e2" in found:
        _refuse(found, "e1, e2", "q", "phi", "position_angle")
        found["q"], found["phi"] = from_ellipticity(found.pop("e1", 0.0), found.pop("e2", 0.0))
    if "position_angle" in found:
        _refuse(found, "position_angle", "phi")
        found["phi"] = from_position_angle(found.pop("position_angle"), found.pop("cd", None))
    if found.get("model") == "Shear" and "gamma" in found and "phi" in found:
        _refuse(found, "gamma", "gamma1", "gamma2")
        gamma, phi = (
            number("gamma", found.pop("gamma")),
            number("phi", found.pop("phi"), unit="rad"),
        )
        found |= {"gamma1": gamma * math.cos(2 * phi), "gamma2": gamma * math.sin(2 * phi)}
    dispersion = found.pop("velocity_dispersion", None)
    if dispersion is not None and "theta_E" not in found:
        near, far = distances.z_lens, distances.z_source
        if near is None or far is None:
            raise ObservationError(
                "velocity_dispersion needs the redshifts z_lens and z_source of the operator; "
                "set them, or give theta_E"
            )
        found["theta_E"] = einstein_radius(dispersion, near, far, cosmology(distances.cosmology))
    return found


def _refuse(found: Mapping[str, Any], stated: str, *others: str) -> None:
    both = [name for name in others if name in found]
    if both:
        raise ObservationError(f"a lens has {stated} and {', '.join(both)}; needed one of them")


def cosmology(name: str) -> Any:
    """The `astropy.cosmology` model of that name, or flat LambdaCDM by "H0=70,Om0=0.3"."""
    from astropy import cosmology as models  # slow to import, rarely needed

    if "=" in name:
        parts = dict(part.strip().split("=", 1) for part in name.split(",") if "=" in part)
        if set(parts) == {"H0", "Om0"}:
            h0, om0 = (number(key, parts[key], at_least=0) for key in ("H0", "Om0"))
            return models.FlatLambdaCDM(H0=h0, Om0=om0)
    elif name in models.available:
        return getattr(models, name)
    raise ObservationError(
        f"cosmology is {name!r}; needed H0=70,Om0=0.3 or one of {', '.join(models.available)}"
    )


def from_ellipticity(e1: float, e2: float) -> tuple[float, float]:
    """(q, phi) of the ellipticity components; `ObservationError` unless e1^2 + e2^2 < 1."""
    e1, e2 = number("e1", e1), number("e2", e2)
    e = number("ellipticity sqrt(e1^2 + e2^2)", math.hypot(e1, e2), below=1)
    return (1 - e) / (1 + e), 0.5 * math.atan2(e2, e1)


def from_position_angle(position_angle: float, cd: npt.ArrayLike | None = None) -> float:
    """phi, radians in [0, pi), of an axis `position_angle` degrees (or a quantity) east of north.

    cd: the WCS CD matrix (2, 2), which takes pixel offsets (x, y) to offsets (east, north); None
    means north up and east left. Raises `ObservationError` when it is singular.
    """
    angle = math.radians(number("position_angle", position_angle, unit="deg"))
    matrix = np.diag([-1.0, 1.0]) if cd is None else array("cd", cd, ndim=2)
    if matrix.shape != (2, 2) or np.linalg.matrix_rank(matrix) < 2:
        raise ObservationError(f"cd is {matrix.tolist()}; needed an invertible 2 x 2 matrix")
    dx, dy = np.linalg.solve(matrix, [math.sin(angle), math.cos(angle)])
    return math.atan2(dy, dx) % math.pi


def einstein_radius(
    velocity_dispersion: float, z_lens: float, z_source: float, cosmology: Any = None
) -> float:
    """Einstein radius, arcsec, of an isothermal lens.

    velocity_dispersion: one-dimensional, km/s (or a quantity), > 0. z_source > z_lens > 0.
    cosmology: an `astropy.cosmology` model; None is Planck18. Keep its name with the result: the
    radius alone does not tell.
    Raises `ObservationError` on values out of range.
    """
    sigma = number("velocity_dispersion", velocity_dispersion, unit="km/s", above=0, below=1e5)
    near = number("z_lens", z_lens, above=0)
    far = number("z_source", z_source, above=near)
    from astropy import cosmology as models  # slow to import, rarely needed

    model = models.Planck18 if cosmology is None else cosmology
    try:
        lens_to_source = model.angular_diameter_distance(near, far)
    except TypeError:  # astropy before 8
        lens_to_source = model.angular_diameter_distance_z1z2(near, far)
    ratio = lens_to_source / model.angular_diameter_distance(far)
    speed_of_light = 299792.458  # km/s, exact
    radians = 4 * math.pi * (sigma / speed_of_light) ** 2 * float(ratio)
    return math.degrees(radians) * 3600
