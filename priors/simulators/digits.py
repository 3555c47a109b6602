"""Digits 0 to 9 as ink on paper: glyphs of open fonts, bent and thickened at random.

A glyph is kept as its signed distance d to the outline, in units of its height. With r mapped to
the glyph's frame by a random affine map and a smooth random displacement,

    x(r) = 1 / (1 + exp(-(d(r) + w) / s)),   w the weight added to the stroke, s its soft edge

The displacement is that of Simard et al. (2003, doi:10.1109/ICDAR.2003.1227801), which made MNIST's
training set larger. The fonts (DejaVu, STIX, Computer Modern) are those that matplotlib carries.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.special import expit

summary = "digits 0 to 9: glyphs of open fonts, bent and thickened"
unit = "ink, 0 to 1"
turns = False  # a turned 6 is a 9

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
GLYPH = 96  # side of a stored glyph, px; its digit is 64 px high
HEIGHT = 64


def draw(rng: np.random.Generator, size: int = 32) -> NDArray[np.float32]:
    """Return one digit (size, size), ink between 0 and 1."""
    outlines = glyphs()
    distance = outlines[rng.integers(len(outlines))]
    pixel = 1 / (size * rng.uniform(0.55, 0.75))  # of the image, in heights of the digit
    axis = (np.arange(size) - (size - 1) / 2) * pixel
    x, y = np.meshgrid(*(axis + shift for shift in rng.normal(0, 0.04, 2)))
    angle, slant = rng.normal(0, 0.14), rng.normal(0, 0.18)
    stretch = math.exp(rng.normal(0, 0.12))
    c, s = math.cos(angle), math.sin(angle)
    x, y = (c * x + s * y) / stretch, -s * x + c * y
    x = x + slant * y
    width = size * rng.uniform(0.1, 0.25)  # of the displacement's smoothing, px
    bend = rng.uniform(0, 0.06)
    for component in (x, y):
        field = gaussian_filter(rng.normal(size=(size, size)), width)
        component += bend * field / field.std()
    where = [(GLYPH - 1) / 2 + HEIGHT * component for component in (y, x)]
    found = map_coordinates(distance, where, order=1, mode="nearest")
    weight, edge = rng.uniform(-0.015, 0.045), pixel * rng.uniform(0.2, 0.4)
    return np.asarray(expit((found + weight) / edge), np.float32)


@lru_cache(maxsize=1)
def glyphs() -> NDArray[np.float64]:
    """Return the signed distances (fonts x 10, GLYPH, GLYPH), > 0 inside, in heights of a digit."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for name in FONTS:
        font = FT2Font(str(folder / f"{name}.ttf"))
        font.set_size(2 * HEIGHT, 72)
        for digit in "0123456789":
            font.set_text(digit, 0.0)
            font.draw_glyphs_to_bitmap(antialiased=True)
            found.append(_distance(np.asarray(font.get_image()) > 127))
    return np.stack(found)


def _distance(ink: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the signed distance of a glyph's bitmap, cut to its ink, on the common frame."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][::-1]  # origin lower
    height = len(ink)
    side = math.ceil(height * GLYPH / HEIGHT)
    pad = [((side - n) // 2, side - n - (side - n) // 2) for n in ink.shape]
    ink = np.pad(ink, pad)
    signed = distance_transform_edt(ink) - distance_transform_edt(~ink)
    axis = np.linspace(0, side - 1, GLYPH)
    fine = map_coordinates(signed, np.meshgrid(axis, axis, indexing="ij"), order=1)
    return np.asarray(fine / height)
