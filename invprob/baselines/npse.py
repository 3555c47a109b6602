"""NPSE: neural posterior score estimation (Geffner et al. 2023, arXiv 2209.14249; Sharrock et al.
2024, arXiv 2210.04872): a conditional denoiser that is trained on simulated pairs, and no guidance.

    min_phi E |zhat_phi(z_t, y, t) - z_0|^2 / r_t^2,   z_0 from the prior, y from z_0, z_t noised
    zhat_phi = c_t z_t + (r_t + s_phi(t)) r_t b(y) + r_t n_phi(z_t, b(y), score, t)
    c_t = alpha_t / (alpha_t^2 + sigma_t^2),   r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2)

Its minimum is E[z_0 | z_t, y], so one training serves every observation of an instrument. The data
enter once, as images: b(y), the proximal shift of z = 0, and the likelihood's score there. That is
enough for linear operators; of others no one point tells all (at 0 the magnitudes of
`phase_retrieval` have no slope). The network is that of a policy; c_t and r_t are what a white
prior of unit variance would leave, so that it learns what this prior and instrument add.

The prior's denoiser takes no part in a step. It is evaluated there for the path weights alone, so
that the samples have the same certificate as those of RTB.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from invprob.baselines._learned import CHUNK, Learned
from invprob.likelihood import Likelihood
from invprob.policy import Guided, Policy
from invprob.trajectory import Guidance, Move, Propose, batches, guide
from priors.base import Prior

LEVELS = 100  # noise levels that the network knows; a chain visits some or all of them
VALUES = 2**23  # most values of x to learn from
EMA = 0.995  # decay of the average of the weights, which is what samples


@dataclass(frozen=True)
class NPSE(Learned):
    """NPSE after `updates` Adam updates of `batch` out of `pairs` (as many as `VALUES` can hold).

    A chain has no more steps than `LEVELS`.
    """

    summary = "a conditional denoiser trained on simulated pairs: the supervised rival of RTB"
    needs_linear = True
    needs_network_gradient = False
    steps: int = 40
    pairs: int = 2**14
    updates: int = 3000
    batch: int = 128
    rate: float = 2e-3
    width: int = 64
    blocks: int = 3
    seed: int = 0

    def times(self, prior: Prior) -> tuple[float, ...]:
        """Return the times of the chain: `steps` of the levels, as evenly as can be."""
        grid, steps = prior.schedule.grid(LEVELS), min(self.steps, LEVELS)
        return tuple(grid[i] for i in np.linspace(0, LEVELS - 1, steps).round().astype(int))

    def same(self) -> Hashable:
        """Return the settings but `steps`: one network serves any number of them."""
        return replace(self, steps=2)

    def count(self, prior: Prior) -> int:
        """Return how many pairs to simulate."""
        return min(self.pairs, VALUES // math.prod(prior.z_shape))

    def fit(self, prior: Prior, likelihood: Likelihood, z0: Tensor) -> Guided:
        """Return the network trained on z_0 (N, *z_shape) and the likelihood of the data of each.

        Every update draws z_t anew, at one level for the whole batch.
        """
        grid, schedule = prior.schedule.grid(LEVELS), prior.schedule
        rng = np.random.default_rng(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = Guided(prior, LEVELS, self.width, self.blocks).to(prior.device)
        network.scales = [math.hypot(1, 1 / schedule.rho(t)) ** -1 for t in grid[:-1]]
        network.gain.data += torch.tensor(network.scales) - 1
        average = copy.deepcopy(network).requires_grad_(False)
        parts = [
            _images(prior, replace(likelihood, y=likelihood.y[rows]))
            for rows in batches(len(z0), CHUNK)
        ]
        images = Guidance(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Guidance))
        )
        adam = torch.optim.Adam(network.parameters(), self.rate, (0.9, 0.99))
        for update in range(self.updates):
            for group in adam.param_groups:
                group["lr"] = self.rate * math.cos(math.pi / 2 * update / self.updates)
            adam.zero_grad(set_to_none=True)
            i = int(rng.integers(LEVELS - 1))
            index = torch.from_numpy(rng.integers(len(z0), size=self.batch))
            eps = torch.randn(z0[index].shape, generator=generator).to(z0)
            z = schedule.noise(z0[index], grid[i], eps)
            error = _estimate(network, prior, images[index], z, grid[i], i) - z0[index]
            loss = (error / network.scales[i]).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
            decay = min(EMA, (update + 1) / (update + 10))
            with torch.no_grad():
                for own, other in zip(average.parameters(), network.parameters(), strict=True):
                    own.lerp_(other, 1 - decay)
        return average

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return the trained network as the sampler of one likelihood."""
        network: Policy = self.learned(prior, likelihood)
        grid, times = prior.schedule.grid(LEVELS), self.times(prior)
        images = _images(prior, likelihood)
        last: tuple[float, Tensor] | None = None

        def move(z: Tensor, t: float, i: int) -> Move:
            nonlocal last
            clean = prior.denoise(z, t)
            shift = _estimate(network, prior, images, z, t, grid.index(t)) - clean
            led = prior.schedule.led(shift, last, t, times[i + 1])  # as the chain leads `clean`
            last = (t, shift)
            return Move(clean, led)

        return move


def _images(prior: Prior, likelihood: Likelihood) -> Guidance:
    """Return what the network reads of the data: guidance at z = 0, once for all levels."""
    y = likelihood.y
    z = torch.zeros(len(y), *prior.z_shape, device=y.device)
    return guide(prior, likelihood, z, 1.0, z)


def _estimate(
    network: Policy, prior: Prior, images: Guidance, z: Tensor, t: float, i: int
) -> Tensor:
    """Return zhat_phi(z_t, y, t), (B, *z_shape), at level i of the grid, whose time is t."""
    alpha, r = prior.schedule.alpha(t), network.scales[i]
    total = alpha**2 + prior.schedule.sigma(t) ** 2
    crude = alpha / total * z
    read = replace(images, clean=crude, delta=r * images.delta, score=images.score / r)
    shift: Tensor = network(z / total**0.5, read, i)
    return crude + shift
