"""Blur: y = k * x, a true convolution (not a correlation), for images [y, x].

    y[i] = sum_j k[j] x[i - (j - c)],     c the kernel's central pixel, both axes alike.

Computed as F^-1 (F k . F x); the adjoint has conj(F k) in its place. For periodic borders and
uniform noise the Fourier basis diagonalises everything:

    (r2 A A^T + sigma^2)^-1 v = F^-1 [ F v / (r2 |F k|^2 + sigma^2) ],

and with the Hartley transform H = Re F - Im F, its own inverse and real (Bracewell 1983,
doi:10.1364/JOSA.73.001832), A = (P H) |F k| H, P = F^-1 (F k / |F k|) F, is its SVD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from operators import _parameters
from operators.base import SVD, LinearOperator
from operators.errors import ObservationError, UnknownName
from operators.noise import Gaussian

__all__ = ["Blur", "gaussian_kernel", "motion_kernel"]


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    """Convolution of images `(H, W)` with a Gaussian, a motion streak or a given kernel.

    shape: (H, W), x_shape and y_shape.
    kind: "gaussian", "motion" or "array".
    fwhm: full width at half maximum of the Gaussian, pixels, > 0.
    length, angle: of the motion streak; pixels >= 1, and radians from +x counter-clockwise.
    kernel: odd-sized 2-D array, used as it is (its sum is kept); setting it makes the kind
        "array". The Gaussian and the streak sum to 1.
    border: "periodic", or "zero" (the image is dark outside).
    Raises `ObservationError` on values out of range and on kernels of even size.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "convolution with a Gaussian, motion or given kernel"

    shape: tuple[int, int]
    kind: str = "gaussian"
    fwhm: float = 3.0
    length: float = 9.0
    angle: float = 0.0
    kernel: npt.NDArray[np.float64] | None = None
    border: str = "periodic"

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        if self.kernel is not None:
            set_(self, "kernel", _parameters.array("kernel", self.kernel, ndim=2, odd=True))
            set_(self, "kind", "array")
        elif _parameters.choice("kind", self.kind, ("gaussian", "motion", "array")) == "array":
            raise ObservationError("kind 'array' needs kernel, an odd-sized 2-D array")
        _parameters.choice("border", self.border, ("periodic", "zero"))
        set_(self, "fwhm", _parameters.number("fwhm", self.fwhm, above=0))
        length = _parameters.number("length", self.length, at_least=1, at_most=1e4)
        set_(self, "length", length)
        set_(self, "angle", _parameters.number("angle", self.angle, unit="rad"))

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A Gaussian of FWHM 3 pixels, periodic."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def has_svd(self) -> bool:  # type: ignore[override]  # only periodic borders have one
        return self.border == "periodic"

    def _apply(self, x: Tensor) -> Tensor:
        return self._filter(x, self._table("_spectrum", x))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._table("_spectrum", y).conj())

    def _filter(self, a: Tensor, spectrum: Tensor) -> Tensor:
        """F^-1 (spectrum . F a), cropped to the image; zero-padded where the border is zero."""
        height, width = self.shape
        transformed = torch.fft.rfft2(a, s=self._fft_shape) * spectrum
        filtered: Tensor = torch.fft.irfft2(transformed, s=self._fft_shape)
        return filtered[..., :height, :width]

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor | None:
        if self.border != "periodic" or noise.uniform is None:
            return None
        power = self._table("_spectrum", v).abs() ** 2
        return self._filter(v, 1 / (r2 * power + noise.uniform**2))

    def svd(self) -> SVD:
        """Hartley basis, K = H W; only for periodic borders (`UnknownName` otherwise)."""
        if not self.has_svd:
            raise UnknownName("Blur with zero borders has no cheap SVD; use border='periodic'")
        full = torch.fft.fft2(torch.from_numpy(self._placed_kernel))
        values = full.abs()
        phase = torch.where(values > 0, full / values, 1.0)[:, : self.shape[1] // 2 + 1]

        def hartley(c: Tensor) -> Tensor:
            f = torch.fft.fft2(c.reshape(-1, *self.shape), norm="ortho")
            return torch.sub(f.real, f.imag)

        def turn(a: Tensor, factor: Tensor) -> Tensor:
            return self._filter(a, factor.to(dtype=a.dtype.to_complex(), device=a.device))

        return SVD(
            values=values.flatten(),
            u=lambda c: turn(hartley(c), phase),
            ut=lambda y: hartley(turn(y, phase.conj())).flatten(1),
            v=hartley,
            vt=lambda x: hartley(x).flatten(1),
        )

    @cached_property
    def _kernel(self) -> npt.NDArray[np.float64]:
        if self.kernel is not None:
            return self.kernel
        if self.kind == "motion":
            return motion_kernel(self.length, self.angle)
        return gaussian_kernel(self.fwhm)

    @cached_property
    def _fft_shape(self) -> tuple[int, int]:
        if self.border == "periodic":
            return self.shape
        # half a kernel on either side keeps wrapped light out of the image, in A and in A^T
        height, width = (
            next_fast_len(n + k // 2, real=True)
            for n, k in zip(self.shape, self._kernel.shape, strict=True)
        )
        return height, width

    @cached_property
    def _placed_kernel(self) -> npt.NDArray[np.float64]:
        """The kernel with its centre at [0, 0], wrapped around (and folded where it is larger)."""
        placed = np.zeros(self._fft_shape)
        rows, columns = (
            (np.arange(k) - k // 2) % n
            for k, n in zip(self._kernel.shape, self._fft_shape, strict=True)
        )
        np.add.at(placed, (rows[:, None], columns[None, :]), self._kernel)
        return placed

    @cached_property
    def _spectrum(self) -> Tensor:
        spectrum: Tensor = torch.fft.rfft2(torch.from_numpy(self._placed_kernel))
        return spectrum


def gaussian_kernel(fwhm: float, extent: float = 4.0) -> npt.NDArray[np.float64]:
    """Gaussian of `fwhm` pixels, odd-sized square out to `extent` sigmas, with sum 1."""
    sigma = fwhm / math.sqrt(8 * math.log(2))
    half = max(1, math.ceil(extent * sigma))
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return np.asarray(kernel / kernel.sum())


def motion_kernel(
    length: float, angle: float, samples_per_pixel: int = 16
) -> npt.NDArray[np.float64]:
    """A straight streak of `length` pixels at `angle` (radians from +x to +y), with sum 1.

    Points along it, `samples_per_pixel` to the pixel, are shared bilinearly among neighbours, so
    the kernel is smooth in `angle`.
    """
    half = max(1, math.ceil((length - 1) / 2))
    along = np.linspace(-0.5, 0.5, max(2, math.ceil(length * samples_per_pixel))) * (length - 1)
    x, y = along * math.cos(angle) + half, along * math.sin(angle) + half
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    u, w = y - i, x - j
    kernel = np.zeros((2 * half + 2, 2 * half + 2))
    for di, row_weight in ((0, 1 - u), (1, u)):
        for dj, column_weight in ((0, 1 - w), (1, w)):
            np.add.at(kernel, (i + di, j + dj), row_weight * column_weight)
    kernel = kernel[:-1, :-1]  # the last row and column only ever receive zero weight
    return np.asarray(kernel / kernel.sum())
