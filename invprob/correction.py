"""Correction of samples by their path weights: importance resampling and sequential Monte Carlo.

    psis   samples are drawn again in proportion to w, the largest weights smoothed; by default
           only where this mends more than it blurs (`certificate.worthwhile`)
    smc    particles that walk the chain together are drawn again on the way, in proportion to
           w(tau up to t) exp psi_t,   psi_t = log N(y; A x(zhat_0), A R A^T + Sigma) + constant

Pareto-smoothed weights: Vehtari et al. (2024, arXiv 1507.02646); the potential psi twists the path
towards its data (Wu et al. 2023, arXiv 2306.17775) with the covariance that guidance assumes.
Particles live on islands of a fixed number. The mean weight of an island estimates Z without bias,
whatever psi is, so E log Z_hat is a lower bound of log Z; on an island one of whose particles is
held to an exact draw of the path posterior it is an upper bound (Grosse et al. 2015, 1511.02543).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob.path_weights import log_mean, pareto_tail

ESS_FRACTION = 0.5  # an island is resampled below this share of effective particles

Array = NDArray[np.float64]


def resample(log_w: Array, count: int, seed: int) -> tuple[NDArray[np.int64], float]:
    """Return count indices drawn in proportion to smoothed weights (n,), and the log of their mean.

    The mean is that of the weights as they are, which estimates Z without bias.
    """
    even, offset = smoothed(log_w), np.random.default_rng([seed, 7]).random()
    return systematic(np.exp(even - even.max()), count, offset), log_mean(log_w)


def smoothed(log_w: Array) -> Array:
    """Return log weights (n,) whose largest ones are replaced by quantiles of their Pareto fit."""
    tail = pareto_tail(log_w)
    if tail is None:
        return log_w
    k, sigma, count = tail
    order = np.argsort(log_w)
    cut, top = log_w[order[-count - 1]], log_w[order[-1]]
    p = (np.arange(count) + 0.5) / count
    with np.errstate(over="ignore"):  # the heaviest tails end at the top anyway
        excess = sigma * -np.log1p(-p) if abs(k) < 1e-9 else sigma * np.expm1(-k * np.log1p(-p)) / k
    out = log_w.copy()
    out[order[-count:]] = np.minimum(top + np.log(np.exp(cut - top) + excess), top)
    return out


def systematic(weights: Array, count: int, offset: float) -> NDArray[np.int64]:
    """Return count indices drawn systematically from weights (n,), for one uniform number."""
    edges = np.cumsum(weights / weights.sum())
    index = np.searchsorted(edges, (np.arange(count) + offset) / count, side="right")
    return np.minimum(index, len(weights) - 1)  # rounding of the last edge


@dataclass
class Islands:
    """Resampling of particles on islands of `size`, for `rollout`.

    With `retained` states (N, M, *z_shape) of one exact path for each of M islands, the first
    particle of every island follows its path and is never replaced.
    """

    size: int
    seed: int
    retained: Tensor | None = None
    ancestors: NDArray[np.int64] | None = None  # of every particle, since it was last None
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 8])

    def select(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """Return ancestors (B,) and log weights (B,) after resampling the uneven islands."""
        values = log_w.cpu().numpy()
        index, after = np.arange(len(values)), values.copy()
        for start in range(0, len(values), self.size):
            here = slice(start, min(start + self.size, len(values)))
            weights = np.exp(values[here] - values[here].max())
            total = weights.sum()
            if total**2 >= ESS_FRACTION * len(weights) * np.square(weights).sum():
                continue
            if self.retained is None:
                chosen = systematic(weights, len(weights), self._rng.random())
            else:
                chosen = self._rng.choice(len(weights), len(weights), p=weights / total)
                chosen[0] = 0
            index[here] = start + chosen
            after[here] = values[here].max() + np.log(total / len(weights))
        self.ancestors = index if self.ancestors is None else self.ancestors[index]
        return torch.from_numpy(index).to(log_w.device), torch.from_numpy(after).to(log_w.device)

    def hold(self, z: Tensor, i: int) -> Tensor:
        """Return states z (B, *z_shape) at place i of the grid, retained ones put back."""
        if self.retained is None:
            return z
        z = z.clone()
        z[:: self.size] = self.retained[i]
        return z
