"""Exact posteriors against independent integration; the benchmark's scores, document and faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t, norm

from invprob import registry
from invprob.benchmark import VECTORS, benchmark, left_out, runnable
from invprob.metrics import mmd_squared, sliced_wasserstein
from invprob.suites.base import Array, Problem, Sampled
from invprob.suites.gmm import FOLDER, read_instance
from invprob.suites.gmm25to9 import Deviance
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from priors.gaussian_mixture import GaussianMixture
from tests.conftest import document, invoke, refused

SMALL = replace(
    VECTORS, width=32, blocks=1, warm_steps=20, warm_batch=64, bank=512, rtb_steps=2, paths=16,
    twins=32,
)  # fmt: skip
PROMISED = {
    "name", "sliced_wasserstein", "max_sliced_wasserstein", "mode_weight_error", "log_z",
    "log_z_exact", "elbo", "ess", "network_evaluations", "seconds",
}  # fmt: skip
TOLERANCE = {"bipsda/xray": 0.3, "bipsda/phase": 1.0}  # nats, of 100 untrained paths
LOW = [
    "bipsda/half",
    "bipsda/one",
    "gaussian/d2",
    "gmm/d8_dy1_s0",
    "gmm25to9/d2",
    "mixture16/blind",
]


def problem(name: str) -> Problem:
    suite, _, own = name.partition("/")
    return registry.suite_class(suite)().problem(own)


def prior_log_prob(found: Problem, x: torch.Tensor) -> torch.Tensor:
    prior = found.prior
    if isinstance(prior, GaussianMixture):
        return prior.log_prob(x)
    covariance = (prior.vectors * prior.values) @ prior.vectors.T * prior.scale**2  # type: ignore[attr-defined]
    law = torch.distributions.MultivariateNormal(torch.zeros(len(covariance)).double(), covariance)
    return law.log_prob(x)


@pytest.mark.parametrize("name", registry.names("suites"))
def test_a_suite_is_one_file_whose_problems_load(name: str) -> None:
    cls = registry.suite_class(name)
    assert registry.summary("suites", name) == cls.summary != ""
    smallest = cls().problem()
    assert smallest.name == f"{name}/{cls().names[0]}"
    assert smallest.posterior.schedule == smallest.prior.schedule
    assert smallest.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", LOW)
def test_posterior_is_prior_times_likelihood_over_evidence(name: str) -> None:
    """log p(x | y) + log Z = log p(x) + log p(y | x) at every x: density and evidence at once."""
    found = problem(name)
    points = [found.sample(20, seed=1), found.prior.decode(found.prior.draw(20, seed=2)).numpy()]
    x = torch.from_numpy(np.concatenate(points)).double()
    above = found.posterior.log_prob(x) + found.log_z
    below = prior_log_prob(found, x) + found.likelihood.log_prob(x)
    torch.testing.assert_close(above, below, rtol=1e-4, atol=1e-4)  # the data are float32


@pytest.mark.parametrize("name", ["gaussian/d2", "gmm25to9/d2"])
def test_evidence_is_the_integral(name: str) -> None:
    """The sum on a grid finer than any mode is exact to many digits for smooth densities."""
    found = problem(name)
    axis = np.linspace(-14, 14, 561)
    x = torch.from_numpy(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    log_joint = prior_log_prob(found, x) + found.likelihood.log_prob(x)
    whole = float(log_joint.exp().sum()) * (axis[1] - axis[0]) ** 2
    assert np.log(whole) == pytest.approx(found.log_z, abs=1e-5)


def test_moments_agree_with_importance_sampling_from_the_prior() -> None:
    found = problem("bipsda/one")
    x = found.prior.decode(found.prior.draw(20000, seed=4)).double()
    log_w = found.likelihood.log_prob(x)
    assert float(log_w.logsumexp(0)) - np.log(20000) == pytest.approx(found.log_z, abs=0.03)
    weights = torch.softmax(log_w, 0).numpy()
    exact = found.sample(20000, seed=5)
    np.testing.assert_allclose(weights @ x.numpy(), exact.mean(0), atol=0.2)  # std is 4
    np.testing.assert_allclose(
        (weights[:, None] * x.numpy() ** 2).sum(0), (exact**2).mean(0), rtol=0.05
    )


@pytest.mark.parametrize("name", ["bipsda/xray", "bipsda/phase"])
def test_stored_draws_are_the_posterior(name: str) -> None:
    """Importance sampling from a law fitted to them gives log Z and the same moments."""
    found = problem(name)
    assert isinstance(found, Sampled) and isinstance(found.prior, GaussianMixture)
    draws, count = found.samples, 50000
    modes = found.prior.responsibilities(torch.from_numpy(draws)).argmax(1).numpy()
    parts = [draws[modes == k] for k in range(3) if (modes == k).any()]
    shares = np.array([len(part) for part in parts]) / len(draws)
    laws = [multivariate_t(part.mean(0), 0.9 * np.cov(part.T), df=5) for part in parts]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(count, shares)
    x = np.concatenate([law.rvs(n, rng) for law, n in zip(laws, counts, strict=True)])
    proposal = np.logaddexp.reduce(
        [np.log(s) + law.logpdf(x) for law, s in zip(laws, shares, strict=True)]
    )
    wide = torch.from_numpy(x)
    log_w = (prior_log_prob(found, wide) + found.likelihood.log_prob(wide)).numpy() - proposal
    w = np.exp(log_w - log_w.max())
    assert np.log(w.mean()) + log_w.max() == pytest.approx(found.log_z, abs=0.02)
    w /= w.sum()
    mean = w @ x
    spread = np.sqrt(w @ (x - mean) ** 2)
    np.testing.assert_allclose((draws.mean(0) - mean) / spread, 0, atol=0.06)
    np.testing.assert_allclose(draws.std(0) / spread, 1, atol=0.05)
    if name == "bipsda/phase":  # its likelihood is even
        np.testing.assert_allclose(found.weights, [4 / 7, 0, 3 / 7], atol=0.01)
    assert found.mode_weight_error(draws) == pytest.approx(0, abs=0.02)


def test_stored_draws_serve_as_reference_and_as_samples_apart() -> None:
    found = problem("bipsda/xray")
    assert isinstance(found, Sampled)
    half = len(found.samples) // 2
    reference, exact = found.reference(half, seed=0), found.sample(half, seed=0)
    rows = {row.tobytes() for row in reference}
    assert len(rows) == half and not any(row.tobytes() in rows for row in exact)
    with pytest.raises(ObservationError, match=f"--n {half} or fewer"):
        found.sample(half + 1, seed=0)
    with pytest.raises(NotDifferentiable, match="stored draws alone"):
        found.oracle(found.likelihood)
    counts = {"cdim", "ddnm", "ddrm", "fps_smc", "mcg", "mcgdiff", "npse", "repaint", "wiener"}
    latent = {"latent_daps", "latent_dps", "psld", "resample"}
    assert set(left_out(found)) == {"oracle"} | counts | latent
    assert {"rtb", "guided", "dps", "copaint"} <= set(runnable(found))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLERANCE)
def test_guidance_weighted_by_its_paths_gives_the_stored_evidence(name: str) -> None:
    """The chain reaches the log Z of counts and of squares that rejection from the prior found."""
    known = problem(name)
    known.prior.steps = 40
    (row,) = benchmark(known, ("guided",), n=100, config=replace(SMALL, twins=2)).rows
    assert row["log_z"] == pytest.approx(row["log_z_exact"], abs=TOLERANCE[name])
    assert row["elbo"] < row["log_z_exact"]


def test_exact_draws_scatter_where_they_are_stored() -> None:
    """Other halves lie elsewhere, and a draw that recurs in the reference is one for MMD."""
    found = registry.suite_class("levy")().problem("laplace_denoising")
    floor = benchmark(found, [], n=256).floor
    assert floor["floor_spread"] is not None and floor["floor_mmd_squared"] is not None
    assert floor["floor_spread"] > 0.01 * (floor["floor"] or 0)
    assert abs(floor["floor_mmd_squared"]) < 0.0008  # 0.0012 where draws are counted twice


def test_mmd_is_that_of_its_definition_and_sees_a_shift() -> None:
    rng = np.random.default_rng(0)
    a, b, far = rng.normal(size=(30, 3)), rng.normal(size=(40, 3)), 2 + rng.normal(size=(30, 3))
    width = np.mean([np.linalg.norm(u - v) for i, u in enumerate(b) for v in np.delete(b, i, 0)])

    def kernel(u: Array, v: Array) -> float:
        return sum(np.exp(-np.sum((u - v) ** 2) / (2.0**j * width)) for j in range(-2, 3))

    def pairs(x: Array) -> float:
        return np.mean([kernel(u, v) for i, u in enumerate(x) for v in np.delete(x, i, 0)])

    cross = np.mean([kernel(u, v) for u in a for v in b])
    assert mmd_squared(a, b) == pytest.approx(pairs(a) + pairs(b) - 2 * cross)
    assert mmd_squared(far, b) > 0.3 > 0.1 > abs(mmd_squared(a, b))
    same = [mmd_squared(rng.normal(size=(50, 3)), rng.normal(size=(50, 3))) for _ in range(40)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(40)


def test_reference_has_exact_mode_counts() -> None:
    found = problem("gmm25to9/d2")
    x = found.reference(6100, seed=0)
    assert len(x) == 6100
    assert found.mode_weight_error(x) == pytest.approx(0, abs=1e-3)
    assert found.mode_weight_error(x[:610]) == pytest.approx(1 - 14 / 61, abs=1e-3)  # of one mode


def test_a_larger_reference_measures_the_same_distance() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), 1 + rng.normal(size=(50, 3))
    assert sliced_wasserstein(a, np.repeat(b, 4, axis=0)) == pytest.approx(sliced_wasserstein(a, b))
    assert sliced_wasserstein(a, np.repeat(a, 2, axis=0))[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["gaussian/d16", "gmm/d8_dy4_s0", "mixture16/mix"])
def test_the_oracle_lies_near_the_floor_and_its_weights_give_the_evidence(name: str) -> None:
    found = benchmark(problem(name), ("oracle",), n=500)
    (row,) = found.rows
    floor = found.floor["floor"]
    assert floor is not None
    assert row["sliced_wasserstein"] < 1.6 * floor
    assert row["log_z"] == pytest.approx(row["log_z_exact"], abs=0.15)
    assert row["elbo"] < row["log_z_exact"]
    assert row["residual_rms"] == pytest.approx(row["residual_rms_exact"], abs=0.1)


@pytest.mark.slow
def test_a_trained_policy_brackets_the_evidence() -> None:
    found = benchmark(problem("gaussian/d2"), ("rtb",), n=500, config=SMALL)
    rows = {row["name"]: row for row in found.rows}
    assert list(rows) == ["rtb", "rtb_raw", "rtb_smc"]
    assert rows["rtb"]["elbo"] <= rows["rtb"]["log_z_exact"] <= rows["rtb"]["eubo"]
    assert rows["rtb"]["log_z"] == pytest.approx(rows["rtb"]["log_z_exact"], abs=0.1)
    assert rows["rtb"]["sliced_wasserstein"] < 2 * (found.floor["floor"] or 0)
    assert rows["rtb"]["elbo"] == rows["rtb_raw"]["elbo"]
    assert [r.certificate.corrected for r in found.results] == ["psis", "none", "smc"]
    assert rows["rtb_smc"]["log_z"] == pytest.approx(rows["rtb"]["log_z_exact"], abs=0.1)
    assert rows["rtb_smc"]["sliced_wasserstein"] < 2 * (found.floor["floor"] or 0)
    assert rows["rtb"]["mode_weight_error"] is None  # one mode


def test_samples_chosen_from_more_draws_lie_nearer() -> None:
    """Of an untrained policy on two numbers; those drawn first are the same samples."""
    toy, few = problem("gmm25to9/d2"), replace(SMALL, warm_steps=0, rtb_steps=0)
    one, many = (
        {row["name"]: row for row in benchmark(toy, ("rtb",), 200, (0,), few, oversample=k).rows}
        for k in (1, 20)
    )
    key = "sliced_wasserstein"
    assert many["rtb_raw"][key] == pytest.approx(one["rtb_raw"][key], rel=1e-4)
    assert many["rtb"][key] < 0.5 * one["rtb_raw"][key]
    assert many["rtb_smc"][key] < 0.8 * one["rtb_smc"][key]
    evaluations = "network_evaluations"
    assert many["rtb"][evaluations] == 20 * many["rtb_raw"][evaluations]
    assert many["rtb_raw"][evaluations] == pytest.approx(one["rtb_raw"][evaluations])


def test_chain_evidence_is_within_the_chains_error() -> None:
    for name in ("d2", "d16"):
        found = problem(f"gaussian/{name}")
        assert found.log_z_chain == pytest.approx(found.log_z, abs=0.02)
        assert found.log_z_chain != found.log_z


class Opaque(Deviance):
    """The toy's operator without a gradient."""

    differentiable = False


