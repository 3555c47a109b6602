"""The covariance of a denoiser's error on codes, measured: what guidance assumes of it in z.

    z_0 - zhat_0 ~ N(0, C),   C = (1 - s) E^T E / n + s m I,   m = tr(E^T E / n) / d

E (n, d) holds the errors of n noised draws at one noise level. The sample covariance alone has rank
n and is far too sure where it has none; s is the share of white that is best in mean square (Ledoit
& Wolf 2004, doi:10.1016/S0047-259X(03)00096-4). No d x d matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priors.base import Prior, denoised_draws

TIMES = 11
DRAWS = 512
SEED = 4


@dataclass(frozen=True, eq=False)
class CodeCovariance:
    """C on even times from 0 to 1."""

    errors: tuple[Tensor, ...]  # E / sqrt(n), (n, d), of every time
    shrinkage: tuple[float, ...]  # s
    mean: tuple[float, ...]  # m

    @classmethod
    def fit(cls, prior: Prior) -> CodeCovariance:
        """Return the model measured on noised draws of a prior."""
        errors = [
            (clean - z0).flatten(1) / DRAWS**0.5
            for z0, clean in denoised_draws(prior, DRAWS, SEED, TIMES)
        ]
        shrinkage, mean = zip(*map(_shrinkage, errors), strict=True)
        return cls(tuple(errors), shrinkage, mean)

    def at(self, t: float) -> Callable[[Tensor], Tensor]:
        """Return u -> C u on codes (B, *z_shape) at time t."""
        where = t * (len(self.errors) - 1)
        low = min(int(where), len(self.errors) - 2)
        mix = where - low

        def apply(u: Tensor) -> Tensor:
            flat = u.flatten(1)
            below, above = self._apply(low, flat), self._apply(low + 1, flat)
            return torch.lerp(below, above, mix).view_as(u)

        return apply

    def _apply(self, i: int, u: Tensor) -> Tensor:
        errors, s = self.errors[i].to(u), self.shrinkage[i]
        return (1 - s) * (u @ errors.T) @ errors + s * self.mean[i] * u


def _shrinkage(errors: Tensor) -> tuple[float, float]:
    """Return s and m of errors E / sqrt(n), (n, d)."""
    gram = (errors @ errors.T).double()
    n, d = errors.shape
    mean = float(gram.trace()) / d
    square = float(gram.square().sum()) / d  # |E^T E / n|^2 per dimension
    scatter = float(gram.diagonal().square().sum()) / d - square / n  # of that estimate
    spread = square - mean**2
    return min(max(scatter / spread, 0.0), 1.0) if spread > 0 else 1.0, mean
