"""The gradient of the balance (log w - log Z)^2, with the paths held fixed.

    dL = -2 sum_t (log w - log Z) d log q(z_s | z_t)

Where the policy drew the transition, E[d log q | z_t] = 0, with wider noise too: what z_t knows may
be left out of log w, and log Z has no part in it (Malkin et al. 2022, arXiv 2210.00580). Left out
are the path's past, the future that its guidance's potential foresees, and the mean over the paths;
this changes the gradient's variance alone. On any other transition E[d log q | z_t] is not 0, and
leaving out anything would bias the gradient: there the whole gap stays.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from invprob import distributed
from invprob.policy import Policy
from invprob.replay import Source
from invprob.trajectory import Trajectory
from priors.base import Prior

ANNEAL_ESS = 0.3  # ESS / K at which the likelihood's temperature may fall
TEMPERATURES = 33  # tried at once, evenly in 1 / T


def foresight(paths: Trajectory, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return potential and future log weight before every transition, each (N - 1, B)."""
    potential = torch.stack([met.potential for met in paths.guidance if met is not None])
    return potential, log_w - paths.past


def advantage(source: Source, log_w: Tensor, gap: Tensor, slope: Tensor) -> Tensor:
    """Return the share of the gap (B,) that every transition is pulled by, (N - 1, B).

    `slope` (N - 1,) is that of a path's future on its potential.
    """
    potential, future = foresight(source.paths, log_w)
    earned = torch.where(source.own, future - slope[:, None] * potential, 0.0)
    sums = torch.stack([earned.sum(1), source.own.sum(1).double()])
    distributed.add_up([sums])
    mean = sums[0] / sums[1].clamp(min=1)
    return torch.where(source.own, earned - mean[:, None], gap)


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


def temperature(fresh: Source, start: float, done: float) -> float:
    """Return the likelihood's temperature: the least at which the ESS of fresh paths allows.

    It starts at most at `start`, and is 1 once half of the RTB steps are `done` (a share),
    whatever the ESS: at no other is the posterior the target.
    """
    power = min(1.0, 1 / start + (1 - 1 / start) * 2 * done)
    for tried in np.linspace(1, power, TEMPERATURES) if power < 1 else ():
        weights = torch.softmax(fresh.log_weight(1 / tried), 0)
        if float(1 / weights.square().sum()) >= ANNEAL_ESS * len(weights):
            return float(1 / tried)
    return 1 / power