def test_methods_that_cannot_run_are_left_out_or_refused() -> None:
    toy = problem("gmm25to9/d2")
    for able in (toy, problem("gaussian/d2")):
        assert {"rtb", "guided", "oracle", "dps"} <= set(runnable(able))
    opaque = replace(toy.likelihood, operator=Opaque.default((2,)))
    closed = replace(toy, likelihood=opaque)
    assert set(runnable(closed)) == {"oracle", "fk"}
    with pytest.raises(NotDifferentiable, match="rtb needs a gradient"):
        benchmark(closed, ("rtb",))
    with pytest.raises(UnknownName, match="oracle"):
        benchmark(toy, ("orcale",))


def test_command_prints_the_promised_document(folder: Path) -> None:
    command = "benchmark --suite gaussian --n 60 --seeds 2 --methods oracle,dps:steps=10"
    facts = document(command)
    assert facts["suite"] == "gaussian"
    assert facts["problem"] == "d2"
    assert facts["floor"] > 0
    assert [row["name"] for row in facts["methods"]] == ["oracle", "dps:steps=10"]
    assert all(set(row) >= PROMISED | {"verdict", "spread"} for row in facts["methods"])
    assert facts["methods"][0]["network_evaluations"] == 100
    assert facts["methods"][1]["network_evaluations"] == 10
    assert json.loads(Path("benchmark-gaussian-d2/benchmark.json").read_text()) == facts
    assert Path("benchmark-gaussian-d2/figures/benchmark.png").stat().st_size > 1000


