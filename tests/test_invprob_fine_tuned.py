"""Policies that fine-tune the prior's network: the prior at first, their gradient, their files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from ranks import on_ranks
from safetensors.torch import load_file
from test_priors_pixel import network

from invprob import registry
from invprob.balance import add_gradient
from invprob.comparison import counting
from invprob.config import TrainConfig
from invprob.diagnosis import diagnose
from invprob.fine_tuned import build
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.posterior import Posterior, bind
from invprob.posterior_training import train
from invprob.rtb import Trainer
from invprob.trajectory import Trajectory, rollout, score_path
from operators.denoising import Denoising
from operators.errors import ObservationError, RunError, UnknownName
from operators.super_resolution import SuperResolution
from priors.gaussian import Gaussian as GaussianPrior
from priors.pixel import Pixel, PixelConfig
from priors.process import generators

CONFIG = TrainConfig(
    steps=4, rtb_steps=3, paths=4, rtb_rate=1e-3, rank=2, bank=8, width=8, blocks=1,
    warm_batch=8, certified=4, twins=2, twin_paths=1,
)  # fmt: skip
KINDS = ("full", "lora")


def tiny() -> Pixel:
    log_rho = tuple(np.linspace(np.log(0.02), np.log(200), 1000))
    bank = torch.from_numpy(np.random.default_rng(0).gamma(1.0, 0.1, (8, 16, 16))).half()
    return Pixel(network(), PixelConfig((16, 16), scale=0.1, patch=4, steps=4), log_rho, bank=bank)


def problem() -> tuple[Pixel, Observation]:
    prior = tiny()
    y = prior.decode(prior.draw(1, seed=1))[0].numpy()
    return prior, Observation(Denoising((16, 16)), y, 0.2)


def config(kind: str, **more: float) -> TrainConfig:
    if kind == "lora":
        pytest.importorskip("peft")
    return replace(CONFIG, policy=kind, **more)  # type: ignore[arg-type]  # all are numbers


def shaken(policy: Policy) -> Policy:
    """A policy that has learnt something."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def paths_of(prior: Pixel, policy: Policy, likelihood: Likelihood, n: int) -> Trajectory:
    propose = policy.propose(prior, likelihood.repeat(n))
    return rollout(prior, propose, generators(1, range(n)), prior.schedule.grid(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_policy_is_the_prior_to_the_last_bit(kind: str) -> None:
    prior, observation = problem()
    policy = build(prior, config(kind))
    path = paths_of(prior, policy, bind(observation), 3)
    assert torch.equal(path.log_ratio, torch.zeros(3, dtype=torch.float64))
    assert paths_of(prior, shaken(policy), bind(observation), 3).log_ratio.abs().min() > 1e-3
    untouched = tiny().network.state_dict()
    assert all(torch.equal(untouched[key], v) for key, v in prior.network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_where_it_starts_if_asked(kind: str) -> None:
    prior, observation = problem()
    policy = build(prior, config(kind, guidance=1.0))
    path = paths_of(prior, policy, bind(observation), 2)
    met = path.guidance[1]
    assert met is not None and met.delta.abs().max() > 0
    assert torch.equal(policy(path.states[1], met, 1), met.delta)


def test_a_step_is_one_evaluation_of_each_network_and_no_solve() -> None:
    prior, observation = problem()
    policy = build(prior, config("full"))
    with counting(prior, observation.operator) as count:
        paths_of(prior, policy, bind(observation), 3)
    assert (count.network, count.operator) == (3 * (2 * 3 + 1), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_pass_gradient_is_the_autograd_gradient(kind: str) -> None:
    prior, observation = problem()
    policy = shaken(build(prior, config(kind)))
    likelihood, times = bind(observation), prior.schedule.grid(4)
    paths = paths_of(prior, policy, likelihood, 3)
    states = paths.states.double()
    prior.network.double()
    policy.double()
    with torch.no_grad():
        met = tuple(
            replace(g, clean=prior.denoise(states[i], times[i]))
            for i, g in enumerate(paths.guidance)
            if g is not None
        )
    wide = score_path(prior, policy, met, states, paths.final.double(), times)
    fit = likelihood.repeat(3).log_prob(prior.decode(paths.final))
    log_w = wide.log_ratio + fit
    add_gradient(prior, policy, wide, log_w - log_w.mean())
    trained = [p for p in policy.parameters() if p.requires_grad]
    two_pass = [p.grad.clone() for p in trained if p.grad is not None]

    policy.zero_grad()
    total, last = fit.clone(), None
    for i in range(3):
        t, s = times[i : i + 2]
        kernel = prior.schedule.kernel(t, s)
        clean = prior.schedule.led(met[i].clean, last, t, s)
        last = (t, met[i].clean)
        p = torch.distributions.Normal(kernel.mean(states[i], clean), kernel.variance**0.5)
        moved = clean + prior.denoise(states[i], t, policy.network) - met[i].clean  # type: ignore[arg-type]
        q = torch.distributions.Normal(kernel.mean(states[i], moved), kernel.variance**0.5)
        ratio = p.log_prob(states[i + 1]) - q.log_prob(states[i + 1])
        total = total + ratio.flatten(1).sum(1)
    torch.testing.assert_close(total.detach(), log_w)
    (total - total.mean().detach()).square().mean().backward()
    plain = [p.grad for p in trained if p.grad is not None]
    assert len(plain) == len(two_pass) > 10
    for a, b in zip(two_pass, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_equal(kind: str) -> None:
    prior, observation = problem()
    whole, first, second = (Trainer(prior, bind(observation), config(kind)) for _ in range(3))
    for trainer, stop in ((whole, 3), (first, 2)):
        while trainer.step < stop:
            trainer.advance()
    assert whole.total == 3  # no warm start
    second.load(first.state())
    second.advance()
    states = [trainer.average.state_dict() for trainer in (whole, second)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if kind == "lora":  # a checkpoint holds the adapters alone
        assert {"foresight"} == {key for key in states[0] if ".lora_" not in key}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_posterior_is_shared_by_its_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, observation = problem()
    monkeypatch.setattr(registry, "load_prior", lambda *_: tiny())
    posterior = train(observation, "tiny", config(kind))
    assert posterior.certificate is not None and posterior.certificate.gap is None
    posterior.save_pretrained(tmp_path)
    again = Posterior.from_pretrained(tmp_path)
    assert np.array_equal(again.sample(3, seed=1), posterior.sample(3, seed=1))
    assert again.policy.settings["policy"] == kind
    assert np.isfinite(again.sample(3, seed=1, correct="smc")).all()
    noisier = replace(posterior, observation=replace(observation, noise_sigma=0.3))
    noisier.save_pretrained(tmp_path)  # into the same folder
    assert Posterior.from_pretrained(tmp_path).observation.noise_sigma == 0.3
    size = sum(len(v.flatten()) for v in load_file(tmp_path / "policy.safetensors").values())
    weights = sum(p.numel() for p in prior.network.parameters())
    assert size < weights if kind == "lora" else size > weights
    for other in (lambda: posterior.on(observation), lambda: diagnose(posterior, 2, 2)):
        with pytest.raises(ObservationError, match="knows the observation"):
            other()


@pytest.mark.parametrize(("kind", "rate"), [("full", 3e-5), ("lora", 3e-3)])
def test_training_raises_the_elbo(kind: str, rate: float) -> None:
    """By more than four standard errors, on the same noise before and after."""
    prior = tiny()
    operator = SuperResolution((16, 16), factor=8)
    bright = Observation(operator, np.array([[5.0, 5.5], [4.5, 5.2]]) / 100, 0.005)
    likelihood = bind(bright)
    settings = config(kind, rtb_steps=3, paths=64, rtb_rate=rate, loss_scale=1000)
    trainer = Trainer(prior, likelihood, settings)

    def log_w() -> torch.Tensor:
        paths = paths_of(prior, trainer.policy, likelihood, 128)
        return paths.log_weight(prior, likelihood.repeat(128))

    before = log_w()
    for _ in range(3):
        trainer.advance()
    gain = log_w() - before
    assert gain.mean() > 4 * gain.std() / 128**0.5


def weights_after(steps: int) -> torch.Tensor:
    prior, observation = problem()
    trainer = Trainer(prior, bind(observation), config("full"))
    for _ in range(steps):
        trainer.advance()
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


@pytest.mark.slow
def test_two_ranks_train_the_weights_of_one_process(tmp_path: Path) -> None:
    start, alone = weights_after(0), weights_after(2)
    one, other = on_ranks(2, weights_after, tmp_path, 2)
    assert torch.equal(one, other)
    assert (one - alone).norm() < 1e-3 * (alone - start).norm()


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, observation = problem()
    several = replace(bind(observation), y=torch.zeros(2, 16, 16))
    with pytest.raises(ObservationError, match="guidance=1"):
        Trainer(prior, several, config("full"))
    Trainer(prior, several, config("full", guidance=1.0))
    with pytest.raises(UnknownName, match="Gaussian has none: use --policy guided"):
        build(GaussianPrior.default((4,)), replace(CONFIG, policy="full"))
    with pytest.raises(UnknownName, match="no policy 'fuul'"):
        replace(CONFIG, policy="fuul")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RunError, match=r'pip install "invprob\[lora\]"'):  # fault 46
        build(prior, replace(CONFIG, policy="lora"))


def test_a_policy_that_cannot_be_built_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Observation(Denoising((4,)), np.arange(4.0), 0.5).write("obs.h5")
    refused("train --obs obs.h5 --prior gaussian --policy full", 2, "Gaussian has none")
    refused("train --obs obs.h5 --prior gaussian --policy loar", 2, "no policy 'loar'")
    assert not Path("runs").exists()
