"""A telescope's image on its way to an observation: cut out, without background, masked, scaled.

    data = flux_scale (image - background),     sigma = flux_scale noise

Pixels of the image are counted from 0 and written x, y; arrays are [y, x], origin lower.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from invprob.fits import read_image
from invprob.observation import Observation
from operators.errors import ObservationError

if TYPE_CHECKING:
    from operators.base import ForwardOperator
    from operators.noise import NoiseModel

__all__ = [
    "Stamp", "circles", "excluded", "in_sigma", "observed", "orientation", "pixel_scale", "sky",
]  # fmt: skip

log = logging.getLogger("invprob")

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FRAME = 4  # width, pixels, of the frame where sky is expected
TABLES = ("CPDIS", "DP1", "DP2", "D2IM")  # begin cards of distortions kept as tables
FRAMES = {  # type of the longitude of a celestial system that is no equatorial one: its frame
    "GLON": "galactic", "SLON": "supergalactic", "ELON": "barycentricmeanecliptic",
}  # fmt: skip
SQUARE = 0.01  # sides of a pixel may differ by this fraction


@dataclass(frozen=True, eq=False)
class Stamp:
    """A rectangle of an image file: its pixels, the file's header, and where it was cut.

    data: (ny, nx). corner: x, y of its first pixel in the file. full: (ny, nx) of the file.
    """

    data: Array
    header: str
    corner: tuple[int, int]
    full: tuple[int, int]

    @classmethod
    def read(
        cls,
        path: str | Path,
        centre: Sequence[float] | None = None,
        shape: Sequence[int] | None = None,
    ) -> Self:
        """Return the `shape` pixels (ny, nx) or (n,) about `centre` (x, y), or the whole image.

        The pixel nearest to the centre becomes number n // 2 of the n along each side. Raises
        `ObservationError` where the stamp is not wholly inside the image.
        """
        image, header = read_image(path)
        if image.ndim != 2:
            raise ObservationError(f"{path} has shape {image.shape}; needed a 2-D image")
        full = (image.shape[0], image.shape[1])
        ny, nx = (shape[0], shape[-1]) if shape else full
        x, y = centre or ((full[1] - 1) / 2, (full[0] - 1) / 2)
        corner = (math.floor(x + 0.5) - nx // 2, math.floor(y + 0.5) - ny // 2)
        if not (0 <= corner[0] <= full[1] - nx and 0 <= corner[1] <= full[0] - ny):
            raise ObservationError(
                f"{path} has {full[1]} x {full[0]} pixels; {nx} x {ny} of them about "
                f"({x:g}, {y:g}) are not inside: take a smaller --size, or another --centre"
            )
        cut = image[corner[1] : corner[1] + ny, corner[0] : corner[0] + nx]
        return cls(np.array(cut, np.float64), header, corner, full)

    def same(self, path: str | Path) -> Array:
        """Return the same rectangle of another image, of the whole image's or the stamp's shape.

        Raises `ObservationError` on any other shape.
        """
        image, _ = read_image(path, has_unit=False)
        if image.shape == self.data.shape:
            return np.array(image, np.float64)
        if image.shape != self.full:
            raise ObservationError(
                f"{path} has shape {image.shape} but the image {self.full}: give the map of that "
                "image, on the same pixels"
            )
        (x, y), (ny, nx) = self.corner, self.data.shape
        return np.array(image[y : y + ny, x : x + nx], np.float64)

    def mask(self, path: str | Path) -> Mask:
        """Return the same rectangle of an image of 0 and 1; raises `ObservationError` on others."""
        image = self.same(path)
        if not np.isin(image, (0, 1)).all():
            raise ObservationError(
                f"{path} holds values other than 0 and 1; a mask needs these, and 1 is excluded"
            )
        return image.astype(bool)

    def wcs_header(self, done: str) -> str:
        """Return the header with the stamp's sides and reference pixel, and what was done.

        done: a line for its HISTORY. Empty where the file had no header.
        """
        if not self.header:
            return ""
        from astropy.io import fits

        header = fits.Header.fromstring(self.header, sep="\n")
        for axis, offset in enumerate(self.corner, 1):
            if f"NAXIS{axis}" in header:
                header[f"NAXIS{axis}"] = self.data.shape[-axis]
            if f"CRPIX{axis}" in header:
                header[f"CRPIX{axis}"] -= offset
        header.add_history(done)
        text: str = header.tostring(sep="\n", endcard=False, padding=False)
        return text

    @property
    def unit(self) -> str:
        """BUNIT of the header, empty where it has none."""
        found = [line for line in self.header.split("\n") if line.startswith("BUNIT ")]
        return found[0].partition("'")[2].partition("'")[0].strip() if found else ""


def excluded(stamp: Stamp, noise: float | Array | NoiseModel, mask: Mask) -> Mask:
    """Return the mask and the pixels that are not finite or have no positive noise; logged."""
    unusable = ~np.isfinite(stamp.data)
    if isinstance(noise, np.ndarray):
        unusable |= ~(np.isfinite(noise) & (noise > 0))
    if count := int((unusable & ~mask).sum()):
        log.info("%d pixels have no data, or no positive noise: masked", count)
    return mask | unusable


def observed(
    stamp: Stamp,
    operator: ForwardOperator,
    noise: float | Array | NoiseModel,
    mask: Mask,
    background: float = 0.0,
    flux_scale: float = 1.0,
    prior: str = "",
) -> Observation:
    """Return the observation that a stamp is; its unit is the image's over `flux_scale`.

    noise: standard deviation in the image's unit, a number or a map (ny, nx), or a noise model of
        the data as they are, which takes no background and no scale. mask: (ny, nx), True =
        excluded. Raises `ObservationError` on what an `Observation` refuses.
    """
    if not flux_scale > 0:
        raise ObservationError(f"flux_scale is {flux_scale:g}; needed a positive number")
    if isinstance(noise, float | np.ndarray):
        given: dict[str, Any] = {"noise_sigma": noise * flux_scale}
    elif (background, flux_scale) == (0.0, 1.0):
        given = {"noise_model": noise}
    else:
        raise ObservationError(
            "noise that is not Gaussian is that of the data as they are: leave --background and "
            "--flux-scale out; its parameters state them (poisson: background and exposure)"
        )
    unit = stamp.unit
    if flux_scale != 1:
        unit = f"{1 / flux_scale:.4g} {unit or 'units of the file'}"
    done = f"invprob: {background:.6g} subtracted, then times {flux_scale:.6g}"
    return Observation(
        operator, (stamp.data - background) * flux_scale, mask=mask if mask.any() else None,
        prior=prior, unit=unit, wcs_header=stamp.wcs_header(done), flux_scale=flux_scale, **given,
    )  # fmt: skip


def pixel_scale(header: str) -> float | None:
    """Return the side of a pixel in arcsec by the celestial WCS of a header, None without one.

    Raises `ObservationError` where pixels are not squares: operators take one scale.
    """
    from astropy.wcs.utils import proj_plane_pixel_scales

    wcs = _celestial(header)
    if wcs is None:
        return None
    across, up = (float(s) * 3600 for s in proj_plane_pixel_scales(wcs))
    if abs(across / up - 1) > SQUARE:
        raise ObservationError(
            f"pixels measure {across:.5g} x {up:.5g} arcsec by the WCS; needed squares: resample "
            "the image"
        )
    return float(np.sqrt(across * up))


def orientation(stamp: Stamp) -> Array | None:
    """Return the CD matrix (2, 2) at a stamp's middle: pixels (x, y) to degrees (east, north).

    By the celestial WCS of its header, None without one. East and north are the equator's, that of
    the header where it has one, else of ICRS; others are logged.
    """
    wcs = _celestial(stamp.header)
    if wcs is None:
        return None
    (x, y), (ny, nx) = stamp.corner, stamp.data.shape
    middle = (x + (nx - 1) / 2, y + (ny - 1) / 2)
    around = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])
    ends = wcs.wcs_pix2world(middle + around, 0)
    longitude, latitude = _equatorial(ends[:, wcs.wcs.lng], ends[:, wcs.wcs.lat], wcs.wcs.lngtyp)
    east, north = ((a[::2] - a[1::2]) for a in (longitude, latitude))
    east = (east + 180) % 360 - 180  # right ascension 0 is 360
    return np.array([east * np.cos(np.radians(latitude.mean())), north])


def _equatorial(longitude: Array, latitude: Array, kind: str) -> tuple[Array, Array]:
    """Return right ascension and declination of positions, all in degrees."""
    if kind in FRAMES:
        from astropy.coordinates import SkyCoord

        there = SkyCoord(longitude, latitude, unit="deg", frame=FRAMES[kind]).icrs
        return np.asarray(there.ra.deg), np.asarray(there.dec.deg)
    if kind != "RA":
        log.warning("the WCS is in %s, no system of the sky known here: north is its own", kind)
    return longitude, latitude


def _celestial(header: str) -> Any:
    """Return the celestial WCS of a header, None without one; its linear part and polynomials.

    Tables of distortion, as in images of Hubble, lie in other HDUs and move points by a pixel.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fixes of odd cards are common
            cards = fits.Header.fromstring(header, sep="\n").cards
            wcs: Any = WCS(fits.Header([c for c in cards if not c.keyword.startswith(TABLES)]))
            return wcs.celestial if wcs.has_celestial else None
    except (ValueError, KeyError, TypeError) as error:
        raise ObservationError(
            f"the header's WCS cannot be read ({error}): give the side of a pixel in arcsec, --set "
            "pixel_scale=0.05, and cd beside any position_angle"
        ) from error


