"""The proximal shift of a clean estimate to the data: what guides every chain.

It moves an estimate x whose error is N(0, R) to

    delta = argmin_u [ -log p(y | u) + (u - x)^T R^-1 (u - x) / 2 ] - x
          = R A^T (A R A^T + Sigma)^-1 (y - A x)                       (linear A, Gaussian noise)

Otherwise it is reached by Gauss-Newton steps: A is linearised about the last iterate u = x + delta,
A(u) + J (u' - u), and the noise taken as Gaussian there, with its score s and curvature W (Fisher's
information: McCullagh & Nelder 1989, section 2.5). The next iterate is the closed form for that,

    delta' = R J^T (J R J^T + W^-1)^-1 (W^-1 s + J delta)

where W^-1 = Sigma and W^-1 s = y - A(u) if the noise is Gaussian.

Where the derivative of the denoiser gives a better covariance T, Tweedie's formula, the shift is
that of T: conjugate gradients on A T A^T + Sigma that (A R A^T + Sigma)^-1 preconditions. Each
costs a network evaluation and few do, for R is near T (Boys et al. 2023; Hestenes & Stiefel 1952).
Where A is not linear or the noise not Gaussian, they are linearised about where R has led, and the
shift of T is kept where it fits the data no worse.

An R that is bounded by c, R = (S^-1 + I/c)^-1, is S with x itself as further data
(`operators._stacked`). Boys et al. 2023, arXiv 2310.06721, eq. 10; Song et al. 2023,
"Pseudoinverse-guided diffusion".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invprob.decoded import Decoded
from invprob.likelihood import Likelihood, column
from operators._maps import LinearMap
from operators._stacked import Stacked
from operators._weighted import Weighted, Whitened
from operators.base import ForwardOperator
from operators.noise import Correlated, Gaussian
from priors.base import Bounded, Covariance

CG_ITERATIONS = 150  # at most, for one shift: a truncated solve is a policy too, and never a bias
CG_TOLERANCE = 1e-2  # relative residual at which the shift's linear solve stops
TANGENT_STEPS = 2  # at most, of conjugate gradients on the tangent: each evaluates the network
TANGENT_TOLERANCE = 1e-3  # squared residual, in its preconditioned norm, at which they stop
TANGENT_CG_TOLERANCE = 0.1  # relative residual at which the preconditioner's own solves stop
GN_STEPS = 4  # Gauss-Newton steps where operator or noise are not linear or Gaussian
GN_CG_ITERATIONS = 8  # at most, in each of them
GN_CG_TOLERANCE = 1e-4
GN_GAIN = 0.01  # nats: an item whose objective changes by less is done
GN_HALVINGS = 4  # at most, of a step that raises the objective; then the item stays where it is
UNIT = Gaussian(1.0)  # one object: `Stacked` keeps what it builds for it


def proximal_shift(
    likelihood: Likelihood, x: Tensor, covariance: Covariance, within: Decoded | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the proximal shift of x, given the covariance R of its error, score and potential.

    Shift and score, the gradient of log p(y | x) in x, are (B, *x_shape). The potential (B,)
    float64 is minus the least value of the objective, up to a constant: log p(y | x) with the
    error of x integrated out, exactly -(y - A x)^T (A R A^T + Sigma)^-1 (y - A x) / 2 for
    linear operators and Gaussian noise, else by Laplace. `within`: the operator as a function
    of z, which x, shift and score then are. Raises NotDifferentiable where the operator has no
    gradient.
    """
    operator = within or likelihood.operator
    mean, jacobian = operator.linearise(x)
    score = jacobian.adjoint(likelihood.noise.score(likelihood.y.expand_as(mean), mean))
    tangent = isinstance(covariance, Bounded) and covariance.tangent is not None
    if tangent and operator.linear and isinstance(likelihood.noise, Gaussian):
        residual = likelihood.y - mean
        delta, potential = _tangent_shift(covariance, jacobian, likelihood.noise, residual)
        return delta, score, potential
    delta, _, potential = _shifted(likelihood, x, covariance, operator, mean, jacobian)
    if tangent:  # once more, about where R has led
        mean, jacobian = operator.linearise(x + delta)
        known = likelihood.noise.misfit(likelihood.y.expand_as(mean), mean)
        around = _locally_gaussian(likelihood, mean, jacobian)
        finer, _ = _tangent_shift(covariance, around[0], around[1], around[2] + around[0](delta))
        found = operator(x + finer)
        better = likelihood.noise.misfit(likelihood.y.expand_as(found), found) <= known
        delta = torch.where(column(better, delta) > 0, finer, delta)
    return delta, score, potential


