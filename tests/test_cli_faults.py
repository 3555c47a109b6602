"""What must be survived by the commands: wrong words, damaged files, stops, readers that go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import pytest

from invprob.rtb import Trainer
from tests.conftest import ROOT, SIMULATE, SMALL, finished, invoke, refused


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Give a working folder with obs.h5 and one finished run."""
    return finished(folder)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        # fault_01, fault_12, fault_16, fault_18, fault_20
        ("train --obs ob.h5", 3, "did you mean 'obs.h5'"),
        ("train --obs obs.h5 --prior digits-32", 3, "shape (32, 32), the operator needs (16, 16)"),
        ("train --obs obs.h5 --operator blur", 3, "made with the operator denoising, not blur"),
        ("train --obs obs.h5 --operator denoisng", 2, "did you mean 'denoising'"),
        ("train --obs obs.h5 --prior galaxy-64x", 2, "no prior named"),
        ("train --obs obs.h5 --set warm_bach=3", 2, "did you mean 'warm_batch'"),
        ("train --obs obs.h5 --set warm_batch=many", 2, "needed warm_batch=<int>"),
        ("train --obs obs.h5 --set warm_batch=010", 2, "needed warm_batch=<int>"),
        ("train --obs obs.h5 --set warm_batch=true", 2, "needed warm_batch=<int>"),
        ('train --obs obs.h5 --set warm_rate="1e-4"', 2, "needed warm_rate=<float>"),
        ("train --obs obs.h5 --set warm_rate=no", 2, "needed warm_rate=<float>"),
        ("train --obs obs.h5 --set objective=rbt", 2, "choose vargrad, rtb, trust_pcl"),
        ("train --obs obs.h5 --set objective=3", 2, "needed objective=<str>"),
        ("train --obs obs.h5 --set replay=.95", 3, "it needs at least 2"),
        ("train --obs obs.h5 --set warm_batch=8.", 2, "needed warm_batch=<int>"),
        ("train --obs obs.h5 --quality best", 2, "choose draft, default, high"),
        ("train --obs obs.h5 --quality high --quick", 2, "give one of them"),
        ("train --obs obs.h5 --name ../x", 2, "needed the name of one folder"),
        ("train --obs obs.h5 --amortize nope.toml", 3, "no file 'nope.toml'"),
        ("train --obs away.h5", 2, "suggests the prior 'my digits', which is not found"),
        ("check --obs away.h5", 2, "suggests the prior 'my digits', which is not found"),
        ("check --obs holes.h5", 3, "holes.h5: data has 1 values that are NaN"),
        ("simulate --operator denoising --out /proc/x.h5", 1, "cannot write /proc/x.h5"),
        ("train --obs obs.h5 --name whole", 1, "exists already"),
        # fault_28, fault_41, fault_17, fault_31, fault_45
        ("train --resume whole --paths 5", 1, "train.paths: 4 -> 5"),
        ("train --resume whole --prior gaussian", 1, "prior: random_field -> gaussian"),
        ("train --obs obs.h5 --prior google/ddpm-x", 2, "not downloaded"),
        ("train", 2, "give --obs FILE"),
        ("simulate --operator denoisng", 2, "did you mean 'denoising'"),
        ("simulate --operator denoising --prior random_field --noise 0", 3, "noise > 0"),
        ("simulate --operator denoising --prior random_field --noise poison", 2, "'poisson'"),
        ("simulate --operator denoising --prior random_field --set noise.sigm=1", 3, "'sigma'"),
        ("sample --n 0", 2, "--n"),
        ("sample --n -3", 2, "--n"),
        ("sample --n 1000000000000", 2, "GiB are free"),
        ("sample --correct smcc", 2, "no correction 'smcc': choose auto, none, psis, smc"),
        ("sample --correct none --oversample 2", 3, "or correct by auto, psis or smc"),
        ("sample --run nowhere", 1, "whole"),
        ("sample --out obs.h5/x.h5", 1, "cannot write"),
        ("compare --baselines copiant", 2, "did you mean 'copaint'"),
        ("inspect [red]", 3, "no file '[red]'"),
        ("sampel", 2, "sample"),
    ],
)
def test_faults_are_one_line_and_an_exit_code(
    folder: Path, command: str, code: int, said: str
) -> None:
    refused(command, code, said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_faults_26_and_29_an_interrupted_training_resumes_to_the_same_posterior(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    advance, name = Trainer.advance, f"cut-{number}"
    before = signal.getsignal(number)

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), number)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        result = invoke(f"train --obs obs.h5 --name {name} {SMALL}", 128 + number)
    assert f"invprob train --resume runs/{name}" in result.stderr
    assert "after step 3 of 6" in result.stderr
    assert "not finished" in invoke(f"sample --run {name}", 1).stderr
    Path("runs/latest").write_text("whole\n")
    invoke(f"train --resume runs/{name}")
    assert Path("runs/latest").read_text() == f"{name}\n"
    ours, whole = (Path("runs", run, "policy.safetensors") for run in (name, "whole"))
    assert ours.read_bytes() == whole.read_bytes()
    assert signal.getsignal(number) is before


