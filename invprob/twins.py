"""Simulated twins of an observation: own source, own data, an instrument like it.

The path of the prior's chain that made such data is an exact draw of their path posterior, so
EUBO - ELBO = KL(q || posterior) + KL(posterior || q) is measured without a reference sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invprob.config import TrainConfig
from invprob.instruments import Instruments
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.trajectory import Guidance, prior_paths, rollout, score_path
from operators.base import ForwardOperator
from operators.noise import NoiseModel
from priors.base import Prior
from priors.process import generators


@dataclass(frozen=True, eq=False)
class Twins:
    """Simulated observations with the chains that produced them: exact posterior draws."""

    likelihood: Likelihood
    states: Tensor  # (N, M, *z_shape)
    final: Tensor  # (M, *z_shape)
    guidance: tuple[Guidance, ...]
    times: tuple[float, ...]

    @classmethod
    def simulate(
        cls,
        prior: Prior,
        policy: Policy,
        operator: ForwardOperator,
        noise: NoiseModel,
        count: int,
        seed: int,
    ) -> Twins:
        """Draw `count` chains of the prior and one observation of each, guided as the policy is."""
        times = (*policy.times, 0.0)
        states, cleans = prior_paths(prior, generators(seed, range(count), "twins"), times)
        with torch.no_grad():
            mean = operator(prior.decode(cleans[-1]))
            y = noise.sample(mean, *generators(seed, range(1), "noise of twins"))
        likelihood = Likelihood(operator, noise, y)
        guidance = policy.path_guidance(prior, likelihood, states, cleans)
        return cls(likelihood, states, cleans[-1], guidance, times)

    def gaps(self, prior: Prior, policy: Policy, paths: int, seed: int) -> NDArray[np.float64]:
        """Return EUBO - ELBO of every twin, (M,): one exact path against `paths` rollouts."""
        exact = score_path(prior, policy, self.guidance, self.states, self.final, self.times)
        upper = exact.log_weight(prior, self.likelihood)
        many = self.likelihood.repeat(paths)
        sources = generators(seed, range(len(many.y)), "rollouts of twins")
        drawn = rollout(prior, policy.propose(prior, many), sources, self.times, keep=False)
        lower = drawn.log_weight(prior, many).view(-1, paths).mean(1)
        gaps: NDArray[np.float64] = (upper - lower).cpu().numpy()
        return gaps


def simulated_twins(
    prior: Prior,
    policy: Policy,
    observation: Observation,
    config: TrainConfig,
    instruments: Instruments | None = None,
) -> list[Twins]:
    """Return twins of the observation's instrument, or of as many others each with its own."""
    if instruments is None:
        operator, noise = observation.operator, observation.noise
        return [Twins.simulate(prior, policy, operator, noise, config.twins, config.seed + 1)]
    rng = np.random.default_rng([config.seed, 4])
    seeds = rng.integers(2**31, size=config.twins).tolist()
    return [Twins.simulate(prior, policy, *instruments.draw(rng), 1, seed) for seed in seeds]


def measured_gaps(
    twins: Sequence[Twins], prior: Prior, policy: Policy, config: TrainConfig
) -> NDArray[np.float64] | None:
    """Return EUBO - ELBO of every twin, None where there are none."""
    if not twins:
        return None
    return np.concatenate(
        [
            some.gaps(prior, policy, config.twin_paths, config.seed + i)
            for i, some in enumerate(twins)
        ]
    )
