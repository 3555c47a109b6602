"""Closed-form priors against Tweedie's formulas and their own draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from priors.base import Prior
from priors.gaussian import Gaussian
from priors.gaussian_mixture import GaussianMixture
from priors.random_field import RandomField

PRIORS = {
    "gaussian": lambda: Gaussian.default((6,)),
    "gaussian_mixture": lambda: GaussianMixture.default((4,)),
    "random_field": lambda: RandomField((6, 6)),
}


@pytest.fixture(params=sorted(PRIORS))
def prior(request: pytest.FixtureRequest) -> Prior:
    made: Prior = PRIORS[request.param]()
    return made


@pytest.mark.parametrize("t", [0.9, 0.6, 0.35])
def test_covariance_is_tweedie_of_second_order(prior: Prior, t: float) -> None:
    """Cov(z_0 | z_t) = (sigma^2 / alpha) d E[z_0 | z_t] / d z_t  (Efron 2011)."""
    z0 = prior.draw(3, seed=1).double()
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(2), dtype=z0.dtype)
    z = prior.schedule.noise(z0, t, eps)
    spread = prior.covariance(z, t, prior.denoise(z, t))
    assert callable(spread)
    u = torch.randn(z0.shape, generator=torch.Generator().manual_seed(3), dtype=z0.dtype)
    _, slope = torch.func.jvp(lambda a: prior.denoise(a, t), (z,), (u,))
    factor = prior.schedule.sigma(t) ** 2 / prior.schedule.alpha(t) * prior.scale**2
    torch.testing.assert_close(spread(u), factor * slope, rtol=1e-6, atol=1e-9)


def test_denoiser_is_the_best_predictor(prior: Prior) -> None:
    """No multiple of the estimate, or of the noisy state added to it, has a smaller error."""
    t = 0.55
    z0 = prior.draw(4000, seed=1)
    z = prior.schedule.noise(z0, t, torch.randn(z0.shape, generator=torch.Generator()))
    clean = prior.denoise(z, t)
    error = (clean - z0).square().mean()
    for rival in (0.97 * clean, 1.03 * clean, clean + 0.02 * z, clean - 0.02 * z):
        assert (rival - z0).square().mean() > error


def test_draws_have_unit_variance_in_model_units(prior: Prior) -> None:
    assert float(prior.draw(4000, seed=0).square().mean()) == pytest.approx(1, abs=0.1)


def test_decode_inverts_encode(prior: Prior) -> None:
    z = prior.draw(2, seed=0)
    torch.testing.assert_close(prior.encode(prior.decode(z)), z)


def test_residual_variance_is_the_trace_of_the_covariance() -> None:
    prior = Gaussian.default((6,))
    for t in (0.0, 0.5, 1.0):
        alpha, sigma = prior.schedule.alpha(t), prior.schedule.sigma(t)
        exact = float((sigma**2 * prior.values / (alpha**2 * prior.values + sigma**2)).mean())
        assert prior.residual_variance(t) == pytest.approx(exact, rel=0.15)  # 256 draws


def test_mixture_density_of_modes() -> None:
    weights = np.array([0.7, 0.3])
    prior = GaussianMixture(np.array([[-5.0, 0.0], [5.0, 0.0]]), weights)
    x = prior.decode(prior.draw(5000, seed=0))
    assert float((x[:, 0] < 0).float().mean()) == pytest.approx(0.7, abs=0.03)
