"""The commands end to end on a small problem: results, documents, the next command."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from invprob.observation import Observation
from invprob_cli import compare, console, options
from invprob_cli.certificate import PROMISED
from invprob_cli.compare import split_methods
from invprob_cli.main import app
from operators.errors import UnknownName
from tests.conftest import ROOT, SIMULATE, SMALL, document, finished, invoke, refused

HEAVY = ("torch", "numpy", "numba", "h5py", "matplotlib", "scipy", "astropy")


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with obs.h5 and one finished run."""
    return finished(folder)


def run_words(words: Sequence[object]) -> list[str]:
    """Run a command, given as words; return those of the next command."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    following = next(line for line in result.stdout.splitlines() if line.startswith("next: "))
    return shlex.split(following)[2:]


def test_next_commands_work_as_they_are(folder: Path) -> None:
    """Own code is named again, and what has a space is one word."""
    mine = folder / "my work"
    mine.mkdir()
    (mine / "own.py").write_text("def draw(z):\n    return 2 * z\n\n\ndraw.z_shape = (6,)\n")
    prior, obs, runs = f"{mine}/own.py:draw", mine / "six.h5", mine / "runs"
    made = ["simulate", "--operator", "denoising", "--prior", prior, "--out", obs]
    train = run_words(made)
    assert run_words(["inspect", obs]) == train
    train += [*SMALL.split(), "--out", str(runs), "--name", "six"]
    before = Path("runs/latest").read_text()
    compare_ = run_words(run_words([*train, "--threads", 1]))
    assert compare_[-4:] == ["--run", str(runs / "six"), "--prior", prior]
    assert run_words([*compare_, "--n", 4])[0] == "sample"
    for looked_at in (["inspect", runs / "six"], ["runs", "--runs", runs]):
        assert run_words(looked_at) == [
            "sample",
            "--n",
            "64",
            "--run",
            str(runs / "six"),
            *compare_[-2:],
        ]
    assert run_words(["inspect", runs / "six" / "posterior.h5"]) == compare_
    joined = ["compare", "--obs", obs, "--prior", prior.replace("/my", "/./my"), "--runs", runs]
    assert "--run" in run_words([*joined, "--baselines", "none", "--n", 4])
    (runs / "six" / "posterior.json").unlink()
    again = run_words(["inspect", runs / "six"])
    assert again[:3] == ["train", "--resume", str(runs / "six")]
    assert again[3:] == ["--prior", prior]
    bare = again[:3]
    result = CliRunner().invoke(app, bare)
    assert result.exit_code == 1 and "if you trust that code, name it" in result.stderr
    run_words([*bare, "--prior", prior.replace("/my", "/./my")])
    assert Path("runs/latest").read_text() == before


def test_inspect_counts_what_is_not_finite(folder: Path) -> None:
    assert document("inspect holes.h5")["not_finite"] == 1
    assert document("inspect obs.h5")["not_finite"] == 0
    assert "1 values are NaN or infinite and not masked" in invoke("inspect holes.h5").stdout


def test_a_refined_run_goes_on_without_the_run_that_it_refines(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("runs/whole", "runs/parent")
    own = "--from parent --rtb-steps 2 --paths 4 --name child --set checkpoint_every=1"
    invoke(f"train --obs obs.h5 {own}")
    config = json.loads(Path("runs/child/config.json").read_text())
    assert config["start"] == str(folder / "runs" / "parent")
    shutil.rmtree("runs/parent")
    Path("runs/child/posterior.json").unlink()
    assert document("train --resume child")["run"] == "child"
    refused("train --obs obs.h5 --from parent", 1, "no run 'parent'")
    for checkpoint in Path("runs/child").glob("checkpoint*"):
        checkpoint.unlink()
    refused("train --resume child", 1, "parent': it was moved or deleted")
    shutil.rmtree("runs/child")
    Path("runs/latest").write_text("whole\n")


def test_more_of_the_same_is_the_same_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a prior's longer training, and a benchmark with more seeds, were given is kept."""
    given = "--suite gaussian --methods oracle --n 20 --set ema=0.98 --out scored"
    again = shlex.join(run_words(["benchmark", *given.split()]))
    for option in ("--suite gaussian", "--methods oracle", "--n 20", "--set ema=0.98", "--seeds 5"):
        assert option in again
    facts = {"checks": [], "passed": False, "denoising_error": {}, "power_ratio": {}}
    poor = SimpleNamespace(**facts, unjudged=False)
    monkeypatch.setattr("invprob.prior_training.train_prior", lambda *_: poor)
    given = "--size 32 --pool 64 --held-out 16 --bank 32 --turns --set warmup=3 --unit"
    train = ["prior", "train", "--data", "digits", "--out", "my prior", *given.split(), "Jy / px"]
    again = shlex.join(run_words([*train, "--steps", 4]))
    assert "--out 'my prior-longer'" in again and "--unit 'Jy / px'" in again
    for option in ("--size 32", "--pool 64", "--held-out 16", "--bank 32", "--steps 8", "--turns"):
        assert option in again
    poor.unjudged = True
    assert run_words([*train, "--steps", 4])[0] == "simulate"
    assert "--set warmup=3" in again


