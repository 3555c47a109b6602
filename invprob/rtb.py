"""Training of the policy: warm start by simulation, then relative trajectory balance (RTB).

    warm start   min E c(t) |zhat_0 + u - z_0|^2 / r^2(t)  z_0 from the prior, y from z_0
                 c(t) proportional to pull^2 r^2 / v: the forward KL of the step, over a floor
    VarGrad RTB  min E (log w - log Z)^2,  log Z = mean of log w over K paths of the same y
                 dL = -2 (log w - log Z) sum_t d log q(z_s | z_t)       with the paths held fixed

(Venkatraman et al. 2024, arXiv 2405.20971; log-variance loss: Richter et al. 2020, 2010.10436.)
The gradient takes two passes: one without autograd for log w, one that adds step after step, so
memory does not grow with the length of the chain.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invprob import distributed
from invprob.likelihood import Likelihood
from invprob.policy import Policy
from invprob.trajectory import Trajectory, batches, guide, prior_paths, rollout
from operators.errors import NumericalError, ObservationError
from priors.base import Prior
from priors.process import generators

log = logging.getLogger("invprob")

FORGET = 0.9  # weight of the earlier steps' paths in the fit of the foresight
RIDGE = 10.0  # nats^2: keeps the fitted slope at 0 where potentials hardly differ
MAX_SLOPE = 1.2

Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training; the defaults fit a 64x64 lens on a laptop in minutes."""

    steps: int | None = None  # of the chain; None: the prior's own
    width: int = 64  # of the policy network
    blocks: int = 3
    warm_steps: int = 200
    warm_batch: int = 32
    warm_times: int = 4  # noise levels met in one warm-start batch
    warm_rate: float = 1e-3
    warm_floor: float = 0.2  # share of the weight that every noise level gets alike
    rtb_steps: int = 4
    paths: int = 16  # K: rollouts per RTB step
    rtb_rate: float = 2e-4
    loss_scale: float = 10.0  # log w - log Z is squashed by c tanh(./c): caps a path's pull
    ema: float = 0.99  # of the policy's weights
    bank: int = 2048  # prior draws met in the warm start
    seed: int = 0
    checkpoint_every: int = 50
    max_bad_steps: int = 5  # non-finite losses before training stops
    certified: int = 64  # samples behind the certificate
    twins: int = 8  # simulated observations behind its EUBO - ELBO gap
    twin_paths: int = 4  # rollouts of each

    def __post_init__(self) -> None:
        at_least = {
            "width": 8,
            "warm_batch": self.warm_times,
            "warm_times": 1,
            "paths": 2,
            "bank": 1,
            "checkpoint_every": 1,
            "certified": 2,
            "twins": 2,
            "twin_paths": 1,
        }
        for name, value in asdict(self).items():
            least = at_least.get(name, 0)
            if value is not None and value < least:
                raise ObservationError(f"{name} must be at least {least}, found {value}")
        if self.width % 8:
            raise ObservationError(f"width must be a multiple of 8, found {self.width}")


