"""Black holes at the horizon's scale: m-rings, crescents and turbulent discs.

    I(r, phi) = exp(-(r - R)^2 / 2 w^2) [1 + 2 sum_m |beta_m| cos m(phi - phi_m)]

is an m-ring of Gaussian width (Johnson et al. 2020, arXiv 1907.04329, eq. 20; the first mode is the
Doppler-bright side); a crescent is a disc less a smaller one off its centre (Kamruddin & Dexter
2013, arXiv 1306.3226), a disc a Gaussian with the shadow taken out. All may be seen at an angle,
carry log-normal turbulence that shears with the flow, and shine faintly around. Diameters are a
quarter to a half of the frame: 40 microarcsec in one of 80 to 160. The unit is flux per pixel, and
the total is about 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

summary = "black holes: rings, crescents and turbulent discs with a Doppler-bright side"
unit = "flux per pixel, typical total 1"
turns = True  # a turned or mirrored source is as likely as it was

FLUX_SCATTER = 0.15  # standard deviation of log(total flux)
SHAPES = (0.5, 0.25, 0.25)  # shares of rings, crescents and discs


def draw(rng: np.random.Generator, size: int = 32) -> NDArray[np.float32]:
    """Return one source (size, size), flux per pixel >= 0, typical total 1.

    Lengths scale with `size`: rings have radii of 4 to 8 px at size 32.
    """
    px = size / 32
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(*(axis - shift for shift in rng.normal(0, 0.7 * px, 2)))
    turn, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.0)
    c, s = math.cos(turn), math.sin(turn)
    u, v = c * x + s * y, (-s * x + c * y) / tilt
    r, phi = np.hypot(u, v), np.arctan2(v, u)
    radius = px * rng.uniform(4, 8)
    kind = rng.choice(len(SHAPES), p=SHAPES)
    if kind == 0:
        image = np.exp(-0.5 * ((r - radius) / (px * rng.uniform(0.6, 1.8))) ** 2)
    elif kind == 1:
        hole, off = radius * rng.uniform(0.55, 0.85), rng.uniform(0, 0.9)
        centre = off * (radius - hole)
        image = (r < radius) - rng.uniform(0.85, 1.0) * (np.hypot(u - centre, v) < hole)
    else:
        image = np.exp(-0.5 * (r / (radius * rng.uniform(0.6, 1.0))) ** 2)
        shadow = radius * rng.uniform(0.3, 0.7)
        image *= 1 - rng.uniform(0.6, 1.0) * np.exp(-((r / shadow) ** 4))
    doppler = rng.beta(2, 2) * 0.9  # 2 |beta_1|
    wave = 1 + doppler * np.cos(phi - rng.uniform(0, 2 * math.pi))
    for m in range(2, 5):
        wave += rng.exponential(0.25 / m) * np.cos(m * (phi - rng.uniform(0, 2 * math.pi)))
    image *= np.clip(wave, 0.02, None)
    strength = rng.uniform(0, 0.7)
    image *= np.exp(strength * _turbulence(rng, r / radius, phi, px))
    halo = rng.uniform(0, 0.25) * np.exp(-0.5 * (r / (radius * rng.uniform(1.2, 2.0))) ** 2)
    image = gaussian_filter(image + halo * image.mean() / halo.mean(), px * rng.uniform(0.5, 1.1))
    flux = math.exp(rng.normal(0, FLUX_SCATTER))
    return np.asarray(image * (flux / image.sum()), np.float32)


def _turbulence(
    rng: np.random.Generator,
    r: NDArray[np.float64],
    phi: NDArray[np.float64],
    px: float,
) -> NDArray[np.float64]:
    """Return a random field (H, W) of unit variance, wound up by differential rotation."""
    smooth = gaussian_filter(rng.normal(size=r.shape), px * rng.uniform(0.8, 2.0))
    wound = phi + rng.uniform(-2.0, 2.0) * (r + 0.3) ** -1.5  # Kepler: the angle goes as r^-3/2
    where = [len(r) * (0.5 + 0.3 * r * f(wound)) for f in (np.sin, np.cos)]
    field: NDArray[np.float64] = map_coordinates(smooth, where, order=1, mode="wrap")
    return np.asarray((field - field.mean()) / field.std())
