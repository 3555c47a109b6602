"""What the tests of the commands share: how to call one, and a working folder of their own."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: results are those of one thread

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from invprob.certificate import Scores
from invprob_cli.main import app

ROOT = Path(__file__).resolve().parent.parent
SIMULATE = "simulate --operator denoising --prior random_field --size 16 --noise 0.2 --seed 3"
SMALL = "--steps 6 --width 8 --blocks 1 --warm-steps 4 --rtb-steps 2 --paths 4 --set bank=64"


def invoke(command: str, code: int = 0) -> Any:
    """Return the result of a command that must exit with `code`."""
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(command: str) -> Any:
    """Return the JSON document that a command prints, which holds no NaN."""
    return json.loads(invoke(f"{command} --json").stdout, parse_constant=pytest.fail)


def refused(command: str, code: int, said: str) -> None:
    """Assert that a command ends with `code` and one message that says so, and prints nothing."""
    result = invoke(command, code)
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def scored(
    log_weight: NDArray[np.float64], chi2: float = 1.0, degrees: float = 100.0, island: int = 1
) -> Scores:
    """Return the scores of samples with these path weights (n,), all of one fit to the data."""
    n = len(log_weight)
    return Scores(
        log_likelihood=np.zeros(n),
        log_weight=log_weight,
        chi2=np.full(n, chi2),
        degrees=np.full(n, degrees),
        sketch=np.zeros((n, 1)),
        island=island,
    )


def finished(folder: Path) -> Path:
    """Return the working folder with obs.h5, one finished run, and two files that have a fault."""
    invoke(f"{SIMULATE} --out obs.h5")
    shown = invoke(f"train --operator denoising --obs obs.h5 --name whole {SMALL} --threads 1")
    assert "next: invprob sample --n 64" in shown.stdout
    assert "Certificate" in shown.stdout
    for name in ("away", "holes"):
        invoke(f"{SIMULATE} --out {name}.h5")
    with h5py.File("away.h5", "a") as away, h5py.File("holes.h5", "a") as holes:
        away.attrs["prior"] = "my digits"
        holes["data"][0, 0] = np.nan
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a working folder to the module, where figures are coarse: none is looked at.

    Laying one out takes a second; `test_invprob_figures` does it.
    """
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr("invprob.panels.DPI", 20)
        patch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
        yield path
