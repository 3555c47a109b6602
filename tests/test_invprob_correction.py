"""Importance resampling and sequential Monte Carlo against closed forms."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from invprob.certificate import certify, worthwhile
from invprob.correction import Islands, resample, smoothed, systematic
from invprob.draws import Draws, corrected
from invprob.path_weights import log_mean
from invprob.policy import Guided
from invprob.suites.gaussian import chain_covariance
from invprob.trajectory import rollout
from invprob.twins import Twins
from priors.process import generators
from tests.conftest import scored
from tests.test_invprob_rtb import linear_gaussian


def test_systematic_draws_are_proportional() -> None:
    weights = np.array([0.1, 0.2, 0.7])
    count = np.bincount(systematic(np.repeat(weights, 1000), 3000, 0.3) // 1000, minlength=3)
    np.testing.assert_allclose(count / 3000, weights, atol=1e-3)


def test_resampling_recovers_the_target() -> None:
    """Draws of N(0, 1) weighted to N(0.5, 0.8^2)."""
    x = np.random.default_rng(0).normal(size=20_000)
    log_w = norm.logpdf(x, 0.5, 0.8) - norm.logpdf(x) + 3.0
    index, level = resample(log_w, 20_000, seed=1)
    assert level == pytest.approx(3.0, abs=0.02)
    assert x[index].mean() == pytest.approx(0.5, abs=0.03)
    assert x[index].std() == pytest.approx(0.8, abs=0.03)


def test_smoothing_keeps_the_order_and_tames_the_largest_weight() -> None:
    log_w = np.random.default_rng(1).standard_t(2, size=500) * 2
    log_w[7] = log_w.max() + 5
    out = smoothed(log_w)
    assert (np.argsort(out, kind="stable") == np.argsort(log_w, kind="stable")).all()
    assert out.max() <= log_w.max()
    assert np.count_nonzero(out != log_w) <= 100  # a fifth: the tail alone
    hopeless = 480 * np.random.default_rng(0).normal(size=4000)  # quantiles of its tail overflow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smoothed(hopeless).max() <= hopeless.max()


def test_samples_are_corrected_where_their_weights_allow_it() -> None:
    """x ~ N(0, 1) weighted to N(0.5, 1) is even enough; with one weight that holds all, it is not.

    The chi2 of the certificate is that of the samples it comes with.
    """
    x = np.random.default_rng(0).normal(size=2000)
    even, single = x / 2 - 0.125, np.where(np.arange(2000) == 7, 50.0, 0.0)
    few = 2.1 * x  # ESS is about 130
    beside = np.random.default_rng(1).normal(size=2000)  # x has nothing to do with it
    far = 1.8 * beside  # nor with this, of an ESS like the few's
    cases = (
        (even, "psis"), (few, "psis"), (beside, "none"), (far, "none"), (single, "none"),
    )  # fmt: skip
    for log_w, how in cases:
        draws = Draws(
            x=x[:, None].astype("f4"),
            log_likelihood=x,
            log_weight=log_w,
            chi2=np.where(x > 0, 1.05, 0.95),
            degrees=np.full(2000, 100.0),
            sketch=x[:, None].astype("f4"),
        )
        known = certify(draws)
        _, found, certificate = corrected(draws, known, "auto", seed=0)
        assert certificate.corrected == how
        assert certificate.chi2_per_pixel == pytest.approx(found.chi2.mean())
        if how == "none":
            assert np.array_equal(found.log_weight, log_w)
            if log_w is single:
                assert certificate is known
            elif log_w is far:
                assert certificate.verdict.startswith("approximate: path weights worth")
            else:
                assert certificate.verdict.startswith("trust: correction would blur")
            continue
        if log_w is few:
            assert certificate.verdict.startswith("corrected, but worth 1")
            assert "(--oversample 6)" in certificate.verdict  # 2000 / 6 of 12000 draws
            index, fewer, told = corrected(draws, known, "auto", seed=0, n=300)
            assert told.verdict.startswith("trust the corrected samples") and told.n == 2000
            assert len(index) == len(fewer.x) == 300 and len(set(index)) > 60
            continue
        assert found.x.mean() == pytest.approx(0.5, abs=0.1)
        assert certificate.verdict.startswith("trust the corrected samples (psis: Pareto k")
        sharp = replace(draws, degrees=np.full(2000, 1e6))
        assert corrected(sharp, known, "psis", 0)[2].verdict.startswith("do not trust")
        wrong = replace(known, verdict="do not trust: of the samples before")
        again = corrected(draws, wrong, "psis", 0)[2].verdict
        assert again.startswith("trust the corrected samples")


def test_correction_is_worthwhile_where_it_brings_means_nearer() -> None:
    """Of N(0, 1) samples of N(shift, 1), with weights that also vary for other reasons."""
    rng = np.random.default_rng(0)
    found = {}
    for shift in (0.0, 0.02, 0.5):
        chosen = []
        for _ in range(20):
            x, beside = rng.normal(size=(1000, 4)), rng.normal(size=1000)
            chosen.append(moves(shift * x.sum(1) + beside, x))
        found[shift] = np.mean(chosen)
    assert found[0.0] <= 0.1 and found[0.02] <= 0.3 and found[0.5] == 1
    assert not moves(np.zeros(50), rng.normal(size=(50, 4)))
    assert not moves(rng.normal(size=50), np.ones((50, 4)))


def test_even_weights_are_no_trust_in_samples_that_they_would_move() -> None:
    """N(0, 1) samples of N(.5, 1), fourteen floors off: the ESS of 1000 is 780."""
    x = np.random.default_rng(0).normal(size=1000)
    log_w = 0.5 * x - 0.125
    known = certify(replace(scored(log_w), sketch=x[:, None]))
    assert known.ess is not None and known.ess > 700
    assert known.verdict.startswith("use corrected samples")
    beside = np.random.default_rng(1).normal(size=(1000, 1))
    assert certify(replace(scored(log_w), sketch=beside)).verdict.startswith("trust")


def moves(log_w: np.ndarray, sketch: np.ndarray) -> bool:
    return worthwhile(replace(scored(log_w), sketch=sketch))


@pytest.mark.slow
def test_smc_estimates_the_evidence_between_its_bounds() -> None:
    """An untrained policy, d = 16: log Z within 0.05 nats; lower bound < exact < upper bound."""
    prior, likelihood, matrix = linear_gaussian(16, 8, steps=50)
    policy, times, size = Guided(prior, 50, width=8, blocks=1), prior.schedule.grid(50), 32
    policy.foresight.fill_(1.0)
    covariance = chain_covariance(prior, 50)
    data = matrix @ covariance @ matrix.T + 0.04 * np.eye(8)

    def exact(y: torch.Tensor) -> np.ndarray:
        return np.atleast_1d(multivariate_normal.logpdf(y.double().numpy(), np.zeros(8), data))

    many = likelihood.repeat(1024)
    path = rollout(
        prior, policy.propose(prior, many), generators(0, range(1024)), times,
        keep=False, islands=Islands(size, 0),
    )  # fmt: skip
    log_w = path.log_weight(prior, many).numpy()
    assert log_mean(log_w) == pytest.approx(float(exact(likelihood.y)[0]), abs=0.05)

    twins = Twins.simulate(prior, policy, likelihood.operator, likelihood.noise, 64, seed=1)
    many, bounds = twins.likelihood.repeat(size), []
    for retained in (None, twins.states):
        path = rollout(
            prior, policy.propose(prior, many), generators(1, range(64 * size)), times,
            keep=False, islands=Islands(size, 0, retained),
        )  # fmt: skip
        islands = path.log_weight(prior, many).view(64, size).numpy()
        bounds.append(np.array([log_mean(row) for row in islands]))
    lower, upper = bounds
    gap = upper - lower
    assert -3 * gap.std() / 8 < gap.mean() < 0.5  # single paths: about 0.9
    error = (lower - exact(twins.likelihood.y)).std() / 8
    assert (lower - exact(twins.likelihood.y)).mean() < 3 * error
    assert (upper - exact(twins.likelihood.y)).mean() > -3 * error
