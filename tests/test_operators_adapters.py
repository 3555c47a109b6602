"""Simulators of deepinv and caustics as operators; ours against them and scikit-image.

What needs one of them is skipped where it is not installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from operators.adapters import Caustics, Deepinv, DeepinvLinear
from operators.base import LinearOperator
from operators.blur import Blur
from operators.errors import ObservationError
from operators.lensing import SIE, Lensing, Shear
from operators.tomography import Tomography

SCENE: dict[str, Any] = {"lens": (SIE(1.1, 0.75, 0.7, 0.05, -0.04), Shear(0.03, -0.05))}
# caustics 1.7.1: every 5th row from the 4th, every 6th column from the 3rd, and the sum, of the
# image without a PSF by 2 x 2 rays a pixel
CAUSTICS = [
    [0.0, 1.05001182888, 1.01846089949, 0.175564352686],
    [0.702265493192, 0.23127533061, 0.754847613652, 1.43860787935],
    [0.410179706585, 0.536108859448, 0.65975484792, 1.74799993185],
    [0.0, 1.21867998517, 1.27461876074, 0.472259261235],
]
CAUSTICS_SUM = 400.004680319  # their rays are laid out in float32


@dataclass(frozen=True, eq=False)
class Squared(Deepinv):
    """Stands for a physics that is not linear."""

    def build(self) -> Any:
        class Square(torch.nn.Module):
            def A(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802  # deepinv's name
                assert x.shape[1] == 1
                return x.square()

        return Square()


@dataclass(frozen=True, eq=False)
class Kernel(DeepinvLinear):
    """Periodic convolution with a lopsided kernel."""

    def build(self) -> Any:
        deepinv = pytest.importorskip("deepinv")
        kernel = torch.from_numpy(lopsided())[None, None]
        return deepinv.physics.BlurFFT(img_size=(1, *self.shape), filter=kernel)


@dataclass(frozen=True, eq=False)
class Theirs(Caustics):
    """The scene as caustics sees it."""

    with_psf: bool = False
    rays: int = 2
    width: int = 26
    lit: bool = False

    def build(self) -> Any:
        caustics = pytest.importorskip("caustics")
        cosmology = caustics.FlatLambdaCDM(name="cosmo")
        sie = caustics.SIE(
            cosmology, z_l=0.5, z_s=1.0, x0=0.05, y0=-0.04, q=0.75, phi=0.7, Rein=1.1, name="sie"
        )
        shear = caustics.ExternalShear(
            cosmology, z_l=0.5, z_s=1.0, x0=0.0, y0=0.0, gamma_1=0.03, gamma_2=-0.05, name="shear"
        )
        lens = caustics.SinglePlane(cosmology, lenses=[sie, shear], z_l=0.5, z_s=1.0, name="lens")
        source = caustics.Pixelated(
            x0=0.0, y0=0.0, pixelscale=0.08, shape=self.shape, name="source"
        )
        glow = {"x0": 0.0, "y0": 0.0, "q": 0.8, "phi": 0.0, "n": 1.0, "Re": 0.3, "Ie": 1.0}
        psf = torch.from_numpy(lopsided()) if self.with_psf else [[1.0]]
        return caustics.LensSource(
            lens, source, pixelscale=0.15, pixels_x=self.width, pixels_y=22,
            upsample_factor=self.rays, psf=psf,
            lens_light=caustics.Sersic(**glow, name="glow") if self.lit else None,
        )  # fmt: skip


def lopsided() -> np.ndarray:
    """Return a kernel without symmetry, whose sum is 1."""
    kernel = np.arange(25.0).reshape(5, 5) ** 1.5
    return np.asarray(kernel / kernel.sum())


def source(n: int = 1) -> torch.Tensor:
    """Return sources (n, 20, 16), dark near the border, beyond which caustics extrapolates."""
    i, y, x = np.ogrid[1 : n + 1, :20, :16]
    image = 1 + np.sin(i + 0.9 * x - 0.4 * y) * np.cos(0.3 * x * i)
    image[:, (0, 1, -2, -1)] = image[..., (0, 1, -2, -1)] = 0.0
    return torch.from_numpy(image)


def ours(height: int, width: int, psf: np.ndarray | None, rays: int) -> Lensing:
    """Return the scene as `lensing` has it."""
    return Lensing(**SCENE, image_shape=(height, width), pixel_scale=0.15, source_shape=(20, 16),
                   source_pixel_scale=0.08, psf=psf, supersampling=rays)  # fmt: skip


def keeps_the_contract(a: LinearOperator, x: torch.Tensor) -> None:
    """Check batches, precision, adjoint and gradient."""
    y = a(x)
    assert y.shape == (len(x), *a.y_shape) and y.dtype == x.dtype
    torch.testing.assert_close(a(x[:1])[0], y[0])
    torch.testing.assert_close(a(x.float()), y.float(), rtol=1e-4, atol=1e-4)
    v = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gap = (y * v).sum() - (x * a.adjoint(v)).sum()
    assert abs(gap) < 1e-10 * y.norm() * v.norm()
    assert type(a).from_config(a.config()).config() == a.config()


def test_a_physics_that_is_not_linear() -> None:
    a = Squared((3, 4))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert a.y_shape == (1, 3, 4)
    torch.testing.assert_close(a(x)[:, 0], x.square())
    _, jacobian = a.linearise(x)
    torch.testing.assert_close(jacobian(x)[:, 0], 2 * x.square())


def test_data_that_are_no_real_tensor_are_refused() -> None:
    @dataclass(frozen=True, eq=False)
    class Complex(Squared):
        def _simulated(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0j

    with pytest.raises(ObservationError, match="real tensor"):
        _ = Complex((3, 3)).y_shape


def test_deepinv_physics_keep_the_contract_and_equal_ours() -> None:
    pytest.importorskip("deepinv")
    x = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blur = Kernel((12, 12))
    keeps_the_contract(blur, x)
    torch.testing.assert_close(blur(x)[:, 0], Blur((12, 12), kernel=lopsided())(x))


def test_projections_equal_scikit_images() -> None:
    y, x = np.mgrid[-20:21, -20:21]
    image = np.exp(-((x - 5) ** 2 / 30 + (y + 4) ** 2 / 12))
    # it counts rows downwards, and its detector of 58 elements is centred on the 30th
    angles = -np.arange(6) * math.pi / 6
    mine = Tomography((41, 41), angles=angles, detectors=59)
    found = mine(torch.from_numpy(image)[None])[0].numpy()[:, :58]
    transform = pytest.importorskip("skimage.transform")
    theirs = transform.radon(image, theta=np.arange(6) * 30, circle=False).T
    np.testing.assert_allclose(found, theirs, atol=0.005 * theirs.max())


def test_image_equals_caustics() -> None:
    image = ours(22, 26, None, 2)(source())[0].numpy()
    np.testing.assert_allclose(image[3::5, 2::6], CAUSTICS, atol=3e-6)
    np.testing.assert_allclose(image.sum(), CAUSTICS_SUM, rtol=1e-6)


def test_stored_image_is_caustics_and_it_keeps_the_contract() -> None:
    pytest.importorskip("caustics")
    theirs = Theirs((20, 16))
    keeps_the_contract(theirs, source(2))
    image = theirs(source())[0].numpy()
    np.testing.assert_allclose(image[3::5, 2::6], CAUSTICS, rtol=1e-9)
    np.testing.assert_allclose(image.sum(), CAUSTICS_SUM, rtol=1e-9)
    blurred = Theirs((20, 16), with_psf=True, width=22, rays=1)  # it needs square images for one
    mine = ours(22, 22, lopsided(), 1)
    torch.testing.assert_close(blurred(source(2)), mine(source(2)), rtol=0, atol=3e-6)


def test_light_without_a_source_is_refused() -> None:
    pytest.importorskip("caustics")
    with pytest.raises(ObservationError, match="lens' own light"):
        Theirs((20, 16), lit=True)(source())
