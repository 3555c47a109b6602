"""Methods against problems whose exact posterior is known: the distance to it, and its floor.

    rtb       trained on the problem; its samples as `sample` corrects them by default
    rtb_raw   the same samples as they were drawn
    rtb_smc   the same policy's particles, resampled on the way (`sample --correct smc`)
    guided    the policy before training
    oracle    the exact posterior's denoiser on the same chain: the limit of any policy
    NAME      a training-free baseline

All walk the prior's grid of times, so a step costs each the same; what more a method evaluates is
in its row. Distances are to a large reference with exact mode counts. Their floor is what as many
exact independent draws leave, the mean over repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from invprob import registry
from invprob.budgets import tuned
from invprob.certificate import Certificate, carried
from invprob.comparison import certified, measured, parse, refuse_mismatch
from invprob.config import TrainConfig
from invprob.draws import Draws, corrected
from invprob.likelihood import Likelihood
from invprob.metrics import (
    Array,
    mmd_squared,
    optimality_gap,
    posterior_coverage,
    sliced_wasserstein,
)
from invprob.policy import Policy
from invprob.results import Result
from invprob.rtb import Trainer
from invprob.suites.base import Problem
from invprob.trajectory import Progress, Propose
from invprob.twins import Twins
from operators.errors import NotDifferentiable, UnknownName

TRAINED = ("rtb", "guided")  # what a policy samples; `rtb` gives `rtb_raw` and `rtb_smc` too
REFERENCE = 10  # draws of the exact reference for each draw of a method
REPEATS = 8  # exact draws behind the floor
MMD_DRAWS = 1000  # of the reference, evenly taken: the kernel meets all pairs
EXACT_SEED = 10**6  # of reference and floor: far from the methods' own

# Vectors are cheap: wide batches, many steps, and twins enough for a steady EUBO. The sliced
# distance of raw samples on gmm/d80_dy2_s0 is 0.59 after 300 and 40 steps of width 64, 0.20 after
# 300 and 150, and 0.15 after these.
VECTORS = TrainConfig(
    width=128, warm_steps=1000, warm_batch=128, bank=4096, rtb_steps=150, paths=64, rtb_rate=2e-3,
    ema=0.95, twins=64,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Rows of scores, one a method, and the floor they should be read against."""

    problem: Problem
    rows: list[dict[str, Any]]  # means over seeds; "spread" holds standard deviations
    results: list[Result]  # of the first seed
    reference: Array  # exact draws, (REFERENCE * n, d), or as many times n as are stored
    floor: dict[str, float | None]


def runnable(problem: Problem) -> tuple[str, ...]:
    """Return the methods that can run on a problem."""
    out = left_out(problem)
    return tuple(name for name in known_methods() if name not in out)


def left_out(problem: Problem) -> dict[str, str]:
    """Return the methods that cannot run on a problem, each with the reason."""
    reasons = {}
    for name in known_methods():
        try:
            _check(name, problem)
        except NotDifferentiable as error:
            reasons[name] = str(error)
    return reasons


def known_methods() -> tuple[str, ...]:
    """Return the names of all methods."""
    return (*TRAINED, "oracle", *registry.names("baselines"))


