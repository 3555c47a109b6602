"""Run directories: nothing half-written, nothing lost, nothing unsafe loaded."""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invprob.observation import Observation
from invprob.run import Run, runs
from operators.denoising import Denoising
from operators.errors import RunError
from tests.conftest import ROOT

CONFIG = {"train": {"steps": 10, "rate": 1e-4}, "shape": [2, 3]}


@pytest.fixture(scope="module")
def observation() -> Observation:
    return Observation(Denoising((2, 3)), np.arange(6.0).reshape(2, 3), 0.1)


@pytest.fixture
def run(tmp_path: Path, observation: Observation) -> Run:
    return Run.create(observation, CONFIG, tmp_path / "runs", seed=7, command=["invprob", "train"])


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "weights": {"a": torch.randn(50, generator=generator)},
        "rng": generator.get_state(),
        "list": [1.5, "text", None, (1, 2)],
    }


def same(a: Any, b: Any) -> bool:
    return json.dumps(a, default=torch.Tensor.tolist) == json.dumps(b, default=torch.Tensor.tolist)


def test_create_writes_what_open_reads(run: Run, observation: Observation) -> None:
    opened = Run.open(root=run.path.parent)
    assert opened == run
    assert opened.config == CONFIG
    assert Observation.read(run.path / "obs.h5").sha256() == observation.sha256()
    manifest = run.manifest
    assert manifest["observation_sha256"] == observation.sha256()
    assert manifest["seed"] == 7
    assert manifest["command"] == ["invprob", "train"]
    assert manifest["versions"]["numpy"] == np.__version__
    assert "-denoising-" in run.name
    assert run.name == manifest["name"]
    assert Run.open(run.path) == Run.open(run.path, root="elsewhere")
    assert Run.open(run.name, root=run.path.parent) == run


def test_runs_lists_facts(run: Run) -> None:
    run.append_metrics({"step": 1, "loss": 0.5})
    (run.path.parent / "not-a-run").mkdir()
    (facts,) = runs(run.path.parent)
    assert facts["name"] == run.name
    assert facts["operator"] == "denoising"
    assert facts["checkpoint"] is False
    assert facts["metrics"] == {"step": 1, "loss": 0.5}
    run.save_checkpoint(state(1))
    assert runs(run.path.parent)[0]["checkpoint"] is True
    assert runs(run.path.parent / "nowhere") == []
    shutil.copytree(run.path, run.path.parent / ".3f")  # killed before it was whole
    assert len(runs(run.path.parent)) == 1


