"""The same observation through several samplers: one row of scores for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from invprob import registry
from invprob.baselines.base import Baseline
from invprob.certificate import Certificate, certify
from invprob.draws import Array, Draws, corrected, draw
from invprob.likelihood import Likelihood
from invprob.metrics import TRUTH_SCORES, against_truth
from invprob.observation import Observation
from invprob.posterior import Posterior, bind, resolve_prior
from invprob.results import Result, Scores, kept
from invprob.trajectory import Progress, Propose
from operators._maps import LinearMap
from operators.base import ForwardOperator, LinearOperator
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from operators.noise import NoiseModel
from priors.base import Prior

LINEAR_STEPS = ("_apply", "_apply_adjoint")  # what A x, its adjoint and iterative solves all call


@dataclass
class Count:
    """Evaluations of network and operator so far, counted per item of a batch."""

    network: int = 0
    operator: int = 0


def compare(
    observation: Observation,
    prior: str | None = None,
    baselines: tuple[str, ...] = ("dps",),
    posterior: Posterior | None = None,
    n: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> list[Result]:
    """Return the results of a trained posterior (row `rtb`, where given) and of baselines.

    A baseline is a name with optional settings: "dps", "dps:zeta=0.5,steps=200". RMSE, PSNR and
    SSIM are of the mean of the n samples, and of each in the mean where their names say so. Raises
    UnknownName and NotDifferentiable before any work where a method does not exist or cannot run
    on this operator. keep: folder where results that no file of the user decides are stored, and
    taken from if they are there.
    """
    if len(observation.y) > 1:
        raise ObservationError(
            f"the file holds {len(observation.y)} observations, compare takes one: "
            "go through them by observation.each()"
        )
    posterior = posterior and _of(posterior, observation)
    methods = [(name, parse(name)) for name in baselines]
    loaded = posterior.prior if posterior else resolve_prior(observation, prior)[1]
    for name, method in methods:
        refuse_mismatch(name, method, loaded, observation.operator, observation.noise)
    results = []
    if posterior is not None:
        policy = posterior.policy
        results.append(
            _run(
                "rtb", observation, loaded, n, seed, progress,
                lambda many: policy.propose(loaded, many), posterior.times,
                lambda _: posterior.seconds,
            )
        )  # fmt: skip
        known = posterior.certify(results[0].draws)
        results[0] = replace(results[0], certificate=known)
    of = posterior.prior_name if posterior else prior or observation.prior
    asked = {
        "observation": observation.sha256(), "truth": observation.truth_sha256(), "prior": of,
        "n": n, "seed": seed,
    }  # fmt: skip
    for name, method in methods:
        run = partial(
            _run, name, observation, loaded, n, seed, progress, partial(method.propose, loaded),
            method.times(loaded), partial(method.train, loaded), method.particles,
        )  # fmt: skip
        folder = None if _own_files(name, of, observation.name) else keep
        results.append(kept(folder, {"method": name, **asked}, run))
    return results


def _of(posterior: Posterior, observation: Observation) -> Posterior:
    """Return the posterior of an observation; the gap of its twins is known of its own alone."""
    if posterior.observation.sha256() == observation.sha256():
        return posterior
    posterior.refuse_other(observation)
    return replace(posterior, observation=observation, certificate=None, gaps=None)


def _own_files(method: str, prior: str, operator: str) -> bool:
    """Return whether files of the user decide a result: these may change under the same name."""
    shipped = {name.replace("-", "_") for name in registry.names("priors")}
    return ".py" in method + operator or bool(prior and prior.replace("-", "_") not in shipped)


def parse(text: str) -> Baseline:
    """Return the baseline of "name" or "name:key=value,key=value"."""
    name, settings = split(text)
    cls: type[Baseline] = registry.baseline_class(name)
    kinds = get_type_hints(cls)
    known = {f.name: kinds[f.name] for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise UnknownName(f"baseline {name} has no setting {key!r}; it has {', '.join(known)}")
        try:
            values[key] = known[key](value)
        except ValueError:
            raise UnknownName(
                f"baseline setting '{key}={value}': needed {key}=<{known[key].__name__}>"
            ) from None
    return cls(**values)


def split(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the settings of "name:key=value,key=value"."""
    name, _, settings = text.partition(":")
    if name.endswith(".py"):  # file.py:Class, then its settings
        part, _, settings = settings.partition(":")
        name = f"{name}:{part}"
    items = (item.partition("=") for item in filter(None, settings.split(",")))
    return name, {key: value for key, _, value in items}


