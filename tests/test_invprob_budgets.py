"""Budgets and step sizes that are found by running a method, and results that are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invprob import comparison, registry
from invprob.budgets import FACTORS, Budget, changed, tuned
from invprob.comparison import compare, parse
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.results import averaged
from operators.blur import Blur
from operators.errors import ObservationError, UnknownName
from operators.inpainting import Inpainting
from operators.noise import Gaussian
from priors.random_field import RandomField
from tests.conftest import document, invoke, refused

FIELD = RandomField((8, 8))


def likelihood() -> Likelihood:
    operator = Blur((8, 8))
    y = Gaussian(0.1).sample(
        operator(FIELD.decode(FIELD.draw(1, seed=3))), torch.Generator().manual_seed(0)
    )
    return Likelihood(operator, Gaussian(0.1), y)


def observation() -> Observation:
    truth = FIELD.decode(FIELD.draw(1, seed=3))[0].numpy()
    y = likelihood().y[0].numpy()
    return Observation(Blur((8, 8)), y, 0.1, truth=truth, prior="random_field")


@pytest.mark.parametrize("name", ["dps", "daps:langevin_steps=1", "copaint", "lgd_mc"])
def test_a_count_of_evaluations_is_kept(name: str) -> None:
    spent = Budget.of("nfe=150").spent_by(name, FIELD, likelihood(), 1)
    (found,) = compare(observation(), baselines=(spent,), n=1)
    evaluations = found.scores["network_evaluations"] or 0
    assert (100 if name == "copaint" else 140) < evaluations <= 160  # copaint walks blocks twice


def test_samples_do_not_pay_for_their_batch() -> None:
    """Those that reached the limit are not evaluated again while others move."""
    one, eight = (compare(observation(), baselines=("cdim:steps=12",), n=n)[0] for n in (1, 8))
    alone, shared = (found.scores["network_evaluations"] or 0 for found in (one, eight))
    assert shared < 1.4 * alone


def test_a_small_budget_keeps_the_least_steps() -> None:
    operator = Inpainting.default((8, 8))
    data = Likelihood(operator, Gaussian(0.1), torch.zeros(1, *operator.y_shape))
    assert Budget.of("nfe=2").spent_by("mcgdiff", FIELD, data, 1) == "mcgdiff:steps=3"


def test_a_cost_that_falls_with_the_steps_is_shared_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of cdim may: its updates depend on the data."""
    costs = {6: 60.0, 24: 55.0}
    monkeypatch.setattr(Budget, "_cost", lambda self, method, steps, *rest: costs[steps])
    assert Budget.of("nfe=20").spent_by("cdim", FIELD, likelihood(), 1) == "cdim:steps=8"


def test_a_budget_sets_what_the_text_leaves_open() -> None:
    paper = Budget.of("paper")
    assert paper.spent_by("dps", FIELD, likelihood(), 1) == "dps:steps=1000"
    assert paper.spent_by("dps:steps=9", FIELD, likelihood(), 1) == "dps:steps=9"
    assert paper.spent_by("fk", FIELD, likelihood(), 1) == "fk"
    assert Budget.of("nfe=99").spent_by("map", FIELD, likelihood(), 1) == "map"  # one optimisation
    assert Budget.of("seconds=2").amount == 2
    assert changed("dps", zeta=0.25, unknown=1.0) == "dps:zeta=0.25"


def test_the_papers_settings_exist() -> None:
    for name in registry.names("baselines"):
        paper = registry.baseline_class(name).paper
        assert not paper or parse(f"{name}:{paper}") != parse(name)


