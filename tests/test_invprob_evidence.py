"""Evidence against closed forms; what is decided and what is not; the command with its resume."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal

from invprob import trust_figures
from invprob.certificate import certify
from invprob.evidence import (
    SMC_RUNS,
    Evidence,
    bayes_factor,
    by_twins,
    ceiling,
    evidence,
    refuse_other_data,
    smc_estimates,
    verdict,
)
from invprob.observation import Observation
from invprob.path_weights import log_mean
from invprob.policy import Guided
from invprob.posterior import Posterior
from invprob.rtb import Trainer
from invprob.suites.gaussian import chain_covariance
from invprob_cli import options
from invprob_cli.evidence import split
from operators.errors import ObservationError, UnknownName
from operators.lensing import Lensing
from operators.linear import Linear
from priors.gaussian import Gaussian
from tests.conftest import invoke, refused, scored

Array = NDArray[np.float64]
D, DY, STEPS, SIGMA = 8, 2, 30, 0.3
MATRIX = np.random.default_rng(0).normal(size=(DY, D)) / 3


def correlated(length: float) -> Gaussian:
    lag = np.subtract.outer(np.arange(D), np.arange(D))
    return Gaussian(np.zeros(D), np.exp(-np.abs(lag) / length), steps=STEPS)


def model(
    y: Array,
    matrix: Array = MATRIX,
    sigma: float = SIGMA,
    length: float = 3.0,
    steps: int = STEPS,
) -> Posterior:
    """Return the posterior of a policy that is guided and not trained: its weights are exact."""
    prior = correlated(length)
    policy = Guided(prior, steps, width=8, blocks=1)  # the network adds nothing yet
    policy.foresight.fill_(1.0)
    return Posterior(Observation(Linear(matrix), y, sigma), prior, "gaussian", policy)


def exact(posterior: Posterior) -> float:
    """Return log Z of the discretised chain in closed form."""
    prior, observation = posterior.prior, posterior.observation
    assert isinstance(prior, Gaussian) and isinstance(observation.operator, Linear)
    covariance = chain_covariance(prior, posterior.policy.settings["steps"])
    matrix, sigma = observation.operator.matrix, float(observation.noise_sigma)
    data = matrix @ covariance @ matrix.T + sigma**2 * np.eye(len(matrix))
    return float(multivariate_normal.logpdf(observation.data, np.zeros(len(data)), data))


def simulated(seed: int, matrix: Array = MATRIX) -> Array:
    rng = np.random.default_rng(seed)
    x = correlated(3.0).draw(1, seed)[0].double().numpy() * correlated(3.0).scale
    noisy: Array = matrix @ x + SIGMA * rng.normal(size=len(matrix))
    return noisy


def test_differences_of_operators_noise_levels_and_priors_are_right_within_their_errors() -> None:
    """Three observations, four models: errors under 0.3 nats, and log Z off by them and no more."""
    others: dict[str, dict[str, Any]] = {
        "operator": {"matrix": MATRIX[:, ::-1]},
        "noise": {"sigma": 2 * SIGMA},
        "prior": {"length": 0.5},
    }
    pulls = []
    for seed in range(3):
        y = simulated(seed)
        models = {"true": model(y), **{name: model(y, **change) for name, change in others.items()}}
        found = {one.name: one for one in evidence(models, n=256, seed=seed)}
        truth = {name: exact(posterior) for name, posterior in models.items()}
        for name, one in found.items():
            assert one.log_z is not None and one.log_z_se is not None
            pulls.append((one.log_z - truth[name]) / one.log_z_se)
        for name in others:
            factor = bayes_factor(found["true"], found[name])
            assert factor.log_b_se is not None and factor.log_b_se < 0.3
            assert factor.low < truth["true"] - truth[name] < factor.high
    # chi2 of 12 over 12 lies there but for 1 in 1000; above, eight runs' own error widens it
    assert 0.18 < np.mean(np.square(pulls)) < 3


def test_smc_is_unbiased_and_its_spread_is_its_error() -> None:
    """Particles share their past, so only independent runs, or islands, tell the error."""
    posterior = model(simulated(1), steps=12)
    runs = np.hstack([smc_estimates(posterior, 64, seed) for seed in range(4)])
    spread = runs.std(ddof=1)
    assert abs(log_mean(runs) - exact(posterior)) < 4 * spread / np.sqrt(len(runs))
    assert np.unique(runs).size == 4 * SMC_RUNS
    log_w = np.repeat(runs, 64)
    islands = certify(scored(log_w, island=64))
    assert islands.log_z_se == pytest.approx(spread / np.sqrt(len(runs)), rel=0.5)
    assert certify(scored(log_w[:64], island=64)).log_z_se is None


def test_the_bound_by_twins_holds_for_other_data_than_theirs() -> None:
    """The gap of these data is one more draw beside the twins', not their mean."""
    gaps = np.random.default_rng(0).normal(5, 3, (4000, 9))
    held = [own[0] <= by_twins(own[1:]) for own in gaps]
    assert 0.996 < np.mean(held) < 1  # one-sided 3 sigmas: all but 0.13%