def test_samples_of_other_data_by_one_name_are_kept_apart(folder: Path) -> None:
    for name, seed in (("a", 7), ("b", 8)):
        Path(name).mkdir()
        invoke(f"{SIMULATE.replace('--seed 3', f'--seed {seed}')} --out {name}/same.h5")
    small = "sample --run whole --n 4 --obs"
    first, second = (Path(document(f"{small} {name}/same.h5")["file"]) for name in "ab")
    assert first.name == "same-posterior.h5" and second.name.startswith("same-") and second != first
    assert document(f"{small} b/same.h5")["file"] == str(second)
    shown = invoke(f"{small} b/same.h5")
    assert "is of other data" in shown.stderr
    assert "next: invprob compare --baselines dps --run runs/whole --obs b/same.h5" in shown.stdout
    assert "next:" not in invoke(f"inspect {second}").stdout


def test_simulate_is_reproducible_and_draws_a_figure(folder: Path) -> None:
    facts = document(f"{SIMULATE} --out again.h5")
    with h5py.File("obs.h5") as one, h5py.File("again.h5") as two:
        assert np.array_equal(one["data"], two["data"])
        assert np.array_equal(one["truth"], two["truth"])
    assert facts["x_shape"] == [16, 16]
    assert Path(facts["figure"]).stat().st_size > 1000


def test_simulate_applies_settings_and_a_psf(folder: Path) -> None:
    psf = np.outer(np.hanning(41), np.hanning(41)) * 0.9
    np.save("psf.npy", psf)
    common = "simulate --prior random_field --size 16 --operator"
    shown = invoke(f"{common} lensing --psf psf.npy --set lens.0.theta_E=1.3 --out lens.h5")
    assert "41x41 px cut to 31x31" in shown.stderr
    facts = document("inspect lens.h5")
    assert facts["parameters"]["lens"][0]["theta_E"] == 1.3
    assert facts["parameters"]["psf"] == {"shape": [31, 31]}
    with h5py.File("lens.h5") as file:
        assert np.array_equal(file["psf"], psf[5:36, 5:36])  # cut, not normalised
    np.save("dark.npy", -psf)
    assert "positive sum" in invoke(f"{common} blur --psf dark.npy", 3).stderr
    assert "lens.0.theta_E" in invoke(f"{common} lensing --set lens.0.theta=1", 2).stderr


def test_simulate_makes_counts_and_inspect_shows_their_noise(folder: Path) -> None:
    own = "--noise poisson --set noise.background=2 --out counts.h5"
    facts = document(f"simulate --operator denoising --prior random_field --size 16 {own}")
    assert facts["noise"] == "poisson" and facts["noise_sigma"] is None
    data = Observation.read(folder / "counts.h5").data
    assert (data == data.round()).all() and 50 < data.max() < 200
    shown = document("inspect counts.h5")
    assert shown["noise"] == "poisson"
    assert shown["noise_parameters"] == facts["noise_parameters"]
    assert shown["noise_parameters"]["background"] == 2


