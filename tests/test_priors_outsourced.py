"""Outsourced priors: exact noise, guidance through any generator, users' generators and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invprob import registry
from invprob.benchmark import benchmark
from invprob.comparison import counting
from invprob.decoded import Decoded
from invprob.likelihood import Likelihood
from invprob.suites.base import Sampled
from invprob.suites.outsourced import SIGMA, Generator, OutsourcedSuite
from invprob.trajectory import guide
from operators.base import ForwardOperator
from operators.errors import NotDifferentiable, ObservationError, UnknownName
from operators.linear import Linear
from operators.noise import Gaussian
from operators.phase_retrieval import PhaseRetrieval
from priors._autoencoder import Autoencoder
from priors._code_flow import CodeFlow, FlowConfig, Flowed, FlowTraining, train_flow
from priors.outsourced import Outsourced
from tests.conftest import document, invoke, refused
from tests.test_invprob_benchmark import SMALL
from tests.test_priors_latent import PATCH, SCALE
from tests.test_priors_latent import coder as network


def perceptron(seed: int, sides: tuple[int, int, int]) -> Generator:
    """A generator from `inner` numbers to `outer`."""
    rng = np.random.default_rng(seed)
    inner, hidden, outer = sides
    return Generator(
        rng.normal(size=(hidden, inner)), rng.normal(size=hidden), rng.normal(size=(outer, hidden))
    )


def test_noise_is_standard_normal_with_its_exact_denoiser() -> None:
    prior = Outsourced(lambda z: z, (5,))
    z0 = prior.draw(2000, seed=1)
    torch.testing.assert_close(z0.T.cov(), torch.eye(5), rtol=0, atol=0.1)
    for t in (0.3, 0.45, 0.6):
        eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(2))
        z = prior.schedule.noise(z0, t, eps)
        error = (prior.denoise(z, t) - z0).square().mean()
        assert float(error) == pytest.approx(prior.covariance(z, t, z), rel=0.05)
        for factor in (0.9, 1.1):
            assert (factor * prior.denoise(z, t) - z0).square().mean() > error


def test_a_flow_takes_noise_to_codes_that_are_not_normal(tmp_path: Path) -> None:
    """To two narrow modes of unequal weight; the folder gives the same images back."""
    rng = np.random.default_rng(0)
    centres = np.where(rng.random(4096) < 0.25, -1.5, 1.0)
    mean = torch.from_numpy(centres).float().view(-1, 1, 1, 1) * torch.ones(1, 3, 4, 4)
    torch.manual_seed(0)
    flow = CodeFlow(FlowConfig((3, 4, 4), width=96, blocks=2))
    train_flow(flow, mean, torch.full_like(mean, 0.1), FlowTraining(1000, 128, 3e-3, ema=0.98))
    coder = Autoencoder(network(scaling_factor=1.0), SCALE, PATCH)
    made = Outsourced(Flowed(flow, coder), (3, 4, 4))
    with torch.no_grad():
        codes = flow(made.draw(1000, seed=0)).flatten(1)
    near = (codes.mean(1, keepdim=True) - torch.tensor([-1.5, 1.0])).abs()
    assert float((near.amin(1) < 0.3).float().mean()) > 0.9  # noise lies near 0
    assert float((near[:, 0] < near[:, 1]).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert float(codes.std(1).median()) < 0.2  # that of noise is 1
    made.save(tmp_path)
    prior = registry.load_prior(tmp_path)
    z = prior.draw(2, seed=1)
    torch.testing.assert_close(prior.decode(z), made.decode(z), atol=2e-3, rtol=0)
    weights = tmp_path / "flow" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ObservationError, match="sha256"):
        registry.load_prior(tmp_path)


def test_a_decoder_of_log_odds_draws_between_its_bounds(tmp_path: Path) -> None:
    ink, patches = network(scaling_factor=1.0), torch.randn(5, 3, 4, 4)
    odds = Autoencoder(ink, SCALE, PATCH)(patches) / SCALE
    coder = Autoencoder(ink, SCALE, PATCH, limit=0.5)
    torch.testing.assert_close(coder(patches), 0.5 * odds.sigmoid())
    made = Outsourced(coder, (3, 4, 4))
    made.save(tmp_path)
    prior = registry.load_prior(tmp_path)
    z = 30 * made.draw(5, seed=1)
    torch.testing.assert_close(prior.decode(z), made.decode(z), atol=2e-3, rtol=0)
    assert prior.decode(z).min() >= 0
    assert prior.decode(z).max() <= 0.5


@pytest.mark.parametrize(
    "operator", [Linear(np.eye(3, 9)), PhaseRetrieval((3, 3))], ids=["linear", "phase"]
)
def test_the_derivative_through_a_generator_is_that_of_the_whole(
    operator: ForwardOperator,
) -> None:
    maker, shape = perceptron(0, (4, 8, 9)), operator.x_shape
    prior = Outsourced(lambda z: maker(z).view(-1, *shape), (4,))
    whole = Decoded(operator, prior)
    draws = torch.Generator().manual_seed(0)
    z, e = (torch.randn(2, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    mean, jacobian = whole.linearise(z)
    torch.testing.assert_close(mean, operator(prior.decode(z)))
    step = 1e-6
    slope = (whole(z + step * e) - whole(z - step * e)) / (2 * step)
    torch.testing.assert_close(jacobian(e), slope, rtol=1e-6, atol=1e-7)
    v = torch.randn(mean.shape, generator=draws, dtype=torch.float64)
    forth, back = (jacobian(e) * v).sum(), (e * jacobian.adjoint(v)).sum()
    torch.testing.assert_close(forth, back, rtol=1e-12, atol=1e-12)


def test_guidance_of_a_linear_generator_is_the_posterior_of_its_noise() -> None:
    """argmin |y - G z|^2 / 2 sigma^2 + |z - zhat_0|^2 / 2 r2, in closed form, and its value."""
    problem = OutsourcedSuite().problem("linear")
    prior, operator = problem.prior, problem.likelihood.operator
    z = prior.draw(3, seed=4).double()
    y = problem.likelihood.y.double()
    t = 0.4
    met = guide(prior, replace(problem.likelihood, y=y), z, t)
    g = operator.matrix @ prior.generator.layers[0].numpy()
    clean, r2 = prior.denoise(z, t).numpy(), prior.covariance(z, t, z)
    residual = y.numpy() - clean @ g.T
    data = np.linalg.inv(r2 * g @ g.T + SIGMA**2 * np.eye(len(g)))
    np.testing.assert_allclose(met.delta, r2 * residual @ data @ g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(met.score, residual @ g / SIGMA**2, rtol=1e-6)
    value = -((residual @ data) * residual).sum(1) / 2
    np.testing.assert_allclose(met.potential, value, rtol=1e-5)


def test_an_identity_generator_is_guided_as_a_prior_with_an_inverse_is() -> None:
    """The same shift by Gauss-Newton in z as by the closed form in x."""
    operator = Linear.default((6,))
    prior = Outsourced(lambda z: z, (6,))
    z, y = prior.draw(2, seed=1), torch.ones(1, *operator.y_shape)
    likelihood = Likelihood(operator, Gaussian(0.3), y)
    through = guide(prior, likelihood, z, 0.5)
    prior.guided_in_x, prior.scale = True, 1.0
    prior.encode = prior.decode  # type: ignore[method-assign]
    direct = guide(prior, likelihood, z, 0.5)
    for name in ("clean", "delta", "score"):
        torch.testing.assert_close(
            getattr(through, name), getattr(direct, name), rtol=0.02, atol=1e-3
        )


def test_products_with_the_derivative_count_as_evaluations() -> None:
    problem = OutsourcedSuite().problem("linear")
    likelihood, prior = problem.likelihood, problem.prior
    with counting(prior, likelihood.operator) as count:
        guide(prior, likelihood, prior.draw(2, seed=0), 0.5)
    assert count.network == 2
    assert count.operator > 2 * 8  # values, and products of conjugate gradients


@pytest.mark.slow
def test_guidance_alone_gives_the_noise_of_a_linear_generator() -> None:
    problem, config = OutsourcedSuite().problem("linear"), replace(SMALL, twins=4)
    found = benchmark(problem, ("guided",), n=300, config=config)
    (row,) = found.rows
    assert row["sliced_wasserstein"] < 1.6 * (found.floor["floor"] or 0)
    assert row["log_z"] == pytest.approx(row["log_z_exact"], abs=0.15)
    assert row["elbo"] < row["log_z_exact"] < row["eubo"]


def test_rejection_agrees_with_importance_sampling_of_the_prior() -> None:
    problem = OutsourcedSuite().problem("perceptron")
    assert isinstance(problem, Sampled)
    x = problem.prior.decode(problem.prior.draw(40000, seed=5)).double()
    log_w = problem.likelihood.log_prob(x)
    assert float(log_w.logsumexp(0)) - np.log(len(x)) == pytest.approx(problem.log_z, abs=0.05)
    weights = torch.softmax(log_w, 0).numpy()
    exact = problem.sample(20000, seed=0)
    spread = exact.std(0)
    np.testing.assert_allclose((weights @ x.numpy() - exact.mean(0)) / spread, 0, atol=0.1)
    np.testing.assert_allclose(weights @ x.numpy() ** 2, (exact**2).mean(0), rtol=0.1)


@pytest.mark.slow
def test_rtb_reaches_the_noise_of_a_perceptron_to_the_floor() -> None:
    """Chosen from four times as many draws: .7 to 1.1 of the floor over four seeds."""
    config, noise = replace(SMALL, warm_steps=100, rtb_steps=20), OutsourcedSuite()
    found = benchmark(
        noise.problem("perceptron"), ("guided", "rtb"), n=300, config=config, oversample=4
    )
    rows, floor = {row["name"]: row for row in found.rows}, found.floor["floor"] or 0
    assert rows["rtb"]["sliced_wasserstein"] < 1.5 * floor
    assert rows["rtb"]["log_z"] == pytest.approx(rows["rtb"]["log_z_exact"], abs=0.15)
    assert rows["rtb_raw"]["sliced_wasserstein"] < rows["guided"]["sliced_wasserstein"]
    assert rows["rtb"]["elbo"] > rows["guided"]["elbo"]


OWN = """
import torch

