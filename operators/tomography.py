"""Tomography: line integrals of x through an object, in a parallel or a fan beam.

    y(theta, s) = integral of x along the ray (theta, s)

Conventions. Arrays are [y, x], origin lower, (0, 0) at the grid's centre. A ray of the parallel
beam is the line x cos theta + y sin theta = s; the fan's leave a source at -D_s d and end on a flat
detector at D_d d + s e, with d = (-sin theta, cos theta) and e = (cos theta, sin theta). The
detector's elements lie at s = (i - (n-1)/2) * spacing. x is per mm and zero outside its grid.

A ray crosses every row of pixels (every column, if it is closer to the x axis) and reads x there by
linear interpolation, times its length from row to row: Joseph 1982, doi:10.1109/TMI.1982.4307572.
That is a sparse matrix, so the adjoint is exact. Radon 1917; geometry as in Kak & Slaney 1988.
Counts behind the object are the noise model `transmission`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from operators import _parameters
from operators._compiled import compiled
from operators._rays import pixel_centres
from operators._sparse import SparseMatrix
from operators.base import LinearOperator

__all__ = ["Tomography"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tomography(LinearOperator):
    """Sinogram (views, detectors) of an image `(H, W)`.

    shape: (H, W), x_shape. y_shape is (views, detectors).
    beam: "parallel" or "fan".
    views: number of angles, even over half a turn (parallel) or a whole one (fan), >= 1.
    angles: (views,) radians, where they are others.
    detectors: elements of the detector; None: as many as see the whole image.
    spacing: of the elements, mm, > 0. pixel_size: of x, mm, > 0.
    source_distance, detector_distance: D_s and D_d of a fan beam, whose rays cross the whole image
        wherever the detector stands (0: through the centre), mm; None: twice the image's
        diagonal, and once. The source must lie outside the image.
    Raises `ObservationError` on values out of range.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "line integrals at few angles, parallel or fan beam"

    noise_fraction: ClassVar[float] = 0.02
    axes: ClassVar[tuple[str, str]] = ("detector element", "view")
    data_unit: ClassVar[str | None] = "line integral"

    shape: tuple[int, int]
    beam: str = "parallel"
    views: int = 30
    angles: Array | None = None
    detectors: int | None = None
    spacing: float = 1.0
    pixel_size: float = 1.0
    source_distance: float | None = None
    detector_distance: float | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        _parameters.choice("beam", self.beam, ("parallel", "fan"))
        if self.angles is not None:
            angles = _parameters.array("angles", self.angles, ndim=1)
            set_(self, "angles", angles)
            set_(self, "views", angles.size)
        set_(self, "views", _parameters.whole("views", self.views, at_least=1, at_most=10**5))
        for name in ("spacing", "pixel_size"):
            set_(self, name, _parameters.number(name, getattr(self, name), unit="mm", above=0))
        for name, least in (("source_distance", self._diagonal / 2), ("detector_distance", 0.0)):
            value = getattr(self, name)
            if value is not None:
                set_(self, name, _parameters.number(name, value, unit="mm", above=least))
        if self.detectors is not None:
            number = _parameters.whole("detectors", self.detectors, at_least=1, at_most=10**5)
            set_(self, "detectors", number)

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """30 views of a parallel beam, detector elements as large as pixels."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.views, len(self._detector)

    def rays(self) -> tuple[Array, Array]:
        """A point on each ray, mm, and its unit direction, both (views, elements, 2): x and y."""
        cos, sin = np.cos(self._angles)[:, None], np.sin(self._angles)[:, None]
        along, across = np.stack([-sin, cos], -1), np.stack([cos, sin], -1)
        offset = self._detector[:, None] * across
        if self.beam == "parallel":
            return offset, np.broadcast_to(along, offset.shape)
        source, detector = self._distances
        start = -source * along
        way = offset + detector * along - start
        return np.broadcast_to(start, way.shape), way / np.linalg.norm(way, axis=-1, keepdims=True)

    def _apply(self, x: Tensor) -> Tensor:
        return self._matrix.times(x.flatten(1)).reshape(-1, *self.y_shape)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return self._matrix.transpose.times(y.flatten(1)).reshape(-1, *self.shape)

    @property
    def _diagonal(self) -> float:
        return self.pixel_size * math.hypot(*self.shape)

    @property
    def _distances(self) -> tuple[float, float]:
        """Of source and detector from the centre, mm."""
        source, detector = self.source_distance, self.detector_distance
        return (
            2 * self._diagonal if source is None else source,
            self._diagonal if detector is None else detector,
        )

    @cached_property
    def _angles(self) -> Array:
        if self.angles is not None:
            return self.angles
        turn = math.pi if self.beam == "parallel" else 2 * math.pi
        return np.linspace(0, turn, self.views, endpoint=False)

    @cached_property
    def _detector(self) -> Array:
        """Positions of the elements, mm."""
        wide, (source, detector) = self._diagonal, self._distances
        if self.beam == "fan":  # where the tangents from the source to the image's outer circle end
            wide *= (source + detector) / math.sqrt(source**2 - self._diagonal**2 / 4)
        return pixel_centres(self.detectors or math.ceil(wide / self.spacing) + 1, self.spacing)

    @cached_property
    def _matrix(self) -> SparseMatrix:
        points, directions = (a.reshape(-1, 2) for a in self.rays())
        rays, (height, width) = len(points), self.shape
        indptr = np.zeros(rays + 1, dtype=np.int64)
        indices = np.empty(rays * 2 * max(self.shape), dtype=np.int32)
        weights = np.empty(indices.size)
        _trace(points / self.pixel_size, directions, height, width, indptr, indices, weights)
        used = int(indptr[-1])
        lengths = self.pixel_size * weights[:used]
        return SparseMatrix(indptr, indices[:used].copy(), lengths, (rays, height * width))


@compiled
def _trace(
    points: Array, directions: Array, height: int, width: int,
    indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32], weights: Array,
) -> None:  # fmt: skip
    """CSR rows of the line integrals along rays (point, direction), in pixels about the centre."""
    end = 0
    for ray in range(points.shape[0]):
        dx, dy = directions[ray]
        steep = abs(dy) >= abs(dx)  # crosses rows rather than columns
        lines, across = (height, width) if steep else (width, height)
        slope = dx / dy if steep else dy / dx
        length = math.sqrt(1 + slope * slope)
        here, there = (
            (points[ray, 1], points[ray, 0]) if steep else (points[ray, 0], points[ray, 1])
        )
        for line in range(lines):
            at = there + slope * (line - (lines - 1) / 2 - here) + (across - 1) / 2
            first = math.floor(at)
            for tap in (first, first + 1):
                share = 1 - abs(at - tap)
                if 0 <= tap < across and share > 0:
                    indices[end] = line * width + tap if steep else tap * width + line
                    weights[end] = length * share
                    end += 1
        indptr[ray + 1] = end
