"""Instruments that one amortised posterior serves: ranges of operator and noise parameters.

A range file is TOML, a key for every parameter that may vary, named as by `--set`:

    "lens.0.theta_E" = [0.8, 1.4]              # uniform
    "noise.scale" = { log = [0.5, 2.0] }       # uniform in the logarithm
    "seed" = { whole = [0, 999] }              # uniform among whole numbers
    "kind" = { choice = ["box", "random"] }    # one of these

A policy reads the data through their likelihood alone, so training on draws from such ranges fits
one policy to all of them (amortised inference, e.g. Zammit-Mangion et al. 2024, arXiv 2404.12484).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from invprob.settings import with_settings
from operators.errors import ObservationError, RunError

if TYPE_CHECKING:
    from invprob.observation import Observation
    from operators.base import ForwardOperator
    from operators.noise import NoiseModel

__all__ = ["Instruments", "read_ranges"]

TRIED = 8  # instruments drawn before any work, so that a bad range is told at once


@dataclass(frozen=True, eq=False)
class Instruments:
    """A distribution of instruments about that of one observation.

    ranges: of every parameter, as a range file has them. Raises ObservationError on a range that
    is none, UnknownName on a parameter that does not exist, and what operator and noise raise on
    values that they refuse.
    """

    observation: Observation
    ranges: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ObservationError("no ranges: name at least one parameter that may vary")
        shape = self.observation.operator.x_shape
        for trial in range(TRIED):
            operator, _ = self.draw(np.random.default_rng(trial))
            if operator.x_shape != shape:
                raise ObservationError(
                    f"these ranges change the shape of x from {shape} to {operator.x_shape}: "
                    "leave out what fixes it"
                )

    def draw(self, rng: np.random.Generator) -> tuple[ForwardOperator, NoiseModel]:
        """Return the operator and noise of one instrument."""
        values = {key: _value(key, span, rng) for key, span in self.ranges.items()}
        made = with_settings(self.observation, values)
        return made.operator, made.noise


def read_ranges(path: Path) -> dict[str, Any]:
    """Return the ranges of a file; raises RunError where there is none, ObservationError on text
    that is not TOML, with the line."""
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ObservationError(
            f'{path} is not a range file ("key" = [low, high]): {error}'
        ) from None
    return dict(_flat(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the ranges of nested tables: a dotted key without quotes makes one of each part."""
    for key, value in tree.items():
        if isinstance(value, dict) and not value.keys() & {"log", "whole", "choice"}:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(key: str, span: Any, rng: np.random.Generator) -> Any:
    """Return a draw from a range."""
    match span:
        case {"choice": [_, *_] as options, **rest} if not rest:
            return options[int(rng.integers(len(options)))]
        case {"whole": [int() as low, int() as high], **rest} if not rest and low <= high:
            return int(rng.integers(low, high + 1))
        case {"log": [low, high], **rest} if not rest and _increase(low, high) and low > 0:
            return float(low * (high / low) ** rng.random())
        case [low, high] if _increase(low, high):
            return float(low + (high - low) * rng.random())
    raise ObservationError(
        f"{key} = {span!r} is no range; needed [low, high], {{ log = [low, high] }} with low > 0, "
        "{ whole = [low, high] } or { choice = [...] }"
    )


def _increase(low: Any, high: Any) -> bool:
    """Return whether these are finite numbers in this order."""
    return all(type(v) in (int, float) and math.isfinite(v) for v in (low, high)) and low <= high
