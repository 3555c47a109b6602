"""Super-resolution, tomography, MRI and a saturating detector against closed forms, other codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import rotate

from operators.hdr import HDR
from operators.mri import MRI, cartesian_lines, coil_maps
from operators.super_resolution import SuperResolution
from operators.tomography import Tomography


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def test_bicubic_is_pillows() -> None:
    image = noise(1, 24, 32).float()
    theirs = Image.fromarray(image[0].numpy()).resize((8, 6), Image.Resampling.BICUBIC)
    ours = SuperResolution((24, 32), 4, "bicubic")(image)[0]
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=1e-6)


def test_average_is_the_mean_of_blocks() -> None:
    image = noise(1, 6, 9)
    ours = SuperResolution((6, 9), 3)(image)
    torch.testing.assert_close(ours[0, 1, 2], image[0, 3:, 6:].mean())


def disc(n: int, pixel: float, radius: float, x0: float, y0: float, fine: int = 9) -> torch.Tensor:
    """The disc's mean over each pixel, (1, n, n)."""
    at = (np.arange(n * fine) - (n * fine - 1) / 2) * pixel / fine
    inside = (at - x0) ** 2 + (at[:, None] - y0) ** 2 < radius**2
    return torch.from_numpy(inside.reshape(n, fine, n, fine).mean((1, 3))[None])


@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_projections_of_a_disc_converge_to_its_chords(beam: str) -> None:
    radius, x0, y0, errors = 5.0, 2.5, -3.0, []
    for n in (32, 64, 128):
        a = Tomography((n, n), beam, views=7, pixel_size=20 / n, detectors=41, spacing=0.7)
        points, directions = a.rays()
        offset = points - [x0, y0]
        distance = offset[..., 0] * directions[..., 1] - offset[..., 1] * directions[..., 0]
        chords = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
        found = a(disc(n, 20 / n, radius, x0, y0))[0].numpy()
        errors.append(np.abs(found - chords).mean() / chords.mean())
    assert errors[2] < 0.012
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_parallel_projections_keep_the_mass_and_turn_as_the_image_does() -> None:
    y, x = np.mgrid[-20:21, -20:21]
    image = np.exp(-((x - 5) ** 2 / 30 + (y + 4) ** 2 / 12))
    angle = math.radians(30)
    a = Tomography((41, 41), angles=np.array([0.0, angle, math.pi / 2]), detectors=59)
    found = a(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found.sum(1), image.sum(), rtol=2e-3)
    np.testing.assert_allclose(found[0, 9:50], image.sum(0), atol=1e-12)
    np.testing.assert_allclose(found[2, 9:50], image.sum(1), atol=1e-12)
    # seen along a ray at 30 degrees, the image looks as if turned clockwise by as much: with
    # rows upwards that is scipy's positive angle
    turned = rotate(image, 30, reshape=False, order=3).sum(0)
    np.testing.assert_allclose(found[1, 9:50], turned, atol=0.02 * turned.max())


def test_a_fan_from_afar_is_a_parallel_beam() -> None:
    image = noise(1, 9, 8)
    angles = np.array([0.2, 1.3])
    flat = Tomography((9, 8), angles=angles, detectors=11)(image)
    fan = Tomography(
        (9, 8), "fan", angles=angles, detectors=11, source_distance=1e7, detector_distance=1.0
    )
    torch.testing.assert_close(fan(image), flat, rtol=1e-5, atol=1e-5)


def test_the_detector_sees_the_whole_image() -> None:
    corner = torch.zeros(4, 10, 14, dtype=torch.float64)
    for i, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
        corner[i, row, column] = 1.0
    for beam in ("parallel", "fan"):
        seen = Tomography((10, 14), beam, views=16, spacing=0.5)(corner)
        assert (seen.sum(2) > 0.5).all()


def test_one_coil_and_all_of_k_space_is_the_unitary_transform() -> None:
    a = MRI((6, 5), coils=1, acceleration=1)
    image = noise(2, 6, 5)
    torch.testing.assert_close(a.adjoint(a(image)), image)
    point = torch.zeros(1, 6, 5, dtype=torch.float64)
    point[0, 2, 1] = 1.0
    ky, kx = np.arange(6) - 3, np.arange(5) - 2
    # the origin of x is pixel (3, 2), as that of k-space is
    wave = np.exp(-2j * np.pi * (ky[:, None] * (2 - 3) / 6 + kx * (1 - 2) / 5)) / math.sqrt(30)
    phase = coil_maps(1, (6, 5))[0, 2, 1]
    np.testing.assert_allclose(torch.view_as_complex(a(point)[0, 0]), phase * wave, atol=1e-12)


def test_coils_add_up_to_one_and_complex_images_keep_their_energy() -> None:
    maps = coil_maps(5, (8, 12))
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1)
    assert np.abs(np.abs(maps[0]) - np.abs(maps[1])).max() > 0.1
    a, image = MRI((8, 12, 2), coils=5, acceleration=1), noise(1, 8, 12, 2)
    torch.testing.assert_close(a(image).square().sum(), image.square().sum())
    torch.testing.assert_close(a.adjoint(a(image)), image)
    real = MRI((8, 12), coils=5)
    padded = torch.stack([image[..., 0], torch.zeros_like(image[..., 0])], -1)
    torch.testing.assert_close(real(image[..., 0]), MRI((8, 12, 2), coils=5)(padded))


def test_lines_of_k_space() -> None:
    rows = cartesian_lines(64, 4, 0.1, seed=2)
    assert rows.sum() == 16 and rows[29:35].all()
    a = MRI((64, 8), coils=2, centre_fraction=0.1, seed=2)
    assert torch.equal(~a.data_mask[1, :, 3, 0], torch.from_numpy(rows))
    assert (a(noise(1, 64, 8))[0][a.data_mask] == 0).all()


def test_detector_is_linear_for_faint_light_and_never_above_its_full_well() -> None:
    faint = 1e-4 * noise(1, 8, 8)
    for kind in ("soft", "clip"):
        a = HDR((8, 8), 0.5, kind)
        torch.testing.assert_close(a(faint), a._blur(faint), rtol=1e-6, atol=0)
        assert a(1e4 * torch.ones(1, 8, 8)).max() <= 0.5
    flat = HDR((5, 5), 0.5, psf=np.ones((1, 1)))(torch.full((1, 5, 5), 0.5, dtype=torch.float64))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5 * math.tanh(1)))
