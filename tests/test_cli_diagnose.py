"""`invprob diagnose` on a small run: documents, files, exit codes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from invprob.config import TrainConfig
from invprob.observation import Observation
from invprob.run import Run
from invprob_cli import console
from invprob_cli.diagnose import following
from operators.denoising import Denoising
from tests.conftest import invoke, refused

KEYS = ["name", "statistic", "threshold", "passed", "verdict", "remedy"]
SMALL = "diagnose --observations 8 --n 9"


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with a run on a dense matrix and a mixture."""
    invoke("simulate --operator linear --seed 3 --out obs.h5")
    invoke(
        "train --obs obs.h5 --name mixture --steps 12 --width 8 --blocks 1 --warm-steps 4 "
        "--rtb-steps 1 --paths 4 --set bank=64"
    )
    Path("own.py").write_text("def size(x):\n    return abs(x)\n")
    return folder


def test_the_document_is_the_promised_one_and_is_kept(folder: Path) -> None:
    result = invoke(f"{SMALL} --json --summary own.py:size")
    facts = json.loads(result.stdout, parse_constant=pytest.fail)
    assert set(facts) == {"checks", "passed"}
    assert all(list(check) == KEYS for check in facts["checks"])
    names = [check["name"] for check in facts["checks"]]
    assert {"own chi2", "sbc x[0]", "sbc size[7]", "tarp", "coverage", "contraction"} <= set(names)
    assert facts["passed"] == all(check["passed"] for check in facts["checks"])
    assert json.loads(Path("runs/mixture/diagnose.json").read_text()) == facts
    assert Path("runs/mixture/figures/diagnose.png").stat().st_size > 1000
    assert "(the latest)" in result.stderr
    assert "8 observations x 9 samples: about" in result.stderr


def test_strict_exits_4_where_a_check_fails(folder: Path) -> None:
    """So few steps in so short a chain: 32 observations see that this policy is not exact."""
    command = "diagnose --observations 32 --n 19 --run mixture"
    shown = invoke(f"{command} --strict", 4).stdout
    facts = json.loads(Path("runs/mixture/diagnose.json").read_text())
    failed = [check for check in facts["checks"] if not check["passed"]]
    assert f"{len(failed)} of" in shown
    assert "train longer" in shown
    settings = "--steps 12 --width 8 --blocks 1 --warm-steps 8 --rtb-steps 1 --paths 4"
    given = f"--prior gaussian_mixture {settings} --set bank=64"
    assert f"next: invprob train --obs runs/mixture/obs.h5 {given}" in shown


def test_what_trains_longer_is_the_same_training(tmp_path: Path) -> None:
    """One of RTB alone takes more steps of that; a folder may have a name with a space."""
    mine = TrainConfig(policy="lora", rank=2, warm_steps=10, rtb_steps=30, seed=3)
    facts = {"prior": "my prior/", "train": asdict(mine), "start": "runs/first"}
    made = Observation(Denoising((2, 3)), np.arange(6.0).reshape(2, 3), 0.1)
    run = Run.create(made, facts, tmp_path, name="run").path
    failed: Any = SimpleNamespace(passed=False)
    assert console.line(*following(failed, run)) == (
        f"invprob train --obs {run}/obs.h5 --prior 'my prior/' --from runs/first --policy lora "
        "--set rank=2 --warm-steps 10 --rtb-steps 60 --seed 3"
    )


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--run nowhere", 1, "mixture"),
        ("--n 3", 2, "--n"),
        ("--observations 1000000000000", 2, "GiB are free"),
        ("--summary own.py:sise", 2, "did you mean 'size'"),
        ("--summary nothing.py:f", 2, "no Python file"),
    ],
)
def test_faults_are_one_line_and_an_exit_code(
    folder: Path, options: str, code: int, said: str
) -> None:
    refused(f"diagnose {options}", code, said)


def test_ctrl_c_leaves_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Path("runs/mixture/diagnose.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("invprob.diagnosis.simulated", interrupted)
    assert "interrupted" in invoke(SMALL, 130).stderr
    assert Path("runs/mixture/diagnose.json").read_bytes() == kept
