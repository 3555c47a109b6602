"""What every training-free sampler is: a proposal on the shared kernel, with declared needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from invprob.likelihood import Likelihood
from invprob.trajectory import Propose
from priors.base import Prior


class Baseline(ABC):
    """A frozen dataclass of the method's own settings; a new method is one file with one class."""

    summary: ClassVar[str]
    needs_linear: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True  # through the operator
    needs_network_gradient: ClassVar[bool] = True
    eta: ClassVar[float] = 1.0  # 1: ancestral kernel, 0: deterministic DDIM step
    steps: int

    @abstractmethod
    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return this method as the sampler of one likelihood."""

    def times(self, prior: Prior) -> tuple[float, ...]:
        """Return the times the chain visits, 1 first and 0 last."""
        return prior.schedule.grid(self.steps)


def misfit(prior: Prior, likelihood: Likelihood, clean: Tensor) -> Tensor:
    """Return |y - E[y | x]|^2 per item, (B,), over unmasked data, in the prior's model units."""
    mean = likelihood.noise.expected(likelihood.operator(prior.decode(clean)))
    residual = (likelihood.y - mean) / prior.scale
    kept = likelihood.noise.kept(likelihood.operator.y_shape).to(residual.device)
    return torch.where(kept, residual, 0.0).square().flatten(1).sum(1)
