"""Every baseline: improves on the prior, sample by sample, with its bias recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from invprob import registry
from invprob.comparison import Result, compare, counting, parse, refuse_mismatch
from invprob.draws import draw
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from operators.base import ForwardOperator
from operators.blur import Blur
from operators.denoising import Denoising
from operators.errors import NotDifferentiable, UnknownName
from operators.inpainting import Inpainting
from operators.lensing import Lensing
from operators.linear import Linear
from operators.noise import Gaussian
from operators.phase_retrieval import PhaseRetrieval
from priors.base import Prior
from priors.gaussian import Gaussian as GaussianPrior
from priors.random_field import RandomField

SETTINGS = {"dps": "dps:steps=60", "copaint": "copaint:steps=30"}


def test_every_baseline_has_a_row_here() -> None:
    assert set(registry.names("baselines")) == set(SETTINGS)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize(
    "operator",
    [
        Denoising((16, 16)),
        Blur((16, 16)),
        Inpainting((16, 16)),
        Lensing.default((16, 16)),
        PhaseRetrieval((16, 16)),
    ],
    ids=lambda o: type(o).__name__,
)
def test_improves_on_the_prior(name: str, operator: ForwardOperator) -> None:
    prior = RandomField((16, 16))
    truth = prior.decode(prior.draw(1, seed=3))
    noise = Gaussian(0.1, operator.data_mask)
    y = noise.sample(operator(truth), torch.Generator().manual_seed(0))
    likelihood = Likelihood(operator, noise, y)
    method = parse(SETTINGS[name])
    draws = draw(
        prior,
        likelihood,
        lambda many: method.propose(prior, many),
        method.times(prior),
        4,
        seed=0,
        eta=method.eta,
    )
    before = likelihood.repeat(4).log_prob(prior.decode(prior.draw(4, seed=9)))
    assert draws.log_likelihood.mean() > float(before.mean())
    rmse = np.sqrt(np.square(draws.x - truth.numpy()).mean((1, 2)))
    if operator.linear:  # phase retrieval leaves this prior's sign and half turn open
        assert rmse.mean() < np.sqrt(2)  # two draws of the prior


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_sample_does_not_depend_on_the_batch(name: str) -> None:
    prior = GaussianPrior.default((6,))
    matrix = np.random.default_rng(0).normal(size=(3, 6))
    likelihood = Likelihood(Linear(matrix), Gaussian(0.3), torch.ones(1, 3))
    method = parse(SETTINGS[name])

    def samples(n: int) -> Any:
        def propose(many: Likelihood) -> Any:
            return method.propose(prior, many)

        return draw(prior, likelihood, propose, method.times(prior), n, 0, method.eta).x

    np.testing.assert_allclose(samples(3)[:1], samples(1), rtol=1e-3, atol=1e-4)


def observation() -> tuple[Prior, Observation]:
    prior = RandomField((16, 16))
    operator = Blur((16, 16))
    truth = prior.decode(prior.draw(1, seed=3))
    y = Gaussian(0.1).sample(operator(truth), torch.Generator().manual_seed(0))[0].numpy()
    return prior, Observation(operator, y, 0.1, truth=truth[0].numpy(), prior="random_field")


def test_compare_counts_evaluations_and_scores_each_method() -> None:
    _, data = observation()
    dps, copaint = compare(data, baselines=("dps:steps=60", "copaint:steps=12"), n=3)
    assert isinstance(dps, Result)
    assert dps.scores["network_evaluations"] == 60  # 59 gradients and the last clean estimate
    assert dps.scores["operator_evaluations"] >= 2 * 59
    assert dps.scores["elbo"] is not None  # its transitions are Gaussian
    assert copaint.scores["elbo"] is None and copaint.scores["log_z"] is None
    assert dps.scores["rmse"] is not None and dps.scores["rmse"] < 1


def test_counting_leaves_no_trace() -> None:
    prior, data = observation()
    with counting(prior, data.operator) as count:
        data.operator(torch.zeros(5, 16, 16))
        prior.denoise(torch.zeros(2, 16, 16), 0.5)
    data.operator(torch.zeros(5, 16, 16))
    assert (count.operator, count.network) == (5, 2)
    assert "denoise" not in vars(prior)


@pytest.mark.parametrize("text", ["dsp", "dps:zeat=1", "dps:zeta=high"])
def test_unknown_methods_and_settings_are_named(text: str) -> None:
    with pytest.raises(UnknownName):
        parse(text)


def test_a_mismatch_is_refused() -> None:
    class Opaque(Denoising):
        differentiable = False

    with pytest.raises(NotDifferentiable, match="needs a gradient"):
        refuse_mismatch("dps", parse("dps"), Opaque((4, 4)))
