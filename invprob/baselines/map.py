"""Maximum a posteriori estimate by L-BFGS (Liu & Nocedal 1989, doi:10.1007/BF01589116).

    argmin_u  -log p(y | x(u)) - log p(u),   grad log p(u) = (zhat_0(u) - u) / rho^2,  rho = rho(0)

from one draw u_0 of the prior: at its mean a misfit may be stationary, as that of magnitudes is.
The value of log p(u) - log p(u_0) that the line search needs is the integral of the score along the
straight line between them, by Gauss-Legendre quadrature: exact for a Gaussian prior. One estimate,
not a posterior: all samples of an observation are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from invprob.baselines.base import Baseline
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose
from priors.base import Prior

NODES = 8  # of the quadrature


@dataclass(frozen=True)
class MAP(Baseline):
    """MAP with at most `iterations` of L-BFGS; `steps` of the chain have no effect."""

    summary = "maximum a posteriori by L-BFGS, for priors known in closed form: no spread"
    needs_network_gradient = False
    needs_known_prior = True
    steps: int = 2
    iterations: int = 200

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return the MAP estimate as the sampler of one likelihood."""

        def move(z: Tensor, t: float, i: int) -> Move:
            if i:
                return Move(z, leap=lambda noise: z)
            start = prior.draw(1, seed=0).to(z)
            _, first, which = np.unique(
                likelihood.y.cpu().numpy(), return_index=True, return_inverse=True, axis=0
            )
            best = [
                self._minimised(prior, replace(likelihood, y=likelihood.y[j : j + 1]), start)
                for j in first
            ]
            u = torch.cat(best)[torch.from_numpy(which.ravel())].expand_as(z)
            return Move(u, leap=lambda noise: prior.schedule.alpha(0.0) * u)

        return move

    def _minimised(self, prior: Prior, likelihood: Likelihood, start: Tensor) -> Tensor:
        """Return the minimum (1, *z_shape) for one observation."""
        alpha, rho = prior.schedule.alpha(0.0), prior.schedule.rho(0.0)
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        along, share = (torch.from_numpy(a).to(start) for a in ((nodes + 1) / 2, weights / 2))

        def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            u = torch.from_numpy(flat).to(start).view_as(start)
            way = u - start
            line = torch.cat([start + along.view(-1, *[1] * (u.ndim - 1)) * way, u])
            scores = (prior.denoise(alpha * line, 0.0) - line) / rho**2
            risen = (share @ (scores[:-1] * way).flatten(1).sum(1)).double()
            x = prior.decode(u)
            slope = scores[-1:] + prior.pull(u, likelihood.score(x))
            fit = likelihood.log_prob(x)[0]
            return float(-risen - fit), -slope.double().cpu().numpy().ravel()

        found = minimize(
            value, start.double().cpu().numpy().ravel(), jac=True, method="L-BFGS-B",
            options={"maxiter": self.iterations},
        )  # fmt: skip
        return torch.from_numpy(found.x).to(start).view_as(start)
