"""Feynman-Kac steering (Singhal et al. 2025, arXiv 2501.06848, the difference potential).

    particles of the prior's chain, drawn again in proportion to  exp(lambda (r_s - r_t)),
    r_t = log p(y | x(zhat_0(z_t)))

No gradient, of the operator or of the network. At the end the weight is p(y | x_0) itself, so that
many particles are exact whatever lambda, the `strength`; 1 is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior


@dataclass(frozen=True)
class FK(Baseline):
    """FK steering with difference potentials of `strength` lambda."""

    summary = "SMC: particles of the prior, weighted by the likelihood of their clean estimates"
    particles = True
    needs_gradient = False
    needs_network_gradient = False
    steps: int = 100
    strength: float = 1.0

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return FK steering as the sampler of one likelihood."""

        def move(z: Tensor, t: float, i: int) -> Move:
            clean = prior.denoise(z, t)
            return Move(clean, foreseen=self.strength * likelihood.log_prob(prior.decode(clean)))

        return move
