"""Pixel diffusion prior: a diffusers UNet2DModel on images, or on their space-to-depth blocks.

    v-prediction   zhat_0 = alpha z_t - sigma F(z_t)       (Salimans & Ho 2022, arXiv 2202.00512)
    epsilon        zhat_0 = (z_t - sigma F(z_t)) / alpha   (Ho et al. 2020, arXiv 2006.11239)
    sample         zhat_0 = F(z_t)
    flow           zhat_0 = z_t - sigma F(z_t)             (Lipman et al. 2023, arXiv 2210.02747)
    edm            zhat_0 = (d^2 z_t +- sigma d s F(z_t / s)) / s^2,  s^2 = sigma^2 + d^2
                                                           (Karras et al. 2022, arXiv 2206.00364)

A folder in diffusers layout (`unet/`, `scheduler/`) with `invprob.json` (units, measured residual
variances) and `bank.safetensors` (draws of the chain). One that diffusers itself has saved lacks
these two: its x are the network's own values, mostly -1 to 1. Blocks of p x p pixels become p^2
channels: an orthogonal map, so a 64x64 prior with p = 4 costs what a 16x16 one does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from operators.errors import ObservationError
from priors._diffusers import PREDICTIONS as SCHEDULED
from priors._diffusers import Levels, levels, network_of, sample_shape
from priors._folder import FORMAT_VERSION, intact_weights, read_facts, readable, weights_digest
from priors._residual_model import ResidualModel
from priors.base import Bounded, Covariance, Prior
from priors.process import Schedule
from priors.training import dihedral

# prediction -> (scale of the network's input, share of z_t, share of its output) in zhat_0
PREDICTIONS: dict[str, Callable[[float, float, float], tuple[float, float, float]]] = {
    "v_prediction": lambda alpha, sigma, _: (1.0, alpha, -sigma),
    "epsilon": lambda alpha, sigma, _: (1.0, 1 / alpha, -sigma / alpha),
    "sample": lambda alpha, sigma, _: (1.0, 0.0, 1.0),
    "flow": lambda alpha, sigma, _: (1.0, 1.0, -sigma),
    "edm": lambda _, sigma, d: _edm(sigma, d, 1.0),
    "edm_v": lambda _, sigma, d: _edm(sigma, d, -1.0),
}

BANK = "bank.safetensors"


@dataclass(frozen=True)
class PixelConfig:
    """What `invprob.json` holds besides the networks."""

    x_shape: tuple[int, ...]  # (H, W), or (C, H, W) of several channels
    scale: float  # x per unit z
    patch: int = 1  # side of the space-to-depth block, px
    steps: int = 100
    rho_min: float = 0.02
    rho_max: float = 200.0
    kind: Literal["vp", "ve", "flow"] = "vp"
    clip: float | None = None  # bound of |zhat_0|, for networks that were sampled with one
    sigma_data: float = 1.0  # d of EDM's preconditioning
    unit: str = ""
    summary: str = ""
    turns: bool = True  # draws turned by right angles and flipped are as likely as they were
    residuals: tuple[float, ...] = ()  # E|z_0 - zhat_0|^2 / d on even times
    residual_model: ResidualModel | None = None
    tangent_below: float = 0.4  # noise ratio below which the network's derivative is better still
    sha256: str = ""  # of the weights files, one after another
    bank_sha256: str = ""  # of the file of draws, where it is known
    version: int = FORMAT_VERSION
    module: str = "pixel"  # of `priors/`, which reads the folder


class Pixel(Prior):
    """A trained image prior over x (H, W) or (C, H, W); states z are (C p^2, H/p, W/p)."""

    summary = "diffusion prior on pixels (diffusers UNet2DModel)"
    learned = True
    chain: Callable[[Pixel], Tensor] | None = None  # draws a bank, where none is stored

    def __init__(
        self,
        network: torch.nn.Module,
        config: PixelConfig,
        log_rho: tuple[float, ...],
        prediction: str = "v_prediction",
        bank: Tensor | None = None,
        timesteps: tuple[float, ...] | None = None,
    ) -> None:
        """Wrap `network`, trained at noise ratios exp(`log_rho`) and `timesteps`, else 0, 1, ..."""
        if prediction not in PREDICTIONS:
            raise ObservationError(
                f"prediction type must be one of {', '.join(PREDICTIONS)}, found {prediction!r}"
            )
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.log_rho, self.prediction, self.bank = config, log_rho, prediction, bank
        self.timesteps = timesteps or tuple(map(float, range(len(log_rho))))
        *channels, height, width = config.x_shape
        self.channels, p = math.prod(channels), config.patch
        self.x_shape = config.x_shape
        self.z_shape = (self.channels * p * p, height // p, width // p)
        self.scale, self.steps, self.unit = config.scale, config.steps, config.unit
        self.schedule = Schedule(config.rho_min, config.rho_max, config.kind)
        if config.residuals:
            self.residuals = config.residuals

    def timestep(self, t: float) -> float:
        """Return the network's (fractional) timestep at time t, by its noise ratio."""
        return float(np.interp(np.log(self.schedule.rho(t)), self.log_rho, self.timesteps))

    def denoise(self, z: Tensor, t: float, network: torch.nn.Module | None = None) -> Tensor:
        """Return the estimate of E[z_0 | z_t = z], shape (B, *z_shape).

        It is that of the prior's network, or of another `network` of the same kind.
        """
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        step = torch.full((len(z),), self.timestep(t), dtype=z.dtype, device=z.device)
        scale, skip, out = PREDICTIONS[self.prediction](alpha, sigma, self.config.sigma_data)
        with torch.autocast(z.device.type, self.precision, enabled=self.precision != torch.float32):
            output: Tensor = (network or self.network)(scale * z, step).sample
        clean = skip * z + out * output.to(z.dtype)
        return (
            clean if self.config.clip is None else clean.clamp(-self.config.clip, self.config.clip)
        )

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Covariance:
        """Return the measured Cov(x | z_t = z); isotropic where none has been measured.

        At low noise its tangent is sigma^2 / alpha times the derivative of the denoiser, which is
        Cov(z_0 | z_t) if that is E[z_0 | z_t] (Efron 2011, doi:10.1198/jasa.2011.tm11181).
        """
        model = self.config.residual_model
        if model is None:
            return super().covariance(z, t, clean)
        limit = self.schedule.rho(t) ** 2
        apply = model.spread(t, self.decode(clean) / self.scale, limit)
        sigma = self.schedule.sigma(t)

        def tangent(u: Tensor) -> Tensor:
            tilt = sigma**2 / self.schedule.alpha(t) * self.pull(clean, u)
            # a difference over sigma: the width of what the state knows
            norm = torch.linalg.vector_norm(tilt.flatten(1), dim=1).view(-1, 1, 1, 1)
            step = sigma / norm.clamp(min=torch.finfo(norm.dtype).tiny)
            return self.decode((self.denoise(z + step * tilt, t) - clean) / step)

        # half precision would drown the difference
        fine = self.precision == torch.float32 and self.schedule.rho(t) < self.config.tangent_below
        return Bounded(
            lambda u: self.scale**2 * apply(u), self.scale**2 * limit, tangent if fine else None
        )

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, *x_shape) in physical units of z (B, *z_shape)."""
        images = pixel_shuffle(z, self.config.patch)
        return self.scale * images.reshape(len(z), *self.x_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, *z_shape) of images x (B, *x_shape)."""
        images = x.reshape(len(x), self.channels, *self.x_shape[-2:])
        return pixel_unshuffle(images / self.scale, self.config.patch)

    def banked(self, z: Tensor) -> Tensor:
        """Return what the bank keeps of draws z (B, *z_shape): here images, to be turned."""
        return self.decode(z)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n draws of z_0 from the bank, turned and flipped where that may be."""
        bank, rng = self._stored(), np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(bank)) for _ in range(-(-n // len(bank)))])[:n]
        images = bank[torch.from_numpy(order)].float()
        turns = torch.from_numpy(rng.integers(8, size=n))
        return self.encode(dihedral(images, turns) if self.config.turns else images)

    def _stored(self) -> Tensor:
        """Return the bank; a folder without one gets it from `chain` now.

        Raises ObservationError where there is neither.
        """
        if self.bank is None and self.chain is None:
            raise ObservationError("this prior folder has no bank.safetensors to draw from")
        if self.bank is None and self.chain is not None:
            self.bank = self.chain(self).to(self.device)
        assert self.bank is not None
        return self.bank

    def save(self, folder: Path) -> None:
        """Write the prior folder: half-precision weights, scheduler, invprob.json, bank.

        Raises ObservationError on a network that is not of the kind trained here, a DDPM-like one.
        """
        if self.prediction not in SCHEDULED:
            raise ObservationError(f"{self.prediction} networks are read, not written: copy them")
        from diffusers import DDPMScheduler
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        self.network.half().save_pretrained(folder / "unet")  # type: ignore[operator]
        self.network.float()
        kept = 1 / (1 + np.exp(2 * np.array(self.log_rho)))  # alpha^2 at every timestep
        betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
        scheduler: Any = DDPMScheduler(  # type: ignore[no-untyped-call]  # diffusers
            num_train_timesteps=len(betas),
            trained_betas=betas.tolist(),
            prediction_type=self.prediction,
            clip_sample=False,
        )
        scheduler.save_pretrained(folder / "scheduler")
        bank = b"" if self.bank is None else save({"x": compact(self.bank).contiguous()})
        if bank:
            (folder / BANK).write_bytes(bank)
        readable(folder)
        facts = asdict(self.config) | {
            "residuals": list(self.residuals),
            "sha256": weights_digest(folder),
            "bank_sha256": hashlib.sha256(bank).hexdigest() if bank else "",
        }
        (folder / "invprob.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Pixel:
        """Read a prior folder, or any folder that diffusers saved an unconditional UNet2DModel in.

        Raises ObservationError naming what is missing, corrupt or of another kind.
        """
        facts, *network = cls._parts(folder)
        return cls(network[0], PixelConfig(**facts), *network[1:])

    @staticmethod
    def _parts(folder: Path) -> tuple[dict[str, Any], Any, *tuple[Any, ...]]:
        """Return the facts of a folder, and what `__init__` takes besides them."""
        facts = read_facts(folder) if (folder / "invprob.json").exists() else None
        found = levels(folder)
        facts = facts or _foreign(folder, found)
        if table := facts.get("residual_model"):
            spectrum = tuple(map(tuple, table["log_spectrum"]))
            facts["residual_model"] = ResidualModel(
                tuple(table["floor"]), tuple(table["slope"]), spectrum
            )
        bank = _stored_draws(folder / BANK, facts.get("bank_sha256", ""))
        network = network_of(folder)
        return facts, network, found.log_rho, found.prediction, bank, found.timesteps


def compact(draws: Tensor) -> Tensor:
    """Return draws in half precision where their unit lets it hold them, else as they are.

    It ends at 65504 and loses digits below 6e-5: draws are held where none is infinite and their
    error is that of rounding, 2^-11 of their size.
    """
    half, size = draws.half(), torch.linalg.vector_norm(draws, dtype=torch.float64)
    error = torch.linalg.vector_norm(half.double() - draws)
    return half if error <= 2**-11 * size else draws


def _stored_draws(file: Path, sha256: str) -> Tensor | None:
    """Return the draws in a file, None where there is none; raises ObservationError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not file.exists():
        return None
    content = file.read_bytes()
    try:
        draws = load(content)["x"]
    except (SafetensorError, KeyError) as error:
        raise ObservationError(f"{file} is corrupt ({error}): restore the prior folder") from error
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ObservationError(
            f"{file} is corrupt: its sha256 differs from the one in invprob.json; restore the "
            "prior folder"
        )
    return draws


def _foreign(folder: Path, found: Levels) -> dict[str, Any]:
    """Return the facts of a folder that diffusers saved: x are the network's own values."""
    intact_weights(folder, "")
    return {
        "x_shape": sample_shape(folder), "scale": 1.0, "turns": False,
        "rho_min": math.exp(found.log_rho[0]), "rho_max": math.exp(found.log_rho[-1]),
        "kind": found.kind, "clip": found.clip, "sigma_data": found.sigma_data,
        "summary": f"diffusers network {folder.name}",
    }  # fmt: skip


def _edm(sigma: float, d: float, sign: float) -> tuple[float, float, float]:
    """Return EDM's coefficients at noise level sigma (Karras et al. 2022, table 1)."""
    total = math.hypot(sigma, d)
    return 1 / total, (d / total) ** 2, sign * sigma * d / total
