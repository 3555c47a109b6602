"""Scores against a truth, where the truth is known and where it is noisy itself."""

from __future__ import annotations

import numpy as np
import pytest

from invprob.metrics import against_truth, optimality_gap, posterior_coverage
from invprob.simulate import fit_truth, simulate
from invprob.telescope import sky
from operators.denoising import Denoising
from operators.errors import ObservationError
from priors.random_field import RandomField


def test_the_noise_of_the_truth_is_part_of_a_fair_draw_of_it() -> None:
    """Exact samples of x, and a truth measured with noise as large as their spread."""
    rng = np.random.default_rng(0)
    x = 100 + rng.normal(size=(40, 40))
    samples = x + rng.normal(size=(200, 40, 40))
    clean, measured = x + rng.normal(size=x.shape), x + rng.normal(0, 2**0.5, x.shape)
    assert against_truth(samples, clean)["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert against_truth(samples, clean)["coverage_90_noisy"] is None
    scores = against_truth(samples, measured, truth_sigma=1.0)
    assert scores["coverage_90"] == pytest.approx(0.755, abs=0.03)  # P(|N(0, 2)| < 1.645)
    assert scores["coverage_90_noisy"] == pytest.approx(0.9, abs=0.03)


def test_the_noise_of_an_image_is_measured_on_its_frame() -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:96, :96] - 47.5
    image = 50 * np.exp(-(x**2 + y**2) / 200) + rng.normal(0, 0.3, (96, 96))
    assert sky(image)[1] == pytest.approx(0.3, rel=0.1)
    truth, own = fit_truth(image, RandomField((48, 48)))
    assert truth.shape == (48, 48)
    scale = truth.max() / (image.max())
    assert own == pytest.approx(0.15 * scale, rel=0.15)  # binned by 2: half the noise


def test_a_truth_that_is_not_finite_is_told() -> None:
    image = np.ones((96, 96))
    image[:2] = np.nan  # cut away, after binning by 3
    image[40, 40:44] = np.nan
    with pytest.raises(ObservationError, match=r"truth image.* has 2 values .* first at \(9, 12\)"):
        fit_truth(image[:, :80], RandomField((24, 24)))
    with pytest.raises(ObservationError, match="truth has 1 values that are NaN"):
        simulate(Denoising((2, 2)), np.array([[1, np.nan], [1, 1]]))


def test_optimality_gap_is_the_error_to_truths_drawn_from_the_posterior() -> None:
    rng = np.random.default_rng(2)
    exact, samples = rng.normal(size=(500, 7)), 0.3 + rng.normal(size=(50, 7))
    error, least = (
        np.square(exact - mean).sum(1).mean() for mean in (samples.mean(0), exact.mean(0))
    )
    assert optimality_gap(samples, exact) == pytest.approx(10 * np.log10(error / least))
    assert optimality_gap(exact, exact) == 0


def test_posterior_coverage_tells_narrow_samples() -> None:
    rng = np.random.default_rng(3)
    exact, samples = rng.normal(size=(2000, 20)), rng.normal(size=(500, 20))
    assert posterior_coverage(samples, exact) == pytest.approx(0.9, abs=0.01)
    assert posterior_coverage(samples / 2, exact) == pytest.approx(0.589, abs=0.03)
    assert posterior_coverage(samples[:18], exact) is None
