"""Increments of Lévy processes: denoiser and variance against quadrature, draws against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from invprob.trajectory import prior_paths
from operators.errors import UnknownName
from priors.increments import LAWS, Increments, Laplace, Law, Student
from priors.process import generators

STATES = [0.0, 0.01, 0.3, 1.0, 4.0, 15.0, -7.0]
NOISES = [0.02, 0.1, 0.5, 1.0, 3.0, 10.0]


def continuous(law: Law) -> tuple[stats.rv_continuous, float]:
    """Return the law without its zeros as scipy has it, and the share of zeros."""
    if isinstance(law, Student):
        return stats.t(law.freedom, scale=math.sqrt(1 - 2 / law.freedom)), 0.0
    if isinstance(law, Laplace):
        return stats.laplace(scale=math.sqrt(1 / (2 * law.share))), 1 - law.share
    return stats.norm(), 0.0


def by_quadrature(law: Law, m: float, s: float) -> tuple[float, float]:
    """Return mean and variance of z_0 given m = z_0 + s eps, by Gauss-Legendre on many panels."""
    density, zeros = continuous(law)
    edges = {
        -60 * s - 40,
        -10,
        -1,
        0,
        1,
        10,
        60 * s + 40,
        m - 8 * s,
        m - 2 * s,
        m,
        m + 2 * s,
        m + 8 * s,
    }
    ends = np.array(sorted(edges))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = np.diff(ends)[:, None] / 2
    z = np.append((ends[:-1, None] + half + half * nodes).ravel(), 0.0)
    mass = np.append((1 - zeros) * (half * weights).ravel() * density.pdf(z[:-1]), zeros)
    logs = -((m - z) ** 2) / (2 * s**2)
    mass *= np.exp(logs - logs[mass > 0].max())
    mass /= mass.sum()
    mean = float(mass @ z)
    return mean, float(mass @ (z - mean) ** 2)


@pytest.mark.parametrize("law", [*LAWS.values(), Laplace(0.7)], ids=str)
@pytest.mark.parametrize("s", NOISES)
def test_moments_are_those_of_quadrature(law: Law, s: float) -> None:
    mean, variance = law.moments(torch.tensor(STATES, dtype=torch.float64), s)
    exact = np.array([by_quadrature(law, m, s) for m in STATES])
    np.testing.assert_allclose(mean.numpy(), exact[:, 0], rtol=1e-9, atol=1e-9 * s)
    np.testing.assert_allclose(variance.numpy(), exact[:, 1], rtol=1e-7)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_variance_is_the_slope_of_the_mean_far_in_the_tails(name: str, t: float) -> None:
    """Tweedie of second order, at states where cut normals lose all digits if not done well."""
    prior = Increments(name, 4)
    z = torch.tensor([[0.0, 3.0, -40.0, 2000.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.denoise(z, t).sum(), z)
    spread = prior.covariance(z.detach(), t, z)
    assert callable(spread)
    factor = prior.schedule.sigma(t) ** 2 / prior.schedule.alpha(t)
    torch.testing.assert_close(spread(torch.ones_like(slope)), factor * slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_law(name: str) -> None:
    prior = Increments(name, d=50, scale=3.0)
    x = prior.decode(prior.draw(400, seed=1)).double().numpy().ravel()
    density, zeros = continuous(prior.law)
    assert np.mean(x == 0) == pytest.approx(zeros, abs=0.01)
    assert stats.kstest(x[x != 0] / 3, density.cdf).pvalue > 0.01
    assert prior.law.draw(np.random.default_rng(0), (400000,)).var() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", LAWS)
def test_the_chain_follows_the_law(name: str) -> None:
    prior = Increments(name, d=64)
    times = prior.schedule.grid(prior.steps)
    z = prior_paths(prior, generators(2, range(60)), times)[1][-1].double().numpy().ravel()
    density, zeros = continuous(prior.law)
    assert np.mean(np.abs(z) < 0.1) == pytest.approx(
        zeros + (1 - zeros) * (density.cdf(0.1) - density.cdf(-0.1)), abs=0.02
    )
    far = np.abs(z[np.abs(z) > 0.1])
    tail = density.sf(0.1)
    distance = stats.kstest(far, lambda a: 1 - density.sf(a) / tail).statistic
    assert distance < 1.63 / math.sqrt(len(far))  # 1% of exact samples lie further
    wrong = stats.norm if name != "gauss" else stats.laplace(scale=2**-0.5)
    other = stats.kstest(far, lambda a: 1 - wrong.sf(a) / wrong.sf(0.1)).statistic
    assert other > 1.63 / math.sqrt(len(far))


def test_residual_variance_is_the_mean_of_the_covariance() -> None:
    prior = Increments("bernoulli_laplace", d=64, scale=2.0)
    z0 = prior.draw(500, seed=3)
    for t in (0.3, 0.6):
        z = prior.schedule.noise(z0, t, torch.randn(z0.shape, generator=torch.Generator()))
        spread = prior.covariance(z, t, z0)
        assert callable(spread)
        found = float(spread(torch.ones_like(z)).mean())
        assert prior.scale**2 * prior.residual_variance(t) == pytest.approx(found, rel=0.1)


def test_unknown_law_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownName, match="gauss, laplace, bernoulli_laplace, student"):
        Increments("cauchy")