@pytest.mark.parametrize(
    ("path", "kind", "key"),
    [("obs.h5", "observation", "data_shape"), ("runs/whole", "run", "certificate")],
)
def test_inspect_tells_what_it_is(folder: Path, path: str, kind: str, key: str) -> None:
    facts = document(f"inspect {path}")
    assert facts["kind"] == kind
    assert facts[key]
    assert key.split("_")[0] in invoke(f"inspect {path}").stdout


def test_sample_writes_what_the_library_draws(folder: Path) -> None:
    facts = document("sample --n 4 --seed 5")
    assert set(facts) == {"run", "file", "n", "certificate", "seconds"}
    assert tuple(facts["certificate"]) == PROMISED
    assert facts["n"] == 4
    assert facts["run"] == "whole"

    from invprob.posterior import Posterior

    expected = Posterior.from_pretrained("runs/whole").sample(4, seed=5)
    with h5py.File(facts["file"]) as file:
        assert np.array_equal(file["posterior/x"][0], expected)
    posterior = document(f"inspect {facts['file']}")
    assert posterior["kind"] == "posterior"
    assert posterior["draws"] == 4
    assert {"posterior.png", "samples.png"} <= {
        p.name for p in Path("runs/whole/figures").iterdir()
    }


def test_samples_are_corrected_as_asked(folder: Path) -> None:
    """Particles of SMC, drawn again: of equal weight, and the certificate says so."""
    facts = document("sample --n 40 --correct smc")
    certificate = facts["certificate"]
    assert certificate["corrected"] == "smc"
    with h5py.File(facts["file"]) as file:
        weights = file["sample_stats/log_weight"][0]
    assert np.ptp(weights) == 0
    assert weights[0] == pytest.approx(certificate["log_z"])
    assert document("sample --n 4 --correct none")["certificate"]["corrected"] == "none"
    chosen = document("sample --n 4 --correct psis --oversample 10")
    assert chosen["n"] == 4 and "of 40)" in chosen["certificate"]["verdict"]
    with h5py.File(chosen["file"]) as file:
        assert file["posterior/x"].shape[1] == 4


def test_train_prints_the_promised_document(folder: Path) -> None:
    facts = document("train --resume whole")  # finished: certified again, nothing is lost
    assert set(facts) == {"run", "file", "n", "certificate", "seconds"}
    assert tuple(facts["certificate"]) == PROMISED
    assert Path(facts["file"]).is_file()


def test_compare_scores_the_run_and_baselines(folder: Path) -> None:
    facts = document("compare --baselines dps:zeta=0.5,steps=8,copaint:steps=4 --n 9")
    rows = facts["methods"]
    assert [row["name"] for row in rows] == ["rtb", "dps:zeta=0.5,steps=8", "copaint:steps=4"]
    promised = {
        "name", "rmse", "psnr", "ssim", "crps", "log_likelihood", "chi2_per_pixel", "coverage_90",
        "elbo", "log_z", "ess", "network_evaluations", "operator_evaluations", "seconds",
        "train_seconds",
    }  # fmt: skip
    assert all(promised <= set(row) for row in rows)
    assert 6 <= rows[0]["network_evaluations"] <= 6 + 2 * 5  # two more where a shift is denoised
    assert rows[2]["elbo"] is None
    assert json.loads(Path("runs/whole/compare.json").read_text()) == facts
    assert len(Path("runs/whole/compare.csv").read_text().splitlines()) == 4


