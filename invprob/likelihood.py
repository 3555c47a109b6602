"""The likelihood p(y | x) = noise(y; A(x)) of one observation, or of a batch of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from operators.base import ForwardOperator
from operators.noise import NoiseModel


@dataclass(frozen=True, eq=False)
class Likelihood:
    """log p(y | x) for data y (1, *y_shape), or (B, *y_shape): one per item of the batch."""

    operator: ForwardOperator
    noise: NoiseModel
    y: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(y | x), (B,) float64, for x (B, *x_shape)."""
        mean = self.operator(x)
        return self.noise.log_prob(self.y.expand_as(mean), mean)

    def whitened(self, x: Tensor) -> Tensor:
        """Return residuals of mean 0 and variance 1, (B, *y_shape), zero where masked."""
        mean = self.operator(x)
        return self.noise.whitened(self.y.expand_as(mean), mean)

    def fit(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(y | x), chi2 and its degrees of freedom, each (B,) float64.

        chi2 is per unmasked pixel; of both see `NoiseModel`.
        """
        mean = self.operator(x)
        y = self.y.expand_as(mean)
        return self.noise.log_prob(y, mean), self.noise.chi2(y, mean), self.noise.degrees(mean)

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient of log p(y | x) in x, (B, *x_shape)."""
        mean, jacobian = self.operator.linearise(x)
        return jacobian.adjoint(self.noise.score(self.y.expand_as(mean), mean))

    def repeat(self, times: int) -> Likelihood:
        """Return the likelihood of every observation `times` in a row, (M * times, *y_shape)."""
        return replace(self, y=self.y.repeat_interleave(times, 0))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Return one value per item, (B,), shaped to multiply `like` (B, ...)."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
