"""RTB against analytic posteriors, its gradient, its resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from torch import Tensor

from invprob.balance import add_gradient
from invprob.certificate import certify
from invprob.config import OBJECTIVES, TrainConfig
from invprob.correction import resample
from invprob.draws import Draws, draw
from invprob.likelihood import Likelihood
from invprob.metrics import sliced_wasserstein
from invprob.policy import Guided
from invprob.rtb import Trainer, prior_bank
from invprob.suites.base import Problem, linear_problem
from invprob.suites.gaussian import chain_covariance
from invprob.suites.gmm import read_instance
from invprob.trajectory import prior_paths, rollout, score_path
from invprob.twins import Twins
from operators.errors import NumericalError, UnknownName
from operators.linear import Linear
from operators.noise import Gaussian
from priors.gaussian import Gaussian as GaussianPrior
from priors.gaussian_mixture import GaussianMixture
from priors.process import generators

Array = NDArray[np.float64]


def linear_gaussian(d: int, dy: int, steps: int) -> tuple[GaussianPrior, Likelihood, Array]:
    rng = np.random.default_rng(0)
    lag = np.subtract.outer(np.arange(d), np.arange(d))
    prior = GaussianPrior(np.zeros(d), np.exp(-np.abs(lag) / 3.0), steps=steps)
    matrix = rng.normal(size=(dy, d)) / 4
    y = matrix @ prior.decode(prior.draw(1, seed=3))[0].numpy() + 0.2 * rng.normal(size=dy)
    noise = Gaussian(0.2)
    return prior, Likelihood(Linear(matrix), noise, torch.tensor(y[None]).float()), matrix


def test_the_chain_keeps_the_variance_of_a_gaussian_prior() -> None:
    prior, _, _ = linear_gaussian(16, 8, steps=40)
    exact = (prior.vectors * prior.values) @ prior.vectors.T * prior.scale**2
    ratio = np.diag(chain_covariance(prior, 40)) / np.diag(exact.numpy())
    assert 0.95 < ratio.min() < ratio.max() < 1.05
    _, cleans = prior_paths(prior, generators(0, range(4000)), prior.schedule.grid(40))
    found = prior.decode(cleans[-1]).double().var(0).numpy()
    np.testing.assert_allclose(found, np.diag(chain_covariance(prior, 40)), rtol=0.1)


def posterior_of(trainer: Trainer, n: int, seed: int = 5) -> Draws:
    return draw(
        trainer.prior,
        trainer.likelihood,
        lambda many: trainer.average.propose(trainer.prior, many),
        trainer.times,
        n,
        seed,
    )


def test_gaussian_posterior_mean_covariance_and_evidence() -> None:
    """d = 16: log Z within 0.05 nats; mean within 0.1 sigma; variances within 15%."""
    prior, likelihood, matrix = linear_gaussian(16, 8, steps=100)
    trainer = Trainer(
        prior,
        likelihood,
        TrainConfig(
            width=16, blocks=1, warm_steps=10, warm_batch=32, bank=512, rtb_steps=2, paths=16
        ),
    )
    while trainer.step < trainer.total:
        trainer.advance()
    draws = posterior_of(trainer, 2000)
    covariance = chain_covariance(prior, 100)
    data = matrix @ covariance @ matrix.T + 0.04 * np.eye(8)
    y = likelihood.y[0].double().numpy()
    gain = covariance @ matrix.T @ np.linalg.inv(data)
    mean, spread = gain @ y, covariance - gain @ matrix @ covariance
    certificate = certify(draws)
    exact = multivariate_normal.logpdf(y, np.zeros(8), data)
    assert certificate.log_z == pytest.approx(exact, abs=0.05)
    assert certificate.elbo is not None and certificate.elbo < exact
    x = draws.x.astype(float)
    assert np.abs((x.mean(0) - mean) / np.sqrt(np.diag(spread))).max() < 0.1
    assert np.abs(x.var(0) / np.diag(spread) - 1).max() < 0.15
    assert np.abs(np.cov(x.T) - spread).max() < 0.1 * np.diag(spread).max()


def test_a_quality_sets_the_length_of_the_training_and_no_more() -> None:
    prior, likelihood, _ = linear_gaussian(4, 2, steps=10)
    base = TrainConfig(width=8, blocks=1, seed=3)
    qualities = [base.of_quality(name) for name in ("draft", "default", "high")]
    assert qualities[1] == base
    for config in qualities:
        assert (config.width, config.blocks, config.seed) == (8, 1, 3)
    trainers = [Trainer(prior, likelihood, config) for config in qualities]
    assert trainers[0].total < trainers[1].total < trainers[2].total
    assert [trainer.policy.settings["steps"] for trainer in trainers] == [10, 10, 20]
    assert Trainer(prior, likelihood, replace(qualities[2], steps=7)).steps == 7
    with pytest.raises(UnknownName, match="choose draft, default, high"):
        base.of_quality("best")


def gmm() -> Problem:
    """Five modes in two dimensions, one observed: evidence and posterior in closed form."""
    means = np.array([(-8.0 * i, 4.0 * (i % 2)) for i in range(-2, 3)])
    prior = GaussianMixture(means, np.array([0.1, 0.3, 0.2, 0.15, 0.25]))
    return linear_problem("five", prior, np.array([[0.3, 1.0]]), 0.8, np.array([3.0]))


@pytest.mark.slow
def test_rtb_narrows_the_bounds_of_a_mixture() -> None:
    """log Z within 0.1 before and after 15 RTB steps, which raise the ELBO by 0.3 to 0.4 nats.

    Over five seeds. The sliced Wasserstein distance, in standard deviations of the posterior, falls
    from 0.42 to between 0.21 and 0.34; of weighted samples it is at most 0.09.
    """
    problem = gmm()
    prior, likelihood, log_z = problem.prior, problem.likelihood, problem.log_z
    assert log_z is not None
    exact = problem.sample(4000, seed=0)
    config = TrainConfig(
        steps=30, width=32, blocks=1, warm_steps=0, rtb_steps=15, rtb_rate=1e-2, paths=32, ema=0.8
    )
    trainer = Trainer(prior, likelihood, config)
    elbos, distances = [], []
    for steps in (0, trainer.total):
        while trainer.step < steps:
            trainer.advance()
        draws = posterior_of(trainer, 4000)
        certificate = certify(draws)
        assert certificate.log_z == pytest.approx(log_z, abs=0.1)
        assert certificate.elbo is not None and certificate.elbo_se is not None
        assert certificate.elbo < log_z
        elbos.append((certificate.elbo, certificate.elbo_se))
        both = (draws.x, draws.x[resample(draws.log_weight, len(draws.x), seed=1)[0]])
        distances.append([sliced_wasserstein(x, exact)[0] / exact.std() for x in both])
    (before, error), (after, other) = elbos
    assert after - before > 3 * math.hypot(error, other)
    assert distances[1][0] < distances[0][0]
    assert max(weighted for _, weighted in distances) < 0.15
    fresh = Guided(prior, 30, width=8, blocks=1)
    twins = Twins.simulate(prior, fresh, likelihood.operator, likelihood.noise, 32, seed=1)
    assert 0 < twins.gaps(prior, fresh, 8, seed=2).mean() < 3


def test_two_pass_gradient_is_the_autograd_gradient() -> None:
    prior, likelihood = gmm().prior, gmm().likelihood
    trainer = Trainer(prior, likelihood, TrainConfig(steps=4, width=16, blocks=1))
    policy = trainer.policy.double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    many = likelihood.repeat(6)
    paths = rollout(
        prior, trainer.policy.float().propose(prior, many), generators(0, range(6)), trainer.times
    )
    policy = policy.double()
    wide = replace(
        paths,
        states=paths.states.double(),
        guidance=tuple(
            replace(g, clean=g.clean.double(), delta=g.delta.double(), score=g.score.double())
            for g in paths.guidance
        ),
    )
    wide = score_path(prior, policy, wide.guidance, wide.states, wide.final, trainer.times)  # type: ignore[arg-type]
    log_w = paths.log_weight(prior, many)
    policy.zero_grad()
    add_gradient(prior, policy, wide, log_w - log_w.mean())
    two_pass = [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    policy.zero_grad()
    total = torch.zeros(6, dtype=torch.float64)
    last: tuple[float, torch.Tensor] | None = None
    for i in range(3):
        kernel = prior.schedule.kernel(trainer.times[i], trainer.times[i + 1])
        met = wide.guidance[i]
        t, s = trainer.times[i : i + 2]
        mean = kernel.mean(wide.states[i], prior.schedule.led(met.clean, last, t, s))
        mean = mean + kernel.pull * policy(wide.states[i], met, i)
        last = (t, met.clean)
        q = torch.distributions.Normal(mean, kernel.variance**0.5)
        total = total - q.log_prob(wide.states[i + 1]).sum(1)
    whole = log_w + total - total.detach()  # the value of log w, the gradient of -log q
    (whole - whole.mean().detach()).square().mean().backward()
    plain = [p.grad for p in policy.parameters() if p.grad is not None]
    for a, b in zip(two_pass, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_resume_is_bit_equal() -> None:
    prior, likelihood = gmm().prior, gmm().likelihood
    config = TrainConfig(
        steps=10, width=16, blocks=1, warm_steps=4, warm_batch=16, rtb_steps=3, paths=4, bank=64
    )
    whole = Trainer(prior, likelihood, config)
    first = Trainer(prior, likelihood, config)
    for trainer, stop in ((whole, 7), (first, 5)):
        while trainer.step < stop:
            trainer.advance()
    second = Trainer(prior, likelihood, config)
    second.load(first.state())
    while second.step < 7:
        second.advance()
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fault_32_losses_that_stay_nan_abort_and_keep_the_weights() -> None:
    prior, likelihood = gmm().prior, gmm().likelihood
    broken = replace(likelihood, y=torch.tensor([[math.nan]]))
    config = TrainConfig(steps=6, width=16, blocks=1, warm_steps=0, rtb_steps=50, paths=2)
    trainer = Trainer(prior, broken, config)
    with pytest.raises(NumericalError, match="noise level"):
        [trainer.advance() for _ in range(50)]
    assert all(torch.isfinite(p).all() for p in trainer.policy.parameters())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_fault_32_a_step_that_is_skipped_leaves_nothing_behind(value: float) -> None:
    """One path of one RTB step has no finite density: that step alone is lost."""

    class Broken(Likelihood):
        def log_prob(self, x: Tensor) -> Tensor:
            found = super().log_prob(x)
            return torch.cat([found[:1] + value, found[1:]]) if trainer.step == 1 else found

    prior, known = gmm().prior, gmm().likelihood
    broken = Broken(known.operator, known.noise, known.y)
    config = TrainConfig(steps=6, width=16, blocks=1, warm_steps=0, rtb_steps=4, paths=4)
    for objective in OBJECTIVES:
        trainer = Trainer(prior, broken, replace(config, objective=objective))
        figures = [trainer.advance() for _ in range(4)]
        assert trainer.bad == 1
        assert not math.isfinite(figures[1]["loss"]) and math.isfinite(figures[3]["loss"])
        assert torch.isfinite(trainer.average.foresight).all()


def test_a_bank_that_is_drawn_is_that_of_the_chain() -> None:
    prior = gmm().prior
    times = prior.schedule.grid(8)
    whole = prior_paths(prior, generators(3, range(20), "bank"), times)[1][-1]
    assert torch.equal(prior_bank(prior, 20, 3, times), whole)


def test_mixture_instance_of_the_benchmark() -> None:
    """d = 8, dy = 4, 25 modes, not trained: log Z within 0.1; sliced Wasserstein at most 0.15.

    It is 0.03 between exact draws, and at most 0.25 without weights.
    """
    file = Path(__file__).parents[2] / "shared" / "data" / "gmm_example_d8_dy4.h5"
    if not file.exists():
        pytest.skip("needs the stored instance gmm_example_d8_dy4.h5")
    problem = read_instance(file)
    prior, likelihood, log_z = problem.prior, problem.likelihood, problem.log_z
    exact = problem.sample(2000, seed=0)
    draws = posterior_of(Trainer(prior, likelihood, TrainConfig(width=8, blocks=1)), 1000)
    certificate = certify(draws)
    assert certificate.log_z == pytest.approx(log_z, abs=0.1)
    index, _ = resample(draws.log_weight, len(draws.x), seed=1)
    assert sliced_wasserstein(draws.x[index], exact)[0] < 0.15
    assert sliced_wasserstein(draws.x, exact)[0] < 0.25
