"""Off-policy paths: their gradient, what they cost, where they may have a baseline, resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from invprob import checkpoint, replay
from invprob.balance import add_gradient, advantage, temperature
from invprob.comparison import counting
from invprob.config import OBJECTIVES, TrainConfig
from invprob.replay import Explorer, Source, ranked
from invprob.rtb import Trainer
from invprob.suites.base import Problem, linear_likelihood, linear_problem
from invprob.suites.gaussian import chain_covariance
from invprob.trajectory import Guidance, Trajectory, score_path
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from priors.gaussian import Gaussian as GaussianPrior
from priors.gaussian_mixture import GaussianMixture

SMALL = TrainConfig(
    steps=6, width=16, blocks=1, warm_steps=0, rtb_steps=4, paths=8,
    replay=0.25, backtrack=0.25, prior_paths=0.125,
)  # fmt: skip


def three() -> Problem:
    """Three modes in two dimensions, one observed."""
    means = np.array([(-6.0, 2.0), (0.0, -3.0), (6.0, 2.0)])
    prior = GaussianMixture(means, np.array([0.2, 0.3, 0.5]))
    return linear_problem("three", prior, np.array([[0.3, 1.0]]), 0.8, np.array([1.0]))


def trained(config: TrainConfig, steps: int) -> Trainer:
    problem = three()
    trainer = Trainer(problem.prior, problem.likelihood, config)
    for _ in range(steps):
        trainer.advance()
    return trainer


def drawn(trainer: Trainer) -> list[Source]:
    return trainer.explorer.draw(trainer.policy, trainer.likelihood, 0, trainer.step)


def backtracked(trainer: Trainer, n: int, seed: int) -> tuple[Source, Tensor]:
    rows = ranked(trainer.explorer._stored(0), n, np.random.default_rng(seed))
    many = trainer.likelihood.repeat(n)
    source = trainer.explorer._backtrack(trainer.policy, many, rows, seed)
    assert source.held is not None
    return source, source.held


def wide(paths: Trajectory) -> Trajectory:
    """The same paths in float64."""
    met = tuple(
        replace(g, clean=g.clean.double(), delta=g.delta.double(), score=g.score.double())
        for g in paths.guidance
        if g is not None
    )
    return replace(paths, states=paths.states.double(), guidance=met)


def met_along(paths: Trajectory) -> tuple[Guidance, ...]:
    return tuple(g for g in paths.guidance if g is not None)


def test_off_policy_gradient_is_the_autograd_gradient() -> None:
    """Replayed paths and chains of the prior on a 4-step chain: (log w - log Z)^2 by densities."""
    trainer = trained(replace(SMALL, steps=4, loss_scale=1e9), 2)
    prior, sources, log_z = trainer.prior, drawn(trainer), -2.0
    policy, checked = trainer.policy.double(), 0
    for source in sources:
        if source.own.any():
            continue
        paths = wide(source.paths)
        scored = score_path(
            prior, policy, met_along(paths), paths.states, paths.final, trainer.times
        )
        log_w = scored.log_ratio + source.fit
        source = replace(source, paths=scored)
        pull = advantage(source, log_w, log_w - log_z, policy.foresight)
        policy.zero_grad()
        add_gradient(prior, policy, scored, trainer._squash(pull))
        two_pass = [p.grad.clone() for p in policy.parameters() if p.grad is not None]

        policy.zero_grad()
        whole = source.fit + log_ratio_by_densities(trainer, scored)
        torch.testing.assert_close(whole.detach(), log_w, rtol=1e-6, atol=1e-6)
        (whole - log_z).square().mean().backward()
        plain = [p.grad for p in policy.parameters() if p.grad is not None]
        for a, b in zip(two_pass, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        checked += 1
    assert checked == 2


def log_ratio_by_densities(trainer: Trainer, paths: Trajectory) -> Tensor:
    """sum log p - log q of paths, differentiable in the policy."""
    schedule, total, last = trainer.prior.schedule, torch.zeros(()), None
    for i, (t, s) in enumerate(pairwise(trainer.times)):
        kernel, met = schedule.kernel(t, s), met_along(paths)[i]
        clean = schedule.led(met.clean, last, t, s)
        last = (t, met.clean)
        shifted = clean + trainer.policy(paths.states[i], met, i)
        p, q = (
            Normal(kernel.mean(paths.states[i], mean), kernel.variance**0.5)
            for mean in (clean, shifted)
        )
        step = p.log_prob(paths.states[i + 1]) - q.log_prob(paths.states[i + 1])
        total = total + step.sum(1)
    return total


def test_a_baseline_is_free_on_own_transitions_and_on_no_others() -> None:
    """Gradient in the gains: on backtracked paths both weights agree in the mean, to 4 sigma.

    Control: the baseline on the transitions that noising drew is off by far more.
    """
    config = replace(SMALL, steps=5, paths=2000, replay=0.0, backtrack=0.5, prior_paths=0.0)
    trainer = trained(config, 1)
    with torch.no_grad():
        trainer.policy.gain.fill_(-0.5)  # far from what made the stored paths
    source = next(s for s in drawn(trainer) if s.held is not None)
    log_w, slope = source.log_weight(), trainer.policy.foresight
    gap = log_w - log_w.mean() + 3.0  # log Z is not the mean
    weighed = advantage(source, log_w, gap, slope)
    careless = advantage(replace(source, own=source.own | True), log_w, gap, slope)
    forces = torch.stack(
        [
            (kernel.pull / kernel.variance * noise * met.delta).double().sum(1)
            for (t, s), noise, met in zip(
                pairwise(trainer.times), source.paths.noise, met_along(source.paths), strict=True
            )
            for kernel in [trainer.prior.schedule.kernel(t, s)]
        ]
    )

    def sigmas(weights: Tensor) -> float:
        difference = (weights - gap) * forces
        error = difference.std(1) / difference.shape[1] ** 0.5
        return float((difference.mean(1).abs() / error.clamp(min=1e-12)).max())

    assert source.own.any() and not source.own.all()
    assert sigmas(weighed) < 4
    assert sigmas(careless) > 8


def test_a_replayed_path_costs_no_evaluation_of_the_prior() -> None:
    trainer = trained(replace(SMALL, backtrack=0.0, prior_paths=0.0), 1)
    with counting(trainer.prior, trainer.likelihood.operator) as count:
        again = trainer.explorer._replay(trainer.policy, torch.arange(4))
    assert (count.network, count.operator) == (0, 0)
    assert again.rows is not None
    kept = trainer.explorer.rows
    paths = score_path(
        trainer.prior, trainer.policy, met_along(again.paths),
        kept["states"][again.rows].transpose(0, 1), kept["final"][again.rows], trainer.times,
    )  # fmt: skip
    torch.testing.assert_close(again.paths.log_ratio, paths.log_ratio)
    with counting(trainer.prior, trainer.likelihood.operator) as count:
        trainer.advance()  # 2 of 8 paths are replayed
    assert count.network == 6 * len(trainer.times)


def test_replay_knows_the_weight_of_a_rollout() -> None:
    """Unchanged policy: log w of a stored path is that of its rollout."""
    trainer = trained(replace(SMALL, backtrack=0.0, prior_paths=0.0, rtb_rate=0.0), 1)
    again = trainer.explorer._replay(trainer.policy, torch.arange(8))
    stored = trainer.explorer.rows["log_w"]
    torch.testing.assert_close(again.log_weight(), stored, rtol=1e-4, atol=1e-4)


def test_backtracked_paths_are_noise_above_their_depth_and_the_policy_below() -> None:
    trainer = trained(replace(SMALL, paths=64), 1)
    source, held = backtracked(trainer, 64, seed=3)
    assert held.min() == 1
    assert held.max() == len(trainer.times)
    paths = source.paths
    again = score_path(
        trainer.prior, trainer.policy, met_along(paths), paths.states, paths.final, trainer.times
    )
    torch.testing.assert_close(again.log_ratio, paths.log_ratio, rtol=1e-4, atol=1e-3)
    for i, (t, s) in enumerate(pairwise(trainer.times)):
        own = source.own[i]
        assert torch.equal(own, held <= i + 1)
        spread = paths.noise[i][own] / trainer.prior.schedule.kernel(t, s).variance ** 0.5
        if own.sum() >= 20:
            assert float(spread.square().mean()) == pytest.approx(1, abs=0.6)
    shallow = held == len(trainer.times)  # z_0 moves by the last noise level alone
    moved = (paths.final - trainer.explorer.rows["final"][:, None]).abs().amax(2).amin(0)
    assert float(moved[shallow].max()) < 5 * trainer.prior.schedule.sigma(0.0)


def test_depths_follow_the_loss() -> None:
    config = replace(SMALL, depth="adaptive", replay=0.0, paths=400, backtrack=0.5)
    trainer = trained(config, 1)
    trainer.explorer.depths[:] = 1e-4
    trainer.explorer.depths[3] = 4.0
    source, held = backtracked(trainer, 200, seed=0)
    assert float((held == 3).double().mean()) == pytest.approx(2 / 2.07, abs=0.06)
    log_w = torch.full_like(source.fit, 5.0)
    trainer.explorer.keep([source], [log_w], torch.tensor(2.0))
    assert float(trainer.explorer.depths[3]) == pytest.approx(9.0, rel=1e-6)


def test_the_buffer_keeps_the_first_ranks_and_draws_them_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "CAPACITY", 10)
    trainer = trained(replace(SMALL, replay=0.25, backtrack=0.0, rtb_rate=0.0), 1)
    explorer, seen = trainer.explorer, [trainer.explorer.rows["log_w"]]
    for _ in range(3):
        sources = drawn(trainer)
        log_w = [source.log_weight() for source in sources]
        seen += [w for w, s in zip(log_w, sources, strict=True) if s.rows is None]
        explorer.keep(sources, log_w, torch.tensor(0.0))
        trainer.step += 1
    best = torch.cat(seen).sort(descending=True).values[:10]
    torch.testing.assert_close(explorer.rows["log_w"], best, rtol=1e-4, atol=1e-3)
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[ranked(torch.arange(10), 1, np.random.default_rng(seed))] += 1
    wanted = 1 / (replay.RANK_WEIGHT * 10 + torch.arange(1, 11))
    torch.testing.assert_close(counts / 2000, wanted / wanted.sum(), rtol=0, atol=0.04)
    distinct = ranked(torch.arange(10), 10, np.random.default_rng(0))
    assert len(set(distinct.tolist())) == 10


def test_observations_have_buffers_of_their_own() -> None:
    problem = three()
    both = replace(problem.likelihood, y=torch.tensor([[1.0], [-2.0]]))
    trainer = Trainer(problem.prior, both, SMALL)
    for _ in range(8):  # one observation in each
        trainer.advance()
    owner = trainer.explorer.rows["owner"]
    x = problem.prior.decode(trainer.explorer.rows["final"])
    for m in (0, 1):
        mine = replace(both, y=both.y[m : m + 1])
        fit = mine.log_prob(x[owner == m])
        torch.testing.assert_close(fit, trainer.explorer.rows["fit"][owner == m])
    assert owner.unique().tolist() == [0, 1]


def test_mala_leaves_the_posterior_as_it_is_and_finds_it_from_beside() -> None:
    problem = three()
    config = replace(SMALL, local_search=40)
    explorer = Explorer(problem.prior, problem.prior.schedule.grid(6), 1, config)
    n = 4000
    exact = torch.from_numpy(problem.sample(n, seed=0)).float()
    many = problem.likelihood.repeat(n)

    def moved(x: Tensor) -> Tensor:
        z = explorer._mala(many, problem.prior.encode(x), torch.Generator().manual_seed(1))
        return problem.prior.decode(z)

    after = moved(exact)
    assert float((after - exact).abs().mean()) > 0.3
    error = exact.std(0) / n**0.5
    assert float(((after.mean(0) - exact.mean(0)).abs() / error).max()) < 5
    assert float((after.std(0) / exact.std(0) - 1).abs().max()) < 0.05
    beside = exact + torch.tensor([1.5, -1.5])
    before, found = (problem.posterior.log_prob(x).mean().item() for x in (beside, moved(beside)))
    assert before < float(problem.posterior.log_prob(exact).mean()) - 1
    assert found == pytest.approx(float(problem.posterior.log_prob(exact).mean()), abs=0.15)


def test_resume_with_a_buffer_is_bit_equal(tmp_path: Path) -> None:
    config = replace(
        SMALL, objective="rtb", depth="adaptive", local_search=3, exploration=1.2, anneal=5.0
    )
    whole, first = trained(config, 4), trained(config, 2)
    second = trained(config, 0)
    checkpoint.save(first.state(), tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    second.load(loaded)
    for _ in range(2):
        second.advance()
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.log_z, second.log_z)
    one, two = whole.explorer.state(), second.explorer.state()
    assert torch.equal(one["depths"], two["depths"])
    assert all(torch.equal(one["rows"][key], two["rows"][key]) for key in one["rows"])


def test_learned_log_z_reaches_the_evidence() -> None:
    """From 1 nat off, on a Gaussian problem whose log Z is known: within 0.15 nats."""
    prior = GaussianPrior(np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]]))
    matrix, y = np.array([[1.0, 0.3]]), np.array([0.7])
    likelihood = linear_likelihood(prior, matrix, 1.0, y)
    config = TrainConfig(
        steps=20, width=16, blocks=1, warm_steps=0, rtb_steps=16, paths=32,
        objective="rtb", log_z_rate=0.3, replay=0.25,
    )  # fmt: skip
    trainer = Trainer(prior, likelihood, config)
    trainer.advance()
    variance = (matrix @ chain_covariance(prior, 20) @ matrix.T).item() + 1.0
    exact = float(Normal(0.0, variance**0.5).log_prob(torch.tensor(y)))
    trainer.log_z += 1.0
    while trainer.step < trainer.total:
        trainer.advance()
    assert float(trainer.log_z) == pytest.approx(exact, abs=0.15)


def test_trust_pcl_is_rtb_and_vargrad_is_not() -> None:
    end = {
        name: trained(replace(SMALL, objective=name), 3).policy.gain.detach() for name in OBJECTIVES
    }
    assert torch.equal(end["trust_pcl"], end["rtb"])
    assert not torch.equal(end["vargrad"], end["rtb"])


def test_temperature_falls_as_the_effective_sample_size_allows() -> None:
    fresh = drawn(trained(replace(SMALL, prior_paths=0.0), 0))[0]
    steep = torch.arange(8.0).double() * 2  # ESS / K at T = 1: 0.16
    fresh = replace(fresh, paths=replace(fresh.paths, log_ratio=torch.zeros(8).double()), fit=steep)
    assert temperature(replace(fresh, fit=0 * steep), start=20, done=0) == 1
    assert temperature(replace(fresh, fit=1000 * steep), start=20, done=0) == 20
    found = temperature(fresh, start=20, done=0)

    def share(t: float) -> float:
        weights = torch.softmax(fresh.log_weight(t), 0)
        return float(1 / weights.square().sum()) / 8

    assert share(found) >= 0.3 > share(1 / (1 / found + 0.05))
    assert temperature(replace(fresh, fit=1000 * steep), start=20, done=0.25) < 2
    assert temperature(replace(fresh, fit=1000 * steep), start=20, done=0.5) == 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"objective": "rbt"}, UnknownName, "vargrad, rtb, trust_pcl"),
        ({"depth": "deep"}, UnknownName, "uniform, adaptive"),
        ({"replay": 0.8}, ObservationError, "needs at least 2"),
        ({"exploration": 0.5}, ObservationError, "exploration must be at least 1"),
        ({"local_search": 2, "backtrack": 0.0}, ObservationError, "set backtrack > 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        replace(SMALL, **changes)  # type: ignore[arg-type]


def test_mala_without_a_density_is_refused() -> None:
    problem = three()
    prior = GaussianPrior.default((2,))
    with pytest.raises(NotDifferentiable, match="set local_search=0"):
        Trainer(prior, problem.likelihood, replace(SMALL, local_search=2))
