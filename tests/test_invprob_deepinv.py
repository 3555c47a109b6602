"""DPS and DDRM against those of deepinv (github.com/deepinv/deepinv): the same bias.

Both walk our grid of noise levels with our denoiser of the Gaussian prior. Where deepinv 0.5 leaves
the papers, the test puts it right: its DPS weighs the gradient by the noise level, and its DDRM
draws noise of half the variance. Our chain leads its clean estimates by half a step and deepinv's
does not, hence many steps. Skipped where deepinv cannot be imported (it needs torchvision).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invprob import registry
from invprob.comparison import parse
from invprob.draws import draw
from invprob.metrics import sliced_wasserstein
from invprob.suites.base import Mixture

deepinv = pytest.importorskip("deepinv")
pytestmark = pytest.mark.slow

N = 1000
STEPS = 300
ZETA = 0.1
PROBLEM: Mixture = registry.suite_class("gaussian")().problem("d16")
PRIOR, SIGMA = PROBLEM.prior, PROBLEM.likelihood.noise.sigma
SCHEDULE = PRIOR.schedule
TIMES = SCHEDULE.grid(STEPS)
MATRIX = torch.tensor(PROBLEM.likelihood.operator.matrix).float()  # (8, 16)
Y = (PROBLEM.likelihood.y / PRIOR.scale).expand(N, -1).view(N, 1, 1, -1)


class Denoiser(torch.nn.Module):
    """E[z_0 | z_0 + sigma eps] of the prior, on tensors (B, 1, 1, d)."""

    def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
        rho = np.log([SCHEDULE.rho_min, float(sigma), SCHEDULE.rho_max])
        t = float((rho[1] - rho[0]) / (rho[2] - rho[0]))
        return PRIOR.denoise(SCHEDULE.alpha(t) * x.flatten(1), t).view_as(x)


def agree(name: str, theirs: Tensor) -> None:
    """The two samplers lie much nearer to each other than either to the exact posterior."""
    method = parse(name)
    found = draw(
        PRIOR, PROBLEM.likelihood, lambda y: method.propose(PRIOR, y), method.times(PRIOR), N, 0
    )
    ours, x = found.x.astype(float), PRIOR.decode(theirs.float().flatten(1)).double().numpy()
    exact = PROBLEM.reference(10 * N, 0)
    bias, their_bias = (sliced_wasserstein(a, exact)[0] for a in (ours, x))
    assert bias == pytest.approx(their_bias, rel=0.1)
    assert sliced_wasserstein(ours, x)[0] < bias / 4
    spread = ours.std(0)
    np.testing.assert_allclose(ours.mean(0), x.mean(0), atol=0.25 * spread.max())
    np.testing.assert_allclose(spread, x.std(0), rtol=0.15)


def test_dps_has_the_bias_of_deepinv() -> None:
    weights = {  # deepinv's step is this factor's inverse times the gradient, the paper's is zeta
        SCHEDULE.rho(t): ZETA
        / (SCHEDULE.alpha(t) * SCHEDULE.alpha(s) * (SCHEDULE.rho(t) ** 2 - SCHEDULE.rho(s) ** 2))
        for t, s in pairwise(TIMES)
    }

    class Misfit(deepinv.sampling.DPSDataFidelity):  # type: ignore[misc]
        def grad(self, x: Tensor, y: Tensor, physics: Any, sigma: Tensor, **rest: Any) -> Any:
            self.weight = weights[min(weights, key=lambda rho: abs(rho - float(sigma)))]
            return super().grad(x, y, physics, sigma, **rest)

    ratio = SCHEDULE.rho_max / SCHEDULE.rho_min
    sde = deepinv.sampling.EDMDiffusionSDE(
        sigma_t=lambda t: SCHEDULE.rho_min * ratio**t,
        sigma_prime_t=lambda t: SCHEDULE.rho_min * ratio**t * np.log(ratio),
        variance_preserving=True,
    )
    model = deepinv.sampling.PosteriorDiffusion(
        data_fidelity=Misfit(denoiser=Denoiser()),
        denoiser=Denoiser(),
        sde=sde,
        solver=deepinv.sampling.DDPMSolver(
            timesteps=torch.tensor(TIMES, dtype=torch.float64), rng=torch.Generator()
        ),
    )
    physics = deepinv.physics.Physics(A=lambda x, **_: x.float() @ MATRIX.T)
    agree(
        f"dps:steps={STEPS},zeta={ZETA}", model(Y, physics, x_init=(N, 1, 1, 16), seed=1).detach()
    )


def test_ddrm_has_the_bias_of_deepinv(monkeypatch: pytest.MonkeyPatch) -> None:
    u, s, vt = torch.linalg.svd(MATRIX, full_matrices=True)

    def padded(y: Tensor) -> Tensor:
        return torch.cat([y @ u, torch.zeros(*y.shape[:-1], 8)], -1)

    physics = deepinv.physics.DecomposablePhysics(
        U=lambda z: z[..., :8] @ u.T,
        U_adjoint=padded,
        V=lambda z: z @ vt,
        V_adjoint=lambda x: x @ vt.T,
        mask=torch.cat([s, torch.zeros(8)]).view(1, 1, 1, 16),
        noise_model=deepinv.physics.GaussianNoise(float(SIGMA) / PRIOR.scale),
    )
    draws = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda a: 2**0.5 * draws(a))
    torch.manual_seed(1)
    levels = np.array([SCHEDULE.rho(t) for t in TIMES])
    agree(f"ddrm:steps={STEPS}", deepinv.sampling.DDRM(Denoiser(), sigmas=levels)(Y, physics))
