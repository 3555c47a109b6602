"""The likelihood p(y | x) = noise(y; A(x)) of one observation, or of a batch of them.

Guidance is the proximal shift of a clean estimate x whose error is N(0, R):

    delta = argmin_u [ -log p(y | u) + (u - x)^T R^-1 (u - x) / 2 ] - x
          = R A^T (A R A^T + Sigma)^-1 (y - A x)                       (linear A, Gaussian noise)

(Boys et al. 2023, arXiv 2310.06721, eq. 10; Song et al. 2023, "Pseudoinverse-guided diffusion").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from operators.base import Covariance, ForwardOperator, LinearOperator
from operators.errors import NotDifferentiable
from operators.noise import Gaussian

CG_ITERATIONS = 30  # at most, for one shift: a truncated solve is a policy too, and never a bias
CG_TOLERANCE = 1e-2  # relative residual at which the shift's linear solve stops


@dataclass(frozen=True, eq=False)
class Likelihood:
    """log p(y | x) for data y (1, *y_shape), or (B, *y_shape): one per item of the batch."""

    operator: ForwardOperator
    noise: Gaussian
    y: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(y | x), (B,) float64, for x (B, *x_shape)."""
        mean = self.operator(x)
        return self.noise.log_prob(self.y.expand_as(mean), mean)

    def whitened(self, x: Tensor) -> Tensor:
        """Return the residual (y - A x) / sigma, (B, *y_shape), zero where masked."""
        mean = self.operator(x)
        score = self.noise.score(self.y.expand_as(mean), mean)
        precision = self.noise.precision_as(mean)
        return torch.where(precision > 0, score * precision.rsqrt(), 0.0)

    def chi2(self, x: Tensor) -> Tensor:
        """Return the squared whitened residual per unmasked pixel, (B,) float64."""
        squares = self.whitened(x).flatten(1).double().square().sum(1)
        return squares / self.noise.count(self.operator.y_shape)

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient of log p(y | x) in x, (B, *x_shape)."""
        if isinstance(self.operator, LinearOperator):
            mean = self.operator(x)
            return self.operator.adjoint(self.noise.score(self.y.expand_as(mean), mean))
        if not self.operator.differentiable:
            raise NotDifferentiable(
                f"{type(self.operator).__name__} has no gradient, and this method needs one: "
                "use a method that only evaluates the operator"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(leaf).sum(), leaf)
        return gradient

    def shift(self, x: Tensor, covariance: float | Covariance) -> tuple[Tensor, Tensor]:
        """Return the proximal shift of x whose error covariance is R, or r2 I, and its potential.

        The shift delta is (B, *x_shape). The potential (B,) float64 is log p(y | x) with the error
        of x integrated out, up to a constant: -(y - A x)^T (A R A^T + Sigma)^-1 (y - A x) / 2.
        """
        if not isinstance(self.operator, LinearOperator):
            raise NotDifferentiable(
                f"{type(self.operator).__name__} is not linear, and guidance needs a linear "
                "operator: compare with baselines that only need its gradient (dps, copaint)"
            )
        residual = self.y - self.operator(x)
        solved = self.operator.solve(
            covariance, self.noise, residual, iterations=CG_ITERATIONS, tolerance=CG_TOLERANCE
        )
        back = self.operator.adjoint(solved)
        shift = covariance(back) if callable(covariance) else covariance * back
        return shift, -(residual * solved).flatten(1).double().sum(1) / 2

    def repeat(self, times: int) -> Likelihood:
        """Return the likelihood of every observation `times` in a row, (M * times, *y_shape)."""
        return Likelihood(self.operator, self.noise, self.y.repeat_interleave(times, 0))