def test_metrics_survive_nan_a_cut_line_and_a_resume(run: Run) -> None:
    assert run.metrics() == []
    for step, loss in ((1, 1.0), (2, float("nan")), (3, 3.0), (2, 2.5)):
        run.append_metrics({"step": step, "loss": loss})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(1, 1.0), (2, 2.5), (3, 3.0)]
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_checkpoints_round_trip_and_keep_the_one_before(run: Run) -> None:
    assert run.load_checkpoint() is None
    for step in (1, 2, 3):
        run.save_checkpoint(state(step))
        assert same(run.load_checkpoint(), state(step))
    (run.path / "checkpoint.pt").unlink()
    assert same(run.load_checkpoint(), state(2))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_fault_21_hostile_checkpoint_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, run.path / "checkpoint.pt")
    with pytest.raises(RunError, match="unsafe file refused"):
        run.load_checkpoint()
    (run.path / "checkpoint.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(RunError, match="corrupt"):
        run.load_checkpoint()
    assert not (tmp_path / "ran").exists()


def test_fault_22_what_would_not_load_safely_is_not_saved(run: Run) -> None:
    run.save_checkpoint(state(1))
    with pytest.raises(RunError, match=r"would not load safely.*plain Python values"):
        run.save_checkpoint({"path": Hostile()})
    assert same(run.load_checkpoint(), state(1))


@pytest.mark.parametrize("length", [0, 100, 0.5, 0.99])
def test_fault_23_truncated_checkpoint_falls_back(
    run: Run, length: float, caplog: pytest.LogCaptureFixture
) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    newest = run.path / "checkpoint.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(length if length >= 1 else length * len(content))])
    with caplog.at_level(logging.WARNING, "invprob"):
        assert same(run.load_checkpoint(), state(1))
    assert "checkpoint.pt is corrupt" in caplog.text
    assert "previous checkpoint used" in caplog.text
    (run.path / "checkpoint.prev.pt").write_bytes(b"")
    with pytest.raises(RunError, match="no good checkpoint is left"):
        run.load_checkpoint()


def test_fault_24_bit_flips_are_detected_or_harmless(run: Run) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    newest = run.path / "checkpoint.pt"
    content = newest.read_bytes()
    fallen = 0
    for position in range(0, len(content), 29):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        newest.write_bytes(flipped)
        loaded = run.load_checkpoint()
        fallen += same(loaded, state(1))
        assert same(loaded, state(1)) or same(loaded, state(2))
    assert fallen > 20


def test_fault_27_sigkill_at_any_moment_leaves_a_good_checkpoint(run: Run) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from invprob.run import Run\n"
        "run, step = Run(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    step += 1; run.save_checkpoint({'step': step, 'a': torch.full((20000,), step)})\n"
        "    print(step, flush=True)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for saved in range(1, 50):
        process.stdout.readline()
        if saved % 7 == 0:  # the writer goes on meanwhile: any state on disk must load
            loaded = run.load_checkpoint()
            assert loaded is not None
            assert (loaded["a"] == loaded["step"]).all()
    process.send_signal(signal.SIGKILL)
    process.wait()
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded["step"] >= 48
    assert (loaded["a"] == loaded["step"]).all()


@pytest.mark.parametrize("calls", range(3))
def test_fault_27_kill_between_any_two_steps_of_saving(
    run: Run, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    done: list[str] = []

    def stop(real: Any) -> Any:
        def step(*arguments: Any) -> None:
            if len(done) == calls:
                raise KeyboardInterrupt
            done.append("step")
            real(*arguments)

        return step

    monkeypatch.setattr(os, "replace", stop(os.replace))
    monkeypatch.setattr(os, "fsync", stop(os.fsync))
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(state(3))
    assert same(run.load_checkpoint(), state(2))


def test_fault_28_resume_with_other_settings_shows_the_difference(
    run: Run, observation: Observation
) -> None:
    run.check_same({**CONFIG, "shape": (2, 3)}, observation.sha256())
    with pytest.raises(RunError) as caught:
        run.check_same({"train": {"steps": 20}, "shape": [2, 3], "new": 1}, "0" * 64)
    for words in (
        "train.steps: 10 -> 20", "train.rate: 0.0001 -> absent", "new: absent -> 1", "observation:"
    ):  # fmt: skip
        assert words in str(caught.value)


def test_fault_30_disk_full_names_the_space_and_keeps_the_old_one(run: Run) -> None:
    run.save_checkpoint(state(1))
    before = sorted(p.name for p in run.path.iterdir())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(RunError, match=r"needs 4\.0 MB of free space.*intact"):
            run.save_checkpoint({"a": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert same(run.load_checkpoint(), state(1))
    assert sorted(p.name for p in run.path.iterdir()) == before


def test_fault_31_unwritable_root_fails_at_once(tmp_path: Path, observation: Observation) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(RunError, match="cannot write runs in"):
            Run.create(observation, CONFIG, root)


def test_a_run_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, observation: Observation
) -> None:
    with pytest.raises(TypeError):
        Run.create(observation, {"bad": object()}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "a\0b", "x" * 300, "", ".hidden", "latest", "a\n", "-rf", "é"]
)
def test_fault_36_bad_run_name_is_refused(
    tmp_path: Path, observation: Observation, name: str
) -> None:
    with pytest.raises(RunError, match="refused; needed"):
        Run.create(observation, CONFIG, tmp_path, name=name)
    with pytest.raises(RunError):
        Run.open(name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fault_36_taken_name_is_refused(run: Run, observation: Observation) -> None:
    made = Run.create(observation, CONFIG, run.path.parent, name="first.try-1")
    assert made.name == "first.try-1"
    assert Run.open(root=run.path.parent) == made
    with pytest.raises(RunError, match="exists already"):
        Run.create(observation, CONFIG, run.path.parent, name="first.try-1")
    assert made.config == CONFIG


def test_a_folder_that_a_kill_left_empty_is_no_run(
    tmp_path: Path, observation: Observation
) -> None:
    """The run appears under its name once it is whole, so the name is free until then."""
    (tmp_path / "foo").mkdir()
    made = Run.create(observation, CONFIG, tmp_path, name="foo")
    assert Run.open("foo", tmp_path) == made and len(runs(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"foo", "latest"}


def test_fault_38_two_runs_in_one_second(tmp_path: Path, observation: Observation) -> None:
    made = {Run.create(observation, CONFIG, tmp_path).name for _ in range(4)}
    assert len(made) == 4 == len(runs(tmp_path))


@pytest.mark.parametrize("latest", [None, "", "gone", "../../etc", "a\0b", "é" * 200])
def test_fault_39_latest_stale_or_missing_gives_the_list(run: Run, latest: str | None) -> None:
    root = run.path.parent
    (root / "latest").unlink()
    if latest is not None:
        (root / "latest").write_text(latest)
    with pytest.raises(RunError, match=rf"--run\. Runs in .*{run.name}"):
        Run.open(root=root)
    with pytest.raises(RunError, match=f"no run 'other'.*{run.name}"):
        Run.open("other", root=root)
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="invprob train"):
        Run.open(root=root)


def test_damaged_manifest_is_told_and_does_not_hide_the_others(
    run: Run, observation: Observation, caplog: pytest.LogCaptureFixture
) -> None:
    other = Run.create(observation, CONFIG, run.path.parent)
    (run.path / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING, "invprob"):
        assert [facts["name"] for facts in runs(run.path.parent)] == [other.name]
    assert "manifest.json is missing or damaged" in caplog.text
