"""Methods that learn from simulated pairs, once for each prior and instrument."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood
from invprob.trajectory import batches
from operators.base import ForwardOperator
from operators.noise import NoiseModel
from priors.base import Prior

CHUNK = 128  # pairs that are simulated at a time

_KNOWN: dict[str, tuple[Any, float]] = {}  # learned in this process, and the seconds it took


class Learned(Baseline):
    """A method whose `propose` needs what `fit` makes of simulated pairs."""

    needs_training = True
    pairs: int
    seed: int

    @abstractmethod
    def fit(self, prior: Prior, likelihood: Likelihood, z0: Tensor) -> Any:
        """Return what is learned of draws z_0 (N, *z_shape) and the likelihood of data of each."""

    def count(self, prior: Prior) -> int:
        """Return how many pairs to simulate."""
        return self.pairs

    def same(self) -> Hashable:
        """Return what of the settings decides what is learned."""
        return self

    def train(self, prior: Prior, likelihood: Likelihood) -> float:
        """Learn what this prior and instrument need, once; return the seconds it took."""
        return _learned(self, prior, likelihood.operator, likelihood.noise)[1]

    def learned(self, prior: Prior, likelihood: Likelihood) -> Any:
        """Return what `fit` returned for this prior and instrument."""
        return _learned(self, prior, likelihood.operator, likelihood.noise)[0]


@lru_cache(maxsize=8)
def _learned(
    method: Learned, prior: Prior, operator: ForwardOperator, noise: NoiseModel
) -> tuple[Any, float]:
    """Return what a method learned of a prior and an instrument, and the seconds that it took."""
    z0 = prior.draw(method.count(prior), seed=method.seed)
    generator = torch.Generator().manual_seed(method.seed)
    begun = time.monotonic()
    with torch.no_grad():
        y = torch.cat(
            [
                noise.sample(operator(prior.decode(z0[rows])), generator)
                for rows in batches(len(z0), CHUNK)
            ]
        )
    # prior and instrument are what the pairs say of them, and which data are masked
    digest = hashlib.sha256(repr(method.same()).encode())
    for part in (z0, y, noise.kept(operator.y_shape)):
        digest.update(part.cpu().numpy().tobytes())
    known = digest.hexdigest()
    if known not in _KNOWN:
        found = method.fit(prior, Likelihood(operator, noise, y), z0)
        _KNOWN[known] = found, time.monotonic() - begun
    return _KNOWN[known]
