"""What a method may spend, and its step size: settings that are found by running it.

Both take and give a method as its text, "dps" or "dps:zeta=0.5"; settings that the text has stay as
they are.

    budget   "paper"       the settings of its paper
             "nfe=2000"    so many network evaluations a sample
             "seconds=60"  so long for all samples
    tuning   the step size of least CRPS on twins of the observation, whose truths are known: the
             best of `FACTORS` times the default, and further out while the best is the outermost
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self

import numpy as np

from invprob.baselines.base import Baseline
from invprob.comparison import measured, parse, split
from invprob.draws import Array, draw
from invprob.likelihood import Likelihood
from invprob.metrics import crps
from operators.errors import UnknownName
from priors.base import Prior
from priors.process import generators

PILOTS = (6, 24)  # steps of the two short runs whose costs give that of a step
MOST_STEPS = 10000  # that a budget may lead to
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the default step size that tuning tries first
REACH = 1e4  # tuning stays within this factor of the default
TWINS = (2, 16)  # fewest and most
TWIN_DRAWS = 4  # samples of each
TWIN_VALUES = 2**15  # of x in one trial, unless that is too few twins: vectors are cheap


@dataclass(frozen=True)
class Budget:
    """What every method may spend: a `kind` of "paper", "nfe" or "seconds", and how much."""

    kind: str
    amount: float = 0.0

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the budget of a text as in the module docstring; raises UnknownName."""
        kind, _, amount = text.partition("=")
        try:
            found = cls(kind, float(amount or 0))
        except ValueError:
            found = cls("")
        counted = kind in ("nfe", "seconds") and 0 < found.amount < math.inf
        if not counted and text != "paper":
            raise UnknownName(f"--budget {text!r}: needed paper, nfe=<count> or seconds=<time>")
        return found

    def spent_by(self, name: str, prior: Prior, likelihood: Likelihood, n: int) -> str:
        """Return the method that spends this budget on n samples of a likelihood."""
        method = parse(name)
        if self.kind == "paper":
            return changed(name, **split(f":{method.paper}")[1])
        low, high = (self._cost(method, steps, prior, likelihood, n) for steps in PILOTS)
        if low == high:  # a method whose cost does not depend on its steps
            return name
        each = (high - low) / (PILOTS[1] - PILOTS[0])
        if each < 0:  # it depends more on the data
            each = high / PILOTS[1]
            low = each * PILOTS[0]
        steps = (self.amount - low) / each + PILOTS[0]
        least = int(method.limits.get("steps", (2, math.inf))[0])
        return changed(name, steps=min(max(int(steps), least), MOST_STEPS))

    def _cost(
        self, method: Baseline, steps: int, prior: Prior, likelihood: Likelihood, n: int
    ) -> float:
        """Return what n samples with so many steps cost, in the budget's unit."""
        short = replace(method, steps=steps)  # type: ignore[type-var]  # all are dataclasses
        short.train(prior, likelihood)
        sampler, times = partial(short.propose, prior), short.times(prior)
        if self.kind == "nfe":
            return measured(prior, likelihood, sampler, times, 1, 0)[1]["network_evaluations"]
        # the first run also compiles, and others may use the machine: the shortest of three
        costs = (measured(prior, likelihood, sampler, times, n, 0)[1] for _ in range(3))
        return min(cost["seconds"] for cost in costs)


def tuned(
    name: str,
    prior: Prior,
    likelihood: Likelihood,
    seed: int,
    steps: int | None = None,
    viewed: Callable[[Array], Array] | None = None,
) -> str:
    """Return the method with the step size of least CRPS on simulated twins, see `FACTORS`.

    steps: what the method takes, unless its text says. viewed: samples x (n, *x_shape) as they are
    compared; None: as x. A method without a step size, or whose text has one, is returned as it is.
    """
    method = parse(name)
    if not method.step_size or changed(name, **{method.step_size: 0.0}) == name:
        return name
    operator, noise = likelihood.operator, likelihood.noise
    default = getattr(method, method.step_size)
    count = min(max(TWIN_VALUES // (TWIN_DRAWS * math.prod(prior.x_shape)), TWINS[0]), TWINS[1])
    truths = prior.decode(prior.draw(count, seed=seed + 1))
    y = noise.sample(operator(truths), *generators(seed, range(1), "noise of twins"))
    twins = Likelihood(operator, noise, y)

    def tried(factor: float) -> str:
        return changed(name, **{method.step_size: float(f"{factor * default:.3g}")})

    def score(factor: float) -> float:
        one = parse(tried(factor) if steps is None else changed(tried(factor), steps=steps))
        drawn = draw(prior, twins, partial(one.propose, prior), one.times(prior), TWIN_DRAWS, seed)
        x, truth = (a.astype(float) for a in (drawn.x, truths.numpy()))
        if viewed:
            x, truth = viewed(x), viewed(truth)
        x = x.reshape(count, TWIN_DRAWS, *x.shape[1:])
        found = np.mean([crps(x[i], truth[i]) for i in range(count)])
        return float(found) if math.isfinite(found) else math.inf

    scores = {factor: score(factor) for factor in FACTORS}
    while True:
        best = min(scores, key=lambda factor: scores[factor])
        further = best * {min(scores): 0.3, max(scores): 3.0}.get(best, 1.0)
        if further == best or not 1 / REACH <= further <= REACH:
            return tried(best)
        scores[further] = score(further)


def changed(text: str, **settings: float | str) -> str:
    """Return a method's text with settings that it does not have yet, where the method has them."""
    name, given = split(text)
    known = {f.name for f in fields(parse(text))}  # type: ignore[arg-type]  # all are dataclasses
    added = {
        key: value if isinstance(value, str) else f"{value:g}"
        for key, value in settings.items()
        if key in known and key not in given
    }
    joined = ",".join(f"{key}={value}" for key, value in (given | added).items())
    return f"{name}:{joined}" if joined else name