def benchmark(
    problem: Problem,
    methods: Sequence[str] | None = None,
    n: int = 1000,
    seeds: Sequence[int] = (0,),
    config: TrainConfig = VECTORS,
    progress: Progress | None = None,
    tune: bool = False,
    oversample: int = 1,
) -> Benchmark:
    """Return n samples of every method, scored against the exact posterior.

    A method is `rtb`, `guided`, `oracle` or a baseline ("dps", "dps:zeta=0.5"); None: all that can
    run. A baseline takes as many steps as the prior's chain unless it says otherwise. A seed fixes
    training and sampling. tune: step sizes that names leave open are found on simulated twins, with
    the first seed. oversample: draws for each sample, where samples are chosen by their weights.
    Raises UnknownName and NotDifferentiable before any work.
    """
    methods = runnable(problem) if methods is None else methods
    for name in methods:
        _check(name, problem)
    if tune:
        methods = [
            name if name in (*TRAINED, "oracle") else _tuned(name, problem, seeds[0])
            for name in methods
        ]
    reference = problem.reference(REFERENCE * n, EXACT_SEED)
    scores = []
    for seed in range(EXACT_SEED + 1, EXACT_SEED + 1 + REPEATS):
        dealt = problem.dealt(seed)
        same = dealt is problem
        apart = reference if same else dealt.reference(REFERENCE * n, EXACT_SEED)
        scores.append(_distances(problem, dealt.sample(n, seed), apart))
    means = {f"floor_{key}": _mean([score[key] for score in scores]) for key in scores[0]}
    distances = [score["sliced_wasserstein"] for score in scores]
    floor: dict[str, float | None] = {
        "floor": means.pop("floor_sliced_wasserstein"),
        "floor_spread": _mean(distances, partial(np.std, ddof=1)),
        "floor_max": means.pop("floor_max_sliced_wasserstein"),
        **means,
    }
    runs = [
        [
            result
            for name in methods
            for result in _run(problem, name, n, seed, config, reference, progress, oversample)
        ]
        for seed in seeds
    ]
    rows = [_row(list(column)) for column in zip(*runs, strict=True)]
    return Benchmark(problem, rows, runs[0], reference, floor)


def _check(name: str, problem: Problem) -> None:
    """Raise where a method does not exist, or cannot run on the problem's operator."""
    operator = problem.likelihood.operator
    if name in TRAINED:
        if not operator.differentiable:
            raise NotDifferentiable(
                f"{name} needs a gradient, {type(operator).__name__} has none: leave it out"
            )
    elif name == "oracle":
        problem.oracle(problem.likelihood)  # raises where there is none
    else:
        try:
            method = parse(name)
        except UnknownName as error:
            raise UnknownName(f"{error}; or one of {', '.join((*TRAINED, 'oracle'))}") from error
        refuse_mismatch(name, method, problem.prior, operator, problem.likelihood.noise)


def _tuned(name: str, problem: Problem, seed: int) -> str:
    """Return the method with the step size that serves best on twins of the problem."""
    prior, likelihood = problem.prior, problem.likelihood
    return tuned(name, prior, likelihood, seed, prior.steps, problem.viewed)


def _run(
    problem: Problem,
    name: str,
    n: int,
    seed: int,
    config: TrainConfig,
    reference: Array,
    progress: Progress | None,
    oversample: int,
) -> list[Result]:
    """Return the result of one method: three for `rtb`, corrected by weights, raw, and by SMC."""
    prior, likelihood = problem.prior, problem.likelihood
    config = replace(config, seed=seed, steps=prior.steps)

    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if progress:
            progress(f"{name}: {stage}", done, total, figures)

    times, seconds = prior.schedule.grid(prior.steps), 0.0
    policy, particles = None, False
    sampler: Callable[[Likelihood], Propose]
    if name in TRAINED:
        trainer = Trainer(prior, likelihood, config)
        begun = time.monotonic()
        trainer.calibrate()
        while name == "rtb" and trainer.step < trainer.total:
            figures = trainer.advance()
            report("training", trainer.step, trainer.total, figures)
        seconds, policy = time.monotonic() - begun if trainer.step else 0.0, trainer.average
        sampler = partial(policy.propose, prior)
    elif name == "oracle":
        sampler = problem.oracle
    else:
        method = parse(name)
        if "steps=" not in name:
            # every baseline is a dataclass of its settings, its base is not
            method = replace(method, steps=prior.steps)  # type: ignore[type-var]
        seconds, sampler = method.train(prior, likelihood), partial(method.propose, prior)
        times, particles = method.times(prior), method.particles
    gaps = None if policy is None else _twin_gaps(problem, policy, config)

    def sampled(smc: bool) -> tuple[Draws, Certificate, dict[str, float]]:
        many = oversample if smc or name == "rtb" else 1
        drawn, cost = measured(prior, likelihood, sampler, times, n, seed, report, smc, many)
        # gaps are those of single paths
        known = certified(drawn, seed, None if smc else gaps, n)
        return *known, cost | {"train_seconds": seconds}

    draws, certificate, cost = sampled(particles)
    if name != "rtb":
        return [_result(name, problem, draws, certificate, cost, reference)]
    default = corrected(draws, certificate, "auto", seed, n)[1:]
    raw, one = draws.taken(np.arange(n)), {key: cost[key] / oversample for key in cost}
    resampled, own, spent = sampled(True)
    return [
        _result("rtb", problem, *default, cost, reference),
        _result("rtb_raw", problem, raw, certificate, one | {"train_seconds": seconds}, reference),
        _result("rtb_smc", problem, resampled, carried(certificate, own), spent, reference),
    ]


