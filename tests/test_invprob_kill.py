"""SIGKILL at random moments: training and sampling go on to the same files, bit by bit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import started

from invprob import checkpoint
from invprob.config import TrainConfig
from invprob.observation import Observation
from invprob.output import sample_to
from invprob.posterior import Posterior
from invprob.posterior_training import train
from invprob.run import Run
from operators.denoising import Denoising

CONFIG = TrainConfig(
    steps=4, width=16, blocks=1, warm_steps=12, warm_batch=8, rtb_steps=6, paths=2, bank=16,
    certified=2, twins=2, twin_paths=1, checkpoint_every=1,
)  # fmt: skip
SAMPLES = 6000  # six batches


def trained(folder: Path) -> None:
    run = Run(folder)
    observation = Observation.read(folder / "obs.h5")
    train(observation, "gaussian", CONFIG, run)


def sampled(folder: Path) -> None:
    sample_to(folder / "posterior.h5", Posterior.from_pretrained(folder), SAMPLES, correct="psis")


def new_run(root: Path, name: str) -> Path:
    observation = Observation(Denoising((4,)), np.arange(4.0), 0.5)
    return Run.create(observation, {}, root, name=name).path


def killed_until_done(work: Callable[[Path], None], folder: Path, done: str, kills: int) -> int:
    """Start the work again and again, killing it at random moments; return how often it died."""
    died, rng = 0, np.random.default_rng(kills)
    while not (folder / done).exists():
        process = started(work, folder)
        if died < kills:
            progress = marks(folder)
            while process.is_alive() and marks(folder) == progress:  # past its start
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.join()
        died += process.exitcode == -9
        assert process.exitcode in (0, -9)
    return died


def marks(folder: Path) -> tuple[Any, ...]:
    """Return what changes on disk with every step or batch."""
    metrics = folder / "metrics.jsonl"
    batches = len(list(folder.glob(".posterior.h5.*.batches/*.npz")))
    return metrics.stat().st_size if metrics.exists() else 0, batches


def compare_after_kills(tmp_path: Path, kills: int) -> None:
    whole, cut = new_run(tmp_path, "whole"), new_run(tmp_path, "cut")
    killed_until_done(trained, whole, "posterior.json", 0)
    assert killed_until_done(trained, cut, "posterior.json", kills) > 0
    for name in ("policy.safetensors",):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    cards = [json.loads((run / "posterior.json").read_text()) for run in (whole, cut)]
    assert cards[0]["certificate"] == cards[1]["certificate"]
    rows = [Run(run).metrics() for run in (whole, cut)]
    assert len(rows[0]) == CONFIG.warm_steps + CONFIG.rtb_steps
    assert rows[0] == rows[1]
    killed_until_done(sampled, whole, "posterior.h5", 0)
    assert killed_until_done(sampled, cut, "posterior.h5", kills) > 0
    assert (whole / "posterior.h5").read_bytes() == (cut / "posterior.h5").read_bytes()
    if list(cut.glob(".posterior.h5*")):  # killed after the file was whole, before its batches went
        sampled(cut)
        assert (whole / "posterior.h5").read_bytes() == (cut / "posterior.h5").read_bytes()
    assert not list(cut.glob(".posterior.h5*"))


def test_what_a_dead_process_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    path, living = tmp_path / "posterior.h5", os.getppid()
    process = started(os.getpid)
    process.join()
    for pid in (process.pid, living):
        (tmp_path / f".posterior.h5.{pid}").touch()
    checkpoint.replace(path, b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f".posterior.h5.{living}"}


def test_faults_27_and_29_three_kills(tmp_path: Path) -> None:
    compare_after_kills(tmp_path, 3)


@pytest.mark.slow
def test_faults_27_and_29_fifty_kills(tmp_path: Path) -> None:
    compare_after_kills(tmp_path, 50)
