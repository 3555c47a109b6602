"""Paths for one RTB step: the policy's own, and off-policy ones that show it what it misses.

    fresh      rollouts of the policy, their noise `exploration` times as wide at first
    replay     stored paths, with the guidance met there: scored again without the prior network
    backtrack  z_0 of a stored path, noised back by the Markov kernel to some depth; from there
               the policy draws
    prior      chains of the prior

The balance (log w - log Z)^2 is zero at the posterior on every path, so each source is weighed
alike (Venkatraman et al. 2024, arXiv 2405.20971). Stored paths are drawn by their rank in log w:
what is first is what the policy gives too little,

    p(path) proportional to 1 / (k n + rank)                 (Tripp et al. 2020, arXiv 2006.09191)

with z_0 improved by MALA before it is noised back, where that is asked for (Sendera et al. 2024,
arXiv 2402.05098).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invprob import distributed
from invprob.likelihood import Likelihood
from invprob.policy import Policy
from invprob.trajectory import (
    Guidance,
    Hold,
    Trajectory,
    noise_back,
    prior_paths,
    rollout,
    score_path,
)
from operators.errors import NotDifferentiable
from priors.base import Prior
from priors.process import generators

if TYPE_CHECKING:
    from invprob.config import TrainConfig

STORED = 2**24  # numbers that the buffer holds at most: 64 MB, in every checkpoint too
CAPACITY = 1024  # paths that it holds at most
RANK_WEIGHT = 0.01  # k: the smaller, the more the draw keeps to the first ranks
DEPTH_FORGET = 0.9  # weight of the earlier paths in the error of a depth
MALA_START = 0.1  # first step size, in units of the prior's scale
MALA_GAIN = 0.2  # of log step size, per unit of acceptance off the target
MALA_TARGET = 0.574  # acceptance at which MALA is most efficient (Roberts & Rosenthal 1998)


@dataclass(frozen=True, eq=False)
class Source:
    """Paths of one source."""

    paths: Trajectory
    fit: Tensor  # log p(y | x_0), (B,) float64
    own: Tensor  # True where the policy drew the transition, (N - 1, B)
    which: int = 0  # number of the observation
    rows: Tensor | None = None  # of the buffer, for replayed paths
    held: Tensor | None = None  # depth of backtracked paths: their first states are not its own

    def log_weight(self, temperature: float = 1.0) -> Tensor:
        """Return log w, (B,) float64, with the likelihood raised to 1/temperature."""
        return self.paths.log_ratio + self.fit / temperature


class Explorer:
    """Draws the paths of every RTB step, and keeps those that may be met again."""

    def __init__(
        self, prior: Prior, times: tuple[float, ...], observations: int, config: TrainConfig
    ) -> None:
        """Set up an empty buffer; raises NotDifferentiable where MALA has no density to use."""
        self.prior, self.times, self.observations, self.config = prior, times, observations, config
        if config.local_search and not hasattr(prior, "log_prob"):
            raise NotDifferentiable(
                f"local_search needs the prior's density, {type(prior).__name__} has none: "
                "set local_search=0"
            )
        self.fresh = 0  # rollouts of the step drawn last, over all ranks
        self.rows: dict[str, Tensor] = {}  # stored paths, by observation and then by log w
        # running mean of the squared gap of paths by their depth; unmet ones count as worst
        self.depths = torch.full((len(times) + 1,), config.loss_scale**2, dtype=torch.float64)

    def draw(self, policy: Policy, likelihood: Likelihood, which: int, step: int) -> list[Source]:
        """Return the K paths of step `step`, fresh ones first, for observation number `which`."""
        config = self.config
        seeds = np.random.SeedSequence([config.seed, 2, step]).generate_state(4).tolist()
        stored = self._stored(which)
        replayed = min(len(stored), round(config.replay * config.paths))
        tracked = round(config.backtrack * config.paths) if len(stored) else 0
        chains = round(config.prior_paths * config.paths)
        fresh = config.paths - replayed - tracked - chains  # more, while little is stored
        self.fresh = fresh
        done = (step - config.warm_steps) / config.rtb_steps
        widen = 1 + (config.exploration - 1) * (1 - done)
        sources = [self._rollout(policy, likelihood.repeat(fresh), seeds[0], widen=widen)]
        if replayed:
            rows = ranked(stored, replayed, np.random.default_rng(seeds[1]))
            sources.append(self._replay(policy, rows))
        if tracked:
            rows = ranked(stored, tracked, np.random.default_rng(seeds[2]))
            sources.append(self._backtrack(policy, likelihood.repeat(tracked), rows, seeds[2]))
        if chains:
            sources.append(self._prior_chains(policy, likelihood.repeat(chains), seeds[3]))
        return [replace(source, which=which) for source in sources]

    def keep(self, sources: list[Source], log_w: list[Tensor], log_z: Tensor) -> None:
        """Store new paths with their log w (B,), renew that of replayed ones, and sort.

        Of every observation as many paths stay as the bounds allow, those of the largest log w.
        """
        if not self.config.stored:
            return
        for source, weights in zip(sources, log_w, strict=True):
            if source.rows is not None:
                self.rows["log_w"][source.rows] = weights.nan_to_num(nan=-math.inf)
                continue
            error = (weights - log_z).square()
            finite = error.isfinite()
            new = {key: value[finite] for key, value in _columns(source, weights).items()}
            old = self.rows or {key: value[:0] for key, value in new.items()}
            self.rows = {key: torch.cat([old[key], new[key]]) for key in new}
            if source.held is not None:
                for depth, one in zip(source.held[finite].tolist(), error[finite], strict=True):
                    self.depths[depth].lerp_(one.cpu(), 1 - DEPTH_FORGET)
        numbers = sum(math.prod(value.shape[1:]) for value in self.rows.values())
        room = max(1, min(CAPACITY, STORED // numbers // self.observations))
        order = self.rows["log_w"].argsort(descending=True, stable=True)
        owner = self.rows["owner"][order]
        kept = torch.cat([order[owner == m][:room] for m in range(self.observations)])
        self.rows = {key: value[kept] for key, value in self.rows.items()}

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"rows": self.rows, "depths": self.depths}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        device = self.prior.device
        self.rows = {key: value.to(device, copy=True) for key, value in state["rows"].items()}
        self.depths = state["depths"].clone()

    def _rollout(
        self,
        policy: Policy,
        likelihood: Likelihood,
        seed: int,
        hold: Hold | None = None,
        widen: float = 1.0,
    ) -> Source:
        """Return this rank's share of rollouts of the policy for data (B, *y_shape)."""
        mine = distributed.share(len(likelihood.y))
        sources = generators(seed, range(len(likelihood.y))[mine])
        likelihood = replace(likelihood, y=likelihood.y[mine])
        propose = policy.propose(self.prior, likelihood)
        paths = rollout(self.prior, propose, sources, self.times, hold=hold, widen=widen)
        own = torch.ones_like(paths.past, dtype=torch.bool)
        return Source(paths, self._fit(likelihood, paths.final), own)

    def _replay(self, policy: Policy, rows: Tensor) -> Source:
        """Return stored paths scored under the policy as it is now: no network evaluation."""
        part = {key: self.rows[key][rows].transpose(0, 1) for key in PATH}
        met = tuple(
            Guidance(*(part[field.name][i] for field in fields(Guidance)))
            for i in range(len(self.times) - 1)
        )
        final, states = self.rows["final"][rows], part["states"]
        paths = score_path(self.prior, policy, met, states, final, self.times)
        own = torch.zeros_like(paths.past, dtype=torch.bool)
        return Source(paths, self.rows["fit"][rows], own, rows=rows)

    def _backtrack(self, policy: Policy, likelihood: Likelihood, rows: Tensor, seed: int) -> Source:
        """Return paths through z_0 of stored ones, noised back to some depth."""
        rng, z0 = np.random.default_rng([seed, 1]), self.rows["final"][rows]
        if self.config.local_search:
            z0 = self._mala(likelihood, z0, torch.Generator().manual_seed(seed))
        errors = np.sqrt(self.depths[1:].numpy())
        chance = errors / errors.sum() if self.config.depth == "adaptive" else None
        held = torch.from_numpy(1 + rng.choice(len(errors), len(z0), p=chance)).to(z0.device)
        back = noise_back(self.prior, z0, generators(seed, range(len(z0))), self.times)
        column = held.view(-1, *[1] * len(self.prior.z_shape))

        def hold(z: Tensor, i: int) -> Tensor:
            return torch.where(i < column, back[i], z)

        source = self._rollout(policy, likelihood, int(rng.integers(2**32)), hold)
        places = torch.arange(1, len(self.times), device=held.device)
        return replace(source, own=places[:, None] >= held, held=held)

    def _prior_chains(self, policy: Policy, likelihood: Likelihood, seed: int) -> Source:
        """Return chains of the prior for data (B, *y_shape), scored under the policy."""
        sources = generators(seed, range(len(likelihood.y)))
        states, cleans = prior_paths(self.prior, sources, self.times)
        met = policy.path_guidance(self.prior, likelihood, states, cleans)
        paths = score_path(self.prior, policy, met, states, cleans[-1], self.times)
        own = torch.zeros_like(paths.past, dtype=torch.bool)
        return Source(paths, self._fit(likelihood, paths.final), own)

    def _fit(self, likelihood: Likelihood, final: Tensor) -> Tensor:
        """Return log p(y | x_0), (B,) float64."""
        return likelihood.log_prob(self.prior.decode(final))

    def _stored(self, which: int) -> Tensor:
        """Return the rows of one observation's stored paths, by falling log w."""
        return (self.rows["owner"] == which).nonzero()[:, 0] if self.rows else torch.zeros(0).long()

    def _mala(self, likelihood: Likelihood, z0: Tensor, generator: torch.Generator) -> Tensor:
        """Return z0 (B, *z_shape) after MALA steps in x on log p(x) + log p(y | x).

        The step size of every chain follows its acceptance.
        """

        def target(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                value = self.prior.log_prob(leaf)  # type: ignore[attr-defined]
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            return value.detach() + likelihood.log_prob(x), slope + likelihood.score(x)

        def square(a: Tensor) -> Tensor:
            return a.double().flatten(1).square().sum(1)

        x = self.prior.decode(z0)
        value, slope = target(x)
        one = (len(x), *[1] * (x.ndim - 1))
        size = torch.full(one, MALA_START * self.prior.scale, device=x.device)
        for _ in range(self.config.local_search):
            noise = torch.randn(x.shape, generator=generator).to(x)
            moved = x + size**2 / 2 * slope + size * noise
            found, steep = target(moved)
            back = (x - moved - size**2 / 2 * steep) / size
            log_ratio = found - value + (square(noise) - square(back)) / 2
            taken = torch.rand(len(x), generator=generator).to(x.device).log() < log_ratio
            chosen = taken.view(size.shape)
            x, slope = torch.where(chosen, moved, x), torch.where(chosen, steep, slope)
            value = torch.where(taken, found, value)
            excess = log_ratio.exp().clamp(max=1).float() - MALA_TARGET
            size = size * torch.exp(MALA_GAIN * excess).view(size.shape)
        return self.prior.encode(x)


PATH = ("states", *(field.name for field in fields(Guidance)))  # by step, behind the row


def ranked(rows: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Return n of the rows, drawn by their rank: distinct ones, and round again where too few."""
    chance = 1 / (RANK_WEIGHT * len(rows) + np.arange(1, len(rows) + 1))
    few = min(n, len(rows))
    chosen = rng.choice(rows.cpu().numpy(), few, replace=False, p=chance / chance.sum())
    return torch.from_numpy(np.resize(chosen, n)).to(rows.device)


def _columns(source: Source, log_w: Tensor) -> dict[str, Tensor]:
    """Return paths with their log w (B,) as columns of the buffer, each (B, ...)."""
    met = source.paths.guidance
    guidance = {
        field.name: torch.stack([getattr(g, field.name) for g in met], 1)
        for field in fields(Guidance)
    }
    return {
        "states": source.paths.states.transpose(0, 1),
        **guidance,
        "final": source.paths.final,
        "fit": source.fit,
        "log_w": log_w,
        "owner": torch.full_like(log_w, source.which, dtype=torch.long),
    }
