"""The pixel prior: units, patches, files, its measured residual model, its training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from operators._conjugate_gradients import conjugate_gradients
from operators.errors import ObservationError
from priors._folder import WEIGHTS
from priors._residual_model import ResidualModel
from priors.base import Bounded
from priors.pixel import Pixel, PixelConfig
from priors.process import Schedule
from priors.random_field import RandomField
from priors.training import Training, dihedral, train

STAGES = 2


def network() -> torch.nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    made: torch.nn.Module = UNet2DModel(
        sample_size=4,
        in_channels=16,
        out_channels=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * STAGES,
        up_block_types=("UpBlock2D",) * STAGES,
        norm_num_groups=4,
        add_attention=False,
    )
    return made


@pytest.fixture(scope="module")
def prior() -> Pixel:
    log_rho = tuple(np.linspace(np.log(0.02), np.log(200), 1000))
    bank = torch.from_numpy(np.random.default_rng(0).gamma(1.0, 0.1, (8, 16, 16))).half()
    config = PixelConfig((16, 16), scale=0.1, patch=4, unit="flux")
    return Pixel(network(), config, log_rho, bank=bank)


def test_space_to_depth_is_orthogonal_up_to_scale(prior: Pixel) -> None:
    x = torch.randn(2, 16, 16)
    z = prior.encode(x)
    assert z.shape == (2, *prior.z_shape)
    torch.testing.assert_close(prior.decode(z), x)
    torch.testing.assert_close(z.square().sum() * prior.scale**2, x.square().sum())


def test_the_tangent_is_the_derivative_of_the_denoiser(prior: Pixel) -> None:
    model = ResidualModel((1e-3, 1e-3), (0.1, 0.1), ((0.0,) * 10,) * 2)
    config = replace(prior.config, residual_model=model, tangent_below=0.4)
    ours = Pixel(network(), config, prior.log_rho)
    low, high = (0.3 + 0.4 * i for i in range(2))  # rho = 0.32 and 12.6
    z, u = torch.randn(2, *ours.z_shape), torch.randn(2, 16, 16)

    def found(t: float) -> Bounded:
        covariance = ours.covariance(z, t, ours.denoise(z, t))
        assert isinstance(covariance, Bounded)
        return covariance

    with torch.no_grad():
        tangent = found(low).tangent
        assert tangent is not None and found(high).tangent is None
        moved = tangent(u)
        torch.testing.assert_close(tangent(torch.zeros_like(u)), torch.zeros_like(u))
    direction = ours.pull(z, u)
    _, exact = torch.autograd.functional.jvp(lambda a: ours.denoise(a, low), z, direction)
    factor = ours.schedule.sigma(low) ** 2 / ours.schedule.alpha(low)
    expected = ours.decode(factor * exact)
    error = (moved - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert float(error.max()) < 0.01
    ours.precision = torch.bfloat16
    assert found(low).tangent is None


def test_half_precision_is_of_the_network_alone() -> None:
    config = PixelConfig((16, 16), scale=0.1, patch=4)
    ours, z = Pixel(network(), config, (-4.0, 5.0)), torch.randn(2, 16, 4, 4)
    full = ours.denoise(z, 0.5)
    rough = ours.to("cpu", "bfloat16").denoise(z, 0.5)
    assert rough.dtype == full.dtype == torch.float32
    assert 0 < (rough - full).abs().max() < 0.05
    assert torch.equal(ours.to("cpu").denoise(z, 0.5), full)


def test_v_prediction_inverts_its_target(prior: Pixel) -> None:
    """With v = alpha eps - sigma z_0, the clean estimate is z_0 itself."""
    z0, eps = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    t = 0.5
    alpha, sigma = prior.schedule.alpha(t), prior.schedule.sigma(t)

    class Exact(torch.nn.Module):
        def forward(self, z: torch.Tensor, step: torch.Tensor) -> object:
            return type("Output", (), {"sample": alpha * eps - sigma * z0})()

    exact = Pixel(Exact(), prior.config, prior.log_rho)
    torch.testing.assert_close(exact.denoise(prior.schedule.noise(z0, t, eps), t), z0)


def test_timesteps_follow_the_noise_ratio(prior: Pixel) -> None:
    assert prior.timestep(1.0) == pytest.approx(999)
    assert prior.timestep(0.0) == pytest.approx(0)
    narrow = replace(prior.config, rho_min=2.0, rho_max=20.0)
    other = Pixel(prior.network, narrow, prior.log_rho)
    expected = np.interp(np.log(2.0), prior.log_rho, np.arange(1000))
    assert other.timestep(0.0) == pytest.approx(expected)


def test_save_and_load_give_the_same_denoiser(prior: Pixel, tmp_path: Path) -> None:
    prior.save(tmp_path)
    loaded = Pixel.load(tmp_path)
    z = torch.randn(2, *prior.z_shape)
    torch.testing.assert_close(loaded.denoise(z, 0.4), prior.denoise(z, 0.4), atol=2e-3, rtol=0)
    assert loaded.residuals == pytest.approx(prior.residuals)
    assert torch.equal(loaded.draw(4, seed=1), prior.draw(4, seed=1))
    again = tmp_path / "again"
    loaded.save(again)
    assert (again / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


@pytest.mark.parametrize("unit", [1e-9, 1e-5, 1.0, 3e4])
def test_a_bank_is_kept_in_any_unit(prior: Pixel, unit: float, tmp_path: Path) -> None:
    """Half precision where it holds the draws, as in folders of before; else single."""
    assert prior.bank is not None
    bank = prior.bank.float() * 10 * unit
    config = replace(prior.config, scale=unit)
    ours = Pixel(prior.network, config, prior.log_rho, bank=bank)
    ours.save(tmp_path)
    loaded = Pixel.load(tmp_path)
    assert loaded.bank is not None
    assert loaded.bank.dtype == (torch.float16 if unit == 1 else torch.float32)
    draws, expected = loaded.draw(8, seed=1), ours.draw(8, seed=1)
    assert float((draws - expected).abs().max() / expected.abs().max()) < 1e-3
    again = tmp_path / "again"
    loaded.save(again)
    assert torch.equal(Pixel.load(again).draw(8, seed=1), draws)


@pytest.mark.parametrize("name", [WEIGHTS, "bank.safetensors"])
def test_fault_24_a_flipped_bit_is_named(prior: Pixel, tmp_path: Path, name: str) -> None:
    prior.save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ObservationError, match="sha256"):
        Pixel.load(tmp_path)


def test_fault_25_newer_format_names_both_versions(prior: Pixel, tmp_path: Path) -> None:
    prior.save(tmp_path)
    facts = json.loads((tmp_path / "invprob.json").read_text())
    (tmp_path / "invprob.json").write_text(json.dumps(facts | {"version": 9}))
    with pytest.raises(ObservationError, match=r"version 9.*reads 1"):
        Pixel.load(tmp_path)


def test_diffusers_scheduler_has_the_same_noise_levels(prior: Pixel, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    prior.save(tmp_path)
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    alpha = scheduler.alphas_cumprod.double().sqrt()
    mine = [prior.schedule.alpha(i / 999) for i in (0, 300, 999)]
    torch.testing.assert_close(
        alpha[[0, 300, 999]], torch.tensor(mine, dtype=torch.float64), rtol=2e-3, atol=1e-6
    )


def test_residual_model_recovers_a_known_covariance() -> None:
    """On a stationary Gaussian field the measured covariance is the exact one."""
    field = RandomField((32, 32))
    model = ResidualModel.fit(field, seed=0)
    u = field.draw(64, seed=9)
    for t in (0.3, 0.6):
        z = field.draw(64, seed=5)
        clean = field.denoise(z, t)
        exact, limit = field.covariance(z, t, clean)(u), field.schedule.rho(t) ** 2
        spread = model.spread(t, clean, limit)
        wide = conjugate_gradients(lambda p, s=spread, c=limit: p + s(p) / c, u, 500, 1e-6)
        found = spread(wide)  # (S^-1 + I / limit)^-1 u
        assert float((found - exact).norm() / exact.norm()) < 0.35


def test_dihedral_covers_the_symmetries_of_the_square() -> None:
    image = torch.arange(9.0).view(1, 3, 3).repeat(8, 1, 1)
    turned = dihedral(image, torch.arange(8))
    assert len({tuple(x.flatten().tolist()) for x in turned}) == 8


def test_training_resumes_bit_by_bit(prior: Pixel, tmp_path: Path) -> None:
    images = np.random.default_rng(0).gamma(1.0, 0.1, (16, 16, 16)).astype(np.float32)

    def run(path: Path, stop: int) -> dict[str, torch.Tensor]:
        config = Training(steps=6, batch=4, checkpoint_every=2)
        steps = train(network(), prior.encode, images, Schedule(), config, path)
        return {step: average for step, _, average in steps if step <= stop}.popitem()[1]

    whole = run(tmp_path / "a.pt", 6)
    halfway = train(
        network(), prior.encode, images, Schedule(), Training(steps=6, batch=4, checkpoint_every=2),
        tmp_path / "b.pt",
    )  # fmt: skip
    next(halfway)
    resumed = run(tmp_path / "b.pt", 6)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