def test_fault_34_out_of_memory_suggests_a_smaller_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(self: Trainer) -> dict[str, float]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(Trainer, "advance", exhausted)
    assert "smaller batch" in invoke(f"train --obs obs.h5 {SMALL}", 1).stderr


def test_fault_28_resume_on_other_data_is_refused(folder: Path) -> None:
    invoke(f"{SIMULATE} --out changed.h5 --noise 0.4")
    refused("train --resume whole --obs changed.h5", 1, "observation: ")


def test_fault_45_markup_in_a_file_is_shown_as_it_is(folder: Path) -> None:
    invoke(f"{SIMULATE} --out marked.h5")
    with h5py.File("marked.h5", "a") as file:
        file.attrs["unit"] = "[red]Jy[/red]"
        file.attrs["prior"] = "[/]"
    shown = invoke("inspect marked.h5").stdout
    assert "[red]Jy[/red]" in shown and "[/]" in shown


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("policy.safetensors", b"\xff" * 8 + b"{}", "policy.safetensors is corrupt"),  # fault 23
        ("policy.safetensors", b"", "policy.safetensors is corrupt"),
        ("policy.safetensors", {}, "lacks the tensor"),  # fault 25
        ("posterior.json", b'{"version": 2}', "has format version 2, this program reads 1"),
        ("posterior.json", b"{", "posterior.json is corrupt"),
    ],
)
def test_faults_23_and_25_a_damaged_posterior_is_told_and_written_again(
    folder: Path, file: str, content: Any, said: str
) -> None:
    from safetensors.numpy import save

    path = folder / "runs" / "whole" / file
    before = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else save(content))
    refused("sample --run whole --n 4", 1, said)
    path.write_bytes(before)


def test_a_stop_is_told_and_a_closed_stdout_is_none(folder: Path) -> None:
    def shell(script: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    closed = shell(f"{sys.executable} -m invprob_cli runs >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    # killed as the commands are imported, where SIGINT is not ignored as it is in the background
    early = (
        "import os, signal, sys; signal.signal(2, signal.default_int_handler); "
        "kill = lambda name, *_: os.kill(os.getpid(), 2) if name == 'invprob_cli.main' else None; "
        "sys.meta_path.insert(0, type('Kill', (), {'find_spec': kill})); "
        "from invprob_cli.__main__ import main; main()"
    )
    begun = shell(f'{sys.executable} -c "{early}"')
    assert (begun.returncode, begun.stderr) == (130, "")
    for number, error in ((signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("invprob.run.Run.open", Mock(side_effect=error))
            said = invoke("sample", 128 + number).stderr
            assert "interrupted; what was drawn is kept" in said
            assert "nothing is kept" in invoke("diagnose", 128 + number).stderr


def test_fault_40_a_reader_that_has_gone_is_no_error(folder: Path) -> None:
    command = (
        f"{sys.executable} -m invprob_cli operators --json | head -n 0; echo ${{PIPESTATUS[0]}}"
    )
    result = subprocess.run(
        ["bash", "-c", f"sleep 0; {command}"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    assert result.stdout.strip() == "0"
