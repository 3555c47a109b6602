"""Noise models: densities and samples against scipy, exact masks, clear refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from operators.errors import ObservationError
from operators.noise import (
    Gaussian,
    NoiseModel,
    Poisson,
    PoissonGaussian,
    StudentT,
    Transmission,
)
from tests.conftest import scored

# scipy's law of y given the mean, for numpy arrays, beside each model
Law = Callable[[Any], Any]
MODELS: dict[str, tuple[NoiseModel, Law]] = {
    "gaussian": (Gaussian(0.4), lambda m: scipy.stats.norm(m, 0.4)),
    "poisson": (Poisson(3.0, 0.5), lambda m: scipy.stats.poisson(3 * m + 0.5)),
    "floored": (Poisson(3.0, 0.0, floor=4.0), lambda m: scipy.stats.poisson(np.maximum(3 * m, 4))),
    "poisson_gaussian": (
        PoissonGaussian(0.3, 0.2),
        lambda m: scipy.stats.norm(m, np.sqrt(0.3 * np.maximum(m, 0) + 0.04)),
    ),
    "transmission": (
        Transmission(40.0, 0.5),
        lambda m: scipy.stats.poisson(40 * np.exp(-m) + 0.5),
    ),
    "student_t": (StudentT(3.0, 0.4), lambda m: scipy.stats.t(3.0, m, 0.4)),
    "cauchy": (StudentT(1.0, 0.4), lambda m: scipy.stats.cauchy(m, 0.4)),
}
each = pytest.mark.parametrize("name", MODELS)


def drawn(name: str, count: int = 40000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means (count, 3), the same in every row, and data drawn from them."""
    mean = torch.tensor([0.7, 1.6, 4.0], dtype=torch.float64).expand(count, 3)
    return mean, MODELS[name][0].sample(mean, torch.Generator().manual_seed(1))


@each
def test_density_is_that_of_scipy(name: str) -> None:
    noise, law = MODELS[name]
    mean, y = drawn(name, 50)
    frozen = law(mean.numpy())
    log_density = frozen.logpmf if hasattr(frozen.dist, "pmf") else frozen.logpdf
    expected = log_density(y.numpy()).sum(1)
    np.testing.assert_allclose(noise.log_prob(y, mean), expected, rtol=1e-10)


@each
def test_samples_follow_the_density(name: str) -> None:
    """Kolmogorov-Smirnov for continuous laws, Pearson's test of the counts of counts."""
    mean, y = drawn(name)
    for i, m in enumerate(mean[0].tolist()):
        law, values = MODELS[name][1](m), y[:, i].numpy()
        if not hasattr(law.dist, "pmf"):
            assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-3
            continue
        chances = law.pmf(np.arange(60))
        kept = chances * len(values) > 5
        seen = np.bincount(values.astype(int), minlength=60)[:60]
        found = [*seen[kept], len(values) - seen[kept].sum()]
        expected = [*chances[kept] * len(values), (1 - chances[kept].sum()) * len(values)]
        assert scipy.stats.chisquare(found, expected).pvalue > 1e-3


@each
def test_residuals_are_white_and_information_is_the_variance_of_the_score(name: str) -> None:
    noise, _ = MODELS[name]
    mean, y = drawn(name)
    r, score = noise.whitened(y, mean), noise.score(y, mean)
    np.testing.assert_allclose(r.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(r.var(0), 1, atol=0.04)
    information = noise.expected_information(mean)[0]
    np.testing.assert_allclose(score.square().mean(0) / information, 1, atol=0.05)
    np.testing.assert_allclose(score.mean(0) / information.sqrt(), 0, atol=0.02)
    chi2 = noise.whitened(y, mean).square().mean(1)
    assert float(chi2.var()) == pytest.approx(2 / float(noise.degrees(mean)[0]), rel=0.06)
    np.testing.assert_allclose(
        noise.expected(mean)[0], MODELS[name][1](mean[0].numpy()).median(), atol=2
    )


@each
def test_score_in_closed_form_is_the_gradient(name: str) -> None:
    noise, _ = MODELS[name]
    mean, y = drawn(name, 20)
    gradient, score = NoiseModel.score(noise, y, mean), noise.score(y, mean)
    above = noise.expected(mean) > 4 if name == "floored" else torch.ones_like(mean).bool()
    torch.testing.assert_close(score[above], gradient[above], rtol=1e-9, atol=1e-9)


@each
def test_no_mean_explains_data_better_than_the_likeliest(name: str) -> None:
    noise, _ = MODELS[name]
    _, y = drawn(name, 200)
    y = torch.cat([y, -y, 0 * y]) if name.endswith("gaussian") else torch.cat([y, 0 * y])
    best = noise.likeliest(y)
    top = noise.log_prob(y, best)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0):
        step = size * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        assert (noise.log_prob(y, best + step) <= top + 1e-9).all()


