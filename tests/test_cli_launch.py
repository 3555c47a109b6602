"""`--nproc`, `--device`, `--precision`: processes really run, and what cannot run is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from invprob import panels
from invprob_cli.main import app
from tests.conftest import ROOT

SMALL = (
    "--steps 4 --width 16 --blocks 1 --warm-steps 2 --rtb-steps 2 --paths 4 --threads 1 "
    "--set bank=16 --set warm_batch=8 --set certified=4 --set twins=2"
)
DIES = """
import os
from operators.denoising import Denoising
class Dies(Denoising):
    def _apply(self, x):
        if os.environ.get("RANK") == "1":
            print("the second process is here", file=__import__("sys").stderr, flush=True)
            os.kill(os.getpid(), 9)
        return x.clone()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(panels, "DPI", 20)
    return tmp_path


def invoke(command: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == code, (result.output, result.exception)
    return result.stderr


def real(command: str) -> subprocess.CompletedProcess[str]:
    """Return the result of a command in processes of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "invprob_cli", *command.split()]
    return subprocess.run(run, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_train_what_one_does(folder: Path) -> None:
    invoke("simulate --operator denoising --prior gaussian --noise 0.5 --out obs.h5")
    invoke(f"train --obs obs.h5 --name one {SMALL}")
    result = real(f"train --obs obs.h5 --name two --nproc 2 --json {SMALL}")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)  # one document: the second process prints nothing
    assert facts["run"] == "two"
    one, two = (load_file(f"runs/{name}/policy.safetensors") for name in ("one", "two"))
    assert all((one[key] - two[key]).abs().max() < 1e-5 for key in one)
    manifests = [
        json.loads(Path(f"runs/{run}/manifest.json").read_text()) for run in ("one", "two")
    ]
    assert [manifest["processes"] for manifest in manifests] == [1, 2]
    rows = [Path(f"runs/{run}/metrics.jsonl").read_text().splitlines() for run in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 4


@pytest.mark.slow
def test_fault_47_when_one_process_dies_all_stop_and_its_log_is_shown(folder: Path) -> None:
    Path("dies.py").write_text(DIES)
    invoke("simulate --operator dies.py:Dies --prior gaussian --noise 0.5 --out obs.h5")
    result = real(f"train --operator dies.py:Dies --obs obs.h5 --nproc 2 {SMALL}")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "error: process 1 of 2 was killed by signal 9: all were stopped" in result.stderr
    assert "1: the second process is here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_fault_35_a_device_that_is_not_there_is_refused_first(folder: Path) -> None:
    for command in ("train --obs absent.h5", "sample --run absent"):
        said = invoke(f"{command} --device cuda", 2)
        assert "finds 0 CUDA devices, 1 are needed" in said
    assert "mps lacks float64" in invoke("train --obs absent.h5 --device mps", 2)
    assert "float32, bfloat16, float16" in invoke("sample --precision int8", 2)


def test_fault_48_a_launcher_that_started_one_process_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    try:
        said = invoke("train --obs absent.h5 --nproc 2", 1)
    finally:
        torch.distributed.destroy_process_group()
    assert "1 processes run where 2 were asked for" in said
