"""Certificates and metrics against known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from invprob.certificate import carried, certify
from invprob.correction import smoothed
from invprob.likelihood import Likelihood
from invprob.metrics import against_truth, coverage, crps, sliced_wasserstein, ssim
from invprob.path_weights import pareto_k
from invprob_cli.certificate import certificate_rows
from operators.denoising import Denoising
from operators.noise import Gaussian
from tests.conftest import scored


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_pareto_k_of_pareto_weights(k: float) -> None:
    weights = np.random.default_rng(0).pareto(1 / k, 20_000) + 1
    assert pareto_k(np.log(weights)) == pytest.approx(k, abs=0.12)


def test_pareto_k_of_few_weights_is_that_of_arviz() -> None:
    """Where its prior matters; by ArviZ 0.23's `psislw`."""
    assert pareto_k(np.random.default_rng(0).normal(0, 1.5, 50)) == pytest.approx(
        0.154677, abs=1e-5
    )


def test_smoothing_leaves_quantiles_of_a_pareto_law_where_they_are() -> None:
    log_w = -np.log1p(-(np.arange(2000) + 0.5) / 2000) / 2
    found = smoothed(log_w)
    assert np.count_nonzero(found != log_w) > 100
    np.testing.assert_allclose(found, log_w, atol=0.01)


def test_pareto_k_needs_a_tail() -> None:
    assert pareto_k(np.zeros(10)) is None
    alike = -1545.3 + 1e-13 * np.random.default_rng(0).normal(size=100)
    assert pareto_k(alike) == 0


def test_even_weights_are_the_best_there_are() -> None:
    assert certify(scored(np.zeros(64))).verdict.startswith("trust")
    few = certify(scored(np.zeros(1)))
    assert few.verdict.startswith("no statement: 1 samples are too few")


def test_the_upper_bound_is_that_of_this_observation_where_weights_are_reliable() -> None:
    """log w ~ N(-s^2/2, s^2): the posterior's mean of log w is s^2/2, whatever the twins say."""
    s = 0.5
    log_w = np.random.default_rng(2).normal(-(s**2) / 2, s, 100_000)
    found = certify(scored(log_w), gaps=np.array([40.0, 60.0]))
    assert found.eubo == pytest.approx(s**2 / 2, abs=0.01)
    assert found.elbo is not None and found.log_z is not None and found.eubo is not None
    assert found.elbo < found.log_z < found.eubo
    uneven = certify(scored(log_w * 40), gaps=np.array([40.0, 60.0]))
    assert uneven.elbo is not None and uneven.eubo == pytest.approx(uneven.elbo + 50)
    assert uneven.gap_se == pytest.approx(10)


def test_particles_are_trusted_by_their_islands_not_by_their_last_weights() -> None:
    rng = np.random.default_rng(3)
    even = rng.normal(0, 0.1, 128)
    assert certify(scored(even, island=16)).verdict.startswith("trust: 8 islands")
    apart = even + np.repeat(rng.normal(0, 0.9, 8), 16)
    assert "8 islands of particles is" in certify(scored(apart, island=16)).verdict
    assert "draw 256 samples or more" in certify(scored(even, island=64)).verdict
    alone = certify(scored(even, island=128))
    assert "1 island(s) of 128" in alone.verdict and alone.elbo_se is None and alone.eubo is None
    # as far apart, large islands are worth a lesser share of their particles
    wide = np.repeat(np.array([-0.2, 0.2] * 4), 1024)
    assert certify(scored(wide, island=1024)).verdict.startswith("approximate")
    assert certify(scored(wide[::64], island=16)).verdict.startswith("trust")
    single = certify(scored(even), gaps=np.full(4, 5.0))
    assert carried(single, alone).eubo == single.eubo
    assert carried(None, alone) is alone


def test_particles_below_the_bound_of_single_paths_are_convicted() -> None:
    """On the lens two islands agreed within a nat, 40 nats below the ELBO of single paths."""
    rng = np.random.default_rng(3)
    single = certify(scored(rng.normal(0, 2.0, 64)), gaps=np.full(4, 5.0))
    for lost, verdict in ((0.0, "trust: 8 islands"), (40.0, "do not trust: log Z of the part")):
        particles = certify(scored(rng.normal(-lost, 0.1, 128), island=16))
        found = replace(carried(single, particles), corrected="smc")
        assert found.verdict.startswith(verdict)
        assert ("±" in certificate_rows(found)[1][1]) == (lost == 0)
        assert certificate_rows(found)[2][2].startswith("that of the policy's single paths")


def test_particles_beside_whole_islands_do_not_spread_log_z() -> None:
    """The estimate of one particle, far below that of an island, says nothing of theirs."""
    log_w = np.zeros(129)
    log_w[-1] = -9.0
    found = certify(scored(log_w, island=32))
    assert found.verdict.startswith("trust: 4 islands") and found.log_z_se == 0


def test_the_lower_bound_of_smc_holds_whatever_its_islands_are() -> None:
    """Estimates of Z = 1 that are gamma distributed, from all but exact to hopeless."""
    rng = np.random.default_rng(4)
    for shape in (100.0, 1.0, 0.05):
        log_z_hat = np.log(rng.gamma(shape, 1 / shape, 400))
        found = (certify(scored(np.full(8, value), island=8)).elbo for value in log_z_hat)
        assert np.mean([elbo is not None and elbo < 0 for elbo in found]) > 0.95


