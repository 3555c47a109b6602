"""Equations in time: stepping with gradients of bounded memory, and a scheme for stiff ones.

    du/dt = -D u + N(u),    D >= 0 diagonal and stiff, N smooth

    a    = e(c/2) u + h/2 p1(c/2) N(u),    b = e(c) u + h p1(c) (2 N(a) - N(u)),    c = -h D
    u(h) = e(c) u + h [ (p1 - 3 p2 + 4 p3) N(u) + (4 p2 - 8 p3) N(a) + (4 p3 - p2) N(b) ](c)

with e = exp and p_k(c) = sum_j c^j / (j + k)!: ETDRK3 (Cox & Matthews 2002,
doi:10.1006/jcph.2002.6995, eq. 23-25), third order. D alone is exact however large, and waves that
N carries stay bounded up to h times their frequency of sqrt(3), where Heun's method has no bound.

A gradient needs the states in reverse. Only one in every sqrt(steps) is kept and those between are
computed again, so memory grows as sqrt(steps) and the forward cost is paid twice (Griewank 1992,
doi:10.1080/10556789208805505; Chen et al. 2016, arXiv:1604.06174). Where all states together take
less than `SMALL` bytes, nothing is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from operators.errors import NumericalError

__all__ = ["evolve", "exponential", "in_groups", "steps_needed"]

State = tuple[Tensor, ...]
MOST_STEPS = 2**14
SMALL = 2**22  # bytes; what autograd keeps of a step is some tens of states


def evolve(
    step: Callable[[int, State], State],
    state: State,
    steps: int,
    record: Callable[[State], Tensor] | None = None,
    every: int = 1,
) -> tuple[State, list[Tensor]]:
    """The state after `steps` steps, and `record` of the state after every `every`-th.

    step: (number of the step, state) -> state; it is called again for gradients.
    """

    def segment(start: int, stop: int, *now: Tensor) -> State:
        seen = []
        for n in range(start, stop):
            now = step(n, now)
            if record is not None and (n + 1) % every == 0:
                seen.append(record(now))
        return (*now, *seen)

    if steps * sum(part.nbytes for part in state) < SMALL:
        found = segment(0, steps, *state)
        return found[: len(state)], list(found[len(state) :])
    length = max(1, math.isqrt(steps))
    seen: list[Tensor] = []
    for start in range(0, steps, length):
        # torch.utils.checkpoint is a plain call where no gradient is recorded
        found = checkpoint(
            segment, start, min(start + length, steps), *state,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        state, seen = found[: len(state)], [*seen, *found[len(state) :]]
    return state, seen


def exponential(
    decay: Tensor, h: float, tendency: Callable[[Tensor], Tensor], like: Tensor
) -> Callable[[Tensor], Tensor]:
    """The map of u to u(h), for `decay` D (float64) and `tendency` N; `like` is real, of u's dtype.

    See the module.
    """
    half, whole = -h / 2 * decay, -h * decay
    one, two, three = (_phi(whole, k) for k in (1, 2, 3))
    kept_half, kept, push_half, push, first, second, third = (
        table.to(like)
        for table in (
            half.exp(), whole.exp(), h / 2 * _phi(half, 1), h * one,
            h * (one - 3 * two + 4 * three), h * (4 * two - 8 * three), h * (4 * three - two),
        )
    )  # fmt: skip

    def step(u: Tensor) -> Tensor:
        now = tendency(u)
        middle = tendency(kept_half * u + push_half * now)
        end = tendency(kept * u + push * (2 * middle - now))
        return kept * u + first * now + second * middle + third * end

    return step


def _phi(c: Tensor, k: int) -> Tensor:
    """The sum of c^j / (j + k)! over j >= 0, for c <= 0 in float64 and k from 1 to 3."""
    near = sum(c.clamp(-0.5, 0) ** j / math.factorial(j + k) for j in range(14))
    far = c.clamp(max=-0.5)  # where its closed form has no cancellation
    closed = far.exp()
    for j in range(k):
        closed = (closed - 1 / math.factorial(j)) / far
    return torch.where(c > -0.5, near, closed)


def steps_needed(rate: Tensor, least: int) -> list[int]:
    """Number of steps of each item: `least` times a power of 2, at least rate (B,).

    Powers of 2, so that it hardly ever changes with x: a gradient takes it as constant. An item
    that is not finite gets the least. Raises `NumericalError` beyond `MOST_STEPS`.
    """
    doublings = (rate.detach().double() / least).clamp_min(1).log2().ceil()
    counts = (least * 2 ** doublings.nan_to_num(0, 0)).tolist()
    if max(counts, default=0) > MOST_STEPS:
        raise NumericalError(
            f"x moves so fast that {max(counts):.0f} time steps are needed, at most {MOST_STEPS} "
            "are taken: scale the prior down, or shorten the duration"
        )
    return [int(n) for n in counts]


def in_groups(function: Callable[[Tensor, int], Tensor], x: Tensor, counts: list[int]) -> Tensor:
    """function(items, n) of all items of x (B, ...) with n steps, in the order of x."""
    groups = {
        n: torch.tensor([i for i, m in enumerate(counts) if m == n], device=x.device)
        for n in sorted(set(counts))
    }
    if len(groups) == 1:
        return function(x, counts[0])
    parts = torch.cat([function(x[index], n) for n, index in groups.items()])
    return parts[torch.argsort(torch.cat(list(groups.values())))]
