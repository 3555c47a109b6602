"""The suite of Lévy processes: its operators, its Gibbs sampler, and what is stored of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

from invprob import registry
from invprob.benchmark import benchmark, left_out, runnable
from invprob.metrics import optimality_gap, sliced_wasserstein
from invprob.suites.base import Mixture, Sampled
from invprob.suites.levy import (
    FOLDER,
    D,
    Levy,
    measurement,
    setting,
    simulated,
)
from invprob_cli.main import app
from operators.errors import NotDifferentiable, ObservationError
from priors.increments import LAWS

SCRIPT = Path(__file__).parents[1] / "examples" / "levy_references.py"
STORED = [name for name in Levy.names if not name.startswith("gauss")]


def script(name: str) -> Any:
    return registry.load_function(f"{SCRIPT}:{name}")


def stored(name: str) -> Sampled:
    found = Levy().problem(name)
    assert isinstance(found, Sampled)
    return found


def test_operators_act_on_the_process() -> None:
    rng = np.random.default_rng(0)
    process = np.cumsum(rng.normal(size=D))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
    blurred = np.convolve(process, kernel / kernel.sum(), mode="valid")
    np.testing.assert_allclose(measurement("convolution") @ process, blurred)
    assert np.isin(measurement("imputation") @ process, process).all()
    low = measurement("fourier")
    np.testing.assert_allclose(low @ low.T, np.eye(15), atol=1e-12)
    spectrum = np.fft.rfft(low.T @ low @ process)
    np.testing.assert_allclose(spectrum[:8], np.fft.rfft(process)[:8])
    np.testing.assert_allclose(spectrum[8:], 0, atol=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_gibbs_sampler_agrees_with_importance_sampling_from_the_prior(law: str) -> None:
    """Two increments and one datum, where draws of the prior reach every part of the posterior."""
    matrix, sigma, y = np.array([[1.0, 0.6]]), 0.5, np.array([1.2])
    x = LAWS[law].draw(np.random.default_rng(1), (400000, 2))
    log_w = -np.square((y - x @ matrix.T) / sigma).sum(1) / 2
    weights = np.exp(log_w) / np.exp(log_w).sum()
    chains = script("gibbs")(
        LAWS[law], matrix, sigma, y, 40, 20, 500, np.random.default_rng(2)
    ).reshape(-1, 2)

    def moments(a: np.ndarray) -> np.ndarray:
        return np.hstack([a, a**2, np.abs(a), a[:, :1] * a[:, 1:], a == 0])

    np.testing.assert_allclose(moments(chains).mean(0), weights @ moments(x), atol=0.03)


def test_gibbs_sampler_draws_the_closed_form_of_gauss() -> None:
    name = "gauss_imputation"
    prior, matrix, sigma = setting(name)
    found = Levy().problem(name)
    assert isinstance(found, Mixture)
    x = script("gibbs")(
        prior.law, matrix * prior.scale, sigma, simulated(name)[1], 20, 1, 100,
        np.random.default_rng(0),
    )  # fmt: skip
    white = found.posterior.encode(torch.from_numpy(prior.scale * x.reshape(-1, D))).numpy()
    white = (white - found.posterior.means.numpy()) @ found.posterior.vectors[0].numpy()
    white /= found.posterior.values[0].sqrt().numpy()
    assert np.abs(white.mean(0)).max() * np.sqrt(len(white)) < 4.5
    assert np.abs(white.var(0) - 1).max() * np.sqrt(len(white) / 2) < 4.5


def test_stepping_stones_give_the_evidence_and_its_error() -> None:
    """Data so precise that draws of the prior would not meet the posterior."""
    rng = np.random.default_rng(4)
    matrix, sigma = rng.normal(size=(12, 6)), 0.2
    y = matrix @ rng.normal(size=6) + sigma * rng.normal(size=12)
    log_z, error = script("evidence")(LAWS["gauss"], matrix, sigma, y, 20, rng)
    exact = multivariate_normal.logpdf(y, cov=matrix @ matrix.T + sigma**2 * np.eye(12))
    assert log_z == pytest.approx(exact, abs=4 * error)
    assert error < 0.1


def test_convergence_figures_tell_chains_that_have_not_met() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(10, 1000, 1))
    assert script("split_rhat")(white)[0] < 1.01
    assert script("effective")(white)[0] == pytest.approx(10000, rel=0.1)
    apart = white + np.arange(10)[:, None, None] / 5
    assert script("split_rhat")(apart)[0] > 1.1
    slow = np.empty_like(white)
    slow[:, 0] = white[:, 0]
    for i in range(1, 1000):
        slow[:, i] = 0.9 * slow[:, i - 1] + np.sqrt(0.19) * white[:, i]
    assert script("effective")(slow)[0] == pytest.approx(10000 / 19, rel=0.25)


@pytest.mark.parametrize("name", STORED)
def test_stored_reference_has_converged_and_belongs_to_its_problem(name: str) -> None:
    path = FOLDER / f"{name}.h5"
    assert path.stat().st_size <= 300_000
    with h5py.File(path) as file:
        facts = dict(file.attrs)
        truth, y = simulated(name)
        np.testing.assert_allclose(file["truth"][()], truth)
        np.testing.assert_allclose(file["data"][()], y)
    assert facts["rhat"] < 1.01
    assert facts["ess"] > 2000
    assert facts["ess_kept"] > 1000
    assert facts["log_z_se"] < 0.3
    found = stored(name)
    assert len(found.samples) == 2000
    one, two = (found.viewed(half) for half in np.split(found.samples, 2))
    error = np.sqrt((one.var(0) + two.var(0)) / facts["ess_kept"] * 2)
    assert (np.abs(one.mean(0) - two.mean(0)) / error).max() < 4.5


def stein(name: str, x: np.ndarray) -> float:
    """Return the largest score over x of E[d_i log p] = 0 and E[sum_i x_i d_i log p] = -d."""
    prior, matrix, sigma = setting(name)
    y, z = simulated(name)[1], x / prior.scale
    slope = -np.sign(z) * 2**0.5 if name.startswith("laplace") else -4 * z / (1 + z**2)
    slope = slope / prior.scale + (y - x @ matrix.T) @ matrix / sigma**2
    terms = np.column_stack([slope, (x * slope + 1).sum(1)])
    return float(np.abs(terms.mean(0) / terms.std(0)).max() * np.sqrt(len(x)))


@pytest.mark.parametrize("name", [n for n in STORED if not n.startswith("bernoulli")])
def test_stored_draws_satisfy_the_identities_of_stein(name: str) -> None:
    """They hold under the posterior alone, and no sampler is in them; wider draws break them."""
    x = stored(name).samples
    assert stein(name, x) < 4.5  # 65 scores of nearly independent draws
    assert stein(name, x.mean(0) + 1.25 * (x - x.mean(0))) > 4.5


def test_a_sampled_problem_keeps_its_halves_apart_and_refuses_what_it_has_not() -> None:
    found = stored("student_fourier")
    fresh, exact = found.sample(300, seed=1), found.reference(3000, seed=0)
    assert len(np.unique(fresh, axis=0)) == 300
    assert len(np.unique(exact, axis=0)) == 1000
    assert not {row.tobytes() for row in fresh} & {row.tobytes() for row in exact}
    assert found.mode_weight_error(fresh) is None
    with pytest.raises(ObservationError, match="--n 1000 or fewer"):
        found.sample(1001, seed=0)
    with pytest.raises(NotDifferentiable, match="known by stored draws alone"):
        found.oracle(found.likelihood)
    assert "stored draws alone" in left_out(found)["oracle"]
    assert {"rtb", "guided", "dps", "tds"} < set(runnable(found))
    assert "oracle" in runnable(Levy().problem("gauss_fourier"))


def test_samples_are_compared_as_the_process() -> None:
    found = stored("laplace_imputation")
    result = benchmark(found, ("dps:steps=20",), n=100)
    ((row,), floor) = result.rows, result.floor
    paths, exact = (np.cumsum(a, 1) for a in (result.results[0].draws.x, result.reference))
    assert row["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(paths, exact)[0], rel=1e-4)
    assert row["mmse_gap_db"] == pytest.approx(optimality_gap(paths, exact), rel=1e-3)
    assert row["log_z_exact"] == found.log_z
    assert floor["floor_coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert 0 < (floor["floor_mmse_gap_db"] or 0) < 0.1  # 10 log10(1 + 1 / n) at least


def test_command_says_why_there_is_no_oracle(tmp_path: Path) -> None:
    asked = f"benchmark --suite levy --problem laplace_fourier --n 20 --out {tmp_path}"
    refused = CliRunner().invoke(app, [*asked.split(), "--methods", "oracle"])
    assert refused.exit_code == 2
    assert "stored draws alone" in " ".join(refused.stderr.split())