def twice(z):
    return 2 * z

twice.z_shape = (3,)
net = torch.nn.Linear(4, 6)
net.z_shape = (4,)

def silent(z):
    return z

def bad(z):
    return z.sum()

bad.z_shape = (3,)

class Other:
    pass
"""


def test_a_users_generator_is_a_prior(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    prior = registry.load_prior(f"{file}:twice", (3,))
    assert (prior.z_shape, prior.x_shape) == ((3,), (3,))
    assert prior.scale == pytest.approx(2, rel=0.1)
    assert registry.load_prior(f"{file}:net").x_shape == (6,)
    with pytest.raises(ObservationError, match=r"set silent.z_shape"):
        registry.load_prior(f"{file}:silent")
    with pytest.raises(ObservationError, match=r"needed finite x of shape"):
        registry.load_prior(f"{file}:bad")
    with pytest.raises(UnknownName, match="'Other'"):  # a class, and no prior
        registry.load_prior(f"{file}:Other")
    with pytest.raises(UnknownName, match="'thrice'; did you mean 'twice'"):
        registry.load_prior(f"{file}:thrice")
    with pytest.raises(NotDifferentiable, match="no way back"):
        prior.encode(torch.zeros(1, 3))


def test_a_folder_that_names_another_module_is_refused(tmp_path: Path) -> None:
    for text in (json.dumps({"module": "os"}), "[]", "{"):
        (tmp_path / "invprob.json").write_text(text)
        with pytest.raises(ObservationError, match=r"invprob\.json"):
            registry.load_prior(tmp_path)


def test_every_item_of_a_batch_is_guided_alone() -> None:
    maker = perceptron(1, (4, 8, 5))
    prior = Outsourced(maker, (4,))
    likelihood = Likelihood(Linear(np.eye(3, 5)), Gaussian(0.3), torch.ones(1, 3))
    z = prior.draw(3, seed=2)
    many, one = guide(prior, likelihood, z, 0.5), guide(prior, likelihood, z[1:2], 0.5)
    torch.testing.assert_close(many.delta[1:2], one.delta, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_commands_use_a_users_generator(folder: Path) -> None:
    Path("mine.py").write_text(OWN)
    steps = "--warm-steps 2 --rtb-steps 1 --paths 4 --set twins=2 --set certified=8"
    own = "--prior mine.py:twice"
    invoke(f"simulate --operator linear {own} --out obs.h5")
    invoke(f"train --obs obs.h5 {own} {steps} --set bank=16 --steps 10")
    facts = document(f"sample --n 12 {own}")
    assert facts["certificate"]["eubo"] is not None
    rows = document(f"compare --baselines dps:steps=5 --n 4 {own}")["methods"]
    assert [row["name"] for row in rows] == ["rtb", "dps:steps=5"]
    refused("sample --n 4", 1, "was trained with the prior mine.py:twice, the user's own")
    refused("sample --n 4 --prior mine.py:net", 2, "not mine.py:net: leave --prior out")