def test_many_methods_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    scores = dict.fromkeys(compare.MAIN, 2.0)
    rows = [{"name": f"m{i}", **scores, "rmse": 1.0 + i, "se": {}} for i in range(7)]
    compare.show(rows, 4, 1, 1)
    lines = capsys.readouterr().out.splitlines()
    heads = next(line.split() for line in lines if "rmse" in line)
    assert heads[0] == "rmse"
    cells = {line.split()[0]: line.split()[1] for line in lines if line.strip().startswith("m")}
    assert list(cells) == [f"m{i}" for i in range(7)]
    assert cells["m6"] == "7"


@pytest.mark.parametrize("width", [40, 80, 150])
def test_numbers_of_a_table_are_never_broken(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", width)
    numbers = [[f"{row}.{column:03}e-07 ± 1e-08" for column in range(9)] for row in range(3)]
    rows = [["a method of some name", *row] for row in numbers]
    console.table(("", *(f"score {i}" for i in range(9))), rows, "title")
    shown = capsys.readouterr().out
    assert all(number in shown for row in numbers for number in row)
    assert max(map(len, shown.splitlines())) <= width and shown.count("title") == 1


def test_compare_finds_the_run_of_an_observation(folder: Path) -> None:
    joined = document("compare --obs obs.h5 --baselines none --n 4")
    assert [row["name"] for row in joined["methods"]] == ["rtb"]
    invoke(f"{SIMULATE} --out other.h5 --noise 0.3")
    table = invoke("compare --obs other.h5 --baselines copaint:steps=3 --n 4").stdout
    kept = Path("other-compare/compare.json")
    alone = json.loads(kept.read_text())
    assert [row["name"] for row in alone["methods"]] == ["copaint:steps=3"]
    assert "not defined" in table and "at least 19 samples" in table
    assert "next: invprob train --obs other.h5" in table
    shown = invoke("compare --obs other.h5 --run whole --baselines none --n 4")
    assert "another observation" in shown.stderr
    assert [row["name"] for row in json.loads(kept.read_text())["methods"]] == ["rtb"]
    assert "next: invprob sample --n 256 --run runs/whole --obs other.h5" in shown.stdout


def test_lists_name_what_there_is(folder: Path) -> None:
    lensing = {row["name"]: row for row in document("operators")}["lensing"]
    assert lensing["linear"]
    assert lensing["differentiable"]
    assert not lensing["has_svd"]
    dps = {row["name"]: row for row in document("baselines")}["dps"]
    assert dps["needs_gradient"]
    assert not dps["needs_linear"]
    assert "random_field" in {row["name"] for row in document("priors")}
    assert "whole" in {row["name"] for row in document("runs")}
    elbo = document("inspect runs/whole")["certificate"]["elbo"]
    assert f" {elbo:.4g} " in invoke("runs").stdout
    for command in ("operators", "priors", "baselines", "runs"):
        assert "next: invprob" in invoke(command).stdout


def test_flags_that_are_read_are_those_of_the_classes() -> None:
    from invprob import registry
    from invprob_cli.lists import facts

    for name in registry.names("operators"):
        cls, read = registry.operator_class(name), facts("operators", name)
        for flag in ("linear", "differentiable", "has_svd", "default_prior"):
            value = getattr(cls, flag, False)
            assert read[flag] == (None if isinstance(value, property) else value) or not value


def test_doctor_is_content_here() -> None:
    facts = document("doctor")
    assert facts["ok"] is True
    assert facts["numba_compiles"] is True
    assert facts["torch"]


def test_demo_goes_the_whole_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"steps": 5, "width": 8, "blocks": 1, "warm_steps": 2, "rtb_steps": 1, "paths": 2}
    demo = importlib.import_module("invprob_cli.demo")
    monkeypatch.setattr(demo, "OPERATOR", "denoising")
    monkeypatch.setattr(demo, "TRAINING", {**small, "bank": 32})
    monkeypatch.setattr(demo, "SAMPLES", 4)
    shown = invoke("demo --prior gaussian --out shown")
    assert "Certificate" in shown.stdout
    assert "next: invprob compare" in shown.stdout
    assert len(list(Path("shown/runs").glob("*-denoising-*/figures/*.png"))) == 3


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom invprob_cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit(', '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_methods_are_split_at_the_commas_between_them() -> None:
    assert split_methods("dps:zeta=0.5,steps=200,copaint") == ("dps:zeta=0.5,steps=200", "copaint")
    assert split_methods("dps, copaint:rate=1") == ("dps", "copaint:rate=1")
    assert split_methods("none") == ()


def test_settings_reach_into_lists_and_leave_the_original() -> None:
    config = {"lens": [{"q": 0.8}], "size": 3}
    assert options.override(config, ["lens.0.q=0.5", "size=4"]) == {"lens": [{"q": 0.5}], "size": 4}
    assert config == {"lens": [{"q": 0.8}], "size": 3}
    for wrong in ("lens.1.q=1", "lens.0.p=1", "size.x=1", "nothing"):
        with pytest.raises(UnknownName):
            options.override(config, [wrong])


@pytest.mark.slow
def test_an_operator_that_is_not_linear_goes_the_whole_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = "--prior random_field --size 12 --out obs.h5"
    facts = document(f"simulate --operator phase_retrieval {made}")
    assert facts["y_shape"] == [24, 24]
    brief = f"{SMALL} --steps 4 --warm-steps 1 --rtb-steps 1 --set certified=4 --set twins=2"
    invoke(f"train --operator phase_retrieval --obs obs.h5 {brief}")
    assert document("sample --n 4")["certificate"]["elbo"] is not None
    rtb, dps = document("compare --baselines dps:steps=6 --n 4")["methods"]
    # RTB's products with the derivative count too; DPS evaluates A alone
    assert rtb["operator_evaluations"] > 10 * rtb["network_evaluations"]
    assert dps["operator_evaluations"] < 3 * dps["network_evaluations"]

    Path("opaque.py").write_text(
        "from operators.phase_retrieval import PhaseRetrieval\n"
        "class Opaque(PhaseRetrieval):\n    differentiable = False\n"
    )
    invoke(f"simulate --operator opaque.py:Opaque {made}")
    train = f"train --operator opaque.py:Opaque --obs obs.h5 {brief}"
    refused(train, 2, "Opaque has no gradient")


@pytest.mark.slow
def test_one_amortised_run_samples_other_observations_and_is_refined(folder: Path) -> None:
    Path("ranges.toml").write_text('"noise.scale" = { log = [0.5, 2.0] }')
    other = SIMULATE.replace("--seed 3", "--seed 5").replace("0.2", "0.3")
    invoke(f"{other} --out other.h5")
    small = SMALL.replace("--rtb-steps 2", "--rtb-steps 1")
    invoke(f"train --obs obs.h5 --amortize ranges.toml --quality high --name wide {small}")
    config = json.loads(Path("runs/wide/config.json").read_text())
    assert config["train"]["finer"] == 2  # of the preset, which single options overrule
    assert config["train"]["warm_steps"] == 4 and config["train"]["steps"] == 6
    assert config["ranges"] == {"noise.scale": {"log": [0.5, 2.0]}}
    shown = document("sample --run wide --obs other.h5 --n 8")
    assert shown["file"] == "runs/wide/other-posterior.h5" and shown["n"] == 8
    assert shown["certificate"]["eubo"] > shown["certificate"]["elbo"]
    with h5py.File("other.h5") as obs, h5py.File(shown["file"]) as drawn:
        assert np.array_equal(obs["data"], drawn["observed_data/y"])
    invoke("train --obs other.h5 --from wide --rtb-steps 2 --paths 4 --name fine")
    fine = json.loads(Path("runs/fine/config.json").read_text())
    assert fine["train"]["warm_steps"] == 0 and fine["train"]["width"] == 8
    refused("sample --run wide --index 1", 3, "there are 1")
    Path("bad.toml").write_text("'noise.scal' = [1, 2]")
    refused("train --obs obs.h5 --amortize bad.toml --name never", 2, "noise.scale")
    assert not Path("runs/never").exists()
