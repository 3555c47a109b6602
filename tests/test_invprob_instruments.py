"""Amortised training: ranges of instruments, one policy for all of them, many observations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invprob.config import TrainConfig
from invprob.instruments import Instruments, read_ranges
from invprob.observation import Observation
from invprob.posterior import Posterior, bind
from invprob.rtb import Trainer
from invprob.twins import measured_gaps, simulated_twins
from operators.denoising import Denoising
from operators.errors import ObservationError, RunError, UnknownName
from operators.inpainting import Inpainting
from operators.linear import Linear
from priors.gaussian_mixture import GaussianMixture


def inpainted() -> Observation:
    data = np.random.default_rng(0).normal(size=(8, 8))
    return Observation(Inpainting((8, 8), kind="random"), data, 0.1)


def test_a_range_file_is_flattened_to_the_paths_of_set(tmp_path: Path) -> None:
    file = tmp_path / "ranges.toml"
    file.write_text('"lens.0.q" = [0.6, 1]\nlens.0.theta_E = [0.8, 1.4]\nkind = {choice = ["box"]}')
    assert read_ranges(file) == {
        "lens.0.q": [0.6, 1], "lens.0.theta_E": [0.8, 1.4], "kind": {"choice": ["box"]},
    }  # fmt: skip
    file.write_text("fraction = [0.2,\nseed 3")
    with pytest.raises(ObservationError, match="line 2"):
        read_ranges(file)
    with pytest.raises(RunError, match="cannot read"):
        read_ranges(tmp_path / "none.toml")


def test_draws_fill_their_ranges() -> None:
    ranges = {
        "fraction": [0.2, 0.8], "seed": {"whole": [3, 5]},
        "noise.scale": {"log": [0.1, 10]}, "kind": {"choice": ["random", "box"]},
    }  # fmt: skip
    instruments = Instruments(inpainted(), ranges)
    rng = np.random.default_rng(1)
    drawn = [instruments.draw(rng) for _ in range(400)]
    operators = [operator for operator, _ in drawn]
    assert all(isinstance(operator, Inpainting) for operator in operators)
    fractions = np.array([o.fraction for o in operators if isinstance(o, Inpainting)])
    assert 0.2 <= fractions.min() < 0.25 and 0.75 < fractions.max() <= 0.8
    assert {o.seed for o in operators if isinstance(o, Inpainting)} == {3, 4, 5}
    assert {o.kind for o in operators if isinstance(o, Inpainting)} == {"random", "box"}
    scales = np.array(
        [math.log10(float(noise.precision.max()) ** -0.5 / 0.1) for _, noise in drawn]
    )
    assert scales.min() < -0.9 and scales.max() > 0.9
    assert abs(scales.mean()) < 4 * 2 / math.sqrt(12 * 400)
    # the noise knows the new operator's missing pixels, not the old one's
    for operator, noise in drawn[:20]:
        assert noise.mask is not None and operator.data_mask is not None
        assert bool((noise.mask == operator.data_mask).all())


@pytest.mark.parametrize(
    ("ranges", "error", "said"),
    [
        ({}, ObservationError, "at least one"),
        ({"fraction": [0.8, 0.2]}, ObservationError, "is no range"),
        ({"fraction": [0.2, math.nan]}, ObservationError, "is no range"),
        ({"fraction": 0.5}, ObservationError, "is no range"),
        ({"fraction": {"log": [0, 1]}}, ObservationError, "low > 0"),
        ({"seed": {"whole": [0, 1.5]}}, ObservationError, "is no range"),
        ({"kind": {"choice": []}}, ObservationError, "is no range"),
        ({"fraction": [0.5, 1.5]}, ObservationError, "fraction is"),
        ({"fractoin": [0.2, 0.5]}, UnknownName, "did you mean 'fraction'"),
        ({"shape": {"choice": [[4, 4]]}}, ObservationError, "shape"),
    ],
)
def test_a_bad_range_is_told_before_any_work(
    ranges: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Instruments(inpainted(), ranges)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"fraction" = [0.2, 0.5]\n"seed" = !!python/object/apply:os.mkdir [ran]', "line 2"),
        ('"fraction" = [0.2, no]', "line 1"),
        ('"seed" = { whole = [010, 020] }', "line 1"),
        ('"fraction" = ["2e-1", "5e-1"]', "is no range"),
        ('"fraction" = [false, true]', "is no range"),
    ],
)
def test_faults_19_and_20_ranges_are_numbers_and_never_code(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TOML has no tags, no octal by a leading zero and no bare words; text is no number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranges.toml").write_text(text)
    with pytest.raises(ObservationError, match=said):
        Instruments(inpainted(), read_ranges(tmp_path / "ranges.toml"))
    assert not (tmp_path / "ran").exists()


def mixture() -> tuple[GaussianMixture, Observation]:
    """Five modes in two dimensions, one observed."""
    means = np.array([(-8.0 * i, 4.0 * (i % 2)) for i in range(-2, 3)])
    prior = GaussianMixture(means, np.array([0.1, 0.3, 0.2, 0.15, 0.25]))
    return prior, Observation(Linear(np.array([[0.3, 1.0]])), np.array([3.0]), 0.8)


def test_every_batch_is_simulated_with_the_instrument_that_explains_it() -> None:
    prior, observation = mixture()
    matrices = [[[0.3, 1.0]], [[2.0, -1.0]]]
    ranges = {"noise.scale": {"log": [0.25, 4.0]}, "matrix": {"choice": matrices}}
    instruments = Instruments(observation, ranges)
    trainer = Trainer(prior, bind(observation), TrainConfig(width=8, bank=64), instruments)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    batches = [trainer.simulate(16, rng, generator) for _ in range(60)]
    chi2 = torch.cat([many.fit(prior.decode(z0))[1] for z0, many in batches])
    assert abs(chi2.mean() - 1) < 4 * math.sqrt(2 / len(chi2))
    sigmas = {float(many.noise.precision) ** -0.5 for _, many in batches}
    assert min(sigmas) < 0.3 < 2 < max(sigmas) and len(sigmas) == 60
    assert len({float(many.operator(torch.ones(1, 2))) for _, many in batches}) == 2
    targets = set()
    for trainer.step in range(8):
        targets.add(float(trainer._target()[1].noise.precision))
    assert len(targets) == 8


def test_a_posterior_on_another_observation_has_gaps_of_its_own() -> None:
    prior, observation = mixture()
    config = TrainConfig(width=8, blocks=1, steps=12, twins=24, twin_paths=4)
    policy = Trainer(prior, bind(observation), config).average
    quiet = replace(observation, noise_sigma=0.1)
    other = Posterior(observation, prior, "five", policy, gaps=np.ones(3)).on(quiet, config)
    twins = simulated_twins(prior, policy, quiet, config)
    gaps = measured_gaps(twins, prior, policy, config)
    assert other.gaps is not None and other.certificate is None
    np.testing.assert_allclose(other.gaps, gaps)
    assert other.certify(other.draw(32)).gap == pytest.approx(gaps.mean())
    own = simulated_twins(prior, policy, observation, config)
    assert gaps.mean() > 2 * measured_gaps(own, prior, policy, config).mean()  # harder data
    several = replace(observation, data=np.array([[3.0], [1.0]]))
    with pytest.raises(ObservationError, match="a posterior is of one"):
        other.on(several, config)
    ranged = simulated_twins(
        prior, policy, observation, config, Instruments(observation, {"noise.sigma": [0.1, 3]})
    )
    assert len(measured_gaps(ranged, prior, policy, config)) == config.twins
    assert len({float(some.likelihood.noise.precision) for some in ranged}) == config.twins


def test_rtb_takes_every_observation_of_a_file_in_turn() -> None:
    prior, observation = mixture()
    many = replace(observation, data=np.array([[3.0], [1.0], [-2.0]]))
    trainer = Trainer(prior, bind(many), TrainConfig(width=8, blocks=1))
    met = set()
    for trainer.step in range(30):
        met.add(float(trainer._target()[1].y))
    assert met == {3.0, 1.0, -2.0}
    assert many.one(2).data == -2.0
    with pytest.raises(ObservationError, match="there are 3"):
        many.one(3)


def test_an_amortised_training_resumes_bit_by_bit() -> None:
    prior, observation = mixture()
    config = TrainConfig(width=8, blocks=1, warm_steps=3, bank=64, rtb_steps=3, paths=4, steps=8)
    instruments = Instruments(observation, {"noise.scale": [0.5, 2]})

    def fresh() -> Trainer:
        return Trainer(prior, bind(observation), config, instruments)

    whole, half = fresh(), fresh()
    for _ in range(6):
        whole.advance()
    for _ in range(4):
        half.advance()
    resumed = fresh()
    resumed.load(half.state())
    while resumed.step < 6:
        resumed.advance()
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert bool((a == b).all())


def test_a_policy_of_other_shape_is_no_start() -> None:
    prior, observation = mixture()
    one, two = (
        Trainer(prior, bind(observation), TrainConfig(width=width, blocks=1)) for width in (8, 16)
    )
    with pytest.raises(ObservationError, match="choose the same ones"):
        two.start_from(one.policy)
    wide = Observation(Denoising((4,)), np.arange(4.0), 0.1)
    with pytest.raises(ObservationError, match="train one for it"):
        Posterior(observation, prior, "five", one.average).on(wide)
