"""Summaries of x by which a posterior is checked: any function of x is a valid one.

Images: total flux, half-light radius about the centroid, and the means of four quadrants.
Vectors: up to eight coordinates, evenly chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.errors import ObservationError

Array = NDArray[Any]
Summary = Callable[[Array], Array]  # x (n, *x_shape) -> (n,) or (n, k)

COORDINATES = 8  # at most, of a vector


def summarise(x: Array, own: Mapping[str, Summary]) -> dict[str, Array]:
    """Return the built-in summaries of x (n, *x_shape) and the `own` ones, each (n,) float64.

    Raises ObservationError where a function of the user's returns another shape, or NaN.
    """
    found = vector(x) if x.ndim == 2 else image(x)
    for name, function in own.items():
        values = np.asarray(function(x), float)
        if values.shape[:1] != x.shape[:1] or values.ndim > 2:
            raise ObservationError(
                f"summary {name} returned shape {values.shape} for x of shape {x.shape}; "
                f"needed ({len(x)},) or ({len(x)}, k)"
            )
        if not np.isfinite(values).all():
            raise ObservationError(
                f"summary {name} returned {np.sum(~np.isfinite(values))} values of {values.size} "
                "that are NaN or infinite; it must be finite for every x"
            )
        if values.ndim == 1:
            found[name] = values
        else:
            found |= {f"{name}[{j}]": column for j, column in enumerate(values.T)}
    return found


def vector(x: Array) -> dict[str, Array]:
    """Return coordinates of vectors x (n, d)."""
    d = x.shape[1]
    shown = np.unique(np.linspace(0, d - 1, min(d, COORDINATES)).astype(int))
    return {f"x[{i}]": x[:, i].astype(float) for i in shown}


def image(x: Array) -> dict[str, Array]:
    """Return flux, half-light radius in pixels and quadrant means of images x (n, ..., H, W)."""
    light = x.astype(float).reshape(len(x), -1, *x.shape[-2:]).sum(1)
    height, width = light.shape[1:]
    found = {"flux": light.sum((1, 2)), "half-light radius": half_light_radius(light)}
    for i, rows in (("lower", slice(height // 2)), ("upper", slice(height // 2, None))):
        for j, columns in (("left", slice(width // 2)), ("right", slice(width // 2, None))):
            found[f"{i} {j}"] = light[:, rows, columns].mean((1, 2))
    return found


def half_light_radius(light: Array) -> Array:
    """Return the radius in pixels, (n,), about the centroid that holds half of the positive light.

    light: (n, H, W). Zero where nothing is positive.
    """
    y, x = np.indices(light.shape[1:])
    weight = np.clip(light, 0, None).reshape(len(light), -1)
    total = weight.sum(1)
    share = weight / np.where(total > 0, total, 1.0)[:, None]
    radius = np.hypot(
        x.ravel() - (share @ x.ravel())[:, None], y.ravel() - (share @ y.ravel())[:, None]
    )
    order = radius.argsort(1)
    inside = np.take_along_axis(share, order, 1).cumsum(1)
    place = (inside < 0.5).sum(1).clip(max=inside.shape[1] - 1)
    found = radius[np.arange(len(light)), order[np.arange(len(light)), place]]
    return np.where(total > 0, found, 0.0)
