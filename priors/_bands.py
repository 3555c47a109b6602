"""Images in several bands, each an independent draw of one prior: x (bands, *x_shape).

What a prior of one band knows of several: each denoises by itself, so that the posterior is the
product of those of the bands. What bands have in common (colours) a prior of three dimensions
knows, trained on such images.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

from torch import Tensor

from priors.base import Bounded, Covariance, Prior


class Bands(Prior):
    """`number` independent draws of the prior `one` at a time; its bands are channels of z."""

    def __init__(self, one: Prior, number: int) -> None:
        """Repeat `one`, which draws images or vectors without bands."""
        self.one, self.number = one, number
        self.x_shape = (number, *one.x_shape)
        first, *rest = one.z_shape
        # images of one channel, (H, W), get an axis of bands; channels are multiplied
        stacked = (number, first, *rest) if len(one.z_shape) == 2 else (number * first, *rest)
        self.z_shape = stacked
        self.schedule, self.steps, self.scale = one.schedule, one.steps, one.scale
        self.unit, self.guided_in_x = one.unit, one.guided_in_x
        self.learned, self.isometric, self.has_encoder = one.learned, one.isometric, one.has_encoder
        self.bank = one.bank  # of one band
        self.device, self.precision = one.device, one.precision

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, *z_shape), band by band."""
        return self.one.denoise(self._each(z), t).reshape(z.shape)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n draws of z_0, (n, *z_shape)."""
        return self.one.draw(n * self.number, seed).reshape(n, *self.z_shape)

    def to(self, device: str, precision: str = "float32") -> Self:
        """Move this prior and the one that it repeats, in place; see `Prior.to`."""
        self.one.to(device, precision)
        return super().to(device, precision)

    def decode(self, z: Tensor) -> Tensor:
        """Return x (B, *x_shape) of z (B, *z_shape)."""
        return self.one.decode(self._each(z)).reshape(-1, *self.x_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, *z_shape) of x (B, *x_shape)."""
        return self.one.encode(x.flatten(0, 1)).reshape(-1, *self.z_shape)

    def pull(self, z: Tensor, u: Tensor) -> Tensor:
        """Return J^T u (B, *z_shape) of u (B, *x_shape)."""
        return self.one.pull(self._each(z), u.flatten(0, 1)).reshape(-1, *self.z_shape)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Covariance:
        """Return the covariance of one band, applied to each."""
        one = self.one.covariance(self._each(z), t, self._each(clean))
        shape = self.one.x_shape if self.guided_in_x else self.one.z_shape
        spread = one.spread if isinstance(one, Bounded) else one
        if not callable(spread):
            return one

        def apply(u: Tensor) -> Tensor:
            return spread(u.reshape(-1, *shape)).reshape(u.shape)

        return Bounded(apply, one.limit) if isinstance(one, Bounded) else apply

    @cached_property
    def residuals(self) -> tuple[float, ...]:
        """Those of one band."""
        return self.one.residuals

    def _each(self, z: Tensor) -> Tensor:
        """Return the states of all bands, (B * number, *z_shape of one)."""
        return z.reshape(-1, *self.one.z_shape)
