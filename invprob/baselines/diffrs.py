"""Diffusion rejection sampling (Na et al. 2024, arXiv 2405.17880): steps that are drawn again where
a learned ratio says that the posterior has fewer states there than the sampler.

    z_s ~ q(z_s | z_t, y),   kept with probability min(1, L_s(z_s) / (M_s L_t(z_t)))
    L_t = p(z_t | y) / q_t(z_t | y)

q are calibrated guidance's steps, those of RTB before training. L_t is learned on simulated pairs
(z_0, y): logistic regression between z_0 noised to t, a draw of the posterior's z_t, and the state
at t of a chain of q for the same y, from what guidance says of either. M_s is a quantile of
L_s / L_t over steps of those chains, and at least 1. The paper has a network in place of the
regression, and noises a state again that was refused; here all samples are at one time, so it is
drawn anew from the same step, at most `tries` times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob.baselines._learned import Learned
from invprob.baselines.base import Limits
from invprob.likelihood import Likelihood
from invprob.trajectory import Guidance, Move, Noise, Propose, batches, guide, rollout
from priors.base import Prior
from priors.process import generators, randn

CHUNK = 64  # chains that are walked at a time
RIDGE = 1.0  # of the regression, on features of unit variance
NEWTON = 12  # its iterations
BOUND = 3.0  # of features, in standard deviations: beyond, the regression knows nothing

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ratio:
    """log L of every time of a chain, linear in its features and their squares."""

    centre: Tensor  # (N, F) float64
    width: Tensor  # (N, F)
    weights: Tensor  # (N, 1 + 2 F)
    log_m: tuple[float, ...]  # N

    def log(self, features: Tensor, i: int) -> Tensor:
        """Return log L (B,) of features (B, F) at place i of the grid."""
        terms = _terms((features - self.centre[i]) / self.width[i])
        return terms @ self.weights[i]


@dataclass(frozen=True)
class DiffRS(Learned):
    """DiffRS with a ratio learned on so many `pairs`, M a `quantile`, and so many `tries`."""

    summary = "guided steps, drawn again where a ratio learned on simulated pairs says so"
    needs_network_gradient = False
    limits: ClassVar[Limits] = {"pairs": (2, math.inf), "quantile": (0, 1)}
    steps: int = 40
    pairs: int = 128
    quantile: float = 0.75
    tries: int = 8
    seed: int = 0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return DiffRS as the sampler of one likelihood."""
        return self._walk(prior, likelihood, self.learned(prior, likelihood))

    def _walk(
        self,
        prior: Prior,
        likelihood: Likelihood,
        ratio: Ratio | None,
        seen: list[Tensor] | None = None,
    ) -> Propose:
        """Return the sampler, which refuses nothing without a ratio.

        The features of all states but the first are appended to `seen`.
        """
        times, schedule = self.times(prior), prior.schedule
        known: tuple[Tensor, Guidance] | None = None
        last: tuple[float, Tensor] | None = None

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal known, last
            met = known[1] if known and known[0] is z else guide(prior, likelihood, z, t)
            s, kernel = times[i + 1], schedule.kernel(t, times[i + 1])
            led = schedule.led(met.clean, last if i else None, t, s)
            mean, last = kernel.mean(z, led) + kernel.pull * met.delta, (t, met.clean)
            bar = torch.zeros(len(z), dtype=torch.float64, device=z.device)
            if ratio and i:
                bar = ratio.log(_features(prior, z, met, t), i)

            def leap(noise: Noise) -> Tensor:
                nonlocal known
                drawn, found = mean, met
                left = torch.arange(len(z), device=z.device)
                # drawn for all, whatever is left: no sample's randomness hangs on another's
                for _ in range(self.tries if ratio else 1):
                    eps, chance = noise(), torch.special.ndtr(noise().flatten(1)[:, 0].double())
                    if not len(left):
                        continue
                    trial = mean[left] + kernel.variance**0.5 * eps[left]
                    y = likelihood.y if len(likelihood.y) == 1 else likelihood.y[left]
                    here = guide(prior, replace(likelihood, y=y), trial, s)
                    drawn, found = drawn.index_copy(0, left, trial), _put(found, left, here)
                    if ratio:
                        gain = ratio.log(_features(prior, trial, here, s), i + 1) - bar[left]
                        left = left[chance[left].log() > gain - ratio.log_m[i + 1]]
                known = drawn, found
                if seen is not None:
                    seen.append(_features(prior, drawn, found, s))
                return drawn

            return Move(met.clean, leap=leap)

        return move

    def fit(self, prior: Prior, likelihood: Likelihood, z0: Tensor) -> Ratio:
        """Return the ratio learned of draws z_0 (N, *z_shape) and the likelihood of their data."""
        times = self.times(prior)
        ours, theirs = [], []  # of the sampler and of the posterior, (chunk, N - 1, F) each
        for rows in batches(len(z0), CHUNK):
            some = replace(likelihood, y=likelihood.y[rows])
            sources = generators(self.seed + 1, rows)
            seen: list[Tensor] = []
            rollout(prior, self._walk(prior, some, None, seen), sources, times, keep=False)
            ours.append(torch.stack(seen, 1))
            exact = []
            for t in times[1:]:
                z = prior.schedule.noise(z0[rows], t, randn(prior.z_shape, sources, z0))
                exact.append(_features(prior, z, guide(prior, some, z, t), t))
            theirs.append(torch.stack(exact, 1))
        q, p = torch.cat(ours), torch.cat(theirs)
        both = torch.cat([q, p])
        start = torch.zeros(1, both.shape[-1], dtype=both.dtype, device=both.device)
        centre = torch.cat([start, both.mean(0)])
        width = torch.cat([start + 1, both.std(0)]).clamp(min=1e-12)
        weights = torch.stack(
            [
                _logistic(_terms((both[:, i] - centre[i + 1]) / width[i + 1]), len(q))
                for i in range(len(times) - 1)
            ]
        )
        ratio = Ratio(centre, width, torch.cat([torch.zeros_like(weights[:1]), weights]), ())
        logs = torch.stack([ratio.log(q[:, i], i + 1) for i in range(len(times) - 1)])
        steps = torch.diff(logs, dim=0, prepend=torch.zeros_like(logs[:1]))
        log_m = steps.quantile(self.quantile, dim=1).clamp(min=0)
        return replace(ratio, log_m=(0.0, *log_m.tolist()))


