"""Correlated noise against its own covariance, written out, with and without a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multivariate_normal

from invprob.likelihood import Likelihood
from invprob.proximal import proximal_shift
from operators.blur import Blur
from operators.errors import ObservationError
from operators.noise import Correlated, NoiseModel

SHAPE = (6, 7)
RNG = np.random.default_rng(0)
SIGMA = torch.from_numpy(0.3 + RNG.random(SHAPE))
MASK = torch.from_numpy(RNG.random(SHAPE) < 0.3)
KINDS = {
    "plain": Correlated(0.7),
    "map": Correlated(SIGMA, 1.4, 0.1),
    "masked": Correlated(SIGMA, 1.4, 0.1, MASK),
    "masked number": Correlated(0.7, 0.8, 0.3, MASK),
}
each = pytest.mark.parametrize("noise", KINDS.values(), ids=KINDS.keys())


def covariance(noise: Correlated) -> np.ndarray:
    """Among the kept pixels, from the distances between them."""
    kept = noise.kept(SHAPE).numpy()
    places = np.argwhere(kept)
    smooth = 1.0
    for axis, n in enumerate(SHAPE):
        apart = np.subtract.outer(places[:, axis], places[:, axis])
        copies = apart[..., None] + n * np.arange(-4, 5)
        summed = np.exp(-(copies**2) / (2 * noise.length**2)).sum(-1)
        smooth = smooth * summed / summed.max()
    sigma = np.broadcast_to(np.asarray(noise.sigma), SHAPE)[kept]
    share = noise.white * np.eye(len(sigma)) + (1 - noise.white) * smooth
    return np.asarray(np.outer(sigma, sigma) * share)


def drawn(noise: Correlated, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.linspace(-1, 2, 42, dtype=torch.float64).view(1, *SHAPE).expand(count, *SHAPE)
    return mean, noise.sample(mean, torch.Generator().manual_seed(1))


@each
def test_density_score_and_information_are_those_of_the_covariance(noise: Correlated) -> None:
    mean, y = drawn(noise, 5)
    kept, dense = noise.kept(SHAPE), covariance(noise)
    law = multivariate_normal(np.zeros(len(dense)), dense)
    expected = law.logpdf((y - mean)[:, kept].numpy())
    spoilt = torch.where(kept, y, torch.nan)
    np.testing.assert_allclose(noise.log_prob(spoilt, mean), expected, rtol=1e-9)
    np.testing.assert_allclose(
        noise.score(spoilt, mean)[:, kept],
        np.linalg.solve(dense, (y - mean)[:, kept].numpy().T).T,
        rtol=1e-9,
        atol=1e-9,
    )
    torch.testing.assert_close(noise.score(y, mean), NoiseModel.score(noise, y, mean))
    np.testing.assert_allclose(
        noise.expected_information(mean)[0, kept], np.linalg.inv(dense).diagonal(), rtol=1e-9
    )
    assert (noise.score(spoilt, mean)[:, ~kept] == 0).all()
    assert noise.count(SHAPE) == len(dense)


@each
def test_samples_have_the_covariance_and_white_residuals(noise: Correlated) -> None:
    mean, y = drawn(noise, 20000)
    kept, dense = noise.kept(SHAPE), covariance(noise)
    found = np.cov((y - mean)[:, kept].numpy().T)
    np.testing.assert_allclose(found, dense, atol=0.06 * dense.max())
    white = noise.whitened(y, mean)[:, kept].numpy()
    np.testing.assert_allclose(np.cov(white.T), np.eye(len(dense)), atol=0.05)
    assert kstest(white[:, 3], "norm").pvalue > 1e-3
    assert torch.equal(y[:, ~kept], mean[:, ~kept])


@each
def test_whitening_has_an_exact_transpose_and_config_is_inverted(noise: Correlated) -> None:
    v, u = (torch.from_numpy(RNG.standard_normal((3, *SHAPE))) for _ in range(2))
    one, other = (noise.whiten(v) * u).sum(), (v * noise.whiten_back(u)).sum()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    again = Correlated.from_config(noise.config(), noise.mask)
    assert torch.equal(again.log_prob(v[0], u), noise.log_prob(v[0], u))
    assert noise.whitened(v[0], u.float()).dtype is torch.float32


@each
def test_guidance_is_the_closed_form(noise: Correlated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invprob.proximal.GN_CG_ITERATIONS", 100)
    operator, kept = Blur(SHAPE, fwhm=2.0), noise.kept(SHAPE)
    x, y = (torch.from_numpy(RNG.standard_normal((n, *SHAPE))) for n in (2, 1))
    basis = torch.eye(42, dtype=torch.float64).view(42, *SHAPE)
    matrix = operator(basis)[:, kept].T.numpy()
    residual = (y - operator(x))[:, kept].numpy()
    inner = 0.4 * matrix @ matrix.T + covariance(noise)
    expected = 0.4 * np.linalg.solve(inner, residual.T).T @ matrix
    delta, _, _ = proximal_shift(Likelihood(operator, noise, y), x, 0.4)
    np.testing.assert_allclose(delta.flatten(1), expected, atol=1e-3)


def test_shared_noise_of_all_white_is_independent_and_bad_values_are_refused() -> None:
    mean, y = drawn(KINDS["plain"], 3)
    independent = Correlated(0.7, 1.0, 1.0)
    expected = multivariate_normal(np.zeros(42), 0.49).logpdf((y - mean).flatten(1).numpy())
    np.testing.assert_allclose(independent.log_prob(y, mean), expected)
    for bad in ((-1.0,), (1.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.5), (1.0, torch.ones(SHAPE))):
        with pytest.raises(ObservationError, match="noise"):
            Correlated(*bad)  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match="images or vectors"):
        independent.log_prob(torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 4))