@each
def test_what_is_masked_has_no_effect(name: str) -> None:
    noise, _ = MODELS[name]
    mask = torch.tensor([False, True, False])
    maps = {k: torch.full((3,), float(v)) for k, v in noise.config().items()}
    dirty = {k: torch.where(mask, torch.nan, v) for k, v in maps.items()}
    masked = type(noise)(**dirty, mask=mask)
    mean, y = drawn(name, 4)
    spoilt = torch.where(mask, torch.nan, y)
    kept = [0, 2]
    torch.testing.assert_close(
        masked.log_prob(spoilt, mean), noise.log_prob(y[:, kept], mean[:, kept])
    )
    torch.testing.assert_close(
        masked.misfit(spoilt, mean) - masked.misfit(spoilt, mean + 1),
        masked.log_prob(spoilt, mean + 1) - masked.log_prob(spoilt, mean),
    )
    for value in (
        masked.score(spoilt, mean), masked.whitened(spoilt, mean), masked.expected_information(mean)
    ):  # fmt: skip
        assert (value[:, 1] == 0).all() and value.isfinite().all() and (value[:, kept] != 0).any()
    assert torch.equal(masked.sample(mean)[:, 1], masked.expected(mean)[:, 1])
    assert masked.kept((3,)).tolist() == [True, False, True]
    assert masked.count((3,)) == 2
    leaf = mean.clone().requires_grad_()
    masked.log_prob(spoilt, leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@each
def test_config_is_inverted_and_dtype_follows_the_mean(name: str) -> None:
    noise, _ = MODELS[name]
    mean, y = drawn(name, 4)
    again = type(noise).from_config(noise.config())
    assert torch.equal(noise.log_prob(y, mean), again.log_prob(y, mean))
    single = mean.float()
    assert noise.sample(single).dtype is torch.float32
    for value in (
        noise.score(y, single), noise.whitened(y, single), noise.expected_information(single)
    ):  # fmt: skip
        assert value.dtype is torch.float32 and value.shape == mean.shape
    assert noise.log_prob(y, single).dtype is torch.float64
    assert noise.count((3,)) == 3
    data = noise.default(8.0).sample(torch.full((1, 500), 8.0))
    assert 0.02 < float((data / noise.default(8.0).expected(torch.tensor(8.0)) - 1).std()) < 0.3


def test_a_rate_below_the_floor_is_the_floor_and_its_score_leads_back() -> None:
    noise = Poisson(2.0, floor=0.01)
    mean = torch.tensor([[-3.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([5.0, 0.0])
    assert noise.expected(mean).tolist() == [[0.01, 0.01]]
    assert float(noise.log_prob(y, mean)) == pytest.approx(
        scipy.stats.poisson(0.01).logpmf([5, 0]).sum()
    )
    assert noise.score(y, mean).tolist() == [[2 * (5 / 0.01 - 1), -2.0]]


def test_an_outlier_counts_by_how_rare_it_is() -> None:
    """Quantile residuals stay finite where the variance does not exist."""
    mean = torch.zeros(1, 3, dtype=torch.float64)
    y = torch.tensor([0.0, -1e6, 1e6])
    rare = -scipy.stats.norm.ppf(scipy.stats.cauchy.sf(1e6))
    expected = torch.tensor([[0.0, -rare, rare]])
    torch.testing.assert_close(StudentT(1.0, 1.0).whitened(y, mean), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisson(-1.0), "noise exposure is -1.0; it must be positive"),
        (lambda: Poisson(1.0, -0.1), "noise background is -0.1; it must be at least 0"),
        (lambda: Poisson(torch.ones(2), torch.ones(3)), "noise background has shape"),
        (lambda: PoissonGaussian(1.0, 0.0), "noise read is 0.0; it must be positive"),
        (lambda: StudentT(math.inf, 1.0), "noise dof is inf"),
        (lambda: StudentT.from_config({"dof": 3}), "needs the parameter scale"),
        (lambda: Poisson.from_config({"exposur": 3}), "did you mean 'exposure'"),
        (lambda: StudentT("x", 1.0), "noise dof has dtype"),  # type: ignore[arg-type]
        (lambda: Poisson().refuse_data(np.array([1.0, 2.5])), "no counts, such as 2.5"),
        (lambda: Poisson().refuse_data(np.array([3.0, -1.0])), "no counts, such as -1"),
        (lambda: Transmission().sample(torch.full((1, 2), -50.0)), "lower the exposure"),
    ],
)
def test_bad_noise_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        make()


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    sigma = 0.2 + torch.rand(4, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 3, generator=generator) < 0.3
    return mean, y, sigma, mask


@pytest.mark.parametrize("kind", ["scalar", "map", "masked", "masked scalar"])
def test_log_prob_is_the_normalised_density_over_unmasked_pixels(kind: str) -> None:
    mean, y, sigma_map, mask = example()
    sigma = 0.7 if "scalar" in kind else sigma_map
    used = mask if "masked" in kind else None
    keep = ~mask if "masked" in kind else torch.ones_like(mask)
    expected = scipy.stats.norm.logpdf(y, mean, sigma)[:, keep].sum(1)
    noise = Gaussian(sigma, used)
    np.testing.assert_allclose(noise.log_prob(y, mean), expected, rtol=1e-12)
    np.testing.assert_allclose(noise.log_prob(y.expand_as(mean), mean), expected, rtol=1e-12)
    assert noise.count((4, 3)) == int(keep.sum())


def test_log_prob_is_summed_in_float64() -> None:
    mean = torch.zeros(2, 400, 400)
    y = torch.full((400, 400), 1.0001)
    log_prob = Gaussian(1.0).log_prob(y, mean)
    assert log_prob.dtype is torch.float64
    expected = -0.5 * 160000 * (float(y[0, 0]) ** 2 + math.log(2 * math.pi))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-7)


def test_score_is_the_gradient_of_log_prob() -> None:
    mean, y, sigma, mask = example()
    noise = Gaussian(sigma, mask)
    torch.testing.assert_close(noise.score(y, mean), NoiseModel.score(noise, y, mean))
    assert torch.autograd.gradcheck(lambda m: noise.log_prob(y, m), mean.requires_grad_())


def test_nan_under_the_mask_has_no_effect() -> None:
    mean, y, sigma, mask = example()
    dirty_y, dirty_sigma = y.clone(), sigma.clone()
    dirty_y[mask], dirty_sigma[mask] = torch.nan, -torch.inf
    clean, dirty = Gaussian(sigma, mask), Gaussian(dirty_sigma, mask)
    assert torch.equal(clean.log_prob(y, mean), dirty.log_prob(dirty_y, mean))
    assert torch.equal(clean.score(y, mean), dirty.score(dirty_y, mean))
    leaf = mean.clone().requires_grad_()
    dirty.log_prob(dirty_y, leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_precision_is_zero_exactly_where_masked() -> None:
    _, _, sigma, mask = example()
    precision = Gaussian(sigma, mask).precision
    assert (precision[mask] == 0).all()
    torch.testing.assert_close(precision[~mask], sigma[~mask] ** -2)


def test_samples_have_the_stated_spread_and_keep_the_mean_where_masked() -> None:
    _, _, sigma, mask = example()
    noise = Gaussian(sigma, mask)
    mean = torch.ones(20000, 4, 3)
    draws = noise.sample(mean, torch.Generator().manual_seed(1))
    assert draws.dtype is torch.float32
    torch.testing.assert_close(draws.std(0)[~mask], sigma[~mask].float(), rtol=0.03, atol=0)
    assert (draws[:, mask] == 1).all()
    again = noise.sample(mean, torch.Generator().manual_seed(1))
    assert torch.equal(draws, again)


def test_usable_in_autograd_after_a_first_call_in_inference_mode() -> None:
    mean, y, sigma, _ = example()
    noise = Gaussian(sigma)
    with torch.inference_mode():
        noise.log_prob(y, mean)
    leaf = mean.clone().requires_grad_()
    noise.log_prob(y, leaf).sum().backward()


def test_numpy_of_any_byte_order_is_accepted() -> None:
    assert isinstance(Gaussian(np.array(0.5, dtype=">f4")).sigma, float)
    noise = Gaussian(np.ones((2, 2), dtype=">f8"))  # type: ignore[arg-type]  # as FITS gives it
    assert noise.precision.shape == (2, 2)


@pytest.mark.parametrize(
    ("sigma", "mask", "message"),
    [
        (0.0, None, "noise sigma is 0"),
        (-1.0, None, "noise sigma is -1"),
        (math.nan, None, "noise sigma is nan"),
        (torch.tensor([1.0, math.inf, 0.0]), None, r"at 2 pixels, first \(1,\)"),
        (torch.ones(3), torch.ones(3, dtype=torch.bool), "every pixel"),
        (torch.ones(3), torch.zeros(4, dtype=torch.bool), "mask"),
        (torch.ones(3), torch.zeros(3), "bool"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    sigma: float | torch.Tensor, mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ObservationError, match=message):
        Gaussian(sigma, mask)


def test_shapes_that_do_not_fit_are_named() -> None:
    mean, y, _, _ = example()
    with pytest.raises(ObservationError, match=r"\(2, 2\).*\(4, 3\)"):
        Gaussian(torch.ones(2, 2)).log_prob(y, mean)
    with pytest.raises(ObservationError, match=r"\(3, 4\)"):
        Gaussian(1.0).log_prob(y.T, mean)


def test_a_rare_outlier_of_student_s_law_has_a_finite_deviate() -> None:
    """Tails whose probability is below the least number, against mpmath's: 1e6 has almost none."""
    u = torch.tensor([[38.0, 1e6]], dtype=torch.float64)
    for dof, exact in ((1e6, 37.98628), (100.0, 47.9526221)):
        noise = StudentT(dof, 2.0)
        found = noise.whitened(2 * u, 0 * u)
        assert float(found[0, int(dof == 100)]) == pytest.approx(exact, rel=1e-6)
    normal = StudentT(1e15, 1.0).log_prob(torch.zeros(1, 1), torch.zeros(1, 1))
    assert float(normal) == pytest.approx(-math.log(2 * math.pi) / 2)


def test_chi2_of_faint_counts_is_no_sharp_check() -> None:
    """The truth itself keeps the certificate's bound, masked or not, where most rates are tiny."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((400, 500), 1e-3, dtype=torch.float64)
    mean[:, :50] = 20.0
    mask = torch.arange(500) % 5 == 0
    for noise in (Poisson(1.0), Poisson(1.0, mask=mask)):
        y = noise.sample(mean, generator)
        chi2, pixels = noise.chi2(y, mean), noise.count((500,))
        pairs = torch.stack([chi2, noise.degrees(mean)], 1).tolist()
        assert np.mean([scored(np.zeros(1), *pair).fits for pair in pairs]) > 0.99
        assert np.mean([scored(np.zeros(1), value, pixels).fits for value, _ in pairs]) < 0.8