@pytest.mark.parametrize("text", ["nfe", "nfe=0", "nfe=many", "seconds=-1", "steps=3", "paper=1"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UnknownName, match="needed paper, nfe="):
        Budget.of(text)


def test_tuning_finds_the_step_that_serves_best() -> None:
    """A default of ten times too much is left for a smaller one, which scores better."""
    assert tuned("pigdm", FIELD, likelihood(), 0) == "pigdm"  # it has no step size
    assert tuned("mcg:zeta=1,steps=9", FIELD, likelihood(), 0) == "mcg:zeta=1,steps=9"
    best = tuned("red_diff:steps=30", FIELD, likelihood(), seed=0)
    assert best.startswith("red_diff:steps=30,weight=")
    tried = [f"red_diff:steps=30,weight={0.25 * factor:.3g}" for factor in FACTORS]
    assert best in tried
    rows = {r.name: r.scores["crps"] for r in compare(observation(), baselines=tuple(tried), n=8)}
    assert (rows[best] or 1) <= 1.1 * min(score or 1 for score in rows.values())


def test_what_has_finished_is_taken_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(observation(), baselines=("dps:steps=5", "fk:steps=5"), n=3, keep=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(comparison, "measured", refuse)
    again = compare(observation(), baselines=("dps:steps=5", "fk:steps=5"), n=3, keep=tmp_path)
    for one, two in zip(first, again, strict=True):
        assert (one.name, one.scores, one.errors) == (two.name, two.scores, two.errors)
        assert one.certificate == two.certificate
        np.testing.assert_array_equal(one.draws.x, two.draws.x)
    for damaged in tmp_path.glob("*.npz"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(AssertionError, match="drawn again"):
        compare(observation(), baselines=("dps:steps=5",), n=3, keep=tmp_path)
    with pytest.raises(AssertionError, match="drawn again"):
        compare(observation(), baselines=("dps:steps=5",), n=4, keep=tmp_path)


def test_a_corrected_truth_gives_other_scores(tmp_path: Path) -> None:
    given = observation()
    assert given.truth is not None
    changed = replace(given, truth=given.truth + 1)
    for one in (replace(given, truth=None), given, changed):
        found = compare(one, baselines=("dps:steps=5",), n=3, keep=tmp_path)[0].scores
        assert found["rmse"] == compare(one, baselines=("dps:steps=5",), n=3)[0].scores["rmse"]


def test_a_comparison_takes_one_observation() -> None:
    one = observation()
    with pytest.raises(ObservationError, match="holds 2 observations"):
        compare(replace(one, data=np.stack([one.data] * 2)), baselines=("dps:steps=5",), n=3)


def test_rows_are_means_with_their_standard_errors() -> None:
    runs = [compare(observation(), baselines=("dps:steps=5",), n=3, seed=s)[0] for s in range(3)]
    row = averaged(runs)
    values = np.array([r.scores["crps"] for r in runs], float)
    assert row["crps"] == pytest.approx(values.mean())
    assert row["se"]["crps"] == pytest.approx(values.std(ddof=1) / 3**0.5)
    assert row["coverage_90"] is None and "coverage_90" not in row["se"]  # 3 samples are too few
    # two observations of three seeds each: what repeats of one observation share is no error
    assert averaged([*runs, *runs], 3)["se"]["crps"] == pytest.approx(0, abs=1e-12)
    alone = averaged(runs[:1])
    fits = runs[0].draws.log_likelihood
    assert alone["se"]["log_likelihood"] == pytest.approx(fits.std(ddof=1) / 3**0.5)
    assert "crps" not in alone["se"]


@pytest.mark.slow
def test_command_compares_several_observations_and_seeds(folder: Path) -> None:
    truths = FIELD.decode(FIELD.draw(2, seed=3))
    y = Gaussian(0.1).sample(Blur((8, 8))(truths), torch.Generator().manual_seed(0)).numpy()
    truth = truths.numpy()
    Observation(Blur((8, 8)), y, 0.1, truth=truth, prior="random_field").write("two.h5")
    command = "compare --obs two.h5 --baselines dps,fk:steps=5 --n 2 --seeds 2 --budget nfe=9"
    facts = document(command)
    assert facts["runs"] == 4 and facts["budget"] == "nfe=9" and facts["left_out"] == {}
    assert [row["name"] for row in facts["methods"]] == ["dps:steps=9", "fk:steps=5"]
    assert all(row["se"]["crps"] > 0 for row in facts["methods"])
    assert json.loads(Path("two-compare/compare.json").read_text()) == facts
    sheet = Path("two-compare/compare.csv").read_text().splitlines()
    assert len(sheet) == 3 and "crps_se" in sheet[0]
    shown = " ".join(invoke(command).stdout.split())  # from what is kept
    assert "not defined" in shown and " ± " in shown and "2 observations, 2 seeds each" in shown
    refused(f"{command} --budget steps=4", 2, "needed paper, nfe=<count>")


@pytest.mark.slow
def test_command_runs_all_that_can(folder: Path) -> None:
    observation().write("one.h5")
    shown = invoke("compare --obs one.h5 --baselines all --n 2 --budget nfe=12 --out all").stdout
    assert "not run: repaint is for inpainting alone, this is Blur" in shown
    facts = json.loads(Path("all/compare.json").read_text())
    names = {row["name"].partition(":")[0] for row in facts["methods"]}
    assert names == set(registry.names("baselines")) - set(facts["left_out"])
    assert set(facts["left_out"]) == {
        "repaint", "npse", "diffrs", "psld", "resample", "latent_daps", "latent_dps",
    }  # fmt: skip
