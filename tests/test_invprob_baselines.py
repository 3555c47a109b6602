"""Every baseline: improves on the prior, sample by sample, with its bias recorded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from invprob import registry
from invprob.baselines.base import Baseline
from invprob.baselines.npse import NPSE
from invprob.benchmark import benchmark
from invprob.comparison import (
    Result,
    certified,
    compare,
    counting,
    parse,
    refuse_mismatch,
    runnable,
)
from invprob.draws import Draws, batch_size, draw
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.suites.gaussian import chain_covariance
from invprob.trajectory import Propose
from operators.base import ForwardOperator
from operators.blur import Blur
from operators.denoising import Denoising
from operators.errors import NotDifferentiable, UnknownName
from operators.inpainting import Inpainting
from operators.lensing import Lensing
from operators.linear import Linear
from operators.noise import Gaussian, NoiseModel, Poisson
from operators.phase_retrieval import PhaseRetrieval
from priors.base import Prior
from priors.gaussian import Gaussian as GaussianPrior
from priors.random_field import RandomField
from tests.test_priors_latent import tiny

SETTINGS = {  # short enough to run on everything
    "cdim": "steps=8,updates=4",
    "copaint": "steps=12",
    "daps": "steps=8,flow_steps=2,langevin_steps=10",
    "dcps": "steps=12",
    "ddnm": "steps=12",
    "ddrm": "steps=12",
    "diffpir": "steps=12",
    "diffrs": "steps=12,pairs=16",
    "dps": "steps=20,zeta=0.3",
    "fk": "steps=12",
    "fps_smc": "steps=12",
    "hmc": "steps=12,leapfrogs=6",
    "latent_daps": "steps=8,langevin_steps=10",
    "latent_dps": "steps=20",
    "lgd_mc": "steps=20,zeta=0.3,draws=3",
    "map": "iterations=30",
    "mcg": "steps=15,zeta=0.3",
    "mcgdiff": "steps=12",
    "npse": "steps=12,pairs=32,updates=40,batch=32",
    "pigdm": "steps=8",
    "pnp_dm": "steps=8,flow_steps=2,langevin_steps=10",
    "psld": "steps=20",
    "red_diff": "steps=20",
    "repaint": "steps=12,jump=4,walks=2",
    "resample": "steps=12,every=2,iterations=20",
    "tds": "steps=8",
    "wiener": "steps=12",
}
OPERATORS = [
    Denoising((8, 8)),
    Blur((8, 8)),
    Inpainting((8, 8)),
    Lensing.default((8, 8)),
    PhaseRetrieval((8, 8)),
]
BIAS = {  # sliced W to the posterior of gaussian/d16, 200 samples, mean of 5 seeds; exact: 0.044
    "cdim": 0.208,
    "copaint": 0.162,
    "daps:langevin_steps=20": 0.169,
    "dcps": 0.067,
    "ddnm": 0.240,
    "diffpir": 0.339,
    "diffrs": 0.048,
    "dps": 0.163,
    "lgd_mc": 0.159,
    "mcg": 0.265,
    "npse": 0.056,
    "pigdm": 0.055,
    "pigdm:residual=guess": 0.094,
    "red_diff": 0.470,
    "fk": 0.40,
    "fps_smc": 0.19,
    "map": 0.386,
    "hmc": 0.045,
    "wiener": 0.050,
    "ddrm": 0.129,
    "tds": 0.066,
    "tds:residual=none": 0.35,
    "mcgdiff": 0.18,
}
SCATTER = {
    "tds": 0.5,
    "fk": 0.7,
    "fps_smc": 0.9,
    "mcgdiff": 0.7,
}  # seed to seed, relative; values: mean of 8 seeds
MODES = {"ddnm", "ddrm", "fps_smc", "mcgdiff"}  # methods that decompose the operator
LATENT = {"latent_daps", "latent_dps", "psld", "resample"}


class Codes(RandomField):
    """Images x = asinh 2z of a random field z, in place of what an autoencoder learns."""

    isometric = False
    guided_in_x = False

    def decode(self, z: Tensor) -> Tensor:
        return (2 * z).asinh()

    def encode(self, x: Tensor) -> Tensor:
        return x.sinh() / 2


FIELD = RandomField((8, 8))
CODES = Codes((8, 8))
SIGMA = 0.1
VIEW = Blur((8, 8))
COUNTS = Poisson(20.0, background=100.0)


def short(name: str) -> Baseline:
    return parse(f"{name}:{SETTINGS[name]}")


def home(name: str) -> Prior:
    """The prior that a method is tested on."""
    return CODES if name in LATENT else FIELD


def simulated(
    operator: ForwardOperator, noise: NoiseModel, prior: Prior = FIELD
) -> tuple[Tensor, Likelihood]:
    """One draw of the prior, and the likelihood of its data."""
    truth = prior.decode(prior.draw(1, seed=3))
    y = noise.sample(operator(truth), torch.Generator().manual_seed(0))
    return truth, Likelihood(operator, noise, y)


def samples(
    method: Baseline, prior: Prior, likelihood: Likelihood, n: int, alone: bool = False
) -> Draws:
    """Samples of a method; `alone`, its particles are not resampled."""

    def sampler(many: Likelihood) -> Propose:
        return method.propose(prior, many)

    smc = method.particles and not alone
    found = draw(prior, likelihood, sampler, method.times(prior), n, seed=0, smc=smc)
    return certified(found, seed=0)[0]


def marks(name: str) -> Any:
    """One that trains is slow."""
    return pytest.mark.slow if parse(name).needs_training else ()


def rows(names: Iterable[str]) -> list[Any]:
    """The names in order, as parameters of a test."""
    return [pytest.param(name, marks=marks(name)) for name in sorted(names)]


def claimed() -> list[Any]:
    """Every method with every operator that it does not refuse."""
    return [
        pytest.param(name, operator, marks=marks(name), id=f"{name}-{type(operator).__name__}")
        for name in sorted(SETTINGS)
        for operator in OPERATORS
        if short(name).lacks(home(name), operator, Gaussian(SIGMA, operator.data_mask)) is None
    ]


def test_every_baseline_has_a_row_here() -> None:
    assert set(registry.names("baselines")) == set(SETTINGS)


def test_each_refuses_what_its_flags_say_and_nothing_else() -> None:
    refused = {
        (name, type(operator).__name__)
        for name in SETTINGS
        for operator in OPERATORS
        if short(name).lacks(home(name), operator, Gaussian(SIGMA, operator.data_mask))
    }
    assert refused == {
        ("ddnm", "Lensing"),
        ("ddnm", "PhaseRetrieval"),
        ("ddrm", "Lensing"),
        ("ddrm", "PhaseRetrieval"),
        ("fps_smc", "Lensing"),
        ("fps_smc", "PhaseRetrieval"),
        ("cdim", "PhaseRetrieval"),
        ("mcg", "PhaseRetrieval"),
        ("mcgdiff", "Lensing"),
        ("mcgdiff", "PhaseRetrieval"),
        ("psld", "PhaseRetrieval"),
        ("npse", "PhaseRetrieval"),
        ("wiener", "PhaseRetrieval"),
        *(("repaint", kind) for kind in ("Blur", "Denoising", "Lensing", "PhaseRetrieval")),
    }
    speckled = Gaussian(SIGMA, torch.eye(8, dtype=torch.bool))
    learned = RandomField((8, 8))
    learned.learned = True  # type: ignore[misc]  # as a network is
    generator = Codes((8, 8))
    generator.has_encoder = False  # type: ignore[misc]  # as an outsourced prior has none
    for prior, noise, refused_by in (
        (FIELD, speckled, MODES | {"repaint"} | LATENT),
        (FIELD, COUNTS, MODES | {"cdim", "mcg", "repaint", "wiener"} | LATENT),
        (learned, Gaussian(1.0), {"hmc", "map", "repaint"} | LATENT),
        (CODES, Gaussian(1.0), MODES | {"cdim", "mcg", "repaint"}),
        (generator, Gaussian(1.0), MODES | {"cdim", "mcg", "repaint"} | LATENT),
    ):
        out = {name for name in SETTINGS if short(name).lacks(prior, Denoising((8, 8)), noise)}
        assert out == refused_by


@pytest.mark.parametrize(("name", "operator"), claimed())
def test_improves_on_the_prior(name: str, operator: ForwardOperator) -> None:
    prior = home(name)
    truth, likelihood = simulated(operator, Gaussian(SIGMA, operator.data_mask), prior)
    draws = samples(short(name), prior, likelihood, 100 if name == "fk" else 4)
    others = prior.decode(prior.draw(4, seed=9))
    assert draws.log_likelihood.mean() > float(likelihood.repeat(4).log_prob(others).mean())
    if operator.linear:  # phase retrieval leaves this prior's sign and half turn open
        assert np.square(draws.x - truth.numpy()).mean() < float((others - truth).square().mean())


@pytest.mark.parametrize(
    "name",
    rows(n for n in set(SETTINGS) - LATENT if not short(n).lacks(CODES, VIEW, Gaussian(SIGMA))),
)
def test_methods_for_any_prior_go_through_its_decoder(name: str) -> None:
    _, likelihood = simulated(VIEW, Gaussian(SIGMA), CODES)
    draws = samples(short(name), CODES, likelihood, 100 if name == "fk" else 4)
    before = likelihood.repeat(4).fit(CODES.decode(CODES.draw(4, seed=9)))[1]
    assert draws.chi2.mean() < float(before.mean()) / 2


@pytest.mark.parametrize(
    "text",
    [
        "ddnm:eta=2", "ddrm:eta_b=-1", "diffpir:strength=0", "diffpir:zeta=2",
        "daps:temperature=0", "dcps:blocks=0", "lgd_mc:draws=0", "copaint:jump=-1",
        "red_diff:rate=-1", "dps:zeta=nan", "repaint:jump=0", "resample:every=0", "mcgdiff:steps=2",
        "pigdm:steps=1", "diffrs:quantile=2",
    ],
)  # fmt: skip
def test_settings_that_no_chain_has_are_refused(text: str) -> None:
    with pytest.raises(UnknownName, match=text.partition(":")[2].partition("=")[0]):
        parse(text)


def test_the_guessed_residual_of_a_latent_prior_has_the_unit_of_its_codes() -> None:
    """A generator's x may have any scale, which the step is in units of; its codes have none."""
    _, likelihood = simulated(VIEW, Gaussian(SIGMA), CODES)
    other = copy.copy(CODES)
    other.scale = 100 * CODES.scale
    found = [
        samples(parse(f"lgd_mc:steps=6,residual=guess,zeta={zeta}"), prior, likelihood, 2).x
        for prior, zeta in ((CODES, 0.3), (other, 30.0))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(LATENT))