class Trainer:
    """Trains one policy on one likelihood; `state` and `load` make it resumable bit by bit."""

    def __init__(self, prior: Prior, likelihood: Likelihood, config: TrainConfig) -> None:
        """Set up a guided policy; its randomness is a function of (seed, step) alone."""
        self.prior, self.likelihood, self.config = prior, likelihood, config
        self.steps = config.steps or prior.steps
        self.times = prior.schedule.grid(self.steps)
        torch.manual_seed(config.seed)
        self.policy = Policy(prior, self.steps, config.width, config.blocks).to(prior.device)
        self.average = copy.deepcopy(self.policy).requires_grad_(False)
        pairs = zip(pairwise(self.times), self.policy.scales, strict=True)
        kernels = [(prior.schedule.kernel(t, s), r) for (t, s), r in pairs]
        cost = np.array([(kernel.pull * r) ** 2 / kernel.variance for kernel, r in kernels])
        self.weights = config.warm_floor + (1 - config.warm_floor) * cost / cost.mean()
        self.optimiser = torch.optim.Adam(self.policy.parameters(), betas=(0.9, 0.99))
        self.step, self.bad, self.slow = 0, 0, 1.0
        self.bank: Tensor | None = None
        self.moments = torch.zeros(  # behind the foresight
            2, self.steps - 1, dtype=torch.float64, device=prior.device
        )
        least = min(config.paths, config.warm_batch // config.warm_times)
        if distributed.size() > least:
            raise ObservationError(
                f"{distributed.size()} processes cannot share batches of {least}: start fewer, or "
                "raise --paths and warm_batch / warm_times (--set)"
            )

    @property
    def total(self) -> int:
        """Number of optimiser steps of the whole training."""
        return self.config.warm_steps + self.config.rtb_steps

    def advance(self) -> dict[str, float]:
        """Take one optimiser step; return its figures. Raises NumericalError after bad ones."""
        config, warm = self.config, self.step < self.config.warm_steps
        self.optimiser.zero_grad(set_to_none=True)
        figures = self._warm_start() if warm else self._balance()
        distributed.add_up(p.grad for p in self.policy.parameters() if p.grad is not None)
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * self.slow
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        if math.isfinite(figures["loss"]) and bool(torch.isfinite(norm)):
            self.optimiser.step()
            decay = min(config.ema, (self.step + 1) / (self.step + 10))
            with torch.no_grad():
                for mean, value in zip(
                    self.average.parameters(), self.policy.parameters(), strict=True
                ):
                    mean.lerp_(value, 1 - decay)
        else:
            self.bad, self.slow = self.bad + 1, self.slow / 2
            log.warning("step %d: loss not finite, skipped; rate halved", self.step)
            if self.bad > config.max_bad_steps:
                raise NumericalError(
                    f"{self.bad} steps gave no finite loss: the last good weights are kept; "
                    "check the noise level and the flux scale of the data"
                )
        self.step += 1
        return figures | {"rate": rate}

    def _rate(self) -> float:
        """Return the learning rate: cosine decay in the warm start, constant in RTB."""
        config = self.config
        if self.step >= config.warm_steps:
            return config.rtb_rate
        ramp = min(1.0, (self.step + 1) / 20)
        return (
            config.warm_rate
            * ramp
            * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.step / config.warm_steps)))
        )

    def _warm_start(self) -> dict[str, float]:
        """Accumulate the gradient of one warm-start batch."""
        config, rng = self.config, np.random.default_rng([self.config.seed, 1, self.step])
        if self.bank is None:
            self.bank = prior_bank(self.prior, config.bank, config.seed, self.times)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # stratified: every batch meets noise levels from the whole chain
        strata = (np.arange(config.warm_times) + rng.random(config.warm_times)) / config.warm_times
        size = config.warm_batch // config.warm_times
        total, mine = 0.0, distributed.share(size)
        for i in (strata * (self.steps - 1)).astype(int).tolist():
            z0 = self.bank[torch.from_numpy(rng.integers(len(self.bank), size=size))]
            y = self.simulate(z0, generator)
            eps = torch.randn(z0.shape, generator=generator).to(z0.device)
            z0, y, eps = z0[mine], y[mine], eps[mine]  # drawn whole: the same for any ranks
            z = self.prior.schedule.noise(z0, self.times[i], eps)
            met = guide(self.prior, replace(self.likelihood, y=y), z, self.times[i])
            error = met.clean + self.policy(z, met, i) - z0
            weight = self.weights[i] / self.policy.scales[i] ** 2 / config.warm_times
            loss = weight * error.square().mean() * (len(z0) / size)
            loss.backward()
            total += loss.item()
        return {"loss": distributed.total(total)}

    def simulate(self, z0: Tensor, generator: torch.Generator) -> Tensor:
        """Return data (B, *y_shape) simulated from z0 with this problem's operator and noise."""
        with torch.no_grad():
            mean = self.likelihood.operator(self.prior.decode(z0))
            return self.likelihood.noise.sample(mean, generator)

    def _balance(self) -> dict[str, float]:
        """Accumulate the gradient of one RTB step: VarGrad over K paths of each observation."""
        config = self.config
        seed = int(np.random.SeedSequence([config.seed, 2, self.step]).generate_state(1)[0])
        count = len(self.likelihood.y)
        total = count * config.paths
        mine = distributed.share(total)
        likelihood = self.likelihood.repeat(config.paths)
        likelihood = replace(likelihood, y=likelihood.y[mine])
        sources = generators(seed, range(total)[mine])
        paths = rollout(
            self.prior, self.policy.propose(self.prior, likelihood), sources, self.times
        )
        log_w = distributed.gathered(paths.log_weight(self.prior, likelihood), total)
        log_w = log_w.view(count, config.paths)
        gap = log_w - log_w.mean(1, keepdim=True)
        advantage = self._advantage(paths, log_w)
        squashed = config.loss_scale * torch.tanh(advantage / config.loss_scale)
        share = len(paths.final) / total
        add_gradient(self.prior, self.policy, paths, squashed[:, mine] * share)
        return {
            "loss": float(gap.square().mean()),
            "elbo": float(log_w.mean()),
            "std_log_w": float(log_w.std(1).mean()),
        }

    def _advantage(self, paths: Trajectory, log_w: Tensor) -> Tensor:
        """Return what every transition earned, (N - 1, B): log w less what it could not change.

        Taken off are the path's past and the future that its potential foresees: they do not
        depend on the transition's noise, so they change the gradient's variance alone. The slopes
        are those of the least squares over the paths of this and the earlier steps.
        """
        potential = torch.stack([met.potential for met in paths.guidance if met is not None])
        potential, past = (distributed.gathered(a, log_w.numel()) for a in (potential, paths.past))
        future = log_w.flatten() - past
        grouped = [a.view(len(a), *log_w.shape) for a in (potential, future)]
        x, y = (a - a.mean(2, keepdim=True) for a in grouped)
        sums = torch.stack([(x * y).sum((1, 2)), (x * x).sum((1, 2))])
        self.moments = FORGET * self.moments + sums
        slope = (self.moments[0] / (self.moments[1] + RIDGE)).clamp(0, MAX_SLOPE)
        for policy in (self.policy, self.average):
            policy.foresight.copy_(slope)
        return (y - slope.view(-1, 1, 1) * x).flatten(1)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed training needs."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "moments": self.moments,
            "bad": self.bad,
            "slow": self.slow,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.policy.load_state_dict(state["policy"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.moments = state["moments"].to(self.moments.device)
        self.step, self.bad, self.slow = state["step"], state["bad"], state["slow"]


def add_gradient(prior: Prior, policy: Policy, paths: Trajectory, gap: Tensor) -> None:
    """Add to the policy the gradient of mean (log w - log Z)^2 with the paths held fixed.

    `gap` is log w - log Z of every path (B,), or the share of it that each transition can change
    (N - 1, B). The second pass: one step at a time, no prior network.
    """
    count, extra = len(paths.final), [1] * (paths.final.ndim - 1)
    weights = (2 * gap.expand(len(paths.guidance), count) / count).view(-1, count, *extra)
    for i, (t, s) in enumerate(pairwise(paths.times)):
        kernel, met = prior.schedule.kernel(t, s), paths.guidance[i]
        assert met is not None  # a policy's rollout keeps what it met
        # d(-log q) = -(e / v) . d(mean), and the mean moves by pull du
        force = -kernel.pull / kernel.variance * paths.noise[i]
        (weights[i] * force * policy(paths.states[i], met, i)).sum().backward()


def prior_bank(prior: Prior, n: int, seed: int, times: tuple[float, ...]) -> Tensor:
    """Return n draws of z_0 for simulation: stored chain draws, or new ones where that is cheap."""
    if prior.bank is not None:
        return prior.draw(n, seed)
    chunks = batches(n, 256)
    return torch.cat([prior_paths(prior, generators(seed, rows), times)[1][-1] for rows in chunks])