def _twin_gaps(problem: Problem, policy: Policy, config: TrainConfig) -> Array:
    """Return EUBO - ELBO on simulated twins of the problem."""
    operator, noise = problem.likelihood.operator, problem.likelihood.noise
    twins = Twins.simulate(problem.prior, policy, operator, noise, config.twins, config.seed + 1)
    return twins.gaps(problem.prior, policy, config.twin_paths, config.seed)


def _result(
    name: str,
    problem: Problem,
    draws: Draws,
    certificate: Certificate,
    cost: dict[str, float],
    reference: Array,
) -> Result:
    """Return the scores of one row; those of samples are None where any is not finite."""
    x = draws.x.astype(float)
    finite = bool(np.isfinite(x).all())
    exact = problem.likelihood.fit(torch.from_numpy(reference))[1].mean()
    distances = _distances(problem, x if finite else reference, reference)
    scores: dict[str, float | None] = {
        **(distances if finite else dict.fromkeys(distances)),
        "residual_rms": float(np.sqrt(draws.chi2.mean())) if finite else None,
        "residual_rms_exact": float(exact.sqrt()),
        "log_z": certificate.log_z,
        "log_z_exact": problem.log_z,
        "log_z_chain": problem.log_z_chain,
        "elbo": certificate.elbo,
        "eubo": certificate.eubo,
        "ess": certificate.ess,
        "pareto_k": certificate.pareto_k,
        **cost,
    }
    return Result(name, draws, certificate, scores)


def _distances(problem: Problem, x: Array, reference: Array) -> dict[str, float | None]:
    """Return how far samples x (n, d) lie from the exact posterior, as the problem views them."""
    seen, exact = problem.viewed(x), problem.viewed(reference)
    distinct = exact[np.insert((exact[1:] != exact[:-1]).any(1), 0, True)]  # stored draws recur
    mean, largest = sliced_wasserstein(seen, exact)
    return {
        "sliced_wasserstein": mean,
        "max_sliced_wasserstein": largest,
        "mmd_squared": mmd_squared(seen, distinct[:: max(1, len(distinct) // MMD_DRAWS)]),
        "mode_weight_error": problem.mode_weight_error(x),
        "mmse_gap_db": optimality_gap(seen, exact),
        "coverage_90": posterior_coverage(seen, exact),
    }


def _row(results: list[Result]) -> dict[str, Any]:
    """Return one method's means over seeds, with their spread where there are several."""
    columns = {key: [r.scores[key] for r in results] for key in results[0].scores}
    row: dict[str, Any] = {"name": results[0].name}
    row |= {key: _mean(values) for key, values in columns.items()}
    row["verdict"] = results[0].certificate.verdict
    if len(results) > 1:
        row["spread"] = {
            key: _mean(values, partial(np.std, ddof=1)) for key, values in columns.items()
        }
    return row


def _mean(values: list[float | None], of: Callable[[Any], Any] = np.mean) -> float | None:
    """Return a statistic of values, None where any of them is not defined."""
    return None if None in values else float(of(values))
