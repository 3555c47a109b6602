"""Latent priors: codes and their units, folders in diffusers layout, the autoencoder's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel

from invprob import registry
from invprob.decoded import Decoded
from invprob.latent_training import trained_coder
from invprob.likelihood import Likelihood
from invprob.prior_data import simulated
from invprob.trajectory import guide
from operators.blur import Blur
from operators.errors import ObservationError
from operators.noise import Gaussian
from priors._autoencoder import Autoencoder
from priors._autoencoder_training import AutoencoderTraining, train_autoencoder, whiten
from priors._code_covariance import CodeCovariance, _shrinkage
from priors.latent import Latent, LatentConfig
from priors.outsourced import Outsourced
from priors.random_field import RandomField
from tests.conftest import document, refused

SIZE, PATCH, SCALE = 16, 4, 0.1
COMMON: dict[str, Any] = {
    "in_channels": PATCH**2,
    "out_channels": PATCH**2,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (16,),
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": SIZE // PATCH,
    "mid_block_add_attention": False,
}


def coder(kind: type = AutoencoderKL, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(**COMMON | settings)


@pytest.fixture
def prior() -> Latent:
    return tiny()


def tiny() -> Latent:
    """A latent prior of random networks."""
    torch.manual_seed(1)
    network = UNet2DModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        add_attention=False,
    )
    autoencoder = Autoencoder(coder(scaling_factor=2.0, shift_factor=0.5), SCALE, PATCH)
    config = LatentConfig((SIZE, SIZE), scale=SCALE, patch=PATCH, unit="flux")
    bank = torch.randn(6, 3, 4, 4).half()
    log_rho = tuple(np.linspace(np.log(0.02), np.log(200), 1000))
    return Latent(autoencoder, network, config, log_rho, bank=bank)


def test_codes_are_in_diffusers_own_units(prior: Latent) -> None:
    """Decoded z is scale times vae.decode(z / scaling_factor + shift_factor), block by block."""
    z, vae = torch.randn(2, 3, 4, 4), prior.autoencoder.network
    x = prior.decode(z)
    blocks = vae.decode(z / 2 + 0.5).sample
    assert x.shape == (2, SIZE, SIZE)
    torch.testing.assert_close(x[:, ::PATCH, ::PATCH], SCALE * blocks[:, 0])
    torch.testing.assert_close(x[:, 1::PATCH, ::PATCH], SCALE * blocks[:, PATCH])
    found = vae.encode(prior.autoencoder.blocks(x)).latent_dist.mean
    torch.testing.assert_close(prior.encode(x), (found - 0.5) * 2)


def test_a_folder_gives_the_prior_back(prior: Latent, tmp_path: Path) -> None:
    prior.save(tmp_path)
    loaded = registry.load_prior(tmp_path)
    assert isinstance(loaded, Latent)
    z = torch.randn(2, *prior.z_shape)
    torch.testing.assert_close(loaded.denoise(z, 0.4), prior.denoise(z, 0.4), atol=2e-3, rtol=0)
    torch.testing.assert_close(loaded.decode(z), prior.decode(z), atol=1e-3, rtol=0)
    assert loaded.residuals == pytest.approx(prior.residuals)
    assert loaded.unit == "flux"
    drawn = loaded.draw(9, seed=1)
    assert torch.equal(drawn, prior.draw(9, seed=1))
    assert {tuple(row.flatten().tolist()) for row in drawn} == {
        tuple(row.float().flatten().tolist()) for row in prior.bank
    }


def test_a_changed_autoencoder_is_named(prior: Latent, tmp_path: Path) -> None:
    prior.save(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ObservationError, match="sha256"):
        registry.load_prior(tmp_path)


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel], ids=lambda k: k.__name__)
def test_an_autoencoder_alone_is_a_generator(kind: type, tmp_path: Path) -> None:
    extra = {"num_vq_embeddings": 32} if kind is VQModel else {}
    network = coder(kind, **extra, scaling_factor=1.0)
    made = Outsourced(Autoencoder(network, SCALE, PATCH), (3, 4, 4), steps=20, unit="flux")
    made.save(tmp_path, summary="noise")
    prior = registry.load_prior(tmp_path)
    assert isinstance(prior, Outsourced)
    assert (prior.z_shape, prior.x_shape) == ((3, 4, 4), (SIZE, SIZE))
    assert (prior.steps, prior.unit) == (20, "flux")
    z = prior.draw(2, seed=0)
    torch.testing.assert_close(prior.decode(z), made.decode(z), atol=1e-3, rtol=0)
    jacobian = Decoded(Blur((SIZE, SIZE)), prior).linearise(z)[1]
    assert float(jacobian(z).abs().max()) > 0  # a codebook lets gradients pass
    v = torch.randn(2, SIZE, SIZE)
    torch.testing.assert_close((jacobian(z) * v).sum(), (z * jacobian.adjoint(v)).sum())


def test_folders_that_cannot_be_decoded_are_refused(prior: Latent, tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match="writes 16 channels"):
        Autoencoder(coder(), SCALE, patch=2)
    prior.save(tmp_path)
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(ObservationError, match="AutoencoderTiny; needed AutoencoderKL or VQModel"):
        registry.load_prior(tmp_path)
    file.unlink()
    with pytest.raises(ObservationError, match=r"vae/config\.json"):
        registry.load_prior(tmp_path)


def test_guidance_through_the_decoder_fits_the_data(prior: Latent) -> None:
    operator, noise = Blur((SIZE, SIZE)), Gaussian(0.02)
    y = operator(prior.decode(prior.draw(1, seed=3)))
    likelihood = Likelihood(operator, noise, y)
    z, t = torch.randn(2, *prior.z_shape), 0.5
    met = guide(prior, likelihood, z, t)
    spread = prior.covariance(z, t, met.clean)
    assert callable(spread)
    unit = torch.eye(met.clean[0].numel()).view(-1, *prior.z_shape)
    covariance = spread(unit).flatten(1).double()
    torch.testing.assert_close(covariance, covariance.T)

    def objective(shift: torch.Tensor) -> torch.Tensor:
        flat = shift.double().flatten(1)
        distance = (flat * torch.linalg.solve(covariance, flat.T).T).sum(1)
        return distance / 2 - likelihood.log_prob(prior.decode(met.clean + shift))

    start, end = objective(torch.zeros_like(z)), objective(met.delta)
    assert (end < start).all()
    constant = noise.log_prob(y, y)  # the potential leaves it out
    torch.testing.assert_close(met.potential, -end - constant, rtol=1e-4, atol=1e-2)


def test_the_covariance_of_codes_is_measured() -> None:
    """Of a prior whose own is known, to the sampling error of 512 draws; few draws are shrunk."""
    known = RandomField((4, 4))
    z, t = torch.zeros(1, *known.z_shape), 0.55  # between two times of the table
    measured = CodeCovariance.fit(known)
    unit = torch.eye(16).view(16, *known.z_shape)
    found = measured.at(t)(unit).flatten(1)
    exact = known.covariance(z, t, z)
    assert callable(exact)
    truth = exact(unit).flatten(1) / known.scale**2
    assert (found - truth).norm() < 0.15 * truth.norm()
    assert measured.shrinkage[-1] < 0.5 < measured.shrinkage[0]  # white at low noise alone
    white = _shrinkage(torch.randn(20, 200, generator=torch.Generator().manual_seed(0)) / 20**0.5)
    assert white[0] > 0.9 and abs(white[1] - 1) < 0.05


def test_whitened_codes_have_unit_variance_and_the_same_images() -> None:
    autoencoder = Autoencoder(coder(scaling_factor=1.0), SCALE, PATCH)
    x = torch.from_numpy(simulated("galaxies", 64, seed=1, size=SIZE))
    before, law = autoencoder(autoencoder.encode(x)), autoencoder.network.encode
    spread = law(autoencoder.blocks(x)).latent_dist
    share = spread.std / spread.mean.std((0, 2, 3)).view(1, -1, 1, 1)
    whiten(autoencoder, x)
    codes = autoencoder.encode(x)
    torch.testing.assert_close(codes.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(codes.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(autoencoder(codes), before, atol=1e-5, rtol=1e-4)
    found = law(autoencoder.blocks(x)).latent_dist.std  # of q(z | x), in the new unit
    torch.testing.assert_close(found, share, rtol=1e-3, atol=1e-4)


def test_training_learns_galaxies_that_it_has_not_seen() -> None:
    images, unseen = (
        simulated("galaxies", 256, seed=1, size=SIZE),
        simulated("galaxies", 32, seed=2, size=SIZE),
    )
    scale = float(np.sqrt(np.square(images).mean()))
    autoencoder = Autoencoder(coder(scaling_factor=1.0), scale, PATCH)
    config = AutoencoderTraining(
        steps=90, batch=32, rate=5e-3, warmup=10, report_every=30, tolerance=0.2
    )
    reports = list(train_autoencoder(autoencoder, images, config))
    assert [step for step, _, _ in reports] == [30, 60, 90]
    assert reports[-1][1] < 0.75 * reports[0][1]
    assert all(nats > 0 for _, _, nats in reports)
    x = torch.from_numpy(unseen)
    error = (autoencoder(autoencoder.encode(x)) - x).square().mean().sqrt()
    assert float(error) < 0.65 * scale
    assert not any(p.requires_grad for p in autoencoder.parameters())


def test_an_autoencoder_is_kept_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it is written, it is trained once more, and found the next time."""
    pool, config = simulated("galaxies", 8, 0, 32), AutoencoderTraining(steps=1, batch=2)

    def killed(self: Autoencoder, folder: Path) -> None:
        (folder / "vae").mkdir(parents=True)
        (folder / "vae" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained_coder(pool, 0.1, config, tmp_path)
    assert not (tmp_path / "vae").exists()
    (tmp_path / "vae").mkdir()  # as it was left before
    first = trained_coder(pool, 0.1, config, tmp_path)
    monkeypatch.setattr("invprob.latent_training.train_autoencoder", None)  # none is trained again
    again = trained_coder(pool, 0.1, config, tmp_path)
    z = torch.randn(1, 8, 4, 4)
    assert torch.equal(first(z), again(z))
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


LATENT = (
    "prior train --data galaxies --size 32 --pool 64 --held-out 16 --steps 4 --batch 4 --bank 32"
)


@pytest.mark.slow
def test_command_trains_a_latent_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its autoencoder it goes on to the same folder; the card has its command."""
    monkeypatch.chdir(tmp_path)
    own = "--latent --set autoencoder.steps=2 --set autoencoder.batch=4"
    found = document(f"{LATENT} --out mine {own}")
    assert found["folder"] == "mine" and not found["denoising_error"]
    prior = registry.load_prior("mine")
    assert isinstance(prior, Latent)
    assert (prior.z_shape, prior.x_shape) == ((8, 4, 4), (32, 32))
    assert prior.bank is not None and prior.bank.shape == (32, 8, 4, 4)
    assert document("prior check mine")["checks"] == found["checks"]
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"{own}\n" in card and "--data galaxies" in card
    (tmp_path / "mine.training" / "ckpt.pt").unlink()
    again = document(f"{LATENT} --out again --work mine.training {own}")
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "mine" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert again["checks"] == found["checks"]
    refused(f"{LATENT} --out mine", 1, "autoencoder.steps 2, now None")


@pytest.mark.slow
def test_command_refuses_what_suits_no_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(f"{LATENT} --out new --set autoencoder.steps=2", 2, "add --latent")
    refused(f"{LATENT} --out new --latent --set autoencoder.step=2", 2, "no setting 'step'")
    small = LATENT.replace("--size 32", "--size 24")
    refused(f"{small} --out new --latent", 3, "multiple of 16")