def test_latent_methods_run_on_an_autoencoder(name: str) -> None:
    prior = tiny()
    operator, noise = Blur(prior.x_shape), Gaussian(0.002)
    y = noise.sample(
        operator(prior.decode(prior.draw(1, seed=3))), torch.Generator().manual_seed(0)
    )
    likelihood = Likelihood(operator, noise, y)
    draws = samples(short(name), prior, likelihood, 2)
    blind = samples(parse("latent_dps:steps=20,zeta=0"), prior, likelihood, 2)
    assert (draws.chi2 < blind.chi2).all()


@pytest.mark.parametrize("name", rows(set(SETTINGS) - {"repaint"} - LATENT))
def test_sample_does_not_depend_on_the_batch(name: str) -> None:
    prior = GaussianPrior.default((6,))
    matrix = np.random.default_rng(0).normal(size=(3, 6))
    likelihood = Likelihood(Linear(matrix), Gaussian(0.3), torch.ones(1, 3))
    three, one = (samples(short(name), prior, likelihood, n, True).x for n in (3, 1))
    np.testing.assert_allclose(three[:1], one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(LATENT))
def test_latent_sample_does_not_depend_on_the_batch(name: str) -> None:
    _, likelihood = simulated(VIEW, Gaussian(SIGMA), CODES)
    three, one = (samples(short(name), CODES, likelihood, n).x for n in (3, 1))
    np.testing.assert_allclose(three[:1], one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", rows(n for n in SETTINGS if not short(n).lacks(FIELD, Denoising((8, 8)), COUNTS))
)
def test_noise_that_is_not_gaussian_is_fitted(name: str) -> None:
    _, likelihood = simulated(Denoising((8, 8)), COUNTS)
    before = likelihood.repeat(4).fit(FIELD.decode(FIELD.draw(4, seed=9)))[1].mean()
    draws = samples(short(name), FIELD, likelihood, 200 if name == "fk" else 4)
    assert draws.chi2.mean() < float(before) / 2


