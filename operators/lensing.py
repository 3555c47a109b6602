"""Strong gravitational lensing of a pixelised source.

    y = P * mean over sub-rays of x(beta(theta)),     beta = theta - sum over lenses of alpha(theta)

(Schneider, Ehlers & Falco 1992, "Gravitational Lenses"; pixelised sources as in Warren
& Dye 2003, arXiv:astro-ph/0302587.) x is interpolated bilinearly and is zero outside its grid, P
is the point spread function, * a true convolution.

Conventions. Angles in arcsec, alpha reduced. Arrays are [y, x], origin lower; (0, 0) arcsec is the
grid centre and pixel centres lie at (i - (n-1)/2) * pixel scale, for image and source alike.
phi runs from +x to the lens' MAJOR axis, counter-clockwise; q = minor/major <= 1. Lenses add.
x and y are surface brightness per image pixel. Rays are traced in float64. A source of several
bands (bands, ny, nx) has one image of each, through the same lens and each band's own PSF.

The PSF has odd size; its stored sum is kept (measured ones do not sum to 1). Rays are traced half
a PSF beyond the image and the convolution's 'valid' part is kept, so no light is lost at the edge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from operators import _parameters
from operators._lens_conventions import Distances, cosmology, usual
from operators._lens_haloes import NFW, Multipole
from operators._lens_models import EPL, SIE, SIS, LensModel, Shear
from operators._rays import ray_matrix, ray_positions
from operators._sparse import SparseMatrix
from operators.base import LinearOperator
from operators.errors import ObservationError

__all__ = [
    "EPL", "NFW", "SIE", "SIS", "LensModel", "Lensing", "Multipole", "Shear", "gaussian_psf",
]  # fmt: skip

MODELS: dict[str, type[LensModel]] = {
    model.__name__: model for model in (SIE, SIS, EPL, NFW, Shear, Multipole)
}


@dataclass(frozen=True, eq=False)
class Lensing(LinearOperator):
    """The image `image_shape` of a source `source_shape` behind the lenses `lens`.

    lens: lens models, or what `config()` gives for them: [{"model": "SIE", "theta_E": 1.2, ...},
        ...], as a list or as JSON text; also by e1 and e2, position_angle, velocity_dispersion,
        see `operators._lens_conventions.usual`.
    image_shape, source_shape: (ny, nx); y_shape and x_shape. A source (bands, ny, nx) gives images
        (bands, *image_shape).
    pixel_scale, source_pixel_scale: arcsec, > 0.
    psf: `(ky, kx)` on the image's pixels, odd sizes, or `(bands, ky, kx)`, or None for a perfect
        instrument.
    supersampling: S, sub-rays along each side of an image pixel, 1 to 16.
    z_lens, z_source: redshifts, 0 < z_lens < z_source, or None; cosmology: an `astropy.cosmology`
        model, or "H0=70,Om0=0.3". What a velocity dispersion is seen by, and the record of it.
    Raises `ObservationError` on values out of range, NaN, and units that do not convert.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "strong gravitational lensing with PSF (SIE, EPL, NFW, shear, others)"

    lens: tuple[LensModel, ...]
    image_shape: tuple[int, int] = (64, 64)
    pixel_scale: float = 0.08
    source_shape: tuple[int, ...] = (64, 64)
    source_pixel_scale: float = 0.03
    psf: npt.NDArray[np.float64] | None = None
    supersampling: int = 2
    z_lens: float | None = None
    z_source: float | None = None
    cosmology: str = "Planck18"

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if self.z_lens is not None:
            set_(self, "z_lens", _parameters.number("z_lens", self.z_lens, above=0))
        if self.z_source is not None:
            nearest = self.z_lens or 0.0
            set_(self, "z_source", _parameters.number("z_source", self.z_source, above=nearest))
        if self.cosmology != type(self).cosmology:
            cosmology(self.cosmology)  # refused by name, needed or not
        distances = Distances(self.z_lens, self.z_source, self.cosmology)
        set_(self, "lens", lens_models(self.lens, distances))
        set_(self, "image_shape", _parameters.shape("image_shape", self.image_shape, ndim=2))
        set_(self, "source_shape", source_shape("source_shape", self.source_shape))
        for name in ("pixel_scale", "source_pixel_scale"):
            value = _parameters.number(name, getattr(self, name), unit="arcsec", above=0)
            set_(self, name, value)
        if self.psf is not None:
            set_(self, "psf", self._checked(self.psf))
        s = _parameters.whole("supersampling", self.supersampling, at_least=1, at_most=16)
        set_(self, "supersampling", s)

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A near-complete Einstein ring: SIE with shear, PSF of FWHM 0.16 arcsec, 64 x 64 image.

        The source field is 1.92 arcsec along its longer side, whatever `x_shape` (ny, nx) is.
        """
        shape = source_shape("x_shape", x_shape)
        lens = (SIE(theta_E=1.2, q=0.8, phi=0.5, x0=0.04, y0=-0.03), Shear(0.03, -0.02))
        return cls(
            lens,
            source_shape=shape,
            source_pixel_scale=1.92 / max(shape[-2:]),
            psf=gaussian_psf(0.16, 0.08, 11),
        )

    @classmethod
    def remodelled(cls, part: Mapping[str, Any], model: str) -> dict[str, Any]:
        """A lens' config as another lens model: what SIS and SIE leave out is round, isothermal.

        Raises `ObservationError` on an unknown model, or one with parameters not known from it.
        """
        if model not in MODELS:
            raise ObservationError(f"no lens model {model!r}; needed one of {', '.join(MODELS)}")
        known = {"q": 1.0, "phi": 0.0, "gamma": 2.0, **part}
        wanted = fields(MODELS[model])  # type: ignore[arg-type]
        kept = {f.name: known[f.name] for f in wanted if f.name in known}
        return _lens_model({"model": model, **kept}, Distances()).config()

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.source_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.source_shape[:-2], *self.image_shape)

    def source_position(
        self, x: npt.ArrayLike, y: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """beta = theta - alpha(theta), arcsec, of the image-plane positions (x, y) in arcsec."""
        beta_x, beta_y = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
        for model in self.lens:
            ax, ay = model.deflection(x, y)
            beta_x, beta_y = beta_x - ax, beta_y - ay
        return beta_x, beta_y

    def _apply(self, x: Tensor) -> Tensor:
        sources = x.reshape(-1, self._rays.shape[1])
        rays = self._rays.times(sources).reshape(*x.shape[:-2], *self._padded_shape)
        if self.psf is None:
            return rays
        return self._valid(self._filter(rays, self._table("_spectrum", x)))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        if self.psf is not None:
            spread = y.new_zeros(*y.shape[:-2], *self._fft_shape)
            self._valid(spread)[...] = y
            ny, nx = self._padded_shape
            y = self._filter(spread, self._table("_flipped_spectrum", y))[..., :ny, :nx]
        images = y.reshape(-1, self._rays.shape[0])
        return self._rays.transpose.times(images).reshape(-1, *self.source_shape)

    def _filter(self, a: Tensor, spectrum: Tensor) -> Tensor:
        """F^-1 (spectrum . F a), `(B, *fft_shape)`, or `(B, bands, *fft_shape)`."""
        transformed = torch.fft.rfft2(a, s=self._fft_shape).mul_(spectrum)
        filtered: Tensor = torch.fft.irfft2(transformed, s=self._fft_shape)
        return filtered

    def _valid(self, a: Tensor) -> Tensor:
        """View of the pixels that the image keeps; what wraps around lies outside."""
        (my, mx), (ny, nx) = self._margin, self.image_shape
        return a[..., 2 * my : 2 * my + ny, 2 * mx : 2 * mx + nx]

    def _checked(self, given: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The PSF as an array that fits the bands; raises `ObservationError`."""
        bands = self.source_shape[:-2]
        several = bool(bands) and np.ndim(given) == 3
        psf = _parameters.array("psf", given, ndim=3 if several else 2)
        if psf.shape[:-2] not in ((), bands) or any(n % 2 == 0 for n in psf.shape[-2:]):
            raise ObservationError(
                f"psf has shape {psf.shape}; needed odd sizes (ky, kx), so that it has a central "
                "pixel, alone or for each of the source's bands"
            )
        return psf

    @property
    def _margin(self) -> tuple[int, int]:
        """Half the PSF, in pixels, on every side."""
        ky, kx = (1, 1) if self.psf is None else self.psf.shape[-2:]
        return ky // 2, kx // 2

    @property
    def _padded_shape(self) -> tuple[int, int]:
        (my, mx), (ny, nx) = self._margin, self.image_shape
        return ny + 2 * my, nx + 2 * mx

    @cached_property
    def _fft_shape(self) -> tuple[int, int]:
        # measured with MKL: multiples of 8 take half the time of the next product of small primes
        ny, nx = (8 * next_fast_len(-(-n // 8), real=True) for n in self._padded_shape)
        return ny, nx

    @cached_property
    def _rays(self) -> SparseMatrix:
        x, y = ray_positions(self._padded_shape, self.pixel_scale, self.supersampling)
        beta_x, beta_y = self.source_position(x, y)
        height, width = self.source_shape[-2:]
        return ray_matrix(
            beta_x, beta_y, self.supersampling, (height, width), self.source_pixel_scale
        )

    @cached_property
    def _flipped_spectrum(self) -> Tensor:
        """That of the PSF turned by 180 degrees about its first pixel."""
        return self._spectrum.conj().resolve_conj()

    @cached_property
    def _spectrum(self) -> Tensor:
        psf = torch.from_numpy(np.array(self.psf))
        spectrum: Tensor = torch.fft.rfft2(psf, s=self._fft_shape)
        return spectrum


def gaussian_psf(fwhm: float, pixel_scale: float, size: int) -> npt.NDArray[np.float64]:
    """Gaussian of `fwhm` arcsec sampled on size x size pixels of `pixel_scale` arcsec; sum 1.

    Raises `ObservationError` when size is even, or fwhm or pixel_scale not positive.
    """
    sigma = _parameters.number("fwhm", fwhm, unit="arcsec", above=0) / math.sqrt(8 * math.log(2))
    step = _parameters.number("pixel_scale", pixel_scale, unit="arcsec", above=0)
    if size < 1 or size % 2 == 0:
        raise ObservationError(f"PSF size is {size}; needed an odd number of pixels")
    profile = np.exp(-0.5 * ((np.arange(size) - size // 2) * step / sigma) ** 2)
    psf = np.outer(profile, profile)
    return np.asarray(psf / psf.sum())


def source_shape(name: str, value: Any) -> tuple[int, ...]:
    """`value` as (ny, nx) or (bands, ny, nx); `ObservationError` otherwise."""
    found = _parameters.shape(name, value)
    return found if len(found) == 3 else _parameters.shape(name, value, ndim=2)


def lens_models(value: Any, distances: Distances | None = None) -> tuple[LensModel, ...]:
    """Lens models from themselves, their `config()` dictionaries, or JSON text of a list of those.

    Raises `ObservationError` naming an unknown model or parameter.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ObservationError(f"lens is not valid JSON: {error}") from error
    if isinstance(value, LensModel | Mapping):
        value = (value,)
    if not isinstance(value, list | tuple) or not value:
        raise ObservationError(f"lens is {value!r}; needed at least one lens model")
    return tuple(_lens_model(v, distances or Distances()) for v in value)


def _lens_model(value: Any, distances: Distances) -> LensModel:
    if isinstance(value, LensModel):
        return value
    known = ", ".join(MODELS)
    if not isinstance(value, Mapping) or value.get("model") not in MODELS:
        name = value.get("model") if isinstance(value, Mapping) else value
        raise ObservationError(f"no lens model {name!r}; needed one of {known}")
    model, value = MODELS[value["model"]], usual(value, distances)
    try:
        return model(**{k: v for k, v in value.items() if k != "model"})
    except TypeError as error:
        message = str(error).replace(f"{model.__name__}.__init__()", model.__name__)
        raise ObservationError(message) from error
