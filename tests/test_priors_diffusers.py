"""Folders that diffusers itself saved: the same levels, the same samples, clear refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import document, invoke
from torch import Tensor

from invprob.registry import load_prior
from operators.errors import ObservationError
from priors._diffusers import levels
from priors.pixel import Pixel

DDPM_LIKE = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
STEPS = 8


def unet(channels: int = 1, **changed: Any) -> Any:
    torch.manual_seed(0)
    made = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        add_attention=False,
        **changed,
    )
    return made.eval()


def saved(folder: Path, scheduler: Any, network: Any = None) -> Path:
    """Save a pipeline as diffusers does."""
    network = unet() if network is None else network
    diffusers.DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return folder


def times(prior: Pixel, timesteps: Tensor) -> list[float]:
    """Return the times at which a prior's network sees these timesteps."""
    log_rho = np.interp(timesteps.double().numpy(), prior.timesteps, prior.log_rho)
    low, high = np.log(prior.schedule.rho_min), np.log(prior.schedule.rho_max)
    return ((log_rho - low) / (high - low)).tolist()


def walked(prior: Pixel, z: Tensor, timesteps: Tensor, noises: list[Tensor] | None) -> Tensor:
    """Return z_0 of our kernels along diffusers' timesteps, with its noises or without any."""
    grid = times(prior, timesteps)
    for i, (t, s) in enumerate(pairwise(grid)):
        kernel = prior.schedule.kernel(t, s, 0.0 if noises is None else 1.0)
        z = kernel.mean(z, prior.denoise(z, t))
        if noises is not None:
            z = z + kernel.variance**0.5 * noises[i]
    return prior.denoise(z, grid[-1])


def theirs(scheduler: Any, network: Any, z: Tensor, **given: Any) -> Tensor:
    """Return the sample of diffusers' own loop."""
    scaled = getattr(scheduler, "scale_model_input", lambda z, t: z)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(scaled(z, t), t.expand(len(z))).sample
            z = scheduler.step(output, t, z, **given).prev_sample
    return z


def assert_same(ours: Tensor, other: Tensor) -> None:
    """Samples of untrained networks are large: compared to their size."""
    assert float((ours - other).abs().max() / other.abs().max()) < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_ddim_samples_are_reproduced(prediction: str, betas: str, tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, beta_schedule=betas, clip_sample=False
    )
    prior = load_prior(saved(tmp_path, scheduler))
    assert isinstance(prior, Pixel) and prior.x_shape == (8, 8)
    scheduler.set_timesteps(STEPS)
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert_same(walked(prior, z, scheduler.timesteps, None), theirs(scheduler, unet(), z))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_samples_are_reproduced(prediction: str, clip: bool, tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=clip)
    prior = load_prior(saved(tmp_path, scheduler))
    scheduler.set_timesteps(STEPS)
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    source = torch.Generator().manual_seed(2)
    noises = [torch.randn(z.shape, generator=source) for _ in range(STEPS - 1)]
    other = theirs(scheduler, unet(), z, generator=torch.Generator().manual_seed(2))
    assert_same(walked(prior, z, scheduler.timesteps, noises), other)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.EDMEulerScheduler(),
        diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0),
    ],
    ids=["flow", "shifted flow", "edm", "edm v"],
)
def test_euler_samples_are_reproduced(scheduler: Any, tmp_path: Path) -> None:
    prior = load_prior(saved(tmp_path, scheduler))
    scheduler.set_timesteps(STEPS)
    flow = prior.schedule.kind == "flow"
    if flow:  # the first level, sigma = 1, holds no signal, and no finite noise ratio
        scheduler.set_timesteps(sigmas=np.linspace(0.99, 0.02, STEPS).tolist())
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    z = z * (1.0 if flow else scheduler.sigmas[0])
    assert_same(walked(prior, z, scheduler.timesteps, None), theirs(scheduler, unet(), z))


@pytest.mark.parametrize("name", DDPM_LIKE)
def test_every_sampler_of_a_network_states_its_levels(name: str, tmp_path: Path) -> None:
    base = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction",
        beta_start=0.00085, beta_end=0.012,
    )  # fmt: skip
    getattr(diffusers, name).from_config(base.config).save_pretrained(tmp_path / "scheduler")
    found, kept = levels(tmp_path), base.alphas_cumprod.double().numpy()
    assert found.prediction == "v_prediction" and found.kind == "vp"
    np.testing.assert_allclose(found.log_rho, 0.5 * np.log((1 - kept) / kept), rtol=1e-4)


