"""The contract of an operator, checked on its own x: what inference takes for granted.

    adjoint      <A x, v> = <x, A^T v>                                     (linear operators)
    gradient     <v, A(x + h e) - A(x - h e)> / 2h  =  <J^T v, e>
    derivative   <v, J e> = <J^T v, e>,      J e as guidance takes it

with v and e standard normal, in float64. A central difference errs by h^2 and by rounding over h,
so the smallest discrepancy over `STEPS` is the one that counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from invprob.calibration import Check
from invprob.observation import Observation
from invprob.registry import name_of
from operators.base import ForwardOperator, LinearOperator

__all__ = ["check_operator"]

STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # h, in units of the standard deviation of x
EXACT = 1e-9  # relative, of what float64 computes both ways
SMOOTH = 1e-5  # of a finite difference
SINGLE = 1e-3  # of float32 against float64
REPEATS = 3  # of what is timed; the quickest counts


def check_operator(
    operator: ForwardOperator, x: Tensor, observation: Observation | None = None, seed: int = 0
) -> tuple[Check, ...]:
    """The checks of an operator on plausible unknowns x (B, *x_shape), B >= 2.

    With an observation also that its likelihood is finite and its gradient right. Speed only
    informs. A check during which the operator raises fails, with what it said.
    """
    x = x.double()
    generator = torch.Generator().manual_seed(seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(len(x), *shape, generator=generator, dtype=torch.float64)

    e, v = random(operator.x_shape), random(operator.y_shape)
    checks: dict[str, Callable[[], Check]] = {
        "shapes": lambda: shapes(operator, x),
        "batches": lambda: batches(operator, x),
        "precision": lambda: precision(operator, x),
        "config": lambda: config(operator, x),
    }
    if isinstance(operator, LinearOperator):
        checks["linear"] = lambda: linear(operator, x, e)
        checks["adjoint"] = lambda: adjoint(operator, x, v)
    if operator.differentiable:
        checks["gradient"] = lambda: gradient(
            "gradient", operator, lambda y: (y * v).flatten(1).sum(1), x, e
        )
        checks["derivative"] = lambda: derivative(operator, x, e, v)
        if observation is not None:
            y, noise = observation.y[:1].double(), observation.noise
            checks["likelihood"] = lambda: gradient(
                "likelihood", operator, lambda mean: noise.log_prob(y.expand_as(mean), mean), x, e
            )
    checks["speed"] = lambda: speed(operator, x.float())
    return tuple(tried(name, check) for name, check in checks.items())


def tried(name: str, check: Callable[[], Check]) -> Check:
    """The check, or a failed one that tells what the operator raised."""
    try:
        return check()
    except Exception as error:  # whatever a user's own code raises
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Check(
            name, 1.0, 0.0, False, said, "needed A(x) of batches (B, *x_shape), float32 and float64"
        )


def shapes(operator: ForwardOperator, x: Tensor) -> Check:
    """Whether y has its shape and dtype and is finite."""
    y, single = operator(x), operator(x.float())
    wanted = (len(x), *operator.y_shape)
    if tuple(y.shape) != wanted or y.dtype != x.dtype or single.dtype != torch.float32:
        said = f"A(x) is {tuple(y.shape)} {y.dtype}, and {single.dtype} for float32"
        return Check("shapes", 1.0, 0.0, False, said, f"needed {wanted} of the dtype of x")
    bad = int((~y.isfinite()).sum())
    verdict = f"{bad} of {y.numel()} values are not finite" if bad else f"{wanted}, all finite"
    return Check(
        "shapes", float(bad), 0.0, not bad, verdict,
        "give A(x) a finite value wherever the prior draws x" if bad else None,
    )  # fmt: skip


def batches(operator: ForwardOperator, x: Tensor) -> Check:
    """Whether an item's data depend on its batch mates."""
    alone = torch.cat([operator(item[None]) for item in x])
    return _compared(
        "batches", operator(x), alone, EXACT, "an item alone and in a batch",
        "compute each item by itself: no sums, norms or steps over the batch",
    )  # fmt: skip


def precision(operator: ForwardOperator, x: Tensor) -> Check:
    """How far float32 is from float64."""
    return _compared(
        "precision", operator(x), operator(x.float()).double(), SINGLE, "float32 and float64",
        "accumulate in float64, or scale the parameters: inference runs in float32",
    )  # fmt: skip


