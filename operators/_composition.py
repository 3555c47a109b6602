"""One operator after another: y = A_n( ... A_2(A_1(x))), linear where all of them are.

A class of its own for each sequence of kinds, so that a composition has a name ("blur+inpainting"),
a default and a config like any other operator: `parts` lists the operators, the first applied
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy.typing as npt
from torch import Tensor

from operators.base import ForwardOperator, LinearOperator
from operators.errors import ObservationError

__all__ = ["composition"]


@dataclass(frozen=True, eq=False)
class Composition(ForwardOperator):
    """parts: operators, or what `config()` gives for them, each taking what the one before gives.

    Raises `ObservationError` where their kinds, number or shapes do not fit.
    """

    composed_of: ClassVar[tuple[type[ForwardOperator], ...]]

    parts: tuple[ForwardOperator, ...]

    def __post_init__(self) -> None:
        given = tuple(self.parts)
        if len(given) != len(self.composed_of):
            raise ObservationError(f"{len(given)} parts are given; needed {len(self.composed_of)}")
        made = tuple(
            kind.from_config(part) if isinstance(part, Mapping) else part
            for kind, part in zip(self.composed_of, given, strict=True)
        )
        for kind, part in zip(self.composed_of, made, strict=True):
            if type(part) is not kind:
                raise ObservationError(f"a part is {type(part).__name__}; needed {kind.__name__}")
        for one, other in pairwise(made):
            if one.y_shape != other.x_shape:
                raise ObservationError(
                    f"{type(one).__name__} gives {one.y_shape}, {type(other).__name__} takes "
                    f"{other.x_shape}: set the parts' shapes to fit"
                )
        object.__setattr__(self, "parts", made)

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """The default of each part for what the one before gives."""
        parts: list[ForwardOperator] = []
        for kind in cls.composed_of:
            parts.append(kind.default(parts[-1].y_shape if parts else x_shape))
        return cls(tuple(parts))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.parts[0].x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.parts[-1].y_shape

    @property
    def data_mask(self) -> Tensor | None:
        """That of the last part."""
        return self.parts[-1].data_mask

    def picture(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """That of the last part."""
        return self.parts[-1].picture(y)

    def simulated_sigma(self, x: Tensor, mean: Tensor, fraction: float) -> float | Tensor:
        """That of the last part."""
        for part in self.parts[:-1]:
            x = part(x)
        return self.parts[-1].simulated_sigma(x, mean, fraction)

    def _forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@dataclass(frozen=True, eq=False)
class LinearComposition(LinearOperator, Composition):
    """A composition of linear parts, whose adjoint is that of each in reverse."""

    def _apply(self, x: Tensor) -> Tensor:
        return Composition._forward(self, x)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            assert isinstance(part, LinearOperator)  # `composition` sees to it
            y = part.adjoint(y)
        return y


@cache  # one class for one sequence: operators are told apart by their class
def composition(*kinds: type[ForwardOperator]) -> type[ForwardOperator]:
    """The class of operators that apply `kinds`, the first first."""
    base = LinearComposition if all(kind.linear for kind in kinds) else Composition
    return type(
        "Then".join(kind.__name__ for kind in kinds),
        (base,),
        {
            "composed_of": kinds,
            "default_prior": kinds[0].default_prior,
            "summary": ", then ".join(kind.summary for kind in kinds),
            "differentiable": all(kind.differentiable for kind in kinds),
            "noise_fraction": kinds[-1].noise_fraction,
            "axes": kinds[-1].axes,
            "data_unit": kinds[-1].data_unit,
            "__module__": __name__,
        },
    )