def test_a_handful_of_effective_samples_is_not_reliable() -> None:
    log_w = np.zeros(400)
    log_w[:10] = 7.0  # ten samples hold the weight
    found = certify(scored(log_w))
    assert found.ess is not None and found.ess < 20
    assert found.verdict.startswith("approximate") and "train longer" not in found.verdict


def test_a_few_even_weights_ask_for_more_samples_not_for_training() -> None:
    log_w = np.random.default_rng(0).normal(0, 0.8, 26)
    found = certify(scored(log_w), gaps=np.array([1.0, 3.0]))
    assert found.ess is not None and found.ess < 20 and found.few
    assert "26 samples are too few" in found.verdict and "train" not in found.verdict
    rows = {name: (value, said) for name, value, said in certificate_rows(found)}
    assert "too few to give its error" in rows["log Z"][1]
    assert "±" in rows["EUBO"][0] and "no bound" in rows["EUBO"][1]
    many = certify(scored(np.tile(log_w, 4)), gaps=np.array([1.0, 3.0]))
    assert not many.few and "upper bound" in certificate_rows(many)[2][2]


def test_importance_evidence_of_log_normal_weights() -> None:
    """log w ~ N(-s^2/2, s^2) has log Z = 0, ELBO = -s^2/2, ESS/n = exp(-s^2)."""
    s, n = 0.6, 200_000
    log_w = np.random.default_rng(0).normal(-(s**2) / 2, s, n)
    found = certify(scored(log_w))
    assert found.log_z == pytest.approx(0, abs=0.01)
    assert found.elbo == pytest.approx(-(s**2) / 2, abs=0.01)
    assert found.ess == pytest.approx(n * np.exp(-(s**2)), rel=0.03)
    assert found.elbo_se == pytest.approx(s / n**0.5, rel=0.02)
    assert found.log_z_se == pytest.approx((np.expm1(s**2) / n) ** 0.5, rel=0.05)
    assert found.verdict.startswith("trust")


@pytest.mark.parametrize(
    ("std", "chi2", "word"),
    [(1.3, 1.0, "use corrected"), (12.0, 1.0, "approximate"), (0.1, 1.5, "do not trust: chi2")],
)
def test_verdicts(std: float, chi2: float, word: str) -> None:
    log_w = np.random.default_rng(1).normal(0, std, 4000)
    assert certify(scored(log_w, chi2, 4096)).verdict.startswith(word)


def test_a_sampler_without_density_has_no_evidence() -> None:
    found = certify(scored(np.full(30, np.nan)))
    assert found.elbo is None and found.ess is None and "no path density" in found.verdict


def test_fault_33_samples_that_are_not_finite_get_a_verdict() -> None:
    operator, noise = Denoising((3,)), Gaussian(0.5, torch.tensor([False, True, False]))
    likelihood = Likelihood(operator, noise, torch.tensor([[1.0, math.nan, 1.0]]))
    chi2 = likelihood.fit(torch.tensor([[0.0, 7.0, 0.5], [math.nan, 0.0, 0.0]]))[1]
    assert chi2[0] == pytest.approx((4 + 1) / 2)
    assert torch.isnan(chi2[1])
    found = certify(replace(scored(np.full(2, np.nan)), chi2=chi2.numpy()))
    assert found.verdict.startswith("do not trust: samples are not finite")


def test_crps_of_a_gaussian() -> None:
    """CRPS of N(0,1) at 0 is (sqrt 2 - 1) / sqrt pi (Gneiting & Raftery 2007)."""
    samples = np.random.default_rng(0).normal(size=(4000, 50))
    assert crps(samples, np.zeros(50)) == pytest.approx((2**0.5 - 1) / np.pi**0.5, rel=0.02)


@pytest.mark.parametrize("n", [19, 64])
def test_coverage_of_exact_samples_is_nominal(n: int) -> None:
    rng = np.random.default_rng(0)
    truth = 5 + rng.normal(size=20_000)
    samples = 5 + rng.normal(size=(n, 20_000))
    assert coverage(samples, truth) == pytest.approx(0.9, abs=0.01)
    assert coverage(5 + 0.5 * rng.normal(size=(n, 20_000)), truth) < 0.7
    assert coverage(samples[:18], truth) is None


def test_image_scores() -> None:
    truth = np.random.default_rng(0).random((16, 16))
    same = against_truth(np.repeat(truth[None], 10, 0), truth)
    assert same["rmse"] == pytest.approx(0, abs=1e-12) and same["ssim"] == pytest.approx(1)
    assert ssim(truth, 1 - truth, 1.0) < 0.5
    shifted = against_truth(np.repeat(truth[None], 10, 0) + 0.1, truth)
    assert shifted["rmse"] == pytest.approx(0.1) and shifted["crps"] == pytest.approx(0.1)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by a gives |a . u| per direction: mean |a| sqrt(2 / (pi d)) for large d."""
    a = np.random.default_rng(0).normal(size=(2000, 2))
    mean, largest = sliced_wasserstein(a, a + np.array([3.0, 0.0]))
    assert mean == pytest.approx(3 * 2 / np.pi, rel=0.05) and largest == pytest.approx(3, rel=0.01)
