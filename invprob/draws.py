"""Samples of any sampler, with the weights of their paths.

Sampling goes in batches that bound memory; sample i has a generator of its own, so that it is the
same in every batch. Ranks share the batches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob import distributed
from invprob.certificate import (
    TRUSTED_SHARE,
    Certificate,
    Scores,
    judgement,
    misfit,
    worthwhile,
)
from invprob.correction import Islands, resample
from invprob.likelihood import Likelihood
from invprob.path_weights import reliable
from invprob.trajectory import Move, Progress, Propose, batches, rollout
from operators.errors import NumericalError, ObservationError, UnknownName
from priors.base import Prior
from priors.process import generators

CORRECTIONS = ("auto", "none", "psis", "smc")
IN_FLIGHT = 32 * 64 * 64  # values of x in one batch: bounds memory, changes no result
SKETCH = 16  # random projections
FEW_FAMILIES = 0.1  # share of distinct ancestors below which SMC is warned of

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Draws(Scores):
    """Posterior samples x (n, *x_shape) in physical units with their scores."""

    x: NDArray[np.float32]


Drawn = TypeVar("Drawn", bound=Scores)


def draw(
    prior: Prior,
    likelihood: Likelihood,
    sampler: Callable[[Likelihood], Propose],
    times: tuple[float, ...],
    n: int,
    seed: int,
    progress: Progress | None = None,
    smc: bool = False,
) -> Draws:
    """Return n samples of the sampler for each observation of the likelihood, one after another.

    Sample i is the same for every batch size, and with one observation for every n, up to rounding.
    With `smc`, and one observation, the samples of a batch are particles of one island, and their
    weights those of SMC.
    """
    own = drawn(prior, likelihood, sampler, times, n, seed, progress, smc)
    parts = distributed.collected([(rows.start, draws) for rows, draws in own])
    ordered = [draws for _, draws in sorted(parts, key=lambda part: part[0])]
    names = [f.name for f in fields(Draws) if f.name != "island"]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(draws, name) for draws in ordered]) for name in names
    }
    return replace(ordered[0], **columns)


def drawn(
    prior: Prior,
    likelihood: Likelihood,
    sampler: Callable[[Likelihood], Propose],
    times: tuple[float, ...],
    n: int,
    seed: int,
    progress: Progress | None = None,
    smc: bool = False,
    done: Container[range] = (),
) -> Iterator[tuple[range, Draws]]:
    """Yield rows and samples of every batch of `draw` that is this rank's and not yet `done`."""
    total = n * len(likelihood.y)

    def watched(propose: Propose, rows: range) -> Propose:
        """Report progress, in samples, as the chains of a batch advance."""

        def move(z: Tensor, t: float, i: int) -> Move:
            if progress:
                progress("sample", rows.start + int(len(rows) * i / len(times)), total, {})
            return propose(z, t, i)

        return move

    size = batch_size(prior.x_shape)
    families = 1.0  # least share of particles of a batch with an ancestor of their own
    todo = [rows for rows in batches(total, size) if rows not in done]
    for rows in todo[distributed.rank() :: distributed.size()]:
        many = replace(likelihood, y=likelihood.y[torch.tensor(rows) // n])
        islands = Islands(len(rows), seed + rows.start) if smc else None
        sources = generators(seed, rows, "sample")
        path = rollout(prior, watched(sampler(many), rows), sources, times, False, islands)
        if islands and islands.ancestors is not None:
            families = min(families, len(np.unique(islands.ancestors)) / len(rows))
        x = prior.decode(path.final)
        columns = (x, path.log_weight(prior, many), *many.fit(x))
        images, log_weight, log_likelihood, chi2, degrees = (a.cpu().numpy() for a in columns)
        yield (
            rows,
            Draws(
                x=images,
                log_likelihood=log_likelihood,
                log_weight=log_weight,
                chi2=chi2,
                degrees=degrees,
                sketch=images.reshape(len(images), -1) @ _directions(images[0].size),
                island=size if smc else 1,
            ),
        )
    if progress:
        progress("sample", total, total, {})
    if families < FEW_FAMILIES:
        log.warning(
            "resampling left %.0f%% of the particles with an ancestor of their own: the others "
            "share theirs, and look alike. Draw more samples", 100 * families,
        )  # fmt: skip


@lru_cache(maxsize=4)
def _directions(d: int) -> NDArray[np.float32]:
    """Return the directions of the sketch, (d, SKETCH), the same for all samples."""
    return np.random.default_rng(0).standard_normal((d, SKETCH), dtype=np.float32)


def batch_size(x_shape: tuple[int, ...]) -> int:
    """Return how many samples are drawn together."""
    return max(1, min(1024, IN_FLIGHT // math.prod(x_shape)))


def known_correction(name: str, oversample: int = 1) -> str:
    """Return the name of a correction; raises UnknownName.

    Raises ObservationError where it has no use for more draws than samples.
    """
    if name not in CORRECTIONS:
        raise UnknownName(f"no correction {name!r}: choose {', '.join(CORRECTIONS)}")
    if oversample > 1 and name == "none":
        raise ObservationError(
            f"{oversample} draws for a sample are for correction to choose from: leave oversample "
            "at 1, or correct by auto, psis or smc"
        )
    return name


def corrected(
    draws: Drawn, known: Certificate, how: str, seed: int, n: int | None = None
) -> tuple[NDArray[np.int64], Drawn, Certificate]:
    """Return which n of the draws to take, in ascending order, these draws and their certificate.

    "psis" draws n samples by importance, and so does "smc" from the particles it was drawn with;
    "auto" is "psis" where the weights are reliable and mend more than resampling blurs, and
    "none", the first n, otherwise. n: as many as there are by default; with fewer, the weights of
    the others serve too. Raises NumericalError where the weights are not finite, ObservationError
    where there is one draw alone.
    """
    n = n or len(draws.chi2)
    trusted = reliable(known.ess, known.pareto_k)
    share = 0.0 if known.ess is None else known.ess / n
    evenness = f"Pareto k {known.pareto_k:.2f}, ESS {known.ess:.0f} of {known.n}" if trusted else ""
    if how == "auto":
        mends = trusted and (not draws.fits or worthwhile(draws))
        how = "psis" if mends else "none"
        if trusted and not mends and not known.verdict.startswith("trust"):
            word = "trust: correction would blur the samples by more than it would mend them"
            if share < TRUSTED_SHARE:
                word = (
                    f"approximate: path weights worth {known.ess:.0f} draws show no error, "
                    "and would miss a small one: train longer"
                )
            known = replace(known, verdict=f"{word} ({evenness})")
    if how == "none":
        index = np.arange(n)
        return index, draws.taken(index), known
    if known.n < 2:
        raise ObservationError("one sample cannot be corrected: ask for more, or for none")
    if known.ess is None:
        raise NumericalError("path weights are not finite: nothing to correct by; train again")
    index, level = resample(draws.log_weight, n, seed)
    draws = replace(draws.taken(index), log_weight=np.full(n, level))
    word = judgement(
        known.n, known.ess, known.pareto_k, known.gap, known.std_log_w, draws.island, kept=n
    )
    if trusted and draws.island == 1:
        word = "trust the corrected samples"
        if share < TRUSTED_SHARE:
            wanted = math.ceil(TRUSTED_SHARE * known.n / known.ess)
            word = (
                f"corrected, but worth {known.ess:.0f} draws: choose from more "
                f"(--oversample {wanted}), or train longer"
            )
        word += f" ({how}: {evenness})"
    verdict = misfit(draws) or word
    return index, draws, replace(known, chi2_per_pixel=draws.fit, corrected=how, verdict=verdict)