def test_a_schedule_that_ends_without_signal_ends_one_step_before(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert len(levels(tmp_path).log_rho) == 999


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)  # fmt: skip
def test_levels_ascend_where_no_signal_is_called_a_little(name: str, tmp_path: Path) -> None:
    """These put 2^-24 for 0, less noise than the level before has."""
    write_scheduler(tmp_path, name, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = levels(tmp_path)
    assert len(found.timesteps) == 999 and np.diff(found.log_rho).min() > 0


@pytest.mark.parametrize("zero", [False, True])
def test_betas_in_a_list_have_the_scheduler_s_other_settings(zero: bool, tmp_path: Path) -> None:
    betas = np.linspace(1e-4, 0.02, 1000).tolist()
    write_scheduler(tmp_path, "DDPMScheduler", trained_betas=betas, rescale_betas_zero_snr=zero)
    found = levels(tmp_path)
    kept = diffusers.DDPMScheduler(rescale_betas_zero_snr=zero).alphas_cumprod.double().numpy()
    kept = kept[kept > 0]
    assert len(found.log_rho) == (999 if zero else 1000)
    np.testing.assert_allclose(found.log_rho, 0.5 * np.log((1 - kept) / kept), rtol=1e-3, atol=1e-3)
    assert found.prediction == "epsilon" and found.clip == 1  # diffusers' defaults


def write_scheduler(folder: Path, name: str, **settings: Any) -> None:
    (folder / "scheduler").mkdir()
    facts = {"_class_name": name, **settings}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("folder", ["vae", "vqvae"])
def test_samples_of_a_latent_pipeline_are_reproduced(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes by the same levels, images by the autoencoder in its own units."""
    kind: Any = diffusers.AutoencoderKL if folder == "vae" else diffusers.VQModel
    own: dict[str, Any] = {"shift_factor": 0.3} if folder == "vae" else {"num_vq_embeddings": 16}
    torch.manual_seed(1)
    coder = kind(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, scaling_factor=0.7, **own,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    saved(tmp_path, scheduler, unet(3))
    coder.save_pretrained(tmp_path / folder)
    prior = load_prior(tmp_path)
    assert (prior.z_shape, prior.x_shape) == ((3, 8, 8), (16, 16))
    scheduler.set_timesteps(STEPS)
    z = torch.randn(2, 3, 8, 8)
    ours = walked(prior, z, scheduler.timesteps, None)
    other = theirs(scheduler, unet(3), z)
    assert_same(ours, other)
    with torch.no_grad():
        images = coder.decode(other / 0.7 + own.get("shift_factor", 0.0)).sample[:, 0]
    assert_same(prior.decode(other), images)
    monkeypatch.setattr("invprob.prior_training.FIRST", 4)
    prior.steps = 3
    assert prior.draw(6, seed=0).shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("missing", "is missing"), ("pickle", "is a pickle"), ("short", "cannot be read"),
     ("tensor", r"quant_conv\.bias"), ("unet", r"unet.*is missing")],
)  # fmt: skip
def test_fault_23_a_damaged_autoencoder_is_named(fault: str, said: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, diffusers.DDIMScheduler(), unet(3))
    coder = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=3, norm_num_groups=4, block_out_channels=(8,)
    )
    coder.save_pretrained(tmp_path / "vae")
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    if fault == "missing":
        weights.unlink()
    elif fault == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif fault == "short":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif fault == "tensor":
        tensors = load_file(weights)
        del tensors["quant_conv.bias"]
        save_file(tensors, weights, {"format": "pt"})
    else:
        (tmp_path / "unet" / weights.name).unlink()
    with pytest.raises(ObservationError, match=said) as raised:
        load_prior(tmp_path)
    assert weights.name.partition(".")[0] in str(raised.value)


def test_a_latent_pipeline_of_colours_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, diffusers.DDIMScheduler(), unet(3))
    coder = diffusers.AutoencoderKL(latent_channels=3, norm_num_groups=4, block_out_channels=(8,))
    coder.save_pretrained(tmp_path / "vae")
    with pytest.raises(ObservationError, match="writes 3 channels; an image of one channel"):
        load_prior(tmp_path)


def test_channels_come_first(tmp_path: Path) -> None:
    prior = load_prior(saved(tmp_path, diffusers.DDPMScheduler(), unet(3)))
    assert prior.x_shape == prior.z_shape == (3, 8, 8)
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(prior.decode(z), z) and torch.equal(prior.encode(prior.decode(z)), z)
    assert prior.denoise(z, 0.5).abs().max() <= 1  # DDPM's clip_sample


def test_a_folder_without_draws_makes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invprob.prior_training.FIRST", 4)
    folder = saved(tmp_path / "mine", diffusers.DDPMScheduler())
    one, two = load_prior(folder), load_prior(folder)
    one.steps = two.steps = 3
    draws = one.draw(4, seed=0)
    assert draws.shape == (4, 1, 8, 8) and torch.equal(draws, two.draw(4, seed=0))
    with pytest.raises(ObservationError, match=r"no bank\.safetensors"):
        Pixel.load(folder).draw(1, seed=0)
    monkeypatch.chdir(tmp_path)
    assert document("inspect mine")["network"] == "UNet2DModel"
    assert "x 8 x 8" in invoke("simulate --operator denoising --prior mine/").stdout


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "no alpha and sigma"),
        ("scheduler/scheduler_config.json", {"_class_name": "SCMScheduler"}, "no alpha and sigma"),
        ("scheduler/scheduler_config.json", {"_class_name": "os.system"}, "no scheduler"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'flow'"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "unconditional"),
        ("unet/config.json", {"num_class_embeds": 10}, "class-conditional"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class-conditional"),
        ("unet/config.json", {"time_embedding_type": "learned"}, "whole timesteps"),
        ("unet/config.json", {"out_channels": 2}, "as many channels out"),
        ("unet/config.json", {"sample_size": None}, "needed a size"),
        ("unet/config.json", {"block_out_channels": [8, 16]}, "cannot be read"),
    ],
)
def test_what_is_no_prior_is_refused(
    file: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    saved(tmp_path, diffusers.DDPMScheduler())
    changed(tmp_path, file, **values)
    with pytest.raises(ObservationError, match=said):
        load_prior(tmp_path)


def test_fault_25_a_missing_tensor_is_told(tmp_path: Path) -> None:
    """diffusers itself would only warn, and fill in random weights."""
    from safetensors.torch import load_file, save_file

    saved(tmp_path, diffusers.DDPMScheduler())
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_out.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ObservationError, match=r"lack 1 tensors .*conv_out\.weight"):
        load_prior(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-8])  # fault_23
    with pytest.raises(ObservationError, match="cannot be read"):
        load_prior(tmp_path)


def test_fault_21_a_pickle_and_a_missing_scheduler_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, diffusers.DDPMScheduler())
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ObservationError, match="pickle"):
        load_prior(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ObservationError, match=r"scheduler_config\.json"):
        load_prior(tmp_path)
