"""Random phantoms: ellipses of constant attenuation that add, the Shepp-Logan family.

    x(r) = max(0, sum_i a_i H(1 - |B_i (r - c_i)|))

(Shepp & Logan 1974, doi:10.1109/TNS.1974.6499235). Each has a body that fills the frame, mostly
with a denser rim, and organs inside it of higher or lower attenuation. H falls off smoothly over
about a pixel, as a detector's own width makes it. Attenuation is in units in which a typical peak
is 1, that of the rim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.floating[Any]]

summary = "random ellipse phantoms of the Shepp-Logan family"
unit = "attenuation, typical peak 1"
turns = True  # a turned or mirrored phantom is as likely as it was

PEAK_SCATTER = 0.15  # standard deviation of log(peak attenuation)
RIMMED = 0.7  # share of phantoms with a rim denser than what it holds
ORGANS = (3, 14)  # least number of organs, and one more than the most
EDGE = 0.35  # width of the edges' logistic profile, px


def draw(rng: np.random.Generator, size: int = 64) -> NDArray[np.float32]:
    """Return one phantom (size, size), attenuation >= 0, typical peak 1."""
    half = size / 2
    axis = (np.arange(size) - (size - 1) / 2) / half  # the frame is [-1, 1]
    grid = (axis[None, :], axis[:, None])
    edge = EDGE / half

    major = rng.uniform(0.62, 0.92)
    minor = major * rng.uniform(0.62, 1.0)
    body = (*rng.uniform(-0.04, 0.04, 2), major, minor, rng.uniform(0, math.pi))
    inside = _ellipse(grid, body, edge)
    if rng.random() < RIMMED:
        rim, tissue = rng.uniform(0.06, 0.16) * minor, rng.uniform(0.12, 0.4)
        hollow = _ellipse(grid, (*body[:2], major - rim, minor - rim, body[4]), edge)
    else:
        tissue, hollow = rng.uniform(0.25, 0.8), inside
    image = inside + (tissue - 1) * hollow

    x0, y0, _, _, phi = body
    c, s = math.cos(phi), math.sin(phi)
    for _ in range(rng.integers(*ORGANS)):
        a = minor * math.exp(rng.normal(math.log(0.17), 0.55))
        b = a * rng.uniform(0.35, 1.0)
        reach = max(0.05, 0.85 - a / minor)  # organs stay within the body
        radius, angle = reach * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
        u, v = radius * major * math.cos(angle), radius * minor * math.sin(angle)
        place = (x0 + c * u - s * v, y0 + s * u + c * v, a, b, rng.uniform(0, math.pi))
        change = rng.uniform(-0.9, 1.0) * (tissue if rng.random() < 0.5 else 1 - tissue)
        image += change * _ellipse(grid, place, edge) * hollow
    image = np.clip(image, 0, None)
    return np.asarray(image * (math.exp(rng.normal(0, PEAK_SCATTER)) / image.max()), np.float32)


def _ellipse(
    grid: tuple[Array, Array], place: tuple[float, float, float, float, float], edge: float
) -> Array:
    """Return the ellipse (x0, y0, a, b, phi), 1 inside and 0 outside, with soft edges."""
    x0, y0, a, b, phi = place
    x, y = grid[0] - x0, grid[1] - y0
    c, s = math.cos(phi), math.sin(phi)
    u, v = (c * x + s * y) / a, (-s * x + c * y) / b
    radius = np.hypot(u, v) + 1e-9
    slope = np.hypot(u / a, v / b) / radius  # |grad radius|: distances to the edge, to first order
    profile: Array = expit((1 - radius) / (slope * edge + 1e-9))
    return profile
