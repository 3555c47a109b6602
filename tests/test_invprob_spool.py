"""Samples stream to posterior.h5: the same in batches, after a stop, and in constant memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invprob import draws, output
from invprob.observation import Observation
from invprob.output import Summary, sample_to
from invprob.policy import Guided
from invprob.posterior import Posterior
from invprob.spool import Spool
from operators.denoising import Denoising
from operators.errors import RunError
from priors.random_field import RandomField

SIDE = 8
BATCH = 16


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "IN_FLIGHT", BATCH * SIDE**2)


def posterior(side: int = SIDE) -> Posterior:
    prior = RandomField((side, side))
    data = np.random.default_rng(0).normal(size=(side, side))
    observation = Observation(Denoising((side, side)), data, 2.0)
    torch.manual_seed(0)
    return Posterior(observation, prior, "random_field", Guided(prior, 6, 8, 1))


def contents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        found |= dict(file.attrs)
        file.visititems(lambda name, item: found.update({name: item[()].tolist()})
                        if isinstance(item, h5py.Dataset) else None)  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("correct", "oversample"), [("none", 1), ("psis", 1), ("psis", 3), ("smc", 1), ("smc", 2)]
)
def test_the_file_holds_what_the_library_draws(
    tmp_path: Path, correct: str, oversample: int
) -> None:
    ours, path = posterior(), tmp_path / "posterior.h5"
    expected, certificate = ours.sample_corrected(70, 3, correct, oversample=oversample)
    found, summary = sample_to(path, ours, 70, 3, correct, {"run": "a"}, oversample=oversample)
    assert found == certificate
    assert (found.corrected, found.n) == (correct, 70 * oversample)
    with h5py.File(path) as file:
        assert file["posterior/x"].shape[1] == len(expected.x) == 70
        assert np.array_equal(file["posterior/x"][0], expected.x)
        assert np.array_equal(file["sample_stats/log_weight"][0], expected.log_weight)
        assert np.array_equal(file["sample_stats/log_likelihood"][0], expected.log_likelihood)
        assert file["posterior/x"].fletcher32
        assert file["posterior/x"].dims[1][0].name == "/posterior/draw"
        assert json.loads(file.attrs["certificate"])["corrected"] == correct
    np.testing.assert_allclose(summary.mean, expected.x.mean(0), atol=1e-6)
    np.testing.assert_allclose(summary.std, expected.x.std(0), rtol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.h5"]


class Counted:
    """Calls of `Spool.add`, of which one ends in `stop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int = -1) -> None:
        self.rows: list[range] = []
        add = Spool.add

        def counted(spool: Spool, rows: range, some: draws.Draws) -> None:
            if len(self.rows) == stop:
                raise KeyboardInterrupt
            self.rows.append(rows)
            add(spool, rows, some)

        monkeypatch.setattr(Spool, "add", counted)


def stopped(path: Path, after: int, seed: int = 3) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Counted(patch, after)
        with pytest.raises(KeyboardInterrupt):
            sample_to(path, posterior(), 70, seed, "psis")
    assert not path.exists()


def test_a_stopped_sampling_goes_on_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.h5", tmp_path / "cut.h5"
    sample_to(whole, posterior(), 70, 3, "psis")
    stopped(path, after=2)
    count = Counted(monkeypatch)
    sample_to(path, posterior(), 70, 3, "psis")
    assert count.rows == [range(32, 48), range(48, 64), range(64, 70)]
    assert contents(path) == contents(whole)


def test_batches_of_another_sampling_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "a.h5", after=3, seed=4)
    count = Counted(monkeypatch)
    sample_to(tmp_path / "a.h5", posterior(), 70, 3, "psis")
    sample_to(tmp_path / "b.h5", posterior(), 70, 3, "psis")
    assert len(count.rows) == 2 * 5
    assert contents(tmp_path / "a.h5") == contents(tmp_path / "b.h5")


def test_two_samplings_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """The one that began first is told, and what it drew is not taken for the other's."""
    ours, path = posterior(), tmp_path / "a.h5"

    def second(stage: str, done: int, *_: object) -> None:
        if done == BATCH:
            stopped(path, after=1, seed=4)

    with pytest.raises(RunError, match="another sampling has begun"):
        sample_to(path, ours, 70, 3, "psis", progress=second)
    sample_to(path, ours, 70, 4, "psis")
    sample_to(tmp_path / "b.h5", ours, 70, 4, "psis")
    assert contents(path) == contents(tmp_path / "b.h5")


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("harm", [damaged, lambda content: content[:-50]])
def test_a_damaged_batch_is_told_and_drawn_again(
    tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "a.h5"
    stopped(path, after=3)
    (batch,) = tmp_path.glob(".a.h5.*.batches/16-32.npz")
    batch.write_bytes(harm(batch.read_bytes()))
    with pytest.raises(RunError, match=r"16-32\.npz is damaged.*draws it again"):
        sample_to(path, posterior(), 70, 3, "psis")
    assert not path.exists()
    sample_to(path, posterior(), 70, 3, "psis")
    sample_to(tmp_path / "b.h5", posterior(), 70, 3, "psis")
    assert contents(path) == contents(tmp_path / "b.h5")


def test_memory_does_not_grow_with_the_number_of_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, few, many = 2 * SIDE, 64, 464
    monkeypatch.setattr(output, "SHOWN", 16)
    monkeypatch.setattr(draws, "IN_FLIGHT", 32 * side**2)
    ours = posterior(side)

    def peak(n: int) -> int:
        tracemalloc.reset_peak()
        sample_to(tmp_path / "a.h5", ours, n, correct="psis")
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak(few)  # imports
        grown = peak(many) - peak(few)
    finally:
        tracemalloc.stop()
    assert grown < 0.3 * 4 * (many - few) * side**2


def test_a_summary_is_that_of_all_samples() -> None:
    x = np.random.default_rng(0).normal(5, 2, size=(1000, 3)).astype("f4")
    summary = Summary()
    for some in np.split(x, [1, 300, 813]):
        summary.add(some)
    np.testing.assert_allclose(summary.mean, x.mean(0, dtype=float), rtol=1e-12)
    np.testing.assert_allclose(summary.std, x.std(0, dtype=float), rtol=1e-12)
    assert np.array_equal(summary.x, x[: output.SHOWN])
