"""Magnetic resonance imaging with several coils: y_j = M F (S_j x).

F is the unitary Fourier transform with x and the zero frequency about the centre, as scanners give
it (pixel (H // 2, W // 2) is the origin of both), S_j the complex
sensitivity of coil j, with sum_j |S_j|^2 = 1 everywhere, M the k-space samples taken (Pruessmann et
al. 1999, SENSE, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S). Complex numbers
are pairs (real, imaginary) on a trailing axis of 2; Gaussian noise of standard deviation sigma on
each is circular complex noise of variance 2 sigma^2.

Coils are simulated as Gaussian profiles about points on a circle around the image, their phases
rising away from them. A sample that was not taken is zero and carries no information: `data_mask`
is True there. For a real x the adjoint is the real part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators import _parameters
from operators.base import LinearOperator
from operators.errors import ObservationError

__all__ = ["MRI", "cartesian_lines", "coil_maps"]

PHASE_TURNS = 0.25  # of a simulated coil's phase across the image, in turns


@dataclass(frozen=True, eq=False)
class MRI(LinearOperator):
    """k-space (coils, H, W, 2) of an image `(H, W)`, or of a complex one `(H, W, 2)`.

    shape: x_shape.
    coils: number of simulated coils, >= 1; one coil sees everything alike.
    acceleration: rows of k-space over rows sampled, >= 1.
    centre_fraction: of all rows, sampled about the zero frequency, 0 to 1.
    seed: >= 0, fixes which of the others are sampled.
    sampled: boolean (H, W), True where k-space is sampled, instead of those rows.
    sensitivities: (coils, H, W, 2) instead of the simulated ones.
    Raises `ObservationError` on values out of range.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "multi-coil k-space of a real or complex image"

    noise_fraction: ClassVar[float] = 0.003  # the zero frequency is far above all others
    axes: ClassVar[tuple[str, str]] = ("kx", "ky")
    data_unit: ClassVar[str | None] = "k-space"

    shape: tuple[int, ...]
    coils: int = 4
    acceleration: float = 4.0
    centre_fraction: float = 0.08
    seed: int = 0
    sampled: npt.NDArray[np.bool_] | None = None
    sensitivities: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        shape = _parameters.shape("shape", self.shape)
        if len(shape) != 2 and not (len(shape) == 3 and shape[2] == 2):
            raise ObservationError(f"shape is {shape}; needed (H, W), or (H, W, 2) for complex x")
        set_(self, "shape", shape)
        if self.sensitivities is not None:
            maps = _parameters.array("sensitivities", self.sensitivities, ndim=4)
            if maps.shape[1:] != (*shape[:2], 2):
                raise ObservationError(
                    f"sensitivities have shape {maps.shape}; needed (coils, {shape[0]}, "
                    f"{shape[1]}, 2), real and imaginary parts last"
                )
            set_(self, "sensitivities", maps)
            set_(self, "coils", len(maps))
        set_(self, "coils", _parameters.whole("coils", self.coils, at_least=1, at_most=256))
        acceleration = _parameters.number("acceleration", self.acceleration, at_least=1)
        set_(self, "acceleration", acceleration)
        fraction = _parameters.number(
            "centre_fraction", self.centre_fraction, at_least=0, at_most=1
        )
        set_(self, "centre_fraction", fraction)
        set_(self, "seed", _parameters.whole("seed", self.seed, at_least=0))
        if self.sampled is not None:
            set_(self, "sampled", _parameters.boolean("sampled", self.sampled, shape[:2]))
        if not self._kept.any():
            raise ObservationError("no sample of k-space is taken; take at least one")

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """Four coils, a quarter of the rows."""
        return cls(x_shape)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.coils, *self.shape[:2], 2)

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """k-space of the first coil, its real part."""
        return y[0, :, :, 0]

    @property
    def data_mask(self) -> Tensor:
        """Boolean (coils, H, W, 2), True where k-space is not sampled."""
        return torch.from_numpy(~self._kept)[None, :, :, None].expand(self.y_shape).clone()

    def _apply(self, x: Tensor) -> Tensor:
        image = torch.view_as_complex(x.contiguous()) if len(self.shape) == 3 else x
        seen = torch.fft.ifftshift(self._table("_maps", x) * image[:, None], dim=(-2, -1))
        seen = torch.fft.fftshift(torch.fft.fft2(seen, norm="ortho"), dim=(-2, -1))
        return torch.view_as_real(seen * self._table("_mask", x))

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        taken = torch.view_as_complex(y.contiguous()) * self._table("_mask", y)
        images = torch.fft.ifft2(torch.fft.ifftshift(taken, dim=(-2, -1)), norm="ortho")
        images = torch.fft.fftshift(images, dim=(-2, -1))
        image = (self._table("_maps", y).conj() * images).sum(1)
        return torch.view_as_real(image) if len(self.shape) == 3 else image.real

    @cached_property
    def _kept(self) -> npt.NDArray[np.bool_]:
        if self.sampled is not None:
            return np.array(self.sampled)
        height, width = self.shape[:2]
        rows = cartesian_lines(height, self.acceleration, self.centre_fraction, self.seed)
        return np.repeat(rows[:, None], width, 1)

    @cached_property
    def _mask(self) -> Tensor:
        return torch.from_numpy(self._kept.astype(np.float64))

    @cached_property
    def _maps(self) -> Tensor:
        if self.sensitivities is None:
            return torch.from_numpy(coil_maps(self.coils, (self.shape[0], self.shape[1])))
        return torch.view_as_complex(torch.from_numpy(np.array(self.sensitivities)))


def cartesian_lines(
    rows: int, acceleration: float, centre_fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Boolean (rows,): round(rows / acceleration) of them, the centre's first, the rest at random.

    The centre is row rows // 2; more than asked for are taken where its share alone is more.
    """
    kept = np.zeros(rows, dtype=bool)
    middle = max(1, round(centre_fraction * rows))
    start = rows // 2 - middle // 2
    kept[start : start + middle] = True
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~kept))
    kept[others[: max(0, round(rows / acceleration) - middle)]] = True
    return kept


def coil_maps(coils: int, shape: tuple[int, int]) -> npt.NDArray[np.complex128]:
    """Simulated sensitivities (coils, H, W), sum of |S|^2 over the coils 1 at every pixel.

    Gaussians of half the image's width about points on its inscribed circle.
    """
    y, x = (np.linspace(-1, 1, n, endpoint=False) + 1 / n for n in shape)
    angles = 2 * math.pi * np.arange(coils) / coils
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    squared = (x - cos) ** 2 + (y[:, None] - sin) ** 2
    phase = math.pi * PHASE_TURNS * (x * cos + y[:, None] * sin)
    maps = np.exp(-squared / 2) * np.exp(1j * phase)
    return np.asarray(maps / np.sqrt((np.abs(maps) ** 2).sum(0)))
