"""Missing pixels: y = keep * x, with keep 1 where a pixel was seen and 0 where it was dropped.

y keeps the image's shape, so that it can be looked at. A dropped pixel is zero and carries no
information: `data_mask` is True there, and the observation should mask it. With W = 1/sigma^2,

    (r2 A A^T + Sigma)^-1 v = v W / (1 + r2 keep W)     (closed form for any noise map and mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators import _parameters
from operators.base import SVD, LinearOperator
from operators.errors import ObservationError
from operators.noise import Gaussian

__all__ = ["Inpainting"]


@dataclass(frozen=True, eq=False)
class Inpainting(LinearOperator):
    """Drops a box, a random subset or a given set of pixels from images `(H, W)`.

    shape: (H, W), x_shape and y_shape.
    kind: "box", "random" or "array".
    box: (y, x, height, width) of the dropped box, in pixels from the lower left corner; None is
        the central one of half the width and height. Only for kind "box".
    fraction: fraction of pixels dropped, 0 < fraction < 1, rounded to whole pixels. Only for kind
        "random", where `seed` (>= 0) fixes which.
    keep: boolean (H, W), True where a pixel is seen. Setting it makes the kind "array".
    Raises `ObservationError` on values out of range, and when nothing is kept.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "missing pixels: a box, a random subset or a mask"
    has_svd: ClassVar[bool] = True

    shape: tuple[int, int]
    kind: str = "box"
    box: tuple[int, int, int, int] | None = None
    fraction: float = 0.5
    seed: int = 0
    keep: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "shape", _parameters.shape("shape", self.shape, ndim=2))
        kinds = ("box", "random", "array")
        if self.keep is not None:
            set_(self, "keep", _parameters.boolean("keep", self.keep, self.shape))
            set_(self, "kind", "array")
        elif _parameters.choice("kind", self.kind, kinds) == "array":
            raise ObservationError("kind 'array' needs keep, a boolean array of pixels seen")
        set_(self, "fraction", _parameters.number("fraction", self.fraction, above=0, below=1))
        set_(self, "seed", _parameters.whole("seed", self.seed, at_least=0))
        if self.box is not None:
            set_(self, "box", self._checked_box(self.box))
        if not self._kept.any():
            raise ObservationError("every pixel is dropped; keep at least one")

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """A dropped central box of half the width and height."""
        height, width = _parameters.shape("x_shape", x_shape, ndim=2)
        return cls((height, width))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def data_mask(self) -> Tensor:
        """Boolean (H, W), True at the dropped pixels."""
        return torch.from_numpy(~self._kept)

    def _apply(self, x: Tensor) -> Tensor:
        return x * self._table("_weights", x)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        return y * self._table("_weights", y)

    def _solve_directly(self, r2: Tensor, noise: Gaussian, v: Tensor) -> Tensor:
        w = noise.precision_as(v)
        return torch.where(w > 0, v, 0.0) * w / (1 + r2 * w * self._table("_weights", v))

    def svd(self) -> SVD:
        """The kept pixels: every singular value is 1, the dropped pixels are the null space."""
        kept = torch.from_numpy(np.flatnonzero(self._kept))

        def gather(a: Tensor) -> Tensor:
            return a.flatten(1)[:, kept.to(a.device)]

        def scatter(c: Tensor) -> Tensor:
            flat = c.new_zeros(len(c), self._kept.size)
            return flat.index_copy(1, kept.to(c.device), c).reshape(-1, *self.shape)

        values = torch.ones(len(kept), dtype=torch.float64)
        return SVD(values=values, u=scatter, ut=gather, v=scatter, vt=gather)

    def _checked_box(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        height, width = self.shape
        try:
            y, x, h, w = (_parameters.whole("box", n, at_least=0) for n in box)
        except (TypeError, ValueError) as error:
            raise ObservationError(f"box is {box!r}; needed (y, x, height, width)") from error
        if min(h, w) < 1 or y + h > height or x + w > width:
            raise ObservationError(
                f"box (y, x, height, width) = {(y, x, h, w)} leaves the image {self.shape}"
            )
        return y, x, h, w

    @cached_property
    def _kept(self) -> npt.NDArray[np.bool_]:
        if self.keep is not None:
            return np.array(self.keep)
        height, width = self.shape
        kept = np.ones(self.shape, dtype=bool)
        if self.kind == "random":
            order = np.random.default_rng(self.seed).permutation(kept.size)
            kept.flat[order[: round(self.fraction * kept.size)]] = False
        else:
            y, x, h, w = self.box or (height // 4, width // 4, -(-height // 2), -(-width // 2))
            kept[y : y + h, x : x + w] = False
        return kept

    @cached_property
    def _weights(self) -> Tensor:
        return torch.from_numpy(self._kept.astype(np.float64))