def test_tuning_finds_the_step_size_of_vectors(folder: Path) -> None:
    """DPS's default step, chosen on images, is a hundred times too large for a process."""
    command = "benchmark --suite levy --problem gauss_denoising --n 40 --methods oracle,dps"
    default, best = document(command), document(f"{command} --tune")
    assert [row["name"] for row in default["methods"]] == ["oracle", "dps"]
    assert best["methods"][1]["name"] == "dps:zeta=0.009"
    found = [facts["methods"][1]["sliced_wasserstein"] for facts in (default, best)]
    assert found[1] < found[0] / 50
    assert best["tuned"] and not default["tuned"]


def test_command_runs_on_an_instance_file(folder: Path) -> None:
    file = FOLDER / "d8_dy1_s0.h5"
    shown = invoke(f"benchmark --instance {file} --methods oracle --n 40 --out shown").stdout
    assert "closest to the exact posterior: oracle" in shown
    assert f"next: invprob benchmark --instance {file}" in shown
    facts = json.loads(Path("shown/benchmark.json").read_text())
    assert facts["instance"] == str(file)


@pytest.mark.parametrize(("d", "dy", "sigma"), [(1, 1, 0.5), (3, 2, 1e-8)])
def test_instances_of_one_number_and_of_quiet_data_run(
    tmp_path: Path, d: int, dy: int, sigma: float
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(dy, d))
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["means"], file["weights"] = 5 * rng.normal(size=(3, d)), [0.5, 0.3, 0.2]
        file["operator"], file["noise_sigma"] = matrix, sigma
        file["data"] = matrix @ rng.normal(size=d)
    command = f"benchmark --instance {tmp_path}/own.h5 --methods oracle --n 40 --out {tmp_path}/own"
    assert document(command)["methods"][0]["sliced_wasserstein"] is not None
    assert (tmp_path / "own/figures/benchmark.png").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": None}, "no /weights"),
        ({"data": np.array([np.nan])}, "/data is not finite"),
        ({"data": np.zeros(3)}, "matching shapes"),
        ({"operator": np.zeros((1, 7))}, "matching shapes"),
        ({"means": np.zeros(8)}, "needed 2 dimensions"),
        ({"noise_sigma": 0.0}, "must be positive"),
        ({"weights": -np.ones(25)}, "weights must be >= 0"),
        ({"means": h5py.ExternalLink("other.h5", "/means")}, "refused"),
    ],
)
def test_malformed_instances_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "bad.h5"
    with h5py.File(FOLDER / "d8_dy1_s0.h5") as good, h5py.File(path, "w") as bad:
        for key in good:
            value = change.get(key, good[key][()])
            if value is not None:
                bad[key] = value
    with pytest.raises(ObservationError, match=said):
        read_instance(path)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--suite gmmm", 2, "did you mean 'gmm'"),
        ("--suite gmm --problem d8_dy3", 2, "no problem named 'd8_dy3'; did you mean"),
        ("--methods copiant", 2, "did you mean 'copaint'"),
        ("--instance nowhere.h5", 3, "no file 'nowhere.h5'"),
        ("--instance a.h5 --suite gmm", 2, "not both"),
        ("--set rtb_stepz=3", 2, "did you mean 'rtb_steps'"),
    ],
)
def test_faults_are_one_line(folder: Path, command: str, code: int, said: str) -> None:
    refused(f"benchmark {command}", code, said)


def test_the_given_instance_is_read() -> None:
    file = Path(__file__).parents[2] / "shared" / "data" / "gmm_example_d8_dy4.h5"
    if not file.exists():
        pytest.skip("needs the stored instance gmm_example_d8_dy4.h5")
    with h5py.File(file) as stored:
        fields = ("means", "weights", "operator", "noise_sigma", "data")
        means, weights, matrix, sigma, y = (stored[key][()].astype(float) for key in fields)
    rng = np.random.default_rng(0)
    x = means[rng.choice(25, 400000, p=weights / weights.sum())] + rng.normal(size=(400000, 8))
    log_w = norm.logpdf(y, x @ matrix.T, sigma).sum(1)
    log_z = np.logaddexp.reduce(log_w) - np.log(len(log_w))
    assert read_instance(file).log_z == pytest.approx(log_z, abs=0.05)