@pytest.mark.parametrize("name", ["pigdm", "tds"])  # hmc and wiener are recorded above
def test_an_exact_method_reaches_the_analytic_posterior(name: str) -> None:
    (row,), floor = scored("gaussian/d16", name, 400)
    assert row["sliced_wasserstein"] < 1.6 * floor
    assert row["log_z"] == pytest.approx(row["log_z_exact"], abs=0.15)
    assert row["elbo"] <= row["log_z"] + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fk", "fps_smc", "mcgdiff"])  # tds: above
def test_many_particles_reach_the_analytic_posterior(name: str) -> None:
    """Evidence, means and squares are right within the scatter of islands, which is small."""
    problem = registry.suite_class("gaussian")().problem("d2")
    method, islands = parse(name), 24  # of 64, five hold a fifth of the evidence
    many = islands * batch_size(problem.prior.x_shape)
    sampler = partial(method.propose, problem.prior)
    times = method.times(problem.prior)
    draws = draw(problem.prior, problem.likelihood, sampler, times, many, seed=0, smc=True)
    assert draws.island == many // islands
    log_weight = draws.log_weight.reshape(islands, -1)
    weights = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    exact = problem.sample(200_000, 1)
    x = (draws.x.reshape(islands, -1, 2) - exact.mean(0)) / exact.std(0)
    evidence = np.exp(log_weight - problem.log_z_chain).mean(1, keepdims=True)
    means, squares = (np.einsum("ij,ijk->ik", weights, power) for power in (x, x**2))
    found = np.concatenate([evidence, 1 + means, squares], 1)  # 1 is expected of all
    error = found.std(0, ddof=1) / islands**0.5
    assert (error < 0.25).all()
    assert (np.abs(found.mean(0) - 1) < 4 * error).all()


