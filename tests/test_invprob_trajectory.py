"""Trajectories: log-ratios, invariants of a new policy, noising back."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from invprob import proximal
from invprob.draws import draw
from invprob.likelihood import Likelihood
from invprob.policy import Guided, Policy
from invprob.rtb import prior_bank
from invprob.simulate import draw_truth
from invprob.trajectory import (
    Move,
    Trajectory,
    guide,
    noise_back,
    prior_paths,
    rollout,
    score_path,
)
from operators.denoising import Denoising
from operators.linear import Linear
from operators.noise import Gaussian
from priors.base import Prior
from priors.gaussian import Gaussian as GaussianPrior
from priors.gaussian_mixture import GaussianMixture
from priors.process import generators
from priors.random_field import RandomField


def problem() -> tuple[Prior, Likelihood]:
    prior = GaussianMixture.default((4,))
    matrix = np.random.default_rng(0).normal(size=(2, 4))
    y = torch.tensor([[1.0, -3.0]])
    return prior, Likelihood(Linear(matrix), Gaussian(0.5), y)


def shaken(policy: Policy) -> Policy:
    """A policy whose network says something."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def run(
    prior: Prior,
    likelihood: Likelihood,
    policy: Policy,
    times: tuple[float, ...],
    n: int,
    first: int = 0,
) -> Trajectory:
    sources = generators(1, range(first, first + n))
    return rollout(prior, policy.propose(prior, likelihood.repeat(n)), sources, times)


def test_no_shift_is_the_prior() -> None:
    """s = -1 and n = 0: the log-ratio is exactly zero and the chain is the prior's."""
    prior, likelihood = problem()
    policy = Guided(prior, 10)
    with torch.no_grad():
        policy.gain.fill_(-1.0)
    times = prior.schedule.grid(10)
    path = run(prior, likelihood, policy, times, 5)
    assert torch.equal(path.log_ratio, torch.zeros(5, dtype=torch.float64))
    states, cleans = prior_paths(prior, generators(1, range(5)), times)
    torch.testing.assert_close(path.states, states)
    torch.testing.assert_close(path.final, cleans[-1])


def test_new_policy_is_the_proximal_shift() -> None:
    prior, likelihood = problem()
    policy = Guided(prior, 10)
    times = prior.schedule.grid(10)
    path = run(prior, likelihood, policy, times, 3)
    met = path.guidance[4]
    assert met is not None
    torch.testing.assert_close(policy(path.states[4], met, 4), met.delta)


def test_log_ratio_is_the_difference_of_two_densities() -> None:
    prior, likelihood = problem()
    policy = shaken(Guided(prior, 8))
    times = prior.schedule.grid(8)
    path = run(prior, likelihood, policy, times, 6)
    last: tuple[float, torch.Tensor] | None = None
    naive = torch.zeros(6, dtype=torch.float64)
    for i, (t, s) in enumerate(pairwise(times)):
        kernel, met = prior.schedule.kernel(t, s), path.guidance[i]
        assert met is not None
        z, std = path.states[i], kernel.variance**0.5
        clean = prior.schedule.led(met.clean, last, t, s)
        last = (t, met.clean)
        shift = policy(z, met, i).detach()
        p, q = (Normal(kernel.mean(z, mean), std) for mean in (clean, clean + shift))
        nxt = path.states[i + 1]
        naive += (p.log_prob(nxt) - q.log_prob(nxt)).double().sum(1)
    torch.testing.assert_close(path.log_ratio, naive, rtol=1e-3, atol=2e-3)
    again = score_path(prior, policy, path.guidance, path.states, path.final, times)  # type: ignore[arg-type]
    torch.testing.assert_close(again.log_ratio, path.log_ratio, rtol=1e-4, atol=1e-3)


