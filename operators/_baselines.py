"""Radio telescopes on a turning Earth: which pairs see a source, and their uv coordinates.

For a source at declination d whose hour angle at Greenwich is H, and a baseline L in geocentric
coordinates (x to longitude 0, y to 90 degrees east, z north), in wavelengths,

    source  s = (cos d cos H, -cos d sin H, sin d)
    u = L . (sin H, cos H, 0)                              towards east
    v = L . (-sin d cos H, sin d sin H, cos d)             towards north

Thompson, Moran & Swenson 2017, "Interferometry and Synthesis in Radio Astronomy", section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

__all__ = ["EHT_2017", "EHT_2017_SEFD", "Scan", "scans"]

Array = npt.NDArray[np.float64]

# Event Horizon Telescope 2017, metres (EHT Collaboration 2019, paper II, arXiv:1906.11239): ALMA,
# APEX, LMT, SMT, JCMT, SMA, PV; the South Pole cannot see the north
EHT_2017: Array = np.array(
    [
        [2225061.164, -5440057.37, -2481681.15],
        [2225039.53, -5441197.63, -2479303.36],
        [-768713.9637, -5988541.7982, 2063275.9472],
        [-1828796.2, -5054406.8, 3427865.2],
        [-5464584.68, -2493001.17, 2150653.98],
        [-5464523.4, -2493147.08, 2150611.75],
        [5088967.9, -301681.6, 3825015.8],
    ]
)
EHT_2017_SEFD: Array = np.array([90.0, 3500.0, 600.0, 5000.0, 6000.0, 4900.0, 1400.0])  # Jy


@dataclass(frozen=True, eq=False)
class Scan:
    """What one moment gives: visibilities by pair of stations, and the closures among them.

    pairs (n, 2): stations. uv (n, 2): metres of baseline projected onto the sky.
    triangles (m, 3): visibilities 0, 1 and 2 of V_0 V_1 conj(V_2).
    quadrangles (q, 4): those of |V_0 V_1| / |V_2 V_3|.
    """

    pairs: npt.NDArray[np.int64]
    uv: Array
    triangles: npt.NDArray[np.int64]
    quadrangles: npt.NDArray[np.int64]


def scans(stations: Array, declination: float, hours: Array, elevation: float) -> list[Scan]:
    """The scans at Greenwich hour angles (radians) with three stations or more.

    stations: (S, 3) metres. declination: radians. elevation: least one of a station, radians.
    """
    found = []
    up = stations / np.linalg.norm(stations, axis=1, keepdims=True)
    sin_d, cos_d = np.sin(declination), np.cos(declination)
    for hour in hours:
        sin_h, cos_h = np.sin(hour), np.cos(hour)
        source = np.array([cos_d * cos_h, -cos_d * sin_h, sin_d])
        seeing = np.flatnonzero(up @ source >= np.sin(elevation))
        if len(seeing) < 3:
            continue
        east, north = (sin_h, cos_h, 0.0), (-sin_d * cos_h, sin_d * sin_h, cos_d)
        pairs = np.array(list(combinations(seeing, 2)))
        uv = (stations[pairs[:, 1]] - stations[pairs[:, 0]]) @ np.array([east, north]).T
        found.append(Scan(pairs, uv, *closures(len(seeing))))
    return found


def closures(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A minimal set of triangles and of quadrangles among n stations, as indices of their pairs.

    (n-1)(n-2)/2 triangles, those of the first station; n(n-3)/2 quadrangles, one for each two
    stations i, j that are not neighbours on a ring: |V_ij V_i+1,j+1| / |V_i,j+1 V_i+1,j|.
    """
    index = {pair: k for k, pair in enumerate(combinations(range(n), 2))}

    def pair(i: int, j: int) -> int:
        i, j = i % n, j % n
        return index[min(i, j), max(i, j)]

    triangles = [(pair(0, i), pair(i, j), pair(0, j)) for i, j in combinations(range(1, n), 2)]
    apart = [(i, j) for i, j in combinations(range(n), 2) if j - i > 1 and (i, j) != (0, n - 1)]
    quadrangles = [
        (pair(i, j), pair(i + 1, j + 1), pair(i, j + 1), pair(i + 1, j)) for i, j in apart
    ]
    return np.array(triangles).reshape(-1, 3), np.array(quadrangles, dtype=int).reshape(-1, 4)
