"""Trajectories of the reverse chain: the only place that walks one.

    log w(tau) = log p(y | x_0) + sum_t [ log p(z_s | z_t) - log q(z_s | z_t) ]

Prior p and policy q share the kernel's variance v and the lead of the prior's clean estimates
(`priors.process`), and differ by the shift u. With e = z_s - m_q and m_q - m_p = pull u no
log-ratio has a cancellation:

    log p - log q = -[ 2 e . (pull u) + |pull u|^2 ] / (2 v)           (summed in float64)

The last step z_0 = zhat_0 is deterministic and shared, so it has no density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invprob.decoded import Decoded
from invprob.likelihood import Likelihood
from invprob.proximal import proximal_shift
from priors.base import Covariance, Prior
from priors.process import randn

if TYPE_CHECKING:
    from invprob.correction import Islands


@dataclass(frozen=True, eq=False)
class Guidance:
    """What the prior and the data say at one state: all that a policy may read."""

    clean: Tensor  # zhat_0 of the prior, (B, *z_shape)
    delta: Tensor  # proximal shift towards the data, (B, *z_shape)
    score: Tensor  # gradient of log p(y | x) in z at zhat_0, (B, *z_shape)
    potential: Tensor  # log p(y | z_t), approximately and up to a constant, (B,) float64

    def __getitem__(self, index: Tensor) -> Guidance:
        """Return the guidance of the items `index` (B,)."""
        return Guidance(
            self.clean[index], self.delta[index], self.score[index], self.potential[index]
        )


Noise = Callable[[], Tensor]  # fresh standard normal numbers (B, *z_shape) at every call
Leap = Callable[[Noise], Tensor]  # the next state z_s (B, *z_shape)


@dataclass(frozen=True, eq=False)
class Twisted:
    """A Gaussian step other than the kernel's: z_s = mean + spread(eps)."""

    mean: Tensor  # (B, *z_shape)
    spread: Callable[[Tensor], Tensor]  # linear, the same for all items
    log_det: float  # log of the determinant of spread over that of the kernel's


Twist = Callable[[Tensor, float], Twisted]  # of the kernel's mean and variance; of no one state


@dataclass(frozen=True, eq=False)
class Move:
    """One proposal of a sampler at state z: the prior's clean estimate and a shift of it.

    A sampler with another Gaussian step than the kernel's twists it. One that leaves it altogether
    gives the rest of the step itself, as a function of fresh noise, and its paths have no density.
    """

    clean: Tensor  # (B, *z_shape)
    shift: Tensor | None = None  # u of the clean estimate, (B, *z_shape); None: no shift
    guidance: Guidance | None = None  # kept for the gradient of a trained policy
    foreseen: Tensor | None = None  # log weight the rest of the path should earn, + const, (B,)
    met: Tensor | None = None  # log density of data that this state meets, which x_0 then need not
    twist: Twist | None = None  # of the kernel's step
    leap: Leap | None = None  # in place of the kernel's step; particles of SMC cannot have one

    def __getitem__(self, index: Tensor) -> Move:
        """Return the proposal for the items `index` (B,)."""
        return Move(
            self.clean[index],
            None if self.shift is None else self.shift[index],
            None if self.guidance is None else self.guidance[index],
            None if self.foreseen is None else self.foreseen[index],
            None if self.met is None else self.met[index],
            self.twist,
        )


Propose = Callable[[Tensor, float, int], Move]
Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, done, total, figures
Hold = Callable[[Tensor, int], Tensor]  # states z (B, *z_shape) drawn at a place of the grid -> z


@dataclass(frozen=True, eq=False)
class Trajectory:
    """States z at the grid's times (N, B, *z_shape), the guidance met there, and z_0.

    Where a rollout was asked to keep nothing on the way, `states` is the first one alone and
    `guidance` and `noise` are empty.
    """

    times: tuple[float, ...]
    states: Tensor
    guidance: tuple[Guidance | None, ...]  # N - 1: one per transition
    noise: tuple[Tensor, ...]  # z_s - m_q of every transition
    final: Tensor  # z_0, (B, *z_shape)
    log_ratio: Tensor  # sum log p - log q, (B,) float64; NaN where q has no density
    past: Tensor  # the same before every transition, (N - 1, B)
    data_met: bool = False  # by states on the way: log_ratio holds their density

    def log_weight(self, prior: Prior, likelihood: Likelihood) -> Tensor:
        """Return log w, (B,) float64."""
        if self.data_met:
            return self.log_ratio
        return self.log_ratio + likelihood.log_prob(prior.decode(self.final))


