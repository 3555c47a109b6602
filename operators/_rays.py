"""Ray shooting as a sparse matrix: image pixel = mean over its sub-rays of the source there.

A sub-ray that arrives at beta reads the source by bilinear interpolation between the four nearest
pixel centres; the source is zero beyond its grid, so it fades to nothing one pixel past its
outermost centres. Averaging the S x S sub-rays of a pixel into one row merges their shared taps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from operators._compiled import compiled
from operators._sparse import SparseMatrix

__all__ = ["pixel_centres", "ray_matrix", "ray_positions"]

Array = npt.NDArray[np.float64]


def pixel_centres(n: int, pixel_scale: float) -> Array:
    """Coordinates (i - (n-1)/2) * pixel_scale, arcsec, of n pixel centres, float64."""
    return np.asarray((np.arange(n) - (n - 1) / 2) * pixel_scale, dtype=np.float64)


def ray_positions(
    shape: tuple[int, int], pixel_scale: float, supersampling: int
) -> tuple[Array, Array]:
    """x and y, arcsec, `(ny * S, nx * S)`, of the sub-rays of an image (ny, nx) centred at (0,0).

    Sub-rays are the centres of S x S equal parts of each pixel.
    """
    y, x = (pixel_centres(n * supersampling, pixel_scale / supersampling) for n in shape)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x, grid_y


def ray_matrix(
    beta_x: Array,
    beta_y: Array,
    supersampling: int,
    source_shape: tuple[int, int],
    source_pixel_scale: float,
) -> SparseMatrix:
    """The matrix `(image pixels, source pixels)` for sub-rays arriving at beta `(ny*S, nx*S)`."""
    ny, nx = source_shape
    column = beta_x / source_pixel_scale + (nx - 1) / 2
    row = beta_y / source_pixel_scale + (ny - 1) / 2
    pixels = beta_x.size // supersampling**2
    indptr = np.zeros(pixels + 1, dtype=np.int64)
    indices = np.empty(4 * beta_x.size, dtype=np.int32)
    weights = np.empty(4 * beta_x.size)
    _fill(row, column, supersampling, ny, nx, indptr, indices, weights)
    used = int(indptr[-1])
    return SparseMatrix(indptr, indices[:used].copy(), weights[:used].copy(), (pixels, ny * nx))


@compiled
def _fill(
    row: Array, column: Array, supersampling: int, ny: int, nx: int,
    indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32], weights: Array,
) -> None:  # fmt: skip
    """CSR rows of the mean over each S x S block of sub-rays, at fractional source indices."""
    width = row.shape[1] // supersampling
    share = 1.0 / supersampling**2
    end = 0
    for pixel in range(indptr.size - 1):
        start = end
        top, left = (pixel // width) * supersampling, (pixel % width) * supersampling
        for i in range(top, top + supersampling):
            for j in range(left, left + supersampling):
                v, u = row[i, j], column[i, j]
                if not (-1.0 < v < ny and -1.0 < u < nx):
                    continue
                v0, u0 = int(np.floor(v)), int(np.floor(u))
                for dv in range(2):
                    for du in range(2):
                        vi, ui = v0 + dv, u0 + du
                        if vi < 0 or vi >= ny or ui < 0 or ui >= nx:
                            continue
                        weight = share * (1.0 - abs(v - vi)) * (1.0 - abs(u - ui))
                        tap = vi * nx + ui
                        k = start
                        while k < end and indices[k] != tap:
                            k += 1
                        if k == end:
                            indices[k] = tap
                            weights[k] = 0.0
                            end += 1
                        weights[k] += weight
        indptr[pixel + 1] = end