@pytest.mark.parametrize("name", ["fps_smc", "mcgdiff"])
def test_faint_modes_are_seen_where_the_noise_is_fainter(name: str) -> None:
    """x_2 is seen 2.5 times above the noise by 1/40 of the largest singular value."""
    prior, matrix = GaussianPrior(torch.zeros(2), torch.eye(2)), np.diag([1.0, 0.025])
    y = torch.tensor([[0.3, 0.026]], dtype=torch.float64)
    likelihood = Likelihood(Linear(matrix), Gaussian(0.01), y)
    x = samples(parse(f"{name}:steps=50"), prior, likelihood, 1000).x[:, 1]
    variance = 1 / (1 + 0.025**2 / 0.01**2)
    assert x.mean() == pytest.approx(variance * 0.025 * 0.026 / 0.01**2, abs=0.1)
    assert x.std() == pytest.approx(variance**0.5, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BIAS))
def test_distance_to_the_analytic_posterior_is_as_recorded(name: str) -> None:
    (row,), floor = scored("gaussian/d16", name, 200)
    assert floor == pytest.approx(0.044, rel=0.1)
    scatter = SCATTER.get(name.partition(":")[0], 0.3)  # of one seed; rounding redraws particles
    assert row["sliced_wasserstein"] == pytest.approx(BIAS[name], rel=scatter, abs=0.01)