def test_sample_does_not_depend_on_the_batch() -> None:
    prior, likelihood = problem()
    policy = shaken(Guided(prior, 8))
    times = prior.schedule.grid(8)
    many = run(prior, likelihood, policy, times, 5)
    last = run(prior, likelihood, policy, times, 1, first=4)
    torch.testing.assert_close(many.final[4:], last.final, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(many.log_ratio[4:], last.log_ratio, rtol=1e-3, atol=1e-3)


def test_a_rollout_that_keeps_nothing_ends_the_same() -> None:
    prior, likelihood = problem()
    policy = shaken(Guided(prior, 8))
    times = prior.schedule.grid(8)
    whole = run(prior, likelihood, policy, times, 3)
    propose = policy.propose(prior, likelihood.repeat(3))
    ends = rollout(prior, propose, generators(1, range(3)), times, keep=False)
    assert torch.equal(ends.final, whole.final)
    assert torch.equal(ends.log_ratio, whole.log_ratio)
    assert (len(ends.states), len(ends.guidance), len(ends.noise)) == (1, 0, 0)


def test_samplers_without_a_density_say_so() -> None:
    prior, _ = problem()

    def still(z: torch.Tensor, t: float, i: int) -> Move:
        return Move(prior.denoise(z, t))

    def leaping(z: torch.Tensor, t: float, i: int) -> Move:
        return Move(prior.denoise(z, t), leap=lambda noise: noise() if i == 2 else z)

    grid = prior.schedule.grid(6)
    path = rollout(prior, leaping, generators(0, range(2)), grid)
    assert torch.isnan(path.log_ratio).all()
    assert torch.equal(path.states[2], path.states[0])
    assert torch.equal(path.final, prior.denoise(path.states[3], 0.0))
    up = (*grid[:3], grid[1], *grid[2:])
    path = rollout(prior, still, generators(0, range(2)), up)
    assert torch.isfinite(path.log_ratio).all() and len(path.states) == len(up)


def test_noised_back_paths_have_the_marginals_of_the_process() -> None:
    prior = GaussianPrior.default((3,))
    times = prior.schedule.grid(12)
    z0 = prior.draw(4000, seed=0)
    states = noise_back(prior, z0, generators(1, range(4000)), times)
    for i in (0, 5, 11):
        alpha, sigma = prior.schedule.alpha(times[i]), prior.schedule.sigma(times[i])
        residual = states[i] - alpha * z0
        assert float(residual.std()) == pytest.approx(sigma, rel=0.03)
    one = (states[5] - prior.schedule.alpha(times[5]) * z0).flatten()
    two = (states[6] - prior.schedule.alpha(times[6]) * z0).flatten()
    correlation = float(torch.corrcoef(torch.stack([one, two]))[0, 1])
    carry, _ = prior.schedule.forward(times[6], times[5])
    expected = carry * prior.schedule.sigma(times[6]) / prior.schedule.sigma(times[5])
    assert correlation == pytest.approx(expected, abs=0.03)  # a Markov chain, not one noise for all


def test_guidance_on_images_reaches_the_exact_posterior_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gaussian field, denoising: zhat_0 + delta = E[z_0 | z_t, y], pixel by pixel."""
    monkeypatch.setattr(proximal, "CG_TOLERANCE", 1e-6)
    monkeypatch.setattr(proximal, "CG_ITERATIONS", 200)
    prior = RandomField((8, 8))
    x = prior.decode(prior.draw(1, seed=0))
    likelihood = Likelihood(Denoising((8, 8)), Gaussian(0.3), x + 0.3)
    t = 0.5
    alpha, sigma = prior.schedule.alpha(t), prior.schedule.sigma(t)
    z = prior.schedule.noise(prior.draw(1, seed=1), t, torch.randn(1, 8, 8))
    clean = prior.denoise(z, t)
    met = guide(prior, likelihood, z, t, clean)
    precision = 1 / prior.power + alpha**2 / sigma**2 + 1 / 0.3**2
    pull = torch.fft.fft2(alpha * z / sigma**2 + likelihood.y / 0.3**2)
    exact = torch.fft.ifft2(pull / precision).real.float()
    torch.testing.assert_close(met.clean + met.delta, exact, atol=1e-3, rtol=0)


def test_a_sample_does_not_know_the_truth_of_the_same_seed() -> None:
    """Where data say nothing, truth, sample 0 and the bank of one seed have nothing in common."""
    prior = GaussianPrior.default((400,))
    operator, times = Linear(np.eye(2, 400)), prior.schedule.grid(20)
    prior.steps = 20
    truth = torch.from_numpy(draw_truth(prior, 0))
    likelihood = Likelihood(operator, Gaussian(0.1), operator(truth[None].float()))
    policy = Guided(prior, 20)
    drawn = draw(prior, likelihood, partial(policy.propose, prior), times, 4, 0).x
    bank = prior.decode(prior_bank(prior, 4, 0, times)).numpy()
    for x in (*drawn, *bank):
        assert abs(np.corrcoef(x[2:], truth[2:])[0, 1]) < 0.2  # chance: .05