def test_uneven_weights_leave_bounds_that_hold() -> None:
    """Three steps to a tight likelihood: no estimate, and log Z between the bounds."""
    matrix = 3 * np.random.default_rng(2).normal(size=(2 * D, D))
    for seed in range(2):
        posterior = model(simulated(seed, matrix), matrix, steps=3)
        (found,) = evidence({"short": posterior}, n=64, seed=seed)
        assert found.method == "bounds" and found.log_z is None and found.log_z_se is None
        assert found.low < exact(posterior) < found.high


def test_runs_of_smc_that_agree_below_a_bound_are_no_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = 3 * np.random.default_rng(2).normal(size=(2 * D, D))
    posterior = model(simulated(0, matrix), matrix, steps=3)
    known = exact(posterior)
    for lost, method in ((0.0, "smc"), (1e4, "bounds")):
        runs = known - lost + np.linspace(-0.1, 0.1, SMC_RUNS)
        monkeypatch.setattr("invprob.evidence.smc_estimates", lambda *_, runs=runs: runs)
        (found,) = evidence({"short": posterior}, n=64)
        assert found.method == method and found.low < known < found.high


def test_particles_know_the_bound_of_their_policys_single_paths() -> None:
    posterior = model(simulated(0))
    known = posterior.sample_corrected(64, correct="none")[1]
    assert known.elbo is not None
    for above, distrusted in ((0.0, False), (50.0, True)):
        told = replace(posterior, certificate=replace(known, elbo=known.elbo + above))
        verdict = told.sample_corrected(128, correct="smc")[1].verdict
        assert verdict.startswith("do not trust: log Z of the particles") == distrusted


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
def test_the_ceiling_is_above_log_z_and_convicts_what_cannot_fit(offset: float) -> None:
    """Data off a tall matrix' range: the bound follows log Z down, within its Occam factor."""
    matrix = np.random.default_rng(2).normal(size=(3 * D, D))
    off = np.linalg.svd(matrix)[0][:, -1]
    posterior = model(simulated(3, matrix) + offset * off, matrix)
    assert 0 < ceiling(posterior) - exact(posterior) < 40
    masked = replace(posterior.observation, mask=np.arange(3 * D) > D)
    assert ceiling(replace(posterior, observation=masked)) > ceiling(posterior)


def test_the_ceiling_is_reached_by_a_prior_of_one_image() -> None:
    """It is the fit of that image where this is the ridge solution of strength |x|^2."""
    x = torch.from_numpy(np.random.default_rng(4).normal(size=D))
    y = (1 + SIGMA**2 / float(x @ x)) * x.numpy()
    alone = SimpleNamespace(draw=lambda n, seed: x.expand(n, D), decode=lambda z: z, device="cpu")
    posterior = replace(model(y, np.eye(D)), prior=cast(Gaussian, alone))
    fit = float(posterior.likelihood.log_prob(x[None].float()))
    assert ceiling(posterior) == pytest.approx(fit, abs=1e-4)