def config(operator: ForwardOperator, x: Tensor) -> Check:
    """Whether the parameters that obs.h5 keeps give the same operator."""
    again = type(operator).from_config(operator.config())
    return _compared(
        "config", operator(x), again(x), 0.0, f"{name_of(type(operator))} and its stored copy",
        "every parameter must be a field of the dataclass",
    )  # fmt: skip


def linear(operator: LinearOperator, x: Tensor, e: Tensor) -> Check:
    """Whether A is linear, as it says."""
    return _compared(
        "linear", operator(x - 2 * e), operator(x) - 2 * operator(e), EXACT,
        "A(x - 2e) and A x - 2 A e", "derive from ForwardOperator, which may be non-linear",
    )  # fmt: skip


def adjoint(operator: LinearOperator, x: Tensor, v: Tensor) -> Check:
    """Whether the adjoint is one."""
    y, back = operator(x), operator.adjoint(v)
    return _products("adjoint", (y, v), (x, back), "<A x, v> and <x, A^T v>", "_apply_adjoint")


def derivative(operator: ForwardOperator, x: Tensor, e: Tensor, v: Tensor) -> Check:
    """Whether J and J^T, as guidance takes them, are transposes."""
    _, jacobian = operator.linearise(x)
    return _products(
        "derivative", (jacobian(e), v), (e, jacobian.adjoint(v)), "<J e, v> and <e, J^T v>",
        "the second derivative that autograd takes of A",
    )  # fmt: skip


def gradient(
    name: str,
    operator: ForwardOperator,
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    e: Tensor,
) -> Check:
    """Whether the gradient of objective(A(x)), (B,), is that of finite differences along e."""
    leaf = x.detach().clone().requires_grad_()
    value = objective(operator(leaf))
    (back,) = torch.autograd.grad(value.sum(), leaf)
    if not bool(value.isfinite().all() and back.isfinite().all()):
        return Check(name, 1.0, 0.0, False, "not finite", "give A a finite value and gradient")
    slope = (back * e).flatten(1).sum(1)
    size = x.std() + 1e-12
    best = float("inf")
    with torch.no_grad():
        for h in STEPS:
            step = h * size * e
            found = (objective(operator(x + step)) - objective(operator(x - step))) / (2 * h * size)
            best = min(best, float((found - slope).norm() / slope.norm().clamp_min(1e-300)))
    return _judged(
        name, best, SMOOTH, "autograd and central differences", "the backward of A, or x where it "
        "has a kink",
    )  # fmt: skip


def speed(operator: ForwardOperator, x: Tensor) -> Check:
    """Seconds of one item, and of its gradient, in a batch of this size."""

    def once() -> tuple[float, float]:
        leaf = x.detach().clone().requires_grad_(operator.differentiable)
        start = time.perf_counter()
        y = operator(leaf)
        middle = time.perf_counter()
        if y.requires_grad:
            torch.autograd.grad(y.square().sum(), leaf)
        return (middle - start) / len(x), (time.perf_counter() - middle) / len(x)

    runs = [once() for _ in range(REPEATS)]
    forward, back = (min(times) for times in zip(*runs, strict=True))
    verdict = f"A(x) {1e3 * forward:.3g} ms, its gradient {1e3 * back:.3g} ms, an item"
    return Check("speed", back / forward, None, True, verdict)


def _compared(
    name: str, one: Tensor, other: Tensor, threshold: float, what: str, remedy: str
) -> Check:
    size = float(one.norm()) or 1.0
    return _judged(name, float((one - other).norm()) / size, threshold, what, remedy)


def _products(
    name: str, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], what: str, wrong: str
) -> Check:
    one, other = ((a * b).flatten(1).sum(1) for a, b in (left, right))
    size = float(left[0].norm() * left[1].norm()) or 1.0
    return _judged(name, float((one - other).norm()) / size, EXACT, what, wrong)


def _judged(name: str, found: float, threshold: float, what: str, remedy: str) -> Check:
    passed = found <= threshold
    verdict = f"{what} {'agree' if passed else 'differ'}, relative difference {found:.1e}"
    return Check(name, found, threshold, passed, verdict, None if passed else f"look at: {remedy}")
