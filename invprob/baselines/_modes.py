"""A linear operator in its singular modes, in the prior's model units.

    A = U S V^T:   y_k = u_k . y / s_k  =  v_k . z_0 + N(0, tau_k^2),   tau_k = sigma / s_k

What methods for linear problems see: every mode is one noisy number, and all that V does not span
is unknown: tau is infinite there. So it is, for DDRM, DDNM and RePaint, of modes whose singular
value is below `CUTOFF` of the largest, as in the code of DDRM along either axis of a blur. Samplers
that converge to p(z_0 | y) need all that is not zero to rounding, `CUTOFF_EXACT`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from invprob.baselines.base import common_sigma
from invprob.likelihood import Likelihood
from invprob.trajectory import Twisted
from operators.base import LinearOperator
from operators.errors import UnknownName
from priors.base import Prior

CUTOFF, CUTOFF_EXACT = 0.03, 1e-6


class Modes:
    """The data (B, K) of every mode and their standard deviations (K,), in units of z."""

    def __init__(self, prior: Prior, likelihood: Likelihood, cutoff: float = CUTOFF) -> None:
        """Decompose a likelihood; raises UnknownName without SVD or noise of one sigma."""
        operator = likelihood.operator
        sigma = common_sigma(operator, likelihood.noise)
        if sigma is None or not isinstance(operator, LinearOperator):
            raise UnknownName("modes need a linear operator and Gaussian noise of one sigma")
        self._prior, self._svd = prior, operator.svd()
        values = self._svd.values.to(likelihood.y)
        self.seen = values > cutoff * values.max()
        along = self._svd.ut(likelihood.y) / prior.scale
        self.y = torch.where(self.seen, along / values, 0.0)
        self.tau = torch.where(self.seen, sigma / (prior.scale * values), torch.inf)

    def of(self, z: Tensor) -> Tensor:
        """Return v_k . z, (B, K), of states (B, *z_shape)."""
        return self._svd.vt(self._prior.decode(z)) / self._prior.scale

    def state(self, modes: Tensor) -> Tensor:
        """Return sum_k v_k modes_k, (B, *z_shape), of (B, K)."""
        return self._prior.encode(self._prior.scale * self._svd.v(modes))

    def conditioned(self, mean: Tensor, variance: float, target: Tensor, width: Tensor) -> Twisted:
        """Return N(mean, variance I) given that v_k . z + N(0, width_k) is `target` (B, K).

        width (K,) is infinite where nothing is known of a mode.
        """
        gain = variance / (variance + width)
        toward = self.state(gain * (target - self.of(mean)))
        narrower = (1 - gain).sqrt()

        def spread(eps: Tensor) -> Tensor:
            inside = self.state((narrower - 1) * self.of(eps))
            root: Tensor = variance**0.5 * (eps + inside)
            return root

        return Twisted(mean + toward, spread, float(narrower.double().log().sum()))
