"""Closures of sources whose visibilities are known, and what they must be blind to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from operators._baselines import EHT_2017, closures, scans
from operators.black_hole import BlackHole

PIXEL = math.radians(160 / 32 / 3.6e9)


def instrument() -> BlackHole:
    return BlackHole((32, 32), times=6, floor=1e-9)


def points(*places: tuple[int, int, float]) -> torch.Tensor:
    """An image (1, 32, 32) of point sources: row, column, flux."""
    x = torch.zeros(1, 32, 32, dtype=torch.float64)
    for row, column, flux in places:
        x[0, row, column] = flux
    return x


def split(a: BlackHole, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Closure phases (radians), log closure amplitudes and flux."""
    cos, sin, amplitudes, flux = np.split(
        y[0].numpy(), np.cumsum([len(a._triangles)] * 2 + [len(a._quadrangles)])
    )
    np.testing.assert_allclose(cos**2 + sin**2, 1)
    return np.arctan2(sin, cos), amplitudes, float(flux[0])


def test_a_point_source_has_no_closures_and_a_plane_wave_of_visibilities() -> None:
    a, x = instrument(), points((20, 5, 2.0))
    phases, amplitudes, flux = split(a, a(x))
    np.testing.assert_allclose(phases, 0, atol=1e-7)
    np.testing.assert_allclose(amplitudes, 0, atol=1e-12)
    assert flux == 2.0
    north, east = (20 - 15.5) * PIXEL, -(5 - 15.5) * PIXEL  # east is to the left
    wave = 2 * np.exp(-2j * math.pi * (a.uv @ [east, north]))
    np.testing.assert_allclose(torch.view_as_complex(a.visibilities(x))[0], wave, rtol=1e-9)


def test_two_points_have_the_closures_of_their_closed_form() -> None:
    a, x = instrument(), points((16, 16, 1.0), (22, 10, 0.6))
    between = np.array([6 * PIXEL, 6 * PIXEL])  # of the second, east and north of the first
    v = 1 + 0.6 * np.exp(-2j * math.pi * (a.uv @ between))
    i, j, k = a._triangles.numpy().T
    first, second, third, fourth = np.log(np.abs(v))[a._quadrangles.numpy()].T
    phases, amplitudes, _ = split(a, a(x))
    np.testing.assert_allclose(phases, np.angle(v[i] * v[j] * v[k].conj()), atol=1e-8)
    np.testing.assert_allclose(amplitudes, first + second - third - fourth, atol=1e-8)


def test_closures_do_not_see_gains_shifts_or_brightness() -> None:
    a = instrument()
    x = points((14, 15, 1.0), (17, 18, 0.5), (12, 19, 0.3))
    one, other = a(x)[0, :-1], a(3 * x.roll((2, -3), (1, 2)))[0, :-1]
    np.testing.assert_allclose(one, other, atol=1e-7)
    rng = np.random.default_rng(0)
    for n in (4, 5, 7):
        triangles, quadrangles = closures(n)
        pairs = np.array([(i, j) for i in range(n) for j in range(i + 1, n)])
        station = rng.standard_normal(n)
        phase = station[pairs[:, 0]] - station[pairs[:, 1]]
        gain = station[pairs[:, 0]] + station[pairs[:, 1]]
        np.testing.assert_allclose(phase[triangles] @ [1, 1, -1], 0, atol=1e-12)
        np.testing.assert_allclose(gain[quadrangles] @ [1, 1, -1, -1], 0, atol=1e-12)
        # and nothing that is independent is left out: as many as the gains leave
        for closure, signs, left in (
            (triangles, [1, 1, -1], (n - 1) * (n - 2) // 2),
            (quadrangles, [1, 1, -1, -1], n * (n - 3) // 2),
        ):
            rows = np.zeros((len(closure), len(pairs)))
            np.add.at(rows, (np.arange(len(closure))[:, None], closure), signs)
            assert len(closure) == np.linalg.matrix_rank(rows) == left


def test_baselines_turn_with_the_earth() -> None:
    declination, hours = 0.3, np.array([0.2, 0.9])
    for scan, hour in zip(scans(EHT_2017, declination, hours, 0.1), hours, strict=True):
        cos, sin = math.cos(declination), math.sin(declination)
        source = np.array([cos * math.cos(hour), -cos * math.sin(hour), sin])
        baseline = EHT_2017[scan.pairs[:, 1]] - EHT_2017[scan.pairs[:, 0]]
        # what is left of a baseline across the line of sight, and its part towards the pole
        across = baseline - np.outer(baseline @ source, source)
        np.testing.assert_allclose(np.hypot(*scan.uv.T), np.linalg.norm(across, axis=1))
        north = np.array([0, 0, 1]) - source[2] * source
        np.testing.assert_allclose(scan.uv[:, 1], across @ north / np.linalg.norm(north))
        east = np.cross([0, 0, 1], source)
        np.testing.assert_allclose(scan.uv[:, 0], across @ east / np.linalg.norm(east))
    longest = np.hypot(*BlackHole.default((4, 4)).uv.T).max()
    assert longest == pytest.approx(8.4e9, rel=0.02)  # about 25 microarcseconds


def test_simulated_noise_is_that_of_noisy_visibilities() -> None:
    a = instrument()
    x = points((14, 15, 1.0), (17, 18, 0.5))
    sigma = a.simulated_sigma(x, a(x), 1e-4).numpy()
    v = torch.view_as_complex(a.visibilities(x))[0].numpy()
    pairs = np.concatenate([scan.pairs for scan in a._scans])
    root = np.sqrt(a._noise[pairs].prod(1))
    thermal = 1.5e-4 * root / np.median(root)
    rng = np.random.default_rng(0)
    noisy = v + thermal * (rng.standard_normal((4000, 2, len(v))) * [[1], [1j]]).sum(1)
    i, j, k = a._triangles.numpy().T
    found = (noisy[:, i] * noisy[:, j] * noisy[:, k].conj()) / (v[i] * v[j] * v[k].conj())
    np.testing.assert_allclose(np.angle(found).std(0), sigma[: len(i)], rtol=0.06)
    amplitudes = np.log(np.abs(noisy))[:, a._quadrangles.numpy()] @ [1, 1, -1, -1]
    np.testing.assert_allclose(amplitudes.std(0), sigma[2 * len(i) : -1], rtol=0.06)
