"""Calibration checks: rates of alarm on exact and broken samplers, bands, and a whole diagnosis."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from invprob import Observation, Posterior, diagnose, registry, trust_figures
from invprob.calibration import (
    Calibration,
    calibrate,
    contraction,
    coverage,
    distances,
    interval,
)
from invprob.diagnosis import fits, neighbours, simulated
from invprob.draws import Draws, draw
from invprob.likelihood import Likelihood
from invprob.metrics import coverage as marginal_coverage
from invprob.policy import Guided
from invprob.ranks import Pair, band, ecdf, exchanged, rank
from invprob.summaries import half_light_radius, summarise
from operators.denoising import Denoising
from operators.errors import ObservationError, UnknownName
from operators.linear import Linear
from operators.noise import Gaussian as GaussianNoise
from priors.gaussian import Gaussian

Array = NDArray[Any]

M, L, SEEDS = 64, 19, 20  # the defaults of `diagnose`


def checked(rng: np.random.Generator, x: Array, samples: Array, y: Array, prior: Array) -> Any:
    """Return the calibration of samples (M, L, d) for x (M, d), y = x[-1] + unit noise."""
    fit = Pair(np.square(y - x[:, -1]), np.square(y[:, None] - samples[:, :, -1]))
    summaries = {f"x{i}": Pair(x[:, i], samples[:, :, i]) for i in range(x.shape[1])}
    return calibrate(Pair(x, samples), prior, summaries, {"fit chi2": fit}, None, seed=1)


def conjugate(seed: int, scale: float = 1.0, shift: float = 0.0) -> Calibration:
    """x ~ N(0, I), y of the last coordinate: x | y ~ N(y / 2, 1 / 2) there; spread and shifted."""
    rng = np.random.default_rng([seed, 1])
    x = rng.normal(size=(M, 3))
    y = x[:, -1] + rng.normal(size=M)
    samples = shift + scale * rng.normal(size=(M, L, 3))
    samples[:, :, -1] = y[:, None] / 2 + np.sqrt(0.5) * samples[:, :, -1]
    return checked(rng, x, samples, y, rng.normal(size=(M, 3)))


def two_modes(seed: int, minor: float = 0.2) -> Calibration:
    """Modes at -3 and 3 with weights .8, .2 that the data do not tell; samples hold `minor`."""
    rng = np.random.default_rng([seed, 2])

    def modes(shape: tuple[int, ...], weight: float) -> Array:
        return rng.normal(size=shape) + np.where(rng.random(shape) < weight, 3.0, -3.0)

    x, prior = (np.stack([modes((M,), 0.2), rng.normal(size=M)], 1) for _ in range(2))
    y = x[:, -1] + rng.normal(size=M)
    second = y[:, None] / 2 + np.sqrt(0.5) * rng.normal(size=(M, L))
    return checked(rng, x, np.stack([modes((M, L), minor), second], 2), y, prior)


def alarms(make: Any, *settings: float) -> list[list[str]]:
    """Return the verdicts of the checks that fail, for every seed."""
    runs = [make(seed, *settings) for seed in range(SEEDS)]
    return [[f"{c.name} {c.verdict}" for c in run.checks if not c.passed] for run in runs]


@pytest.mark.parametrize("make", [conjugate, two_modes])
def test_exact_samplers_pass(make: Any) -> None:
    assert sum(map(bool, alarms(make))) <= 1


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (
            conjugate,
            (0.5,),
            ["sbc x0 over-confident", "coverage over-confident", "tarp"],
        ),
        (conjugate, (2.0,), ["spread too wide", "coverage under-confident", "tarp too wide"]),
        (conjugate, (1.0, 1.0), ["sbc x0 biased high: truths exceed 2"]),
        (conjugate, (1.0, -1.0), ["sbc x0 biased low"]),
        (two_modes, (0.0,), ["spread too narrow", "tarp"]),
    ],
)
def test_broken_samplers_are_caught_and_told_apart(
    make: Any, settings: tuple[float, ...], said: list[str]
) -> None:
    found = alarms(make, *settings)
    assert sum(map(bool, found)) >= 19
    for words in said:
        assert sum(any(words in verdict for verdict in run) for run in found) >= 15


def test_every_failure_has_a_remedy_and_nothing_else_does() -> None:
    checks = [*conjugate(0, 0.5).checks, *conjugate(0).checks]
    assert {c.passed for c in checks} == {True, False}
    assert all((c.remedy is None) == c.passed for c in checks)
    assert all(c.passed == (c.threshold is None or c.statistic <= c.threshold) for c in checks)


def test_the_figure_shows_every_check_and_failures_in_red() -> None:
    found = conjugate(0, 0.5)
    figure = trust_figures.calibration_figure(found)
    shown = {ax.get_title(): ax.title.get_color() for ax in figure.axes if ax.get_title()}
    assert {"expected coverage (tarp)", "coverage of all values", "fit chi2"} <= set(shown)
    for check in found.checks:
        if check.name.startswith("sbc"):
            assert (shown[check.name] == "C3") == (not check.passed)


def test_band_keeps_its_rate_and_is_no_wider_than_needed() -> None:
    rng, rate = np.random.default_rng(0), 0.05
    low, high = band(M, L, rate)
    counts = rng.multinomial(M, np.full(L + 1, 1 / (L + 1)), size=40_000).cumsum(1)[:, :-1]
    left = ((counts < low) | (counts > high)).any(1).mean()
    assert 0.6 * rate < left < 1.05 * rate  # discrete counts cannot meet the rate exactly
    assert (low[0], high[0]) != tuple(band(M, L, rate / 100)[i][0] for i in range(2))


def test_band_of_one_sample_is_the_binomial_interval() -> None:
    low, high = band(100, 1, 0.05)
    assert (low[0], high[0]) == binom.interval(0.95, 100, 0.5)


def test_ranks_count_and_break_ties_at_random() -> None:
    rng = np.random.default_rng(0)
    plain = Pair(np.array([0.5, 9.0, -1.0]), np.array([[0.0, 1.0], [1.0, 2.0], [0.0, 1.0]]))
    assert rank(plain, rng).tolist() == [1, 2, 0]
    assert ecdf(rank(plain, rng), 2).tolist() == [1, 2]
    tied = rank(Pair(np.zeros(4000), np.zeros((4000, 3))), rng)
    np.testing.assert_allclose(np.bincount(tied) / 4000, 0.25, atol=0.03)


def test_tarp_ranks_do_not_change_under_rotation_and_shift() -> None:
    rng = np.random.default_rng(0)
    x = Pair(rng.normal(size=(30, 4)), rng.normal(size=(30, 9, 4)))
    points = rng.normal(size=(30, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    moved = Pair(x.truth @ turn + 3, x.samples @ turn + 3)
    one, two = distances(x, points), distances(moved, points @ turn + 3)
    assert np.array_equal(rank(one, rng), rank(two, rng))
    np.testing.assert_allclose(one.truth, np.linalg.norm(x.truth - points, axis=1))


def test_tarp_curve_is_that_of_the_reference_implementation() -> None:
    """With L + 1 bins its histogram of f in [0, 1] is that of the ranks."""
    tarp = pytest.importorskip("tarp")
    rng = np.random.default_rng(0)
    x = Pair(rng.normal(size=(400, 3)), rng.normal(size=(400, L, 3)))
    points = rng.normal(size=(400, 3))
    theirs, _ = tarp.get_tarp_coverage(
        x.samples.swapaxes(0, 1), x.truth, references=points, norm=False, num_alpha_bins=L + 1
    )
    ours = ecdf(rank(distances(x, points), rng), L) / 400
    np.testing.assert_allclose(theirs[1:-1], ours)


@pytest.mark.filterwarnings("ignore")
def test_band_is_that_of_arviz() -> None:
    ecdf_utils = pytest.importorskip("arviz.stats.ecdf_utils")
    z = np.arange(1, L + 1) / (L + 1)
    theirs = np.array(ecdf_utils.ecdf_confidence_band(M, z, z, prob=0.95, method="optimized"))
    assert np.abs(M * theirs - np.array(band(M, L, 0.05))).max() < 1.01


def test_coverage_counts_order_statistics_and_pixels_that_agree_count_once() -> None:
    rng = np.random.default_rng(0)
    one = Pair(rng.normal(size=(M, 1)), rng.normal(size=(M, L, 1)))
    found = coverage(one, 0.05, np.random.default_rng(1))
    assert found.levels[0] == pytest.approx(0.9)
    inside = (one.truth > one.samples.min(1)) & (one.truth < one.samples.max(1))
    assert found.found[0] == pytest.approx(inside.mean())
    exact = binom.interval(0.95, M, 0.9)
    assert np.abs(M * np.array([found.low[0], found.high[0]]) - exact).max() < 1.1
    same = Pair(one.truth.repeat(50, 1), one.samples.repeat(50, 2))
    again = coverage(same, 0.05, np.random.default_rng(1))
    assert again.low[0] == pytest.approx(found.low[0])
    apart = Pair(rng.normal(size=(M, 50)), rng.normal(size=(M, L, 50)))
    wide, narrow = found.high[0] - found.low[0], np.ptp(_edges(apart))
    assert narrow < wide / 4  # independent pixels do say more


def _edges(x: Pair) -> Array:
    found = coverage(x, 0.05, np.random.default_rng(1))
    return np.array([found.low[0], found.high[0]])


def test_coverage_of_one_observation_is_that_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    truth, samples = 5 + rng.normal(size=(1, 400)), 5 + rng.normal(size=(1, L, 400))
    found = coverage(Pair(truth, samples), 0.05, rng).found[0]
    assert found == pytest.approx(marginal_coverage(samples[0], truth[0]))


@pytest.mark.parametrize(("samples", "level", "tail"), [(19, 0.9, 1), (39, 0.9, 2), (9, 0.8, 1)])
def test_interval_is_what_ranks_can_express(samples: int, level: float, tail: int) -> None:
    assert interval(samples) == (pytest.approx(level), tail)


def test_mean_of_exchangeable_members_has_the_band_of_its_exact_law() -> None:
    """Members 0..1 per observation: the mean of M fair coins."""
    members = np.tile([0.0, 1.0], (100, 1))
    found, low, high = exchanged(members, 0.05, np.random.default_rng(0))
    assert found == 0
    assert (100 * low, 100 * high) == pytest.approx(binom.interval(0.95, 100, 0.5), abs=1.01)


def test_summaries_of_images() -> None:
    y, x = np.indices((64, 64))
    blob = np.exp(-((x - 20) ** 2 + (y - 40) ** 2) / (2 * 5.0**2))
    assert half_light_radius(blob[None])[0] == pytest.approx(5 * np.sqrt(2 * np.log(2)), abs=0.3)
    found = summarise(np.stack([blob, 2 * blob, 0 * blob]), {"peak": lambda a: a.max((1, 2))})
    assert found["flux"][1] == pytest.approx(2 * 2 * np.pi * 25, rel=1e-3)
    assert found["half-light radius"][0] == found["half-light radius"][1]
    assert max(found, key=lambda name: found[name][0] * ("left" in name)) == "upper left"
    assert found["peak"].tolist() == [1, 2, 0]
    assert len(summarise(np.zeros((3, 100)), {})) == 8


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.sum(), r"returned shape \(\)"),
        (lambda x: x[:, :, None], r"returned shape \(4, 3, 1\)"),
        (lambda x: np.full(len(x), np.nan), "NaN"),
    ],
)
def test_a_summary_that_does_not_fit_is_told(function: Any, said: str) -> None:
    with pytest.raises(ObservationError, match=said):
        summarise(np.zeros((4, 3)), {"mine": function})


def test_functions_are_loaded_from_files(tmp_path: Any) -> None:
    file = tmp_path / "own.py"
    file.write_text("def peak(x):\n    return x.max(1)\n")
    assert registry.load_function(f"{file}:peak")(np.eye(3)).tolist() == [1, 1, 1]
    with pytest.raises(UnknownName, match="did you mean 'peak'"):
        registry.load_function(f"{file}:peek")


def posterior(gain: float) -> Posterior:
    """Guided policy of a Gaussian prior seen through a matrix: near exact; at gain -1 the prior."""
    prior = Gaussian(np.zeros(4), np.eye(4) + 0.5, steps=20)
    operator = Linear(np.random.default_rng(0).normal(size=(3, 4)))
    x = prior.decode(prior.draw(1, 5))
    y = GaussianNoise(0.5).sample(operator(x), torch.Generator().manual_seed(1))[0].numpy()
    policy = Guided(prior, 20, width=8, blocks=1)
    with torch.no_grad():
        policy.gain.fill_(gain)
    return Posterior(Observation(operator, y, 0.5), prior, "gaussian", policy)


def test_a_diagnosis_passes_a_near_exact_posterior_and_is_reproducible() -> None:
    one, two = (diagnose(posterior(0.0), 32, 19, seed=3) for _ in range(2))
    assert one.passed, [c for c in one.checks if not c.passed]
    assert one.checks == two.checks
    names = [c.name for c in one.checks]
    assert {"own chi2", "sbc x[3]", "tarp", "fit chi2", "coverage", "spread"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_diagnosis_fails_a_policy_that_ignores_the_data() -> None:
    stages: list[str] = []
    found = diagnose(
        posterior(-1.0), 32, 19, summary={"sum": lambda x: x.sum(1)},
        progress=lambda stage, *rest: stages.append(stage),
    )  # fmt: skip
    failed = {c.name: c.verdict for c in found.checks if not c.passed}
    assert not found.passed
    assert failed["fit chi2"].startswith("under-fitted")
    assert failed["own chi2"].startswith("under-fitted")
    judged = [c for c in found.checks if c.threshold is not None]
    assert all(c.passed == (c.statistic <= (c.threshold or 0)) for c in judged)
    assert "sbc sum" not in failed  # the prior is calibrated, marginally
    assert list(dict.fromkeys(stages)) == ["truths", "this observation", "simulated observations"]


def test_one_policy_draws_for_many_observations_in_order() -> None:
    ours = posterior(0.0)
    y = ours.likelihood.y
    pair = Likelihood(ours.observation.operator, ours.observation.noise, torch.cat([y, y + 1]))

    def guided(many: Likelihood) -> Any:
        return ours.policy.propose(ours.prior, many)

    both = draw(ours.prior, pair, guided, ours.times, 3, seed=4)
    alone = draw(ours.prior, ours.likelihood, guided, ours.times, 3, seed=4)
    np.testing.assert_allclose(both.x[:3], alone.x, rtol=1e-5, atol=1e-6)
    residual = pair.operator(torch.from_numpy(both.x[3:])) - (y + 1)
    np.testing.assert_allclose(both.chi2[3:], residual.square().mean(1).numpy() / 0.25, rtol=1e-4)


def test_structure_is_of_samples_beside_their_own_data() -> None:
    """Flat images seen with noise: exact samples leave white residuals, those of others do not."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(200, 1, 1))
    truth = np.broadcast_to(level, (200, 8, 8)).astype("f4")
    observation = Observation(Denoising((8, 8)), np.eye(8), 0.5)
    likelihood = simulated(observation, truth, seed=1)
    mean = likelihood.y.mean((1, 2)).numpy()[:, None] + 0.5 / 8 * rng.normal(size=(200, 9))
    x = np.repeat(np.repeat(mean.reshape(-1, 1, 1), 8, 1), 8, 2).astype("f4")
    for seen, exact in ((x, True), (x[::-1].copy(), False)):
        _, chi2, degrees = likelihood.repeat(9).fit(torch.from_numpy(seen))
        zeros = np.zeros(len(seen))
        draws = Draws(
            log_likelihood=zeros, log_weight=zeros, chi2=chi2.numpy(), degrees=degrees.numpy(),
            sketch=zeros[:, None], x=seen,
        )  # fmt: skip
        found = fits(likelihood, truth, draws, 9)["fit structure"]
        assert (rank(found, rng).mean() == pytest.approx(4.5, abs=0.7)) == exact


def test_contraction_is_what_the_data_take_away() -> None:
    rng = np.random.default_rng(0)
    truth, samples = rng.normal(size=4000), rng.normal(size=(4000, 9))
    found = contraction({"seen": Pair(truth, samples / 2), "unseen": Pair(truth, samples)})
    assert found.statistic == pytest.approx(0, abs=0.06)
    assert re.search("7[456]% of seen", found.verdict)


def test_residuals_of_truths_are_white_and_a_gradient_is_not() -> None:
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    observation = Observation(Denoising((32, 32)), np.eye(32), 0.5, mask=mask)
    truth = np.random.default_rng(0).normal(size=(200, 32, 32)).astype("f4")
    likelihood = simulated(observation, truth, seed=1)
    white = neighbours(likelihood, torch.from_numpy(truth))
    assert abs(white.mean()) < 4 * white.std() / np.sqrt(200)
    assert white.std() == pytest.approx(1 / np.sqrt(32 * 15 + 31 * 16), rel=0.2)
    slope = torch.from_numpy(truth) + torch.linspace(0, 2, 32)
    assert neighbours(likelihood, slope).mean() > 1
