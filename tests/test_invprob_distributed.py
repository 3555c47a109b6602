"""Two or three processes give the result of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks

from invprob import distributed
from invprob.config import TrainConfig
from invprob.draws import draw
from invprob.likelihood import Likelihood
from invprob.rtb import Trainer
from invprob.twins import Twins
from operators.errors import ObservationError, RunError
from operators.linear import Linear
from operators.noise import Gaussian
from priors.gaussian import Gaussian as GaussianPrior

STEPS = 7
CONFIG = TrainConfig(
    steps=8, width=16, blocks=1, warm_steps=4, warm_batch=16, rtb_steps=3, paths=5, bank=64
)


def trainer(config: TrainConfig = CONFIG) -> Trainer:
    rng = np.random.default_rng(0)
    operator = Linear(rng.normal(size=(4, 6)) / 2)
    y = torch.from_numpy(rng.normal(size=(1, 4))).float()
    return Trainer(GaussianPrior.default((6,)), Likelihood(operator, Gaussian(0.5), y), config)


def trained(steps: int = STEPS) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the state after so many steps, and the figures of each."""
    ours = trainer()
    figures = [ours.advance() for _ in range(steps)]
    return ours.state(), figures


def certified(seed: int) -> tuple[torch.Tensor, ...]:
    """Return samples drawn in several batches with their log weights, and the gaps of twins."""
    ours = trainer()
    prior, likelihood = ours.prior, ours.likelihood
    twins = Twins.simulate(prior, ours.average, likelihood.operator, likelihood.noise, 2, seed)
    samples = draw(prior, likelihood, lambda m: ours.average.propose(prior, m), ours.times, 1500, 3)
    gaps = twins.gaps(prior, ours.average, 2, seed)
    return tuple(map(torch.from_numpy, (samples.x, samples.log_weight, gaps)))


def refused() -> str:
    """Return how two ranks refuse to be three, once they have refused too small a batch."""
    with pytest.raises(ObservationError, match="2 processes cannot share batches of 1"):
        trainer(TrainConfig(steps=4, width=8, blocks=1, warm_batch=4))
    with pytest.raises(RunError) as few:
        distributed.join(torch.device("cpu"), 3)
    return str(few.value)


def close(one: Any, other: Any) -> bool:
    weights = [
        torch.cat([v.flatten().double() for v in s["average"].values()]) for s in (one, other)
    ]
    # of the whole: Adam enlarges the rounding of a gradient that is next to nothing
    return bool((weights[0] - weights[1]).norm() < 1e-5 * weights[1].norm())


@pytest.mark.slow
def test_ranks_train_the_weights_of_one_process(tmp_path: Path) -> None:
    alone, figures = trained()
    together = on_ranks(3, trained, tmp_path)  # uneven: shares of 4 and 5 rows
    for state, seen in together:
        assert close(state, alone)
        assert [f["loss"] for f in seen] == pytest.approx([f["loss"] for f in figures], rel=1e-4)
        torch.testing.assert_close(state["moments"], alone["moments"], rtol=1e-4, atol=1e-6)
        for key, value in state["policy"].items():  # every rank took the same step, to the bit
            assert torch.equal(value, together[0][0]["policy"][key])
    assert not close(trained(STEPS - 1)[0], alone)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_goes_on_alone(tmp_path: Path) -> None:
    state, _ = on_ranks(2, trained, tmp_path, 5)[0]
    ours = trainer()
    ours.load(state)
    while ours.step < STEPS:
        ours.advance()
    assert close(ours.state(), trained()[0])


def test_samples_of_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    alone_x, alone_weight, gaps = certified(1)
    for x, log_weight, found in on_ranks(2, certified, tmp_path, 1):
        assert torch.equal(x, alone_x)
        assert torch.equal(log_weight, alone_weight)
        assert torch.equal(found, gaps)


def test_fault_48_fewer_processes_than_asked_for_is_an_error(tmp_path: Path) -> None:
    for said in on_ranks(2, refused, tmp_path):
        assert "2 processes run where 3 were asked for" in said