def guide(
    prior: Prior, likelihood: Likelihood, z: Tensor, t: float, clean: Tensor | None = None
) -> Guidance:
    """Return the guidance at state z (B, *z_shape) and time t.

    Costs one network evaluation, or none where the clean estimate is already known; and a few more
    where the prior says that its covariance is better by them.
    """
    with torch.no_grad():
        if clean is None:
            clean = prior.denoise(z, t)
        covariance = prior.covariance(z, t, clean)
        delta, score, potential = proximal(prior, likelihood, clean, covariance)
        pulled = prior.pull(clean, score) if prior.guided_in_x else score
        return Guidance(clean, delta, pulled, potential)


def proximal(
    prior: Prior, likelihood: Likelihood, clean: Tensor, covariance: Covariance
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shift of zhat_0 to the data, (B, *z_shape), score and potential.

    As `proximal_shift` gives them, with the covariance and the score those of x, or of z where
    the prior is not guided in x (`Prior.covariance`).
    """
    if not prior.guided_in_x:
        return proximal_shift(likelihood, clean, covariance, Decoded(likelihood.operator, prior))
    x = prior.decode(clean)
    delta, score, potential = proximal_shift(likelihood, x, covariance)
    return prior.encode(x + delta) - prior.encode(x), score, potential


def step_log_ratio(noise: Tensor, shift: Tensor, variance: float) -> Tensor:
    """Return log p - log q of one step, (B,) float64; noise = z_s - m_q, shift = m_q - m_p."""
    cross = (2 * noise.double() + shift.double()) * shift.double()
    return -cross.flatten(1).sum(1) / (2 * variance)


def rollout(
    prior: Prior,
    propose: Propose,
    sources: list[torch.Generator],
    times: tuple[float, ...],
    keep: bool = True,
    islands: Islands | None = None,
    hold: Hold | None = None,
    widen: float = 1.0,
) -> Trajectory:
    """Return trajectories of a sampler, one per source of randomness.

    Without `keep` they hold their first state and their end only, and memory does not grow with
    the number of steps. With `islands` (and without `keep`) particles are resampled on the way,
    which needs a sampler that gives guidance: log_ratio then makes the log weights of SMC.
    `hold` puts states of known paths in place of those drawn, `widen` scales the standard
    deviation of the noise; either way log_ratio is that of the path under the sampler's own q.

    `times` may climb: from a lower to a higher time the state is noised by the Markov kernel.
    log_ratio is NaN where the sampler is not a chain of Gaussian transitions with the prior's
    variance: where any move was a leap.
    """
    like = torch.empty(0, device=prior.device)
    z = prior.schedule.sigma(times[0]) * randn(prior.z_shape, sources, like)
    hold = islands.hold if islands else hold
    if hold:
        z = hold(z, 0)
    # one block from the start: a list, stacked at the end, would be held twice
    states = z.new_empty((len(times) if keep else 1, *z.shape))
    states[0] = z
    noises, past = [], []
    met: list[Guidance | None] = []
    data_met = False
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    last: tuple[float, Tensor] | None = None  # the time and clean estimate before, until a climb
    move: Move | None

    def fresh() -> Tensor:
        return randn(prior.z_shape, sources, like)

    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(times)):
            past.append(total)
            if s > t:
                carry, spread = prior.schedule.forward(t, s)
                noise = spread * fresh()
                z, last, move = carry * z + noise, None, None
            else:
                kernel, move = prior.schedule.kernel(t, s), propose(z, t, i)
                if move.met is not None:
                    total, data_met = total + move.met, True
                if islands:
                    assert move.foreseen is not None and not move.leap  # as for particles it must
                    if prior.schedule.rho(t) > 1:  # noise still hides what particles share
                        islands.ancestors = None
                    index, weight = islands.select(total + move.foreseen)
                    total = weight - move.foreseen[index]
                    z, move, last = z[index], move[index], last and (last[0], last[1][index])
                if move.leap:
                    z, last = move.leap(fresh), None
                    noise, total = torch.full_like(z, torch.nan), total + torch.nan
                elif move.twist:
                    mean = kernel.mean(z, prior.schedule.led(move.clean, last, t, s))
                    step, eps = move.twist(mean, kernel.variance), fresh()
                    noise, last = step.spread(eps), (t, move.clean)
                    z = step.mean + noise
                    squares = eps.double().square() - (z - mean).double().square() / kernel.variance
                    total = total + squares.flatten(1).sum(1) / 2 + step.log_det
                else:
                    noise = widen * kernel.variance**0.5 * fresh()
                    shift = torch.zeros_like(z) if move.shift is None else kernel.pull * move.shift
                    mean = kernel.mean(z, prior.schedule.led(move.clean, last, t, s)) + shift
                    z, last = mean + noise, (t, move.clean)
                    if hold:
                        z = hold(z, i + 1)
                        noise = z - mean
                    total = total + step_log_ratio(noise, shift, kernel.variance)
            if keep:
                states[i + 1] = z
                noises.append(noise)
                met.append(move.guidance if move else None)
        final = prior.denoise(z, times[-1])
    path = states, tuple(met), tuple(noises), final, total, torch.stack(past)
    return Trajectory(times, *path, data_met)


def prior_paths(
    prior: Prior, sources: list[torch.Generator], times: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Return the states and clean estimates, each (N, B, *z_shape), of chains of the prior.

    The last clean estimate is z_0: an exact draw from the discretised prior.
    """
    cleans: list[Tensor] = []

    def propose(z: Tensor, t: float, i: int) -> Move:
        cleans.append(prior.denoise(z, t))
        return Move(cleans[-1])

    path = rollout(prior, propose, sources, times)
    return path.states, torch.stack([*cleans, path.final])


def prior_draws(prior: Prior, sources: list[torch.Generator], times: tuple[float, ...]) -> Tensor:
    """Return z_0 (B, *z_shape) alone of the chains of `prior_paths`, whose states are not kept."""

    def propose(z: Tensor, t: float, i: int) -> Move:
        return Move(prior.denoise(z, t))

    return rollout(prior, propose, sources, times, keep=False).final


def noise_back(
    prior: Prior, z0: Tensor, sources: list[torch.Generator], times: tuple[float, ...]
) -> Tensor:
    """Return the states (N, B, *z_shape) of paths noised back from z0 by the Markov kernel."""
    z = prior.schedule.noise(z0, 0.0, randn(prior.z_shape, sources, z0))
    states = [z]
    for s, t in zip(times[:0:-1], times[-2::-1], strict=True):
        carry, spread = prior.schedule.forward(s, t)
        z = carry * z + spread * randn(prior.z_shape, sources, z0)
        states.append(z)
    return torch.stack(states[::-1])


def score_path(
    prior: Prior,
    shift: Callable[[Tensor, Guidance, int], Tensor],
    guidance: tuple[Guidance, ...],
    states: Tensor,
    final: Tensor,
    times: tuple[float, ...],
) -> Trajectory:
    """Return given paths scored under the policy `shift`."""
    total = torch.zeros(states.shape[1], dtype=torch.float64, device=states.device)
    noises: list[Tensor] = []
    past: list[Tensor] = []
    last: tuple[float, Tensor] | None = None
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(times)):
            past.append(total)
            kernel, met = prior.schedule.kernel(t, s), guidance[i]
            moved = kernel.pull * shift(states[i], met, i)
            mean = kernel.mean(states[i], prior.schedule.led(met.clean, last, t, s)) + moved
            noises.append(states[i + 1] - mean)
            total = total + step_log_ratio(noises[-1], moved, kernel.variance)
            last = (t, met.clean)
    return Trajectory(times, states, guidance, tuple(noises), final, total, torch.stack(past))


def batches(n: int, size: int) -> list[range]:
    """Return index ranges of at most `size` that cover 0..n-1."""
    return [range(i, min(i + size, n)) for i in range(0, n, size)]
