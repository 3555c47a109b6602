"""Gaussian noise: densities against scipy, exact masks, clear refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from operators.errors import ObservationError
from operators.noise import Gaussian, NoiseModel


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
