"""Checks that turn what a user, a JSON file or an HDF5 attribute gives into clean parameters."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import ObservationError

__all__ = ["array", "boolean", "choice", "fields", "number", "refuse_keys", "shape", "whole"]


def number(
    name: str,
    value: Any,
    *,
    unit: str | None = None,
    above: float = -math.inf,
    below: float = math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """`value` as a finite float with above < value < below and at_least <= value <= at_most.

    unit: what an astropy quantity is converted to; a plain number is taken to be in it already.
    Raises `ObservationError` naming the parameter, on NaN and on a unit that does not convert too.
    """
    if hasattr(value, "to_value"):
        try:
            value = value.to_value(unit or "")
        except Exception as error:  # astropy's own class, not imported for this
            raise ObservationError(f"{name} = {value} does not convert to {unit!r}") from error
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{name} is {value!r}; needed a number") from error
    inside = above < result < below and at_least <= result <= at_most
    if not (math.isfinite(result) and inside):
        limits = ((">", above), ("<", below), (">=", at_least), ("<=", at_most))
        wanted = [f"{sign} {limit:g}" for sign, limit in limits if math.isfinite(limit)]
        text = " and ".join(["finite", *wanted])
        raise ObservationError(f"{name} is {result:g}; needed a number that is {text}")
    return result


def whole(name: str, value: Any, *, at_least: int, at_most: int | None = None) -> int:
    """`value` as an int with at_least <= value <= at_most; `ObservationError` otherwise."""
    most = math.inf if at_most is None else at_most
    result = number(name, value, at_least=at_least, at_most=most)
    if result != int(result):
        raise ObservationError(f"{name} is {result:g}; needed a whole number")
    return int(result)


def shape(name: str, value: Any, ndim: int | None = None) -> tuple[int, ...]:
    """`value` as a tuple of positive ints, `ndim` of them where given."""
    try:
        items: Sequence[Any] = tuple(value)
        result = tuple(int(n) for n in items)
        good = bool(result) and all(n >= 1 and n == m for n, m in zip(result, items, strict=True))
    except (TypeError, ValueError):
        good = False
    if not good or (ndim is not None and len(result) != ndim):
        wanted = f"{ndim} positive whole numbers" if ndim else "positive whole numbers"
        raise ObservationError(f"{name} is {value!r}; needed {wanted}")
    return result


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` when it is one of `allowed`."""
    if value not in allowed:
        raise ObservationError(f"{name} is {value!r}; needed one of {', '.join(allowed)}")
    return str(value)


def array(name: str, value: Any, ndim: int, *, odd: bool = False) -> npt.NDArray[np.float64]:
    """A read-only float64 copy of `value`: finite, not empty, of `ndim` dimensions.

    odd: also require odd sizes, so that a kernel has a central pixel.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        result = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{name} is not an array of real numbers") from error
    if result.ndim != ndim or result.size == 0:
        raise ObservationError(f"{name} has shape {result.shape}; needed {ndim} dimensions")
    if not np.isfinite(result).all():
        count = int((~np.isfinite(result)).sum())
        raise ObservationError(f"{name} has {count} values that are NaN or infinite")
    if odd and any(n % 2 == 0 for n in result.shape):
        raise ObservationError(
            f"{name} has shape {result.shape}; needed odd sizes, so that it has a central pixel: "
            "drop or add a row or column, and re-centre it"
        )
    result.setflags(write=False)
    return result


def boolean(name: str, value: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A read-only boolean copy of `value`, of that shape, where it holds 0 and 1 alone."""
    result = np.array(value)
    if result.shape != shape or not np.isin(result, (0, 1)).all():
        raise ObservationError(
            f"{name} has shape {result.shape} and dtype {result.dtype}; needed a boolean array of "
            f"shape {shape}, True where a pixel is seen"
        )
    result = result.astype(bool)
    result.setflags(write=False)
    return result


def fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that its constructor takes."""
    return [f for f in dataclasses.fields(cls) if f.init]


def refuse_keys(cls: Any, config: Mapping[str, Any], *apart: str) -> None:
    """Raise `ObservationError` where a config has a key unknown to a dataclass, or lacks one.

    apart: fields that do not come from the config.
    """
    own = [f for f in fields(cls) if f.name not in apart]
    known = [f.name for f in own]
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ObservationError(
                f"{cls.__name__} has no parameter {key!r}{hint} Valid: {', '.join(known)}"
            )
    missing = dataclasses.MISSING
    needed = [f.name for f in own if f.default is missing and f.default_factory is missing]
    lacking = [name for name in needed if name not in config]
    if lacking:
        raise ObservationError(f"{cls.__name__} needs the parameter {', '.join(lacking)}")
