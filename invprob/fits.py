"""Images from files: FITS (`a.fits`, `a.fits[2]` for HDU 2, `a.fits[2,7]` for plane 7) and .npy.

What a FITS file leaves open is logged as an assumption: which HDU was taken, and a missing unit.
BSCALE and BZERO are applied, BLANK becomes NaN (FITS standard 4.0, section 4.4.2.5).
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invprob.obs_file import MAX_BYTES, existing_file
from invprob.observation import real_array
from operators.errors import ObservationError

__all__ = ["read_fits_image", "read_image", "read_psf"]

log = logging.getLogger("invprob")


def read_image(path: str | Path, has_unit: bool = True) -> tuple[NDArray[Any], str]:
    """Return an array and its FITS header, "" for .npy (any dimensions, never a pickle).

    has_unit: whether FITS pixels have a unit, so that its absence is worth a warning.
    """
    if Path(path).suffix != ".npy":
        return read_fits_image(path, has_unit=has_unit)
    file = existing_file(path)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ObservationError(f"{path}: not a plain .npy array of numbers ({error})") from error
    _check_size(path, array.shape, array.dtype.itemsize)
    return real_array(str(path), array), ""


def read_fits_image(
    path: str | Path, ndim: int = 2, has_unit: bool = True
) -> tuple[NDArray[np.float64], str]:
    """Return an image of `ndim` dimensions and its header, one card a line.

    The first HDU that holds one is taken unless `path[HDU]` or `path[HDU,plane]` picks another;
    axes of length 1 do not count. Raises `ObservationError` when there is none.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    name, hdu, plane = _split(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # odd header cards are common
            warnings.filterwarnings("error", ".*truncated", AstropyWarning)
            # unsigned integers would be read as such, without their BLANK
            with fits.open(existing_file(name), uint=False) as hdus:
                index = _choose(hdus, name, ndim, hdu, plane)
                header, shape = hdus[index].header, hdus[index].shape
                text = header.tostring(sep="\n", endcard=False, padding=False)
                _check_size(path, shape, 8)
                data = np.asarray(hdus[index].data)
    except (OSError, TypeError, ValueError, KeyError, AstropyWarning) as error:
        raise ObservationError(f"{name}: not a readable FITS file ({error})") from error
    if plane is not None:
        cube = data if data.ndim == ndim + 1 else data.reshape([n for n in shape if n != 1])
        if cube.ndim != ndim + 1 or plane >= len(cube):
            raise ObservationError(f"{name}[{index}] has shape {shape}; there is no plane {plane}")
        data = cube[plane]
    if has_unit and not header.get("BUNIT"):
        log.warning("%s[%d] has no BUNIT: its unit is unknown", name, index)
    image = real_array(str(path), data).astype(np.float64)
    if image.ndim > ndim:
        image = image.reshape([n for n in image.shape if n != 1])
    return image, text


def read_psf(path: str | Path, side: int) -> NDArray[np.float64]:
    """Return the central odd square of a PSF image, at most half of `side`; its sum is kept.

    Kept means not normalised: a measured PSF does not sum to 1, and that is flux.
    """
    image = np.asarray(read_image(path, has_unit=False)[0], float)
    if image.ndim != 2 or not np.isfinite(image).all():
        raise ObservationError(f"{path} holds shape {image.shape}; needed a finite 2-D image")
    half = (min(*image.shape, side // 2) - 1) // 2
    row, column = (n // 2 for n in image.shape)
    cut = image[row - half : row + half + 1, column - half : column + half + 1]
    if not cut.sum() > 0:
        raise ObservationError(f"{path} sums to {cut.sum():.3g}; a PSF needs a positive sum")
    own, kept = ("x".join(map(str, a.shape)) for a in (image, cut))
    log.info(
        "psf: %s px%s, sum %.4g of %.4g, kept as it is",
        own, "" if own == kept else f" cut to {kept}", cut.sum(), image.sum(),
    )  # fmt: skip
    peak = tuple(int(i) for i in np.unravel_index(image.argmax(), image.shape))
    if peak != (row, column):
        log.warning("the psf peaks at %s, not at its centre %s", peak, (row, column))
    return cut


def _choose(hdus: Any, name: str, ndim: int, hdu: int | None, plane: int | None) -> int:
    """Return the index of the HDU to read, given the one asked for, if any."""
    shapes = {i: tuple(h.shape) for i, h in enumerate(hdus) if h.is_image and h.shape}
    wanted = ndim if plane is None else ndim + 1
    fitting = [
        i
        for i, s in shapes.items()
        if len(s) == wanted or (len(s) > wanted and sum(n != 1 for n in s) == wanted)
    ]
    if hdu is not None and hdu in fitting:
        return hdu
    if hdu is not None or not fitting:
        if not shapes:
            raise ObservationError(f"{name} holds no images, only tables or headers")
        found = ", ".join(f"[{i}] {s}" for i, s in shapes.items())
        raise ObservationError(
            f"{name} has no {wanted}-D image{'' if hdu is None else f' in HDU {hdu}'}; it has: "
            f"{found}. Pick one with {name}[HDU], or a plane of a cube with {name}[HDU,plane]"
        )
    if len(fitting) > 1:
        log.warning("%s: HDU %d taken of %s; pick with %s[HDU]", name, fitting[0], fitting, name)
    return fitting[0]


def _split(path: str) -> tuple[str, int | None, int | None]:
    match = None if Path(path).exists() else re.fullmatch(r"(.+)\[(\d+)(?:,(\d+))?\]", path)
    if match is None:
        return path, None, None
    return match[1], int(match[2]), None if match[3] is None else int(match[3])


def _check_size(path: str | Path, shape: tuple[int, ...], itemsize: int) -> None:
    if math.prod(shape) * itemsize > MAX_BYTES:
        raise ObservationError(
            f"{path} declares an array of shape {shape}; at most {MAX_BYTES / 2**30:.3g} GiB are "
            "read: cut it out first"
        )