def found(
    log_z: float | None, se: float = 0.1, low: float = 0, high: float = 0, name: str = "a"
) -> Evidence:
    if log_z is None:
        return Evidence(name, "bounds", None, None, low, high, low, high, 1.0, True, 256)
    edges = (log_z - 3 * se, log_z + 3 * se)
    return Evidence(name, "smc", log_z, se, *edges, *edges, 1.0, True, 256)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        (found(10), found(0), "very strong"),
        (found(5.3), found(0), "strong"),  # its interval reaches below 5
        (found(2), found(0), "positive"),
        (found(0.8), found(0), "not worth more than a bare mention"),
        (found(0.3), found(0), "not decided"),
        (found(10, se=4), found(0), "not decided"),
        (found(10), found(None, low=-5, high=3), "very strong"),
        (found(10), found(None, low=-5, high=12), "not decided"),
        (found(None, low=20, high=30), found(None, low=-5, high=18), "positive"),
        (found(None, low=20, high=30), found(None, low=-5, high=20.5), "not decided"),
    ],
)
def test_only_what_the_whole_interval_supports_is_said(
    one: Evidence, two: Evidence, said: str
) -> None:
    factor = bayes_factor(one, two)
    assert factor.verdict == said
    assert factor.decided == (said != "not decided")
    assert bayes_factor(two, one).verdict == "not decided"  # never for the lesser one


def test_the_verdict_names_a_winner_or_the_rivals() -> None:
    a, b = found(10, name="SIE"), found(0, name="EPL")
    c = found(None, low=-5, high=12, name="SIS")
    assert verdict([b, a]) == "SIE: very strong evidence against every other model"
    assert verdict([b, a, c]).startswith("not decided between SIE, SIS; log Z is only bounded")
    assert "no model fits: chi2 per pixel 3.00" in verdict(
        [replace(a, fitted=False, chi2_per_pixel=3.0), b]
    )


def test_models_of_other_data_are_refused() -> None:
    one = model(simulated(0)).observation
    two = replace(one, mask=np.array([True, False]))
    with pytest.raises(ObservationError, match="2 data and 'b' 1"):
        refuse_other_data({"a": one, "b": two})
    with pytest.raises(ObservationError, match="same data"):
        refuse_other_data({"a": one, "b": replace(one, data=one.data + 1)})
    refuse_other_data({"a": two, "b": replace(two, noise_sigma=np.full(DY, 9.0))})


def test_the_figure_has_a_row_for_every_model(tmp_path: Path) -> None:
    models = [found(10, name="SIE"), found(None, low=-9e3, high=-4e3, name="x" * 80)]
    (ax,) = trust_figures.evidence_figure(models).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["SIE", "x" * 38 + "…"]
    low, high = ax.get_xlim()
    assert low < -9010 and high >= 0.3


def test_settings_are_split_where_a_key_follows() -> None:
    assert split("a.0.b=1,c=[1,2]") == ["a.0.b=1", "c=[1,2]"]
    assert split("prior=folder/x,noise.scale=2") == ["prior=folder/x", "noise.scale=2"]


def test_a_lens_changes_its_model_and_keeps_what_both_describe() -> None:
    config = Lensing.default((8, 8)).config()
    changes = ["lens.0.gamma=2.1", "lens.0.model=EPL", "lens.0.q=0.7"]
    lens = options.override(config, changes, Lensing.remodelled)["lens"]
    kept = {key: config["lens"][0][key] for key in ("theta_E", "phi", "x0", "y0")}
    assert lens[0] == {"model": "EPL", "gamma": 2.1, "q": 0.7, **kept}
    assert lens[1] == config["lens"][1]
    assert Lensing.remodelled(lens[0], "SIS")["theta_E"] == kept["theta_E"]
    round_again = Lensing.remodelled({"model": "SIS", "theta_E": 1.0}, "EPL")
    assert (round_again["q"], round_again["gamma"]) == (1.0, 2.0)
    for wrong in ("SIX", "Shear"):  # no such model; a shear is not known from a lens
        with pytest.raises(ObservationError, match=r"SIE|gamma1"):
            options.override(config, [f"lens.0.model={wrong}"], Lensing.remodelled)
    with pytest.raises(UnknownName, match=r"did you mean 'lens\.0\.gamma'"):
        options.override(config, ["lens.0.gama=2", "lens.0.model=EPL"], Lensing.remodelled)