def _features(prior: Prior, z: Tensor, met: Guidance, t: float) -> Tensor:
    """Return what the ratio reads of states z (B, *z_shape), (B, F) float64."""
    flat = [a.flatten(1).double() for a in (z, met.clean, met.delta, met.score)]
    state, clean, delta, score = flat
    rest = state - prior.schedule.alpha(t) * (clean + delta)
    norms = [a.square().sum(1) for a in (rest, clean, delta, score)]
    return torch.stack([met.potential, (clean * delta).sum(1), *norms], 1)


def _terms(features: Tensor) -> Tensor:
    """Return 1, features and their squares (B, 1 + 2 F), none beyond `BOUND`."""
    held = features.clamp(-BOUND, BOUND)
    return torch.cat([torch.ones_like(held[:, :1]), held, held.square()], 1)


def _logistic(terms: Tensor, zeros: int) -> Tensor:
    """Return the weights that tell the first `zeros` rows, of label 0, from the rest, of 1."""
    label = (torch.arange(len(terms), device=terms.device) >= zeros).to(terms)
    ridge = RIDGE * torch.eye(terms.shape[1], dtype=terms.dtype, device=terms.device)
    weights = torch.zeros_like(terms[0])
    for _ in range(NEWTON):
        p = torch.sigmoid(terms @ weights)
        slope = terms.T @ (label - p) - ridge @ weights
        weights = weights + torch.linalg.solve((terms.T * p * (1 - p)) @ terms + ridge, slope)
    return weights


def _put(all_met: Guidance, index: Tensor, some: Guidance) -> Guidance:
    """Return guidance whose items `index` are replaced."""
    return Guidance(
        *(
            getattr(all_met, f.name).index_copy(0, index, getattr(some, f.name))
            for f in fields(Guidance)
        )
    )