def runnable(
    observation: Observation, prior: str | None = None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the baselines that can run on an observation, and why each of the others does not.

    One that trains a network first, for minutes, is run where it is named.
    """
    problem = resolve_prior(observation, prior)[1], observation.operator, observation.noise
    methods = {name: parse(name) for name in registry.names("baselines")}
    lacking = {
        name: method.lacks(*problem) or ("trains first: name it" if method.needs_training else None)
        for name, method in methods.items()
    }
    able = tuple(name for name, why in lacking.items() if why is None)
    return able, {name: f"{name} {why}" for name, why in lacking.items() if why}


def refuse_mismatch(
    name: str, method: Baseline, prior: Prior, operator: ForwardOperator, noise: NoiseModel
) -> None:
    """Raise NotDifferentiable where prior, operator or noise lack what the method needs."""
    lacking = method.lacks(prior, operator, noise)
    if lacking:
        raise NotDifferentiable(f"{name} {lacking}: leave it out")


def _run(
    name: str,
    observation: Observation,
    prior: Prior,
    n: int,
    seed: int,
    progress: Progress | None,
    sampler: Callable[..., Any],
    times: tuple[float, ...],
    train: Callable[[Likelihood], float],
    particles: bool = False,
) -> Result:
    """Return the result of one sampler, its evaluations counted once it is trained."""

    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if progress:
            progress(name, done, total, figures)

    likelihood = bind(observation)
    train_seconds = train(likelihood)
    draws, cost = measured(prior, likelihood, sampler, times, n, seed, report, particles)
    draws, certificate = certified(draws, seed)
    truth = observation.truth
    x = draws.x.astype(float)
    known = {} if truth is None else against_truth(x, truth, observation.truth_sigma)
    scores: Scores = {
        **{key: known.get(key) for key in TRUTH_SCORES},
        "log_likelihood": float(draws.log_likelihood.mean()),
        "chi2_per_pixel": certificate.chi2_per_pixel,
        "elbo": certificate.elbo,
        "log_z": certificate.log_z,
        "ess": certificate.ess,
        "std_log_w": certificate.std_log_w,
        **cost,
        "train_seconds": train_seconds,
        "seconds_amortised": (cost["seconds"] + train_seconds) / n,
    }
    errors: Scores = {
        # particles are no independent draws
        "log_likelihood": None if particles else _standard_error(draws.log_likelihood),
        "chi2_per_pixel": None if particles else _standard_error(draws.chi2),
        "elbo": certificate.elbo_se,
        "log_z": certificate.log_z_se if certificate.even else None,
    }
    return Result(name, draws, certificate, scores, errors)


def _standard_error(values: Array) -> float | None:
    """Return the standard error of the mean of independent values (n,), None of one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def measured(
    prior: Prior,
    likelihood: Likelihood,
    sampler: Callable[[Likelihood], Propose],
    times: tuple[float, ...],
    n: int,
    seed: int,
    progress: Progress | None = None,
    particles: bool = False,
    oversample: int = 1,
) -> tuple[Draws, dict[str, float]]:
    """Return n samples, and what they cost: seconds, evaluations of network and A per sample.

    particles: they are those of SMC, with its weights.
    """
    begun = time.monotonic()
    with counting(prior, likelihood.operator) as count:
        many = oversample * n
        draws = draw(prior, likelihood, sampler, times, many, seed, progress, particles)
    return draws, {
        "network_evaluations": count.network / n,
        "operator_evaluations": count.operator / n,
        "seconds": time.monotonic() - begun,
    }


def certified(
    draws: Draws, seed: int, gaps: Array | None = None, n: int | None = None
) -> tuple[Draws, Certificate]:
    """Return samples with their certificate; n of the particles of SMC drawn by their weights.

    gaps: of twins, see `certify`.
    """
    known = certify(draws, gaps)
    if draws.island == 1 or known.ess is None:
        return draws, known
    return corrected(draws, known, "smc", seed, n)[1:]


@contextmanager
def counting(prior: Prior, operator: ForwardOperator) -> Iterator[Count]:
    """Count evaluations of the denoiser and of A or its adjoint, per item, inside the block.

    Where A is not linear, products with its derivative or the transpose of that count as A does,
    also those that autograd takes. Solves in closed form and singular vectors count as nothing.
    """
    count = Count()

    def counted(function: Callable[..., Any], attribute: str) -> Callable[..., Any]:
        def call(batch: Any, *rest: Any) -> Any:
            setattr(count, attribute, getattr(count, attribute) + len(batch))
            return function(batch, *rest)

        return call

    def shadow(owner: Any, name: str, attribute: str) -> None:
        # an instance's attribute shadows its class's method; operators are frozen
        object.__setattr__(owner, name, counted(getattr(owner, name), attribute))

    linearise, forward = operator.linearise, operator._forward

    def linearised(x: Tensor) -> tuple[Tensor, LinearMap]:
        mean, jacobian = linearise(x)
        shadow(jacobian, "_apply", "operator")  # its transpose goes back through `walked`
        return mean, jacobian

    def walked(x: Tensor) -> Tensor:
        y: Tensor = forward(x)
        count.operator += len(x)
        if y.requires_grad:
            y.register_hook(back)  # type: ignore[no-untyped-call]  # torch
        return y

    def back(cotangent: Tensor) -> None:
        count.operator += len(cotangent)

    try:
        shadow(prior, "denoise", "network")
        if isinstance(operator, LinearOperator):
            for name in LINEAR_STEPS:
                shadow(operator, name, "operator")
        else:
            object.__setattr__(operator, "_forward", walked)
            object.__setattr__(operator, "linearise", linearised)
        yield count
    finally:
        for owner in (prior, operator):
            for name in ("denoise", "linearise", "_forward", *LINEAR_STEPS):
                vars(owner).pop(name, None)
