"""Closed-form priors against Tweedie's formulas and their own draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from invprob.prior_training import draw_chain
from invprob.registry import load_prior
from operators.errors import ObservationError
from operators.navier_stokes import NavierStokes
from priors.base import Prior
from priors.gaussian import Gaussian
from priors.gaussian_mixture import GaussianMixture
from priors.random_field import RandomField


def oblique(shared: bool) -> GaussianMixture:
    """Three modes in four dimensions with full covariances, one each or one for all."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(1 if shared else 3, 4, 4))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(4)
    means = 2 * rng.normal(size=(3, 4))
    return GaussianMixture(means, np.array([0.5, 0.2, 0.3]), covariances=covariances)


PRIORS = {
    "gaussian": lambda: Gaussian.default((6,)),
    "gaussian_mixture": lambda: GaussianMixture.default((4,)),
    "mixture_of_one_covariance": lambda: oblique(shared=True),
    "mixture_of_many_covariances": lambda: oblique(shared=False),
    "random_field": lambda: RandomField((6, 6)),
    "random_field_of_mean_0": lambda: RandomField((6, 6), centred=True),
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


def test_vorticity_chain_has_the_spectrum_of_the_field() -> None:
    """(k^2 + tau^2)^-2.5 on a square of side 2 pi, tau = 7 / 2 pi; none at k = 0 (Li et al. 2021).

    Within four standard errors of a mean power, and 1% that the chain's steps may cost.
    """
    prior = load_prior(NavierStokes.default_prior)
    assert prior.x_shape == (64, 64)
    n, waves = 48, np.fft.fftfreq(64) * 64
    k = np.hypot(waves[:, None], waves)
    exact = (k**2 + (7 / (2 * np.pi)) ** 2) ** -2.5 * (k > 0)
    exact /= exact.sum()  # variance 1
    x = draw_chain(prior, n).double().numpy()
    power = np.square(np.abs(np.fft.fft2(x, norm="forward"))).mean(0)
    assert power[0, 0] < 1e-12
    for low, high in ((1, 2), (2, 3), (3, 7), (7, 14), (14, 28), (28, 46)):
        band = (k >= low) & (k < high)
        error = (2 / (n * band.sum())) ** 0.5
        assert (power / np.maximum(exact, 1e-30))[band].mean() == pytest.approx(
            1, abs=4 * error + 0.01
        )


def test_a_random_field_comes_back_from_its_folder(tmp_path: Path) -> None:
    made = RandomField((8, 12), 0.3, 1.5, 2.2, 60, centred=True, unit="1/s")
    made.save(tmp_path, "told")
    found = load_prior(tmp_path)
    assert isinstance(found, RandomField)
    assert (found.x_shape, found.steps, found.unit) == ((8, 12), 60, "1/s")
    assert torch.equal(found.decode(found.draw(3, seed=1)), made.decode(made.draw(3, seed=1)))
    small = load_prior(tmp_path, (4, 6))
    assert small.x_shape == (4, 6) and small.draw(1, seed=0).shape == (1, 4, 6)


def test_mixture_density_of_modes() -> None:
    weights = np.array([0.7, 0.3])
    prior = GaussianMixture(np.array([[-5.0, 0.0], [5.0, 0.0]]), weights)
    x = prior.decode(prior.draw(5000, seed=0))
    assert float((x[:, 0] < 0).float().mean()) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("shared", [True, False])
def test_mixture_density_is_that_of_scipy(shared: bool) -> None:
    prior = oblique(shared)
    x = prior.decode(prior.draw(5, seed=0)).double()
    assert prior.vectors is not None
    spread = (prior.vectors * prior.values[:, None]) @ prior.vectors.mT * prior.scale**2
    parts = [
        np.exp(float(log_weight))
        * multivariate_normal.pdf(x.numpy(), prior.scale * mean.numpy(), covariance.numpy())
        for log_weight, mean, covariance in zip(
            prior.log_weights, prior.means, spread.expand(3, 4, 4), strict=True
        )
    ]
    np.testing.assert_allclose(prior.log_prob(x).numpy(), np.log(sum(parts)), rtol=1e-10)
    np.testing.assert_allclose(prior.responsibilities(x).numpy().T, parts / sum(parts), rtol=1e-9)


def test_mixture_draws_have_the_covariances_asked_for() -> None:
    prior = oblique(shared=False)
    assert prior.vectors is not None
    z0 = prior.draw_modes(np.full(20000, 1), seed=3).double()
    spread = (prior.vectors[1] * prior.values[1]) @ prior.vectors[1].T
    torch.testing.assert_close(z0.T.cov(), spread, rtol=0.1, atol=0.05 * float(spread.max()))
    torch.testing.assert_close(z0.mean(0), prior.means[1], rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("covariances", "said"),
    [
        (np.eye(2)[None, :, :1], "one of each mode"),
        (np.array([[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (np.array([[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
    ],
)
def test_mixture_refuses_what_is_no_covariance(covariances: np.ndarray, said: str) -> None:
    with pytest.raises(ObservationError, match=said):
        GaussianMixture(np.zeros((3, 2)), np.ones(3), covariances=covariances)
