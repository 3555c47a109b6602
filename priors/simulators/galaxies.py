"""Parametric galaxies: Sersic bulge and disc, spiral arms, clumps, texture, companions.

    I(R) = I_e exp(-b_n [(R / R_e)^(1/n) - 1]),  b_n = 2n - 1/3 + 4/(405 n)

(Sersic 1968; b_n from Ciotti & Bertin 1999, astro-ph/9911078), R the elliptical radius. Sizes,
flux-to-peak ratios and clumpiness are spread like those of F814W galaxies at 0.03 arcsec per
pixel. Surface brightness is in units in which a typical peak is 1.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

summary = "galaxies: bulges, discs, arms, clumps, companions"
unit = "surface brightness, typical peak 1"
turns = True  # a turned or mirrored galaxy is as likely as it was

PEAK_SCATTER = 0.30  # standard deviation of log(peak surface brightness)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _add_sersic(
    image: NDArray[np.float64],
    flux: float,
    x0: float,
    y0: float,
    radius: float,
    index: float,
    q: float,
    phi: float,
    arms: int,
    arm_strength: float,
    pitch: float,
    arm_phase: float,
    oversampling: int,
) -> None:
    """Add one Sersic component of the given total flux, with optional spiral modulation."""
    n = image.shape[0]
    c, s = math.cos(phi), math.sin(phi)
    b = 2 * index - 1 / 3 + 4 / (405 * index)
    total = 0.0
    part = np.zeros((n, n))
    for j in range(n):
        for i in range(n):
            value = 0.0
            for v in range(oversampling):
                for u in range(oversampling):
                    x = i - (n - 1) / 2 + (u + 0.5) / oversampling - 0.5 - x0
                    y = j - (n - 1) / 2 + (v + 0.5) / oversampling - 0.5 - y0
                    xr, yr = c * x + s * y, -s * x + c * y
                    r = math.sqrt(q * xr * xr + yr * yr / q) + 1e-3
                    light = math.exp(-b * ((r / radius) ** (1 / index) - 1))
                    if arms > 0:
                        angle = math.atan2(yr / q, xr)
                        wave = math.cos(arms * (angle - pitch * math.log(r)) + arm_phase)
                        light *= 1 + arm_strength * wave * (r / (r + radius / 2))
                    value += light
            part[j, i] = value
            total += value
    image += part * (flux / total)


def draw(rng: np.random.Generator, size: int = 64) -> NDArray[np.float32]:
    """Return one galaxy image (size, size), surface brightness, typical peak 1.

    Lengths scale with `size`: half-light radii are 4 to 22 px at size 64.
    """
    px = size / 64
    image = np.zeros((size, size))
    x0, y0 = rng.normal(0, 2.5 * px, 2)
    phi, q = rng.uniform(0, math.pi), rng.uniform(0.25, 1.0)
    radius = px * float(np.clip(math.exp(rng.normal(math.log(9.5), 0.42)), 4, 22))
    irregular = rng.random() < 0.25
    bulge = 0.0 if irregular else rng.beta(1.0, 2.0)
    clumps = rng.beta(1.2, 1.8) * 0.75 if irregular else rng.beta(0.6, 3.0) * 0.6
    arms = int(rng.integers(2, 5)) if not irregular and rng.random() < 0.4 else 0
    disc = (x0, y0, radius, rng.uniform(0.5, 1.4), q, phi)
    swirl = (arms, rng.uniform(0.2, 0.9), rng.choice([-1, 1]) * rng.uniform(1.5, 4.0))
    _add_sersic(image, (1 - bulge) * (1 - clumps), *disc, *swirl, rng.uniform(0, 2 * math.pi), 1)
    if bulge > 0.02:
        size_b = radius * rng.uniform(0.15, 0.6)
        shape = (rng.uniform(0.8, 4.0), rng.uniform(0.55, 1.0), phi + rng.normal(0, 0.2))
        _add_sersic(image, bulge * (1 - clumps), x0, y0, size_b, *shape, 0, 0.0, 0.0, 0.0, 3)
    _add_clumps(image, clumps, rng, radius, (x0, y0, q, phi), px)
    for _ in range(rng.poisson(0.3)):
        x, y = rng.uniform(-0.5, 0.5, 2) * size
        small = px * rng.uniform(1.5, 5.0)
        shape = (rng.uniform(0.7, 2.5), rng.uniform(0.4, 1.0), rng.uniform(0, math.pi))
        flux = math.exp(rng.normal(-2.2, 0.9))
        _add_sersic(image, flux, x, y, small, *shape, 0, 0.0, 0.0, 0.0, 2)
    texture = gaussian_filter(rng.normal(size=image.shape), px * rng.uniform(1.5, 4.0))
    image *= np.exp(rng.uniform(0, 0.35) * texture / texture.std())
    image = gaussian_filter(image, px * rng.uniform(0.8, 1.6))
    peak = math.exp(rng.normal(0, PEAK_SCATTER))
    return np.asarray(image * (peak / image.max()), np.float32)


def _add_clumps(
    image: NDArray[np.float64],
    fraction: float,
    rng: np.random.Generator,
    radius: float,
    frame: tuple[float, float, float, float],
    px: float,
) -> None:
    """Add star-forming clumps holding `fraction` of the flux, spread over the disc."""
    if fraction < 0.01:
        return
    x0, y0, q, phi = frame
    count = int(rng.integers(1, 13))
    shares = fraction * rng.dirichlet(np.full(count, 1.0))
    axis = (np.arange(image.shape[0]) - (image.shape[0] - 1) / 2).astype(float)
    for share in shares:
        u, v = rng.normal(0, 0.8 * radius, 2)
        v *= q
        x = x0 + math.cos(phi) * u - math.sin(phi) * v
        y = y0 + math.sin(phi) * u + math.cos(phi) * v
        width = px * math.exp(rng.normal(math.log(1.8), 0.45))
        gx, gy = (np.exp(-0.5 * ((axis - p) / width) ** 2) for p in (x, y))
        image += share * np.outer(gy, gx) / (2 * math.pi * width**2)
