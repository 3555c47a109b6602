"""The denoised shift of guidance: none where guidance is exact, nearer to the truth where not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invprob import registry
from invprob.denoised_shift import denoised, measured
from invprob.likelihood import Likelihood
from invprob.policy import Guided
from invprob.trajectory import guide
from priors.base import Prior
from priors.process import generators, randn


def pairs(
    prior: Prior, likelihood: Likelihood, n: int, seed: int
) -> tuple[torch.Tensor, Likelihood]:
    """Draws of the prior and data of each by the same instrument."""
    z0 = prior.draw(n, seed)
    y = likelihood.noise.sample(
        likelihood.operator(prior.decode(z0)), torch.Generator().manual_seed(seed)
    )
    return z0, replace(likelihood, y=y)


def problem(name: str) -> tuple[Prior, Likelihood]:
    suite, _, own = name.partition("/")
    found = registry.suite_class(suite)().problem(own)
    return found.prior, found.likelihood


def test_exact_guidance_stays_as_it_is() -> None:
    prior, likelihood = problem("gaussian/d16")
    times = prior.schedule.grid(20)[:-1]
    levels, shares = measured(prior, times, lambda n, seed: pairs(prior, likelihood, n, seed), 32)
    assert levels == shares == [0.0] * 19


def test_a_shift_is_denoised_where_that_brings_it_nearer_to_the_truth() -> None:
    """Of a mixture, whose errors are not Gaussian, on pairs that nothing was measured on."""
    prior, likelihood = problem("gmm/d8_dy2_s0")
    policy = Guided(prior, 30, width=8, blocks=1)
    found = measured(prior, policy.times, lambda n, seed: pairs(prior, likelihood, n, seed), 1024)
    policy.denoised.copy_(torch.tensor(found))
    level, share = policy.denoised
    assert 0 < int((share > 0).sum()) < 29
    assert bool((level[share > 0] <= torch.tensor([prior.schedule.rho(t) for t in policy.times])[
        share > 0
    ]).all())  # fmt: skip
    z0, fresh = pairs(prior, likelihood, 2000, seed=77)
    gains = []
    for i in share.nonzero()[:, 0].tolist():
        z = prior.schedule.noise(
            z0, policy.times[i], randn(prior.z_shape, generators(i, range(2000)), z0)
        )
        plain, met = guide(prior, fresh, z, policy.times[i]), policy.guide(prior, fresh, z, i)
        errors = [(m.clean + m.delta - z0).square().sum() for m in (plain, met)]
        gains.append(float(1 - errors[1] / errors[0]))
    assert max(gains) > 0.02 and min(gains) > -0.01


def test_a_shift_of_nothing_stays_nothing_and_items_do_not_mix() -> None:
    prior, likelihood = problem("gmm/d8_dy2_s0")
    z0, many = pairs(prior, likelihood, 6, seed=1)
    z, t = prior.schedule.noise(z0, 0.5, torch.randn(z0.shape)), 0.5
    met = guide(prior, many, z, t)
    still = denoised(prior, replace(met, delta=torch.zeros_like(met.delta)), 0.1, 1.0)
    torch.testing.assert_close(still.delta, torch.zeros_like(z), atol=1e-6, rtol=0)
    whole = denoised(prior, met, 0.1, 0.7)
    one = denoised(prior, met[torch.tensor([2])], 0.1, 0.7)
    torch.testing.assert_close(one.delta[0], whole.delta[2])
    assert not torch.equal(whole.delta, met.delta)
    for key in ("clean", "score", "potential"):
        assert getattr(whole, key) is getattr(met, key)


@pytest.mark.parametrize("rho", [0.02, 0.7, 200.0])
def test_times_of_noise_ratios(rho: float) -> None:
    schedule = registry.load_prior("gaussian").schedule
    assert schedule.rho(schedule.time(rho)) == pytest.approx(rho)