def scored(problem: str, name: str, n: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of a benchmark, and the distance that exact draws leave."""
    suite, _, own = problem.partition("/")
    found = benchmark(registry.suite_class(suite)().problem(own), (name,), n=n)
    return found.rows, found.floor["floor"] or 0.0


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


@pytest.mark.slow
def test_an_amortised_network_is_trained_once_for_an_instrument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its training is listed apart from sampling, whose evaluations are those of the weights."""
    _, data = observation()
    name = "npse:pairs=16,updates=4,steps="
    (first,) = compare(data, baselines=(name + "6",), n=2)
    assert first.scores["network_evaluations"] == 6
    assert first.scores["operator_evaluations"] <= 100  # once for all steps, by CG
    assert first.scores["train_seconds"] and first.scores["elbo"] is not None

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(NPSE, "fit", refuse)
    other = replace(data, data=data.data + 0.1)  # other data of the same instrument
    (second,) = compare(other, baselines=(name + "8",), n=2)
    assert second.scores["train_seconds"] == first.scores["train_seconds"]
    with pytest.raises(AssertionError, match="trained again"):
        compare(replace(data, noise_sigma=0.2), baselines=(name + "6",), n=2)


@pytest.mark.slow
def test_refused_steps_bring_guided_samples_nearer_to_the_posterior() -> None:
    problem = registry.suite_class("gmm")().problem("d80_dy2_s0")
    found = benchmark(problem, ("guided", "diffrs"), n=200)
    guided, refused = (row["sliced_wasserstein"] for row in found.rows)
    assert refused < 0.7 * guided
    evaluations = [row["network_evaluations"] for row in found.rows]
    assert evaluations[0] < evaluations[1] < 2 * evaluations[0]


def test_a_twisted_step_is_weighted_by_its_density() -> None:
    """On a chain so short that single paths suffice, their weights give its evidence."""
    found = registry.suite_class("gaussian")().problem("d2")
    assert isinstance(found.prior, GaussianPrior) and isinstance(found.likelihood.operator, Linear)
    matrix, y = found.likelihood.operator.matrix, found.likelihood.y[0].numpy()
    chain = matrix @ chain_covariance(found.prior, 3) @ matrix.T + 0.2**2 * np.eye(len(y))
    draws = samples(parse("fps_smc:steps=3"), found.prior, found.likelihood, 5000, alone=True)
    log_z = np.logaddexp.reduce(draws.log_weight) - np.log(5000)
    assert log_z == pytest.approx(multivariate_normal.logpdf(y, cov=chain), abs=0.04)


def test_particles_that_share_their_ancestors_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, faint = simulated(Denoising((8, 8)), Gaussian(2.0))
    samples(parse("tds:steps=60"), FIELD, faint, 60)
    assert caplog.text == ""
    _, bright = simulated(Denoising((8, 8)), Gaussian(SIGMA))
    samples(short("fk"), FIELD, bright, 60)
    assert "share theirs" in caplog.text


def test_all_that_can_run_are_told_from_those_that_cannot() -> None:
    _, data = observation()
    able, left_out = runnable(data)
    trained = {"npse", "diffrs"}
    assert set(able) == set(SETTINGS) - {"repaint", *trained} - LATENT
    assert left_out.pop("repaint") == "repaint is for inpainting alone, this is Blur"
    for name in trained:
        assert left_out.pop(name) == f"{name} trains first: name it"
    assert left_out == {n: f"{n} needs a latent prior, this one is of x itself" for n in LATENT}
    able, left_out = runnable(replace(data, operator=Blur((16, 16), border="zero")))
    assert set(able) | set(left_out) == set(SETTINGS)
    assert left_out["ddnm"] == "ddnm needs a singular value decomposition, Blur has no cheap one"


def test_products_that_autograd_takes_are_counted() -> None:
    """Of A that is not linear as of one that is: one evaluation and one product a step."""
    counts = []
    for operator in (VIEW, PhaseRetrieval((8, 8))):
        _, likelihood = simulated(operator, Gaussian(SIGMA))
        with counting(FIELD, operator) as count:
            samples(short("dps"), FIELD, likelihood, 2)
        counts.append(count.operator)
        with counting(FIELD, operator) as count:
            likelihood.score(torch.ones(3, 8, 8))
        assert count.operator == 6
    assert counts[0] == counts[1] > 0


def test_counting_leaves_no_trace() -> None:
    prior, data = observation()
    with counting(prior, data.operator) as count:
        data.operator(torch.zeros(5, 16, 16))
        prior.denoise(torch.zeros(2, 16, 16), 0.5)
    data.operator(torch.zeros(5, 16, 16))
    assert (count.operator, count.network) == (5, 2)
    assert "denoise" not in vars(prior)


@pytest.mark.parametrize(
    "text", ["dsp", "dps:zeat=1", "dps:zeta=high", "dps:steps=1", "map:steps=-3"]
)
def test_unknown_methods_and_settings_are_named(text: str) -> None:
    with pytest.raises(UnknownName):
        parse(text)


def test_a_mismatch_is_refused() -> None:
    class Opaque(Denoising):
        differentiable = False

    with pytest.raises(NotDifferentiable, match="needs a gradient"):
        refuse_mismatch("dps", parse("dps"), FIELD, Opaque((8, 8)), Gaussian(1.0))
