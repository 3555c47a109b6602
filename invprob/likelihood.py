"""The likelihood p(y | x) = noise(y; A(x)) of one observation, or of a batch of them.

Guidance is the proximal shift of a clean estimate x whose error is N(0, R):

    delta = argmin_u [ -log p(y | u) + (u - x)^T R^-1 (u - x) / 2 ] - x
          = R A^T (A R A^T + Sigma)^-1 (y - A x)                       (linear A, Gaussian noise)

For other operators it is reached by Gauss-Newton steps: A is linearised about the last iterate,
A(u) + J (u' - u), and the next one is the closed form for that,

    delta' = R J^T (J R J^T + Sigma)^-1 (y - A(x + delta) + J delta)

An R that is bounded by c, R = (S^-1 + I/c)^-1, is S with x itself as further data
(`operators._stacked`). Boys et al. 2023, arXiv 2310.06721, eq. 10; Song et al. 2023,
"Pseudoinverse-guided diffusion".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from operators._maps import LinearMap
from operators._stacked import Stacked
from operators.base import ForwardOperator
from operators.noise import Gaussian
from priors.base import Bounded, Covariance

CG_ITERATIONS = 60  # at most, for one shift: a truncated solve is a policy too, and never a bias
CG_TOLERANCE = 1e-2  # relative residual at which the shift's linear solve stops
GN_STEPS = 4  # Gauss-Newton steps for operators that are not linear
GN_CG_ITERATIONS = 8  # at most, in each of them
GN_CG_TOLERANCE = 1e-4
GN_GAIN = 0.01  # nats: an item whose objective changes by less is done
GN_HALVINGS = 4  # at most, of a step that raises the objective; then the item stays where it is


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
        return self._whitened(self.operator(x))

    def chi2(self, x: Tensor) -> Tensor:
        """Return the squared whitened residual per unmasked pixel, (B,) float64."""
        return self._squares(self.operator(x)) / self.noise.count(self.operator.y_shape)

    def guidance(self, x: Tensor, covariance: Covariance) -> tuple[Tensor, Tensor, Tensor]:
        """Return the proximal shift of x, given the covariance R of its error, score and potential.

        Shift and score, the gradient of log p(y | x) in x, are (B, *x_shape). The potential (B,)
        float64 is minus the least value of the objective, up to a constant: log p(y | x) with the
        error of x integrated out, exactly -(y - A x)^T (A R A^T + Sigma)^-1 (y - A x) / 2 for
        linear operators, else by Laplace. Raises NotDifferentiable where the operator has no
        gradient.
        """
        mean, jacobian = self.operator.linearise(x)
        score = jacobian.adjoint(self.noise.score(self.y.expand_as(mean), mean))
        if not self.operator.linear:
            delta, potential = self._gauss_newton(x, covariance, mean, jacobian)
            return delta, score, potential
        residual = self.y - mean
        solved, _, delta = self._proximal(
            jacobian, covariance, residual, CG_ITERATIONS, CG_TOLERANCE
        )
        own = solved.flatten(1)[:, : residual[0].numel()]  # what belongs to the data
        return delta, score, -(residual.flatten(1) * own).double().sum(1) / 2

    def _gauss_newton(
        self, x: Tensor, covariance: Covariance, mean: Tensor, jacobian: LinearMap
    ) -> tuple[Tensor, Tensor]:
        """Return the shift and potential of an operator that is not linear, with A(x) and dA/dx.

        R may be singular and R^-1 is never applied: every iterate is delta = R w, so that
        delta^T R^-1 delta = w^T delta. Steps are halved per item, and none raises the objective.
        A solve begins at the last one's answer: few iterations from zero would stall far off.
        """
        delta = pull = torch.zeros_like(x)
        limit = covariance.limit if isinstance(covariance, Bounded) else math.inf
        value = self._objective(mean, delta, pull, limit)
        active = torch.ones_like(value, dtype=torch.bool)
        column = (-1, *[1] * (x.ndim - 1))
        solved: Tensor | None = None  # of the step before: where the next solve begins
        for k in range(GN_STEPS):
            if k:
                mean, jacobian = self.operator.linearise(x + delta)
            residual = self.y - mean + jacobian(delta)
            solved, toward, goal = self._proximal(
                jacobian, covariance, residual, GN_CG_ITERATIONS, GN_CG_TOLERANCE, solved
            )
            share = active.to(x.dtype)
            for _ in range(GN_HALVINGS + 1):
                step = share.view(column)
                trial = delta + step * (goal - delta), pull + step * (toward - pull)
                found = self._objective(self.operator(x + trial[0]), *trial, limit)
                worse = ~(found <= value + GN_GAIN)
                if not worse.any():
                    break
                share = torch.where(worse, share / 2, share)
            better = (found < value).view(column)
            active = active & ~((value - found).abs() <= GN_GAIN)
            delta, pull = (
                torch.where(better, new, old) for new, old in zip(trial, (delta, pull), strict=True)
            )
            value = torch.where(found < value, found, value)
            if not active.any():
                break
        return delta, -value

    def _proximal(
        self,
        jacobian: LinearMap,
        covariance: Covariance,
        residual: Tensor,
        iterations: int,
        tolerance: float,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return v = (J R J^T + Sigma)^-1 residual, w = J^T v and the shift R w.

        For a bounded R they are those of the stacked operator and S.
        """
        noise = self.noise
        if isinstance(covariance, Bounded):
            jacobian = Stacked(jacobian, covariance.limit)
            noise, own = jacobian.noise(noise), jacobian.y_shape[0]
            residual = residual.flatten(1)
            residual = torch.cat(
                [residual, residual.new_zeros(len(residual), own - jacobian.data)], 1
            )
            covariance = covariance.spread
        solved = jacobian.solve(
            covariance, noise, residual, iterations=iterations, tolerance=tolerance, start=start
        )
        pull = jacobian.adjoint(solved)
        return solved, pull, covariance(pull) if callable(covariance) else covariance * pull

    def _objective(self, mean: Tensor, delta: Tensor, pull: Tensor, limit: float) -> Tensor:
        """Return the proximal objective at x + delta, less a constant, (B,); mean = A(x + delta).

        delta is R pull, or S pull where R has a limit.
        """
        wide = delta.double()
        distance = (wide * (pull.double() + wide / limit)).flatten(1).sum(1)
        return (self._squares(mean) + distance) / 2

    def _squares(self, mean: Tensor) -> Tensor:
        """Return |(y - mean) / sigma|^2 over the unmasked pixels, (B,) float64."""
        return self._whitened(mean).flatten(1).double().square().sum(1)

    def _whitened(self, mean: Tensor) -> Tensor:
        score = self.noise.score(self.y.expand_as(mean), mean)
        precision = self.noise.precision_as(mean)
        return torch.where(precision > 0, score * precision.rsqrt(), 0.0)

    def repeat(self, times: int) -> Likelihood:
        """Return the likelihood of every observation `times` in a row, (M * times, *y_shape)."""
        return Likelihood(self.operator, self.noise, self.y.repeat_interleave(times, 0))