SMALL = " ".join(
    f"--train {item}"
    for item in (
        "steps=6", "width=8", "blocks=1", "warm_steps=3", "rtb_steps=1", "paths=4", "bank=64",
        "certified=32",
    )
)  # fmt: skip
COMMAND = f"evidence obs.h5 --set noise.scale=8 --n 64 {SMALL}"


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with an observation through a dense matrix."""
    invoke("simulate --operator linear --prior gaussian --size 8 --noise 0.2 --out obs.h5")
    return folder


def test_an_interrupted_comparison_goes_on_and_trains_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, steps = Trainer.advance, list[int]()

    def counted(self: Trainer) -> dict[str, float]:
        steps.append(self.step)
        if len(steps) == 6:  # in the second model's training
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", counted)
    stopped = invoke(COMMAND, 130)
    assert "after step 2 of 4; everything is saved" in stopped.stderr
    assert not Path("obs-evidence/evidence.json").exists()
    shown = invoke(COMMAND)
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]
    assert "wrote obs-evidence/figures/evidence.png" in shown.stdout
    assert "next: invprob sample --n 256 --run obs-evidence/runs/" in shown.stdout

    again = invoke(f"{COMMAND} --json")
    assert len(steps) == 8
    assert again.stderr.count("trained before, in obs-evidence/runs/") == 2
    facts = json.loads(again.stdout, parse_constant=pytest.fail)
    assert json.loads(Path("obs-evidence/evidence.json").read_text()) == facts
    assert set(facts) == {"observation", "models", "best", "decided", "verdict"}
    rows = {row["name"]: row for row in facts["models"]}
    assert list(rows) == ["stored", "noise.scale=8"]
    assert all(list(row) == list(rows["stored"]) for row in rows.values())
    assert rows[facts["best"]]["verdict"] is None
    assert {"log_z", "log_z_se", "low", "high", "method", "ln_bayes_factor", "run"} <= set(
        rows["stored"]
    )
    for row in rows.values():
        assert Path("obs-evidence/runs", row["run"], "posterior.json").exists()


def test_a_model_that_is_the_stored_one_counts_once(folder: Path) -> None:
    result = invoke("evidence obs.h5 --set noise.scale=1 --set prior=gaussian", 2)
    assert result.stderr.count("is the same model as stored: counted once") == 2
    assert "nothing to compare" in result.stderr


@pytest.mark.parametrize(
    ("options_", "code", "said"),
    [
        ("", 2, "nothing to compare"),
        ("--set noise.scale=2 --no-stored", 2, "nothing to compare"),
        (
            "--set matrx=3",
            2,
            "did you mean 'matrix'? Valid: matrix; or noise.KEY, operator, prior, noise",
        ),
        ("--set noise.scal=3", 2, "noise.scale"),
        ("--set noise.scale=x", 2, "needed a number"),
        ("--set noise.sigma=-1", 3, "must be positive"),
        ("--set noise=student_t,noise.dof=3", 3, "StudentT needs the parameter scale"),
        ("--set noise=poisson", 3, "no counts"),
        ("--set noise=studnt_t", 2, "did you mean 'student_t'"),
        ("--set noise.scale=2,noise.scale=3", 2, "gives a value twice"),
        ("--set noise.scale", 2, "not key=value"),
        ("--set prior=gausian", 2, "did you mean 'gaussian'"),
        ("--set operator=liner", 2, "did you mean 'linear'"),
        ("--set noise.scale=2 --train warm_step=3", 2, "--train: no setting 'warm_step'"),
        ("--operator blur --set noise.scale=2", 3, "made with the operator linear, not blur"),
        ("--set noise.scale=2 --out obs.h5/x", 1, "cannot write"),
    ],
)
def test_faults_are_one_line_and_an_exit_code(
    folder: Path, options_: str, code: int, said: str
) -> None:
    refused(f"evidence obs.h5 {options_}", code, said)


def test_another_mask_by_the_operator_is_other_data(folder: Path) -> None:
    """A box that moves leaves out other pixels: their evidences have no ratio."""
    invoke("simulate --operator inpainting --prior random_field --size 8 --out holes.h5")
    refused("evidence holes.h5 --set box=[0,0,4,4]", 3, "same data")
