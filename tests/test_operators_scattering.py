"""Scattering against the series of a homogeneous cylinder, and against its own first order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import h1vp, hankel1, jv, jvp

from operators.born_scattering import BornScattering
from operators.inverse_scattering import InverseScattering

GEOMETRY = {"transmitters": 3, "receivers": 12, "wavelength": 5.0, "radius": 40.0}
RADIUS, CONTRAST = 3.0, 0.8


def cylinder_field() -> np.ndarray:
    """Scattered field (T, R) of a cylinder in the centre, lit by line sources: its Mie series.

    Outside, (i/4) sum over n of exp(i n phi) H_n(k r_t) R_n H_n(k r); R_n from the continuity of
    the field and its radial derivative at the surface.
    """
    k, far = 2 * math.pi / GEOMETRY["wavelength"], GEOMETRY["radius"]
    inner, n = k * math.sqrt(1 + CONTRAST), np.arange(-40, 41)
    ratio = inner / k * jvp(n, inner * RADIUS)
    reflected = -(jv(n, k * RADIUS) * ratio - jvp(n, k * RADIUS) * jv(n, inner * RADIUS)) / (
        hankel1(n, k * RADIUS) * ratio - h1vp(n, k * RADIUS) * jv(n, inner * RADIUS)
    )
    sent = 2 * math.pi * np.arange(GEOMETRY["transmitters"])[:, None] / GEOMETRY["transmitters"]
    heard = 2 * math.pi * np.arange(GEOMETRY["receivers"]) / GEOMETRY["receivers"]
    waves = np.exp(1j * n * (heard - sent)[..., None])
    field = (waves * reflected * hankel1(n, k * far) ** 2).sum(-1)
    return np.asarray(field / abs(hankel1(0, k * far)))


def cylinder(n: int, fine: int = 11) -> torch.Tensor:
    """Share of each of n x n pixels, 8 cm in all, that the cylinder covers."""
    at = ((np.arange(n * fine) + 0.5) / (n * fine) - 0.5) * 8
    inside = at**2 + at[:, None] ** 2 < RADIUS**2
    return torch.from_numpy(inside.reshape(n, fine, n, fine).mean((1, 3))[None])


def complex_field(a: InverseScattering | BornScattering, x: torch.Tensor) -> np.ndarray:
    return torch.view_as_complex(a(x)[0]).numpy()


def test_field_of_a_cylinder_converges_to_its_series() -> None:
    exact, errors = cylinder_field(), []
    for n in (16, 32, 64):
        a = InverseScattering((n, n), **GEOMETRY, pixel_size=8 / n, contrast=CONTRAST)
        found = complex_field(a, cylinder(n))
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[2] < 0.01
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > 1.7  # second order


def test_born_is_the_limit_of_weak_contrast() -> None:
    x, gaps = cylinder(12), []
    for contrast in (0.02, 0.01):
        both = [
            complex_field(cls((12, 12), **GEOMETRY, pixel_size=8 / 12, contrast=contrast), x)
            for cls in (InverseScattering, BornScattering)
        ]
        gaps.append(np.linalg.norm(both[0] - both[1]) / np.linalg.norm(both[1]))
    assert gaps[0] < 0.1
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.05)


def test_transmitters_and_receivers_can_change_places() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((1, 7, 6)))
    a = InverseScattering((7, 6), 5, 5, pixel_size=1.0, radius=20.0, contrast=0.5)
    found = complex_field(a, x)
    np.testing.assert_allclose(found, found.T, rtol=1e-9, atol=1e-12)


def test_small_fields_scatter_as_large_ones_do() -> None:
    """In float32 the squares of 1e-30 are zero."""
    a, x = InverseScattering((6, 6), 2, 3, pixel_size=1.0), torch.rand(1, 6, 6)
    jacobian = a.linearise(x)[1]
    v = torch.randn(1, *a.y_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(1e30 * jacobian.adjoint(1e-30 * v), jacobian.adjoint(v))


def test_nothing_scatters_nothing_and_too_strong_a_contrast_is_told() -> None:
    a = InverseScattering((6, 6), 2, 3, pixel_size=1.0)
    x = torch.zeros(1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert (a(x) == 0).all()
    (gradient,) = torch.autograd.grad(a(x).sum(), x)
    born = BornScattering((6, 6), 2, 3, pixel_size=1.0)
    torch.testing.assert_close(gradient, born.adjoint(torch.ones(1, 2, 3, 2).double()))
    strong = InverseScattering((32, 32), 1, 3, pixel_size=2.0, contrast=80.0)
    with pytest.warns(RuntimeWarning, match="too strong"):
        strong(torch.from_numpy(np.random.default_rng(0).standard_normal((1, 32, 32))))