def proximal_pull(
    likelihood: Likelihood, x: Tensor, covariance: Covariance, within: Decoded | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient in x (B, *x_shape) of the potential of `proximal_shift`, and it, (B,).

    It is A^T (A R A^T + Sigma)^-1 (y - A x), or that of the last linearisation.
    """
    operator = within or likelihood.operator
    delta, pull, potential = _shifted(likelihood, x, covariance, operator, *operator.linearise(x))
    # a bounded R shifts by S pull, and R^-1 delta = (S^-1 + I / limit) delta
    if isinstance(covariance, Bounded):
        pull = pull + delta / covariance.limit
    return pull, potential


def _shifted(
    likelihood: Likelihood,
    x: Tensor,
    covariance: Covariance,
    operator: ForwardOperator | Decoded,
    mean: Tensor,
    jacobian: LinearMap,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shift of x, the w that it is R w (S w for a bounded R) of, and the potential.

    `mean` and `jacobian` are A(x) and dA/dx.
    """
    if not (operator.linear and isinstance(likelihood.noise, Gaussian)):
        return _gauss_newton(likelihood, x, covariance, operator, mean, jacobian)
    residual = likelihood.y - mean
    solved, pull, delta = _proximal(
        jacobian, likelihood.noise, covariance, residual, CG_ITERATIONS, CG_TOLERANCE
    )
    own = solved.flatten(1)[:, : residual[0].numel()]  # what belongs to the data
    return delta, pull, -(residual.flatten(1) * own).double().sum(1) / 2


def _tangent_shift(
    covariance: Covariance, jacobian: LinearMap, noise: Gaussian, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the shift by the tangent T of the covariance R, and the potential by R.

    What conjugate gradients leave of the residual is left to R. A direction in which T is not
    positive, as an inexact network's may be, is not walked.
    """
    assert isinstance(covariance, Bounded) and covariance.tangent
    precision = noise.precision_as(residual)
    variance = torch.where(precision > 0, 1 / precision, 0.0)

    def solve(b: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        solved, _, shift = _proximal(jacobian, noise, covariance, b, CG_ITERATIONS, tolerance)
        return solved.flatten(1)[:, : b[0].numel()].view_as(b), shift

    residual = torch.where(precision > 0, residual, 0.0)
    own, rest = solve(residual, CG_TOLERANCE)
    direction, size = own, _dot(residual, own)
    goal, potential = TANGENT_TOLERANCE * size, -size / 2
    delta = torch.zeros_like(rest)
    for _ in range(TANGENT_STEPS):
        if not bool((size > goal).any()):
            break
        spread = covariance.tangent(jacobian.adjoint(direction))
        image = torch.where(precision > 0, jacobian(spread) + variance * direction, 0.0)
        curvature = _dot(direction, image)
        step = torch.where((size > goal) & (curvature > 0), size / curvature, 0.0)
        delta = delta + column(step, delta) * spread
        residual = residual - column(step, residual) * image
        before = own
        own, remains = solve(residual, TANGENT_CG_TOLERANCE)
        rest = torch.where(column(step, rest) > 0, remains, rest)
        new = _dot(residual, own)
        # the preconditioner is inexact: Polak and Ribiere's factor, which forgets what misleads
        factor = ((new - _dot(residual, before)) / size).nan_to_num().clamp(min=0)
        direction = own + column(factor, direction) * direction
        size = torch.where(step > 0, new, 0.0)
    return delta + rest, potential


def _gauss_newton(
    likelihood: Likelihood,
    x: Tensor,
    covariance: Covariance,
    operator: ForwardOperator | Decoded,
    mean: Tensor,
    jacobian: LinearMap,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `_shifted` where A is not linear or the noise not Gaussian.

    R may be singular and R^-1 is never applied: every iterate is delta = R w, so that
    delta^T R^-1 delta = w^T delta. Steps are halved per item, and none raises the objective.
    A solve begins at the last one's answer: few iterations from zero would stall far off.
    """
    delta = pull = torch.zeros_like(x)
    limit = covariance.limit if isinstance(covariance, Bounded) else math.inf
    value = _objective(likelihood, mean, delta, pull, limit)
    active = torch.ones_like(value, dtype=torch.bool)
    solved: Tensor | None = None  # of the step before: where the next solve begins
    for k in range(GN_STEPS):
        if k:
            mean, jacobian = operator.linearise(x + delta)
        jacobian, noise, residual = _locally_gaussian(likelihood, mean, jacobian)
        solved, toward, goal = _proximal(
            jacobian, noise, covariance, residual + jacobian(delta), GN_CG_ITERATIONS,
            GN_CG_TOLERANCE, solved,
        )  # fmt: skip
        share = active.to(x.dtype)
        for _ in range(GN_HALVINGS + 1):
            step = column(share, x)
            trial = delta + step * (goal - delta), pull + step * (toward - pull)
            found = _objective(likelihood, operator(x + trial[0]), *trial, limit)
            worse = ~(found <= value + GN_GAIN)
            if not worse.any():
                break
            share = torch.where(worse, share / 2, share)
        better = column(found < value, x) > 0
        active = active & ~((value - found).abs() <= GN_GAIN)
        delta, pull = (
            torch.where(better, new, old) for new, old in zip(trial, (delta, pull), strict=True)
        )
        value = torch.where(found < value, found, value)
        if not active.any():
            break
    return delta, pull, -value


def _locally_gaussian(
    likelihood: Likelihood, mean: Tensor, jacobian: LinearMap
) -> tuple[LinearMap, Gaussian, Tensor]:
    """Return J, its Gaussian noise and the residual W^-1 s, both in units of W^-1/2.

    Gaussian noise keeps its own units: there alone W is the same for every item of the batch.
    Correlated noise has the root of its covariance for W^-1/2.
    """
    if isinstance(likelihood.noise, Gaussian):
        return jacobian, likelihood.noise, likelihood.y - mean
    y = likelihood.y.expand_as(mean)
    if isinstance(likelihood.noise, Correlated):
        return Whitened(jacobian, likelihood.noise), UNIT, likelihood.noise.whitened(y, mean)
    root, score = likelihood.noise.curvature(y, mean).sqrt(), likelihood.noise.score(y, mean)
    return Weighted(jacobian, root), UNIT, torch.where(root > 0, score / root, 0.0)


def _proximal(
    jacobian: LinearMap,
    noise: Gaussian,
    covariance: Covariance,
    residual: Tensor,
    iterations: int,
    tolerance: float,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return v = (J R J^T + Sigma)^-1 residual, w = J^T v and the shift R w.

    For a bounded R they are those of the stacked operator and S.
    """
    if isinstance(covariance, Bounded):
        jacobian = Stacked(jacobian, covariance.limit)
        noise, own = jacobian.noise(noise), jacobian.y_shape[0]
        residual = residual.flatten(1)
        residual = torch.cat([residual, residual.new_zeros(len(residual), own - jacobian.data)], 1)
        covariance = covariance.spread
    solved = jacobian.solve(
        covariance, noise, residual, iterations=iterations, tolerance=tolerance, start=start
    )
    pull = jacobian.adjoint(solved)
    return solved, pull, covariance(pull) if callable(covariance) else covariance * pull


def _objective(
    likelihood: Likelihood, mean: Tensor, delta: Tensor, pull: Tensor, limit: float
) -> Tensor:
    """Return the proximal objective at x + delta, less a constant, (B,); mean = A(x + delta).

    delta is R pull, or S pull where R has a limit.
    """
    wide = delta.double()
    distance = (wide * (pull.double() + wide / limit)).flatten(1).sum(1)
    return likelihood.noise.misfit(likelihood.y.expand_as(mean), mean) + distance / 2


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of every item, (B,) float64."""
    return (a.double() * b.double()).flatten(1).sum(1)
