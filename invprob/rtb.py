"""Training of the policy: warm start by simulation, then relative trajectory balance (RTB).

    warm start   min E c(t) |zhat_0 + u - z_0|^2 / r^2(t)  z_0 from the prior, y from z_0
                 c(t) proportional to pull^2 r^2 / v: the forward KL of the step, over a floor
    RTB          min E c^2 log cosh((log w - log Z) / c), a square up to c = loss_scale, over paths
                 of any source (`invprob.replay`); its gradient: `invprob.balance`

    objective    vargrad: log Z = mean of log w over the K paths of the same y
                 rtb: log Z is learned, one of each y, from the policy's own paths
                 trust_pcl: the same. Its balance of value, reward and KL penalty T,
                 V - [log p(y | x_0) - T sum_t (log q - log p)], is T (log Z - log w) with
                 V = T log Z and the likelihood raised to 1/T: `anneal` is that T, and it ends at 1

(Venkatraman et al. 2024, arXiv 2405.20971; VarGrad: Richter et al. 2020, 2010.10436; Trust-PCL:
Deleu et al. 2025, 2509.01632.) The gradient takes two passes: one without autograd for log w, one
that adds step after step, so what autograd holds does not grow with the length of the chain. What
is kept of the paths does.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invprob import distributed
from invprob.balance import add_gradient, advantage, foresight, temperature
from invprob.config import TrainConfig
from invprob.denoised_shift import measured
from invprob.draws import batch_size
from invprob.fine_tuned import build
from invprob.instruments import Instruments
from invprob.likelihood import Likelihood
from invprob.policy import Policy
from invprob.replay import Explorer
from invprob.trajectory import Trajectory, batches, prior_draws
from operators.errors import NumericalError, ObservationError
from priors.base import Prior
from priors.process import generators

log = logging.getLogger("invprob")

FORGET = 0.9  # weight of the earlier steps' paths in the fit of the foresight
RIDGE = 10.0  # nats^2: keeps the fitted slope at 0 where potentials hardly differ
MAX_SLOPE = 1.2


class Trainer:
    """Trains one policy on one likelihood; `state` and `load` make it resumable bit by bit."""

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        config: TrainConfig,
        instruments: Instruments | None = None,
    ) -> None:
        """Set up a new policy; its randomness is a function of (seed, step) alone.

        The likelihood is of one observation, or of several that RTB takes in turn. With
        `instruments` every batch is simulated for another one, in RTB too: the policy is amortised.
        """
        if instruments and (config.objective != "vargrad" or config.stored):
            raise ObservationError(
                "an amortised training meets every observation once: objective must be vargrad, "
                f"and replay and backtrack 0; found {config.objective}, {config.replay:g} and "
                f"{config.backtrack:g}"
            )
        self.prior, self.likelihood, self.config = prior, likelihood, config
        self.instruments = instruments
        self.steps = config.chain_steps(prior.steps)
        self.times = prior.schedule.grid(self.steps)
        torch.manual_seed(config.seed)
        self.policy = build(prior, config).to(prior.device)
        if instruments or len(likelihood.y) > 1:
            self.policy.refuse_other_data()
        if not self.policy.reads_data:  # simulated data would teach it nothing
            self.config = config = replace(config, warm_steps=0)
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
        self.explorer = Explorer(prior, self.times, len(likelihood.y), config)
        # learned log Z of every observation, until it is first met unknown
        self.log_z = self.moments.new_full((len(likelihood.y),), torch.nan)
        least = min(config.paths, config.warm_batch // config.warm_times)
        if distributed.size() > least:
            raise ObservationError(
                f"{distributed.size()} processes cannot share batches of {least}: start fewer, or "
                "raise --paths and warm_batch / warm_times (--set)"
            )
        if distributed.size() > 1 and (config.stored or config.prior_paths or config.anneal > 1):
            raise ObservationError(
                "several processes share fresh paths only: set replay, backtrack and prior_paths "
                "to 0 and anneal to 1, or use one process"
            )

    def calibrate(self) -> None:
        """Measure where guidance's shift is denoised, before the first step."""
        count = self.config.pairs
        if self.config.policy != "guided" or not count:
            return

        def pairs(n: int, seed: int) -> tuple[Tensor, Likelihood]:
            rng = np.random.default_rng([self.config.seed, 5, seed])
            return self.simulate(n, rng, torch.Generator().manual_seed(int(rng.integers(2**62))))

        found = torch.tensor(measured(self.prior, self.policy.times, pairs, count))
        for policy in (self.policy, self.average):
            policy.denoised.copy_(found)

    def start_from(self, policy: Policy) -> None:
        """Begin with the weights of another policy; raises ObservationError where none fit."""
        if policy.settings != self.policy.settings:
            raise ObservationError(
                f"the policy to start from has {policy.settings}, this training wants "
                f"{self.policy.settings}: choose the same ones"
            )
        for own in (self.policy, self.average):
            own.load_state_dict(policy.state_dict())

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
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # stratified: every batch meets noise levels from the whole chain
        strata = (np.arange(config.warm_times) + rng.random(config.warm_times)) / config.warm_times
        size = config.warm_batch // config.warm_times
        total, mine = 0.0, distributed.share(size)
        for i in (strata * (self.steps - 1)).astype(int).tolist():
            z0, likelihood = self.simulate(size, rng, generator)
            eps = torch.randn(z0.shape, generator=generator).to(z0.device)
            z0, eps = z0[mine], eps[mine]  # drawn whole: the same for any number of ranks
            likelihood = replace(likelihood, y=likelihood.y[mine])
            z = self.prior.schedule.noise(z0, self.times[i], eps)
            met = self.policy.guide(self.prior, likelihood, z, i)
            error = met.clean + self.policy(z, met, i) - z0
            weight = self.weights[i] / self.policy.scales[i] ** 2 / config.warm_times
            loss = weight * error.square().mean() * (len(z0) / size)
            loss.backward()
            total += loss.item()
        return {"loss": distributed.total(total)}

    def simulate(
        self, n: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, Likelihood]:
        """Return n draws z_0 of the prior and the likelihood of data simulated from each."""
        if self.bank is None:
            self.bank = prior_bank(self.prior, self.config.bank, self.config.seed, self.times)
        z0 = self.bank[torch.from_numpy(rng.integers(len(self.bank), size=n))]
        operator, noise = self.likelihood.operator, self.likelihood.noise
        if self.instruments:
            operator, noise = self.instruments.draw(rng)
        with torch.no_grad():
            y = noise.sample(operator(self.prior.decode(z0)), generator)
        return z0, Likelihood(operator, noise, y)

    def _target(self) -> tuple[int, Likelihood]:
        """Return number and likelihood of the one observation that this step's paths share."""
        rng = np.random.default_rng([self.config.seed, 3, self.step])
        if self.instruments:
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            return 0, self.simulate(1, rng, generator)[1]
        which = int(rng.integers(len(self.likelihood.y)))
        return which, replace(self.likelihood, y=self.likelihood.y[which : which + 1])

    def _balance(self) -> dict[str, float]:
        """Accumulate the gradient of one RTB step over K paths of one observation."""
        config, done = self.config, self.step - self.config.warm_steps
        which, likelihood = self._target()
        sources = self.explorer.draw(self.policy, likelihood, which, self.step)
        heat = temperature(sources[0], config.anneal, done / config.rtb_steps)
        parts = [source.log_weight(heat) for source in sources]
        log_w = torch.cat([distributed.gathered(parts[0], self.explorer.fresh), *parts[1:]])
        log_z, own = log_w.mean(), log_w[: self.explorer.fresh]
        if config.objective != "vargrad":
            log_z = self.log_z[which]
            if heat > 1 or not log_z.isfinite():
                log_z = torch.logsumexp(own, 0) - math.log(len(own))
        self._foresee(sources[0].paths, parts[0])
        for source, part in zip(sources, parts, strict=True):
            pull = advantage(source, part, part - log_z, self.policy.foresight)
            share = len(part) / len(log_w)
            add_gradient(self.prior, self.policy, source.paths, share * self._squash(pull))
        self.explorer.keep(sources, parts, log_z)
        # of the posterior itself, whatever the temperature
        fresh = distributed.gathered(sources[0].log_weight(), self.explorer.fresh)
        figures = {
            "loss": float((log_w - log_z).square().mean()),
            "elbo": float(fresh.mean()),  # a bound once exploration has ended
            "std_log_w": float(fresh.std()),
        }
        if config.objective != "vargrad":
            # a quadratic in one number: plain descent, where Adam's momentum would overshoot
            moved = log_z + config.log_z_rate * self._squash(own - log_z).mean()
            if moved.isfinite():
                self.log_z = self.log_z.clone()
                self.log_z[which] = moved
            figures["log_z"] = float(moved)
        return figures | ({"temperature": heat} if config.anneal > 1 else {})

    def _squash(self, gap: Tensor) -> Tensor:
        """Return the gap with its pull capped."""
        return self.config.loss_scale * torch.tanh(gap / self.config.loss_scale)

    def _foresee(self, fresh: Trajectory, log_w: Tensor) -> None:
        """Renew the slope of a path's future on its guidance's potential.

        It is that of the least squares over the fresh paths of this and the earlier steps.
        """
        count = self.explorer.fresh
        x, y = (distributed.gathered(a, count) for a in foresight(fresh, log_w))
        whole = torch.isfinite(x + y).all(0)  # a path that is not would be remembered for good
        if int(whole.sum()) < 2:
            return
        x, y = (a - a.mean(1, keepdim=True) for a in (x[:, whole], y[:, whole]))
        self.moments = FORGET * self.moments + torch.stack([(x * y).sum(1), (x * x).sum(1)])
        slope = (self.moments[0] / (self.moments[1] + RIDGE)).clamp(0, MAX_SLOPE)
        for policy in (self.policy, self.average):
            policy.foresight.copy_(slope)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed training needs."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "moments": self.moments,
            "log_z": self.log_z,
            "explorer": self.explorer.state(),
            "bad": self.bad,
            "slow": self.slow,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.policy.load_state_dict(state["policy"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.moments = state["moments"].to(self.moments.device)
        self.log_z = state["log_z"].to(self.moments.device)
        self.explorer.load(state["explorer"])
        self.step, self.bad, self.slow = state["step"], state["bad"], state["slow"]


def prior_bank(prior: Prior, n: int, seed: int, times: tuple[float, ...]) -> Tensor:
    """Return n draws of z_0 for simulation: stored chain draws, or new ones where that is cheap."""
    if prior.bank is not None:
        return prior.draw(n, seed)
    sources = (generators(seed, rows, "bank") for rows in batches(n, batch_size(prior.x_shape)))
    return torch.cat([prior_draws(prior, some, times) for some in sources])
