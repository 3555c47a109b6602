"""Diffusion processes: z_t = alpha(t) z_0 + sigma(t) eps and the one reverse kernel built on them.

Time runs from t = 1 (noise) to t = 0 (almost no noise) and is linear in the logarithm of the
noise ratio rho = sigma / alpha, whatever the process:

    rho(t) = rho_min^(1-t) rho_max^t
    VP:    alpha = 1 / sqrt(1 + rho^2),  sigma = rho alpha   (Ho et al. 2020, arXiv 2006.11239)
    VE:    alpha = 1,                    sigma = rho         (Song et al. 2021, arXiv 2011.13456)
    flow:  alpha = 1 / (1 + rho),        sigma = rho alpha   (Lipman et al. 2023, 2210.02747)

The reverse kernel from t to s < t, given an estimate zhat_0 of the clean state, is

    z_s | z_t ~ N(m, v),   k = rho_s^2 / rho_t^2
    m = (alpha_t sigma_s^2) / (alpha_s sigma_t^2) z_t + alpha_s (1 - k) zhat_0
    v = sigma_s^2 (1 - k)

With zhat_0 taken at t alone this is first order: on 40 steps it loses a fifth of the variance of
every mode of a Gaussian prior. So a chain leads its estimates by half a step,

    zhat_0 -> zhat_0(t) + lead (zhat_0(t) - zhat_0(t')),
    lead = log(rho_t / rho_s) / 2 log(rho_t' / rho_t)

with t' > t the time before (second order; SDE-DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095);
it then keeps that variance within 2%. The chain ends with the deterministic step z_0 = zhat_0(z at
t = 0). The discretised chain defined by a grid of times *is* the prior.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from operators.errors import ObservationError


@dataclass(frozen=True)
class Kernel:
    """One reverse step: z_s | z_t ~ N(carry * z_t + pull * zhat_0, variance)."""

    carry: float
    pull: float
    variance: float

    def mean(self, z: Tensor, clean: Tensor) -> Tensor:
        """Return the mean of z_s, shape of `z`, given the state and the clean estimate."""
        return self.carry * z + self.pull * clean


@dataclass(frozen=True)
class Schedule:
    """A diffusion process with noise ratios sigma/alpha between `rho_min` and `rho_max`."""

    rho_min: float = 0.02
    rho_max: float = 200.0
    kind: Literal["vp", "ve", "flow"] = "vp"
    bend: float = 0.5  # of the grid: the first steps are (1 + bend) / (1 - bend) times the last

    def __post_init__(self) -> None:
        if not 0 < self.rho_min < self.rho_max:
            raise ValueError(f"need 0 < rho_min < rho_max, found {self.rho_min}, {self.rho_max}")
        if not 0 <= self.bend < 1:
            raise ValueError(f"need 0 <= bend < 1, found {self.bend}")
        if self.kind not in ("vp", "ve", "flow"):
            raise ValueError(f"kind must be vp, ve or flow, found {self.kind!r}")

    def rho(self, t: float) -> float:
        """Return the noise ratio sigma/alpha at time t in [0, 1]."""
        return float(self.rho_min ** (1 - t) * self.rho_max**t)

    def time(self, rho: float) -> float:
        """Return the time at which the noise ratio is rho."""
        return math.log(rho / self.rho_min) / math.log(self.rho_max / self.rho_min)

    def alpha(self, t: float) -> float:
        """Return the signal coefficient at time t."""
        rho = self.rho(t)
        return {"vp": 1 / math.sqrt(1 + rho * rho), "ve": 1.0, "flow": 1 / (1 + rho)}[self.kind]

    def sigma(self, t: float) -> float:
        """Return the noise coefficient at time t."""
        return self.rho(t) * self.alpha(t)

    def grid(self, steps: int) -> tuple[float, ...]:
        """Return the `steps` times 1 = t_N > ... > t_1 = 0.

        Steps in log signal-to-noise shrink linearly, from 1 + bend to 1 - bend times their mean:
        data constrain the low noise levels, where a kernel of fixed variance costs a policy most.
        A chain on this grid evaluates the denoiser `steps` times: `steps` - 1 stochastic
        transitions and the deterministic last one. Raises `ObservationError` on fewer than 2.
        """
        if steps < 2:
            raise ObservationError(f"a chain needs at least 2 steps, found {steps}")
        u = np.linspace(1.0, 0.0, steps)
        return tuple(((1 - self.bend) * u + self.bend * u**2).tolist())

    def kernel(self, t: float, s: float, eta: float = 1.0) -> Kernel:
        """Return the reverse kernel from time t to time s < t.

        `eta` scales its standard deviation: 1 is ancestral sampling, 0 the deterministic step of
        DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12).
        """
        k = (self.rho(s) / self.rho(t)) ** 2
        variance = (eta * self.sigma(s)) ** 2 * (1 - k)
        keep = (self.sigma(s) ** 2 - variance) ** 0.5 / self.sigma(t)
        return Kernel(keep, self.alpha(s) - keep * self.alpha(t), variance)

    def led(self, clean: Tensor, last: tuple[float, Tensor] | None, t: float, s: float) -> Tensor:
        """Return the clean estimate led by half of the coming step from t to s.

        `last` is the time and the estimate before, or None on the first step of a chain.
        """
        if last is None:
            return clean
        before, estimate = last
        lead = 0.5 * np.log(self.rho(t) / self.rho(s)) / np.log(self.rho(before) / self.rho(t))
        return clean + float(lead) * (clean - estimate)

    def noise(self, z0: Tensor, t: float, eps: Tensor) -> Tensor:
        """Return z_t = alpha z_0 + sigma eps, shape of `z0`."""
        return self.alpha(t) * z0 + self.sigma(t) * eps

    def forward(self, s: float, t: float) -> tuple[float, float]:
        """Return (a, b) of the Markov noising kernel z_t | z_s = a z_s + b eps, s < t."""
        a = self.alpha(t) / self.alpha(s)
        return a, float(np.sqrt(max(self.sigma(t) ** 2 - (a * self.sigma(s)) ** 2, 0.0)))


def generators(seed: int, indices: range, use: str = "") -> list[torch.Generator]:
    """Return one independent CPU generator per sample index, the same for every batch size.

    Those of another `use` are others: a truth and the samples of its posterior, both of seed 0,
    must not come from the same numbers.
    """
    own = [zlib.crc32(use.encode())] if use else []
    sequences = [np.random.SeedSequence([seed, i, *own]) for i in indices]
    states = [sequence.generate_state(1, np.uint64)[0] for sequence in sequences]
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def randn(shape: tuple[int, ...], sources: list[torch.Generator], like: Tensor) -> Tensor:
    """Return standard normal draws (len(sources), *shape), one generator each, typed as `like`."""
    draws = [torch.randn(shape, generator=g, dtype=like.dtype) for g in sources]
    return torch.stack(draws).to(like.device)