def circles(shape: tuple[int, ...], step: float | None, given: Sequence[Sequence[float]]) -> Mask:
    """Return True where a pixel's centre lies in one of the circles (x, y, radius).

    Positions are those of figures: arcsec about the middle with pixels of `step` arcsec, else
    (step None) pixels counted from 0.
    """
    rows, columns = (np.arange(n, dtype=float) for n in shape)
    if step is not None:
        rows, columns = ((i - (len(i) - 1) / 2) * step for i in (rows, columns))
    inside = np.zeros(shape, bool)
    for x, y, radius in given:
        inside |= np.hypot(rows[:, None] - y, columns - x) <= radius
    return inside


def sky(image: Array, mask: Mask | None = None) -> tuple[float, float]:
    """Return level and scatter of the sky: of the kept pixels in the outermost `FRAME`.

    The median, and 1.4826 times the median deviation from it; NaN where no pixel is kept.
    """
    around = np.isfinite(image)
    around[FRAME:-FRAME, FRAME:-FRAME] = False
    values = image[around if mask is None else around & ~mask]
    if not len(values):
        return np.nan, np.nan
    level = float(np.median(values))
    return level, 1.4826 * float(np.median(np.abs(values - level)))


def in_sigma(observation: Observation) -> tuple[float, float, float]:
    """Return the peak of a Gaussian observation, and level and scatter of its sky, over sigma."""
    assert observation.noise_sigma is not None
    mask = observation.noise.mask
    data = observation.data if mask is None else np.where(mask.numpy(), np.nan, observation.data)
    with np.errstate(divide="ignore", invalid="ignore"):  # zero noise where masked
        ratio = data / observation.noise_sigma
    return float(np.nanmax(ratio)), *sky(ratio)
