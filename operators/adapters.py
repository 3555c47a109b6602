"""Simulators of other packages as operators: a deepinv `Physics`, a caustics simulator.

A subclass says how its parameters make the simulator. It is then an operator like any other, stored
by its parameters: `--operator mine.py:Scanner` with, in mine.py,

    @dataclass(frozen=True, eq=False)
    class Scanner(DeepinvLinear):
        views: int = 20

        def build(self):
            return deepinv.physics.Tomography(angles=self.views, img_width=self.shape[0])

deepinv: Tachella et al. 2025, arXiv:2505.20160; caustics: Stone et al. 2024, arXiv:2406.15542.
Neither is imported here: `build` imports what it needs. Noise is invprob's, not theirs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from operators import _parameters
from operators.base import ForwardOperator, LinearOperator
from operators.errors import ObservationError

__all__ = ["Caustics", "Deepinv", "DeepinvLinear"]


@dataclass(frozen=True, eq=False)
class Adapter(ForwardOperator):
    """shape: of x. Data have the shape that the simulator gives for x = 0.

    Raises `ObservationError` on data that are no real tensor.
    """

    default_prior: ClassVar[str] = "galaxies-64"
    summary: ClassVar[str] = "a simulator of another package"

    shape: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _parameters.shape("shape", self.shape))

    @abstractmethod
    def build(self) -> Any:
        """The simulator of these parameters; called once for each dtype and device."""

    @abstractmethod
    def _simulated(self, x: Tensor) -> Tensor:
        """Data (B, ...) of x (B, *shape)."""

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """The subclass' own parameters."""
        return cls(shape=x_shape)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @cached_property
    def y_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # found once
        with torch.no_grad():
            y = self._simulated(torch.zeros(1, *self.shape))
        if not isinstance(y, Tensor) or not y.is_floating_point():
            found = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise ObservationError(f"{type(self).__name__} gives {found}; needed a real tensor")
        return tuple(y.shape[1:])

    def _simulator(self, like: Tensor) -> Any:
        """The simulator in the precision and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._built:
            with torch.inference_mode(False):  # else autograd could not use it later
                self._built[key] = self._placed(self.build(), like)
        return self._built[key]

    def _placed(self, simulator: Any, like: Tensor) -> Any:
        """The simulator, moved to the precision and the device of `like`."""
        return simulator.to(device=like.device, dtype=like.dtype)

    @cached_property
    def _built(self) -> dict[tuple[torch.dtype, torch.device], Any]:
        return {}


class Deepinv(Adapter):
    """A deepinv `Physics`, `build()`; images (H, W) get the axis of channels that it expects."""

    def _forward(self, x: Tensor) -> Tensor:
        return self._simulated(x)

    def _simulated(self, x: Tensor) -> Tensor:
        y: Tensor = self._simulator(x).A(self._with_channels(x))
        return y

    def _placed(self, simulator: Any, like: Tensor) -> Any:
        # Module.to(dtype) would cut the imaginary part of complex buffers off
        def move(t: Tensor) -> Tensor:
            kinds = (t.is_floating_point(), like.dtype), (t.is_complex(), like.dtype.to_complex())
            dtype = next((kind for so, kind in kinds if so), t.dtype)
            return t.to(device=like.device, dtype=dtype)

        return simulator._apply(move)

    def _with_channels(self, x: Tensor) -> Tensor:
        return x[:, None] if len(self.shape) == 2 else x


class DeepinvLinear(LinearOperator, Deepinv):
    """A deepinv `LinearPhysics`, with its own adjoint."""

    def _apply(self, x: Tensor) -> Tensor:
        return self._simulated(x)

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        back: Tensor = self._simulator(y).A_adjoint(y)
        return back.reshape(len(y), *self.shape)


class Caustics(LinearOperator, Adapter):
    """A caustics simulator, `build()`, of the pixels of a source (ny, nx), all else being fixed.

    The image of a `Pixelated` source is its only free parameter. Raises `ObservationError` where
    there is light without a source: subtract that of the lens.
    """

    def _apply(self, x: Tensor) -> Tensor:
        if not self._dark:
            raise ObservationError(
                f"{type(self).__name__} has light without a source, which is not linear: leave the "
                "lens' own light out, and subtract it from the data"
            )
        return self._simulated(x)

    @cached_property
    def _dark(self) -> bool:
        """Whether there is no light without a source."""
        with torch.inference_mode(False), torch.no_grad():
            return not bool(self._simulated(torch.zeros(1, *self.shape)).any())

    def _simulated(self, x: Tensor) -> Tensor:
        y: Tensor = torch.func.vmap(self._simulator(x))(x.flatten(1))
        return y

    def _apply_adjoint(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape, requires_grad=True)
            (back,) = torch.autograd.grad(self._simulated(x), x, y)
        return back
