"""What a diffusers folder says of its network: noise levels, what is predicted, what is clipped.

    variance preserving   alpha^2 = alphas_cumprod at every timestep     (all DDPM-like schedulers)
    flow matching         z_t = (1 - sigma) z_0 + sigma eps, timestep sigma T
    EDM                   z_t = z_0 + sigma eps, timestep log(sigma) / 4     (Karras et al. 2022)

The scheduler's own class in diffusers computes its levels; which of a family samples, and with how
many steps, does not matter, since the network is trained the same. A scheduler that belongs to none
of these, or whose network does not estimate E[z_0 | z_t] (distilled ones), is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from operators.errors import ObservationError

DISTILLED = ("LCMScheduler", "TCDScheduler")  # one step is not the mean of z_0
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Levels:
    """The timesteps of a network and the logarithms of their noise ratios, both ascending."""

    timesteps: tuple[float, ...]
    log_rho: tuple[float, ...]
    prediction: str  # epsilon, v_prediction, sample, flow, or edm and edm_v
    kind: Literal["vp", "ve", "flow"] = "vp"
    clip: float | None = None  # bound of |zhat_0|
    sigma_data: float = 1.0  # of EDM's preconditioning


def levels(folder: Path) -> Levels:
    """Return the noise levels of the scheduler in `folder`/scheduler.

    Raises ObservationError on a scheduler whose alpha and sigma are not known.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name", "none"))
    if config.get("thresholding"):
        raise ObservationError(
            f'{folder}: dynamic thresholding changes with the batch: set "thresholding" to false '
            "in scheduler/scheduler_config.json"
        )
    scheduler = _scheduler(name, config, folder)
    betas = scheduler.config.get("trained_betas")
    if name == "DDPMScheduler" and betas and not scheduler.config["rescale_betas_zero_snr"]:
        kept = np.cumprod(1 - np.array(betas))  # float64, as ours are written
        return _preserving(kept, {**scheduler.config})
    prediction = str(scheduler.config.get("prediction_type", ""))
    if name.startswith("FlowMatchEuler"):
        sigma = scheduler.sigmas.double().numpy()[::-1]
        times = scheduler.timesteps.double().numpy()[::-1]
        finite = (sigma > 0) & (sigma < 1)
        log_rho = np.log(sigma[finite] / (1 - sigma[finite]))
        return Levels(tuple(times[finite]), tuple(log_rho), "flow", "flow")
    if name.startswith("EDM") and prediction in ("epsilon", "v_prediction"):
        ends = np.log([scheduler.config["sigma_min"], scheduler.config["sigma_max"]])
        prediction = "edm" if prediction == "epsilon" else "edm_v"
        own = float(scheduler.config["sigma_data"])
        return Levels(tuple(ends / 4), tuple(ends), prediction, "ve", sigma_data=own)
    cumprod = getattr(scheduler, "alphas_cumprod", None)
    continuous = scheduler.config.get("timestep_type") == "continuous"
    if cumprod is None or name in DISTILLED or continuous or prediction not in PREDICTIONS:
        raise ObservationError(
            f"{folder}: {name} with prediction {prediction or 'unknown'!r} has no alpha and sigma "
            "that this program knows; needed a DDPM-like scheduler (DDPM, DDIM, PNDM, Euler, Heun, "
            f"DPMSolver, UniPC, ...) predicting {', '.join(PREDICTIONS)}, FlowMatchEulerDiscrete "
            "or EDM"
        )
    return _preserving(cumprod.double().numpy(), {**scheduler.config})


def sample_shape(folder: Path) -> tuple[int, ...]:
    """Return the shape of what a network draws: (H, W), or (C, H, W) of several channels.

    Raises ObservationError where the network states none, or draws variances too.
    """
    settings = read_json(folder / "unet" / "config.json")
    side, channels = settings.get("sample_size"), settings.get("in_channels")
    shape = tuple(side) if isinstance(side, list) else (side, side)
    if None in shape or not channels or channels != settings.get("out_channels"):
        raise ObservationError(
            f"{folder}/unet: {channels} channels in, {settings.get('out_channels')} out, sample "
            f"size {side}; needed a size, and as many channels out as in"
        )
    return shape if channels == 1 else (int(channels), *shape)


def network_of(folder: Path) -> torch.nn.Module:
    """Return the network of a folder; nothing is downloaded and no pickle is opened.

    Raises ObservationError on one that is conditional or cannot be read.
    """
    from diffusers import UNet2DModel

    settings = read_json(folder / "unet" / "config.json")
    name = settings.get("_class_name")
    classes = settings.get("num_class_embeds") or settings.get("class_embed_type")
    if name != "UNet2DModel" or classes:
        kind = "a class-conditional one" if name == "UNet2DModel" else str(name)
        raise ObservationError(f"{folder}/unet holds {kind}; needed an unconditional UNet2DModel")
    if settings.get("time_embedding_type") == "learned":
        raise ObservationError(
            f"{folder}/unet has a learned embedding of whole timesteps; needed one that takes "
            'those in between: time_embedding_type "positional" or "fourier"'
        )
    try:
        network, found = UNet2DModel.from_pretrained(  # type: ignore[no-untyped-call]  # diffusers
            folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise ObservationError(f"{folder}/unet cannot be read ({error}): restore it") from error
    if lacking := found["missing_keys"]:  # they would keep their random starting values
        raise ObservationError(
            f"the weights of {folder}/unet lack {len(lacking)} tensors of its config, first "
            f"{lacking[0]!r}: restore it"
        )
    module: torch.nn.Module = network.float()
    return module


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raises ObservationError on a file that holds none."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ObservationError(f"{path}: not a readable JSON file ({error})") from error
    return facts


def _preserving(kept: np.ndarray[Any, Any], config: dict[str, Any]) -> Levels:
    """Return the levels of alphas_cumprod `kept`; one without any signal or noise is none.

    Nor is one of no more noise than another before it: where nothing is left of the signal, some
    schedulers put a small number.
    """
    some = np.flatnonzero((kept > 1e-12) & (kept < 1))
    log_rho = 0.5 * np.log((1 - kept[some]) / kept[some])
    above = np.diff(np.maximum.accumulate(log_rho), prepend=-np.inf) > 0
    timesteps, log_rho = some[above], log_rho[above]
    clip = float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample") else None
    prediction = config["prediction_type"]
    return Levels(tuple(map(float, timesteps)), tuple(log_rho), prediction, clip=clip)


def _scheduler(name: str, config: dict[str, Any], folder: Path) -> Any:
    from diffusers import SchedulerMixin, schedulers

    found: Any = getattr(schedulers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ObservationError(f"{folder}: diffusers has no scheduler {name!r}: update diffusers")
    try:
        cls: Any = found
        return cls.from_config(config)
    except (ImportError, TypeError, ValueError) as error:
        raise ObservationError(f"{folder}: {name} cannot be built ({error})") from error
