"""Pixel diffusion prior: a diffusers UNet2DModel on images, or on their space-to-depth blocks.

    v-prediction   zhat_0 = alpha z_t - sigma F(z_t)       (Salimans & Ho 2022, arXiv 2202.00512)
    epsilon        zhat_0 = (z_t - sigma F(z_t)) / alpha   (Ho et al. 2020, arXiv 2006.11239)
    sample         zhat_0 = F(z_t)

A folder in diffusers layout (`unet/`, `scheduler/`) with `invprob.json` (units, measured residual
variances) and `bank.safetensors` (draws of the chain). Blocks of p x p pixels become p^2 channels:
an orthogonal map, so a 64x64 prior with p = 4 costs what a 16x16 one does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from operators.errors import ObservationError
from priors._residual_model import ResidualModel
from priors.base import Bounded, Covariance, Prior
from priors.process import Schedule
from priors.training import dihedral

FORMAT_VERSION = 1
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
ALL_WEIGHTS = f"*/{Path(WEIGHTS).name}"


@dataclass(frozen=True)
class PixelConfig:
    """What `invprob.json` holds besides the networks."""

    x_shape: tuple[int, int]
    scale: float  # x per unit z
    patch: int = 1  # side of the space-to-depth block, px
    steps: int = 100
    rho_min: float = 0.02
    rho_max: float = 200.0
    unit: str = ""
    summary: str = ""
    turns: bool = True  # draws turned by right angles and flipped are as likely as they were
    residuals: tuple[float, ...] = ()  # E|z_0 - zhat_0|^2 / d on even times
    residual_model: ResidualModel | None = None
    sha256: str = ""  # of the weights files, one after another
    version: int = FORMAT_VERSION
    module: str = "pixel"  # of `priors/`, which reads the folder


class Pixel(Prior):
    """A trained image prior over x (H, W); states z are (p^2, H/p, W/p)."""

    summary = "diffusion prior on pixels (diffusers UNet2DModel)"
    learned = True

    def __init__(
        self,
        network: torch.nn.Module,
        config: PixelConfig,
        log_rho: tuple[float, ...],
        prediction: str = "v_prediction",
        bank: Tensor | None = None,
    ) -> None:
        """Wrap `network`, trained at noise ratios exp(`log_rho`), one per timestep."""
        if prediction not in ("v_prediction", "epsilon", "sample"):
            raise ObservationError(
                f"prediction type must be v_prediction, epsilon or sample, found {prediction!r}"
            )
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.log_rho, self.prediction, self.bank = config, log_rho, prediction, bank
        height, width = config.x_shape
        p = config.patch
        self.x_shape, self.z_shape = config.x_shape, (p * p, height // p, width // p)
        self.scale, self.steps, self.unit = config.scale, config.steps, config.unit
        self.schedule = Schedule(config.rho_min, config.rho_max, "vp")
        if config.residuals:
            self.residuals = config.residuals

    def timestep(self, t: float) -> float:
        """Return the network's (fractional) timestep at time t, by its noise ratio."""
        return float(
            np.interp(np.log(self.schedule.rho(t)), self.log_rho, np.arange(len(self.log_rho)))
        )

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return the network's estimate of E[z_0 | z_t = z], shape (B, *z_shape)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        step = torch.full((len(z),), self.timestep(t), dtype=z.dtype, device=z.device)
        with torch.autocast(z.device.type, self.precision, enabled=self.precision != torch.float32):
            output: Tensor = self.network(z, step).sample
        output = output.to(z.dtype)
        if self.prediction == "v_prediction":
            return alpha * z - sigma * output
        return (z - sigma * output) / alpha if self.prediction == "epsilon" else output

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Covariance:
        """Return the measured Cov(x | z_t = z); isotropic where none has been measured."""
        model = self.config.residual_model
        if model is None:
            return super().covariance(z, t, clean)
        limit = self.schedule.rho(t) ** 2
        apply = model.spread(t, self.decode(clean) / self.scale, limit)
        return Bounded(lambda u: self.scale**2 * apply(u), self.scale**2 * limit)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, H, W) in physical units of z (B, *z_shape)."""
        return self.scale * pixel_shuffle(z, self.config.patch)[:, 0]

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, *z_shape) of images x (B, H, W)."""
        return pixel_unshuffle(x[:, None] / self.scale, self.config.patch)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n draws of z_0 from the stored bank, turned and flipped where that may be.

        Raises ObservationError where the folder holds no bank.
        """
        if self.bank is None:
            raise ObservationError("this prior folder has no bank.safetensors to draw from")
        rng = np.random.default_rng(seed)
        order = np.concatenate(
            [rng.permutation(len(self.bank)) for _ in range(-(-n // len(self.bank)))]
        )[:n]
        images = self.bank[torch.from_numpy(order)].float()
        turns = torch.from_numpy(rng.integers(8, size=n))
        return self.encode(dihedral(images, turns) if self.config.turns else images)

    def save(self, folder: Path) -> None:
        """Write the prior folder: half-precision weights, scheduler, invprob.json, bank."""
        from diffusers import DDPMScheduler
        from safetensors.torch import save_file

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
        facts = asdict(self.config)
        facts |= {"residuals": list(self.residuals), "sha256": weights_digest(folder)}
        (folder / "invprob.json").write_text(json.dumps(facts, indent=1) + "\n")
        if self.bank is not None:
            save_file({"x": self.bank.half().contiguous()}, folder / "bank.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Pixel:
        """Read a prior folder; raises ObservationError naming a missing or corrupt file."""
        facts, *network = cls._parts(folder)
        return cls(network[0], PixelConfig(**facts), *network[1:])

    @staticmethod
    def _parts(folder: Path) -> tuple[dict[str, Any], Any, tuple[float, ...], str, Tensor | None]:
        """Return the facts of a folder's invprob.json, and what `__init__` takes besides them."""
        from diffusers import UNet2DModel
        from safetensors.torch import load_file

        facts = read_facts(folder)
        if table := facts["residual_model"]:
            spectrum = tuple(map(tuple, table["log_spectrum"]))
            facts["residual_model"] = ResidualModel(
                tuple(table["floor"]), tuple(table["slope"]), spectrum
            )
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
        kept = np.cumprod(1 - np.array(scheduler["trained_betas"]))
        settings = _read_json(folder / "unet" / "config.json")
        network = UNet2DModel.from_config(settings)  # type: ignore[no-untyped-call]  # diffusers
        network.load_state_dict(load_file(folder / WEIGHTS))
        bank_file = folder / "bank.safetensors"
        bank = load_file(bank_file)["x"] if bank_file.exists() else None
        log_rho = tuple(0.5 * np.log((1 - kept) / kept))
        return facts, network.float(), log_rho, scheduler["prediction_type"], bank


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what a prior folder's invprob.json says, its weights intact; raises ObservationError.

    Nothing is read before the format's version fits.
    """
    facts = _read_json(folder / "invprob.json")
    if facts.get("version") != FORMAT_VERSION:
        raise ObservationError(
            f"{folder}: prior format version {facts.get('version')}, this program reads "
            f"{FORMAT_VERSION}: install a matching invprob"
        )
    intact_weights(folder, facts.get("sha256", ""))
    return facts | {key: tuple(facts[key]) for key in ("x_shape", "residuals") if key in facts}


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a prior folder's weights files, one after another by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob(ALL_WEIGHTS)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def intact_weights(folder: Path, sha256: str) -> None:
    """Raise ObservationError where the weights of a prior folder are missing or changed."""
    if not any(folder.glob(ALL_WEIGHTS)):
        raise ObservationError(f"{folder / WEIGHTS} is missing: restore the prior folder")
    if sha256 and weights_digest(folder) != sha256:
        raise ObservationError(
            f"the weights of {folder} are corrupt: their sha256 differs from the one in "
            "invprob.json; restore the prior folder"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ObservationError(f"{path}: not a readable JSON file ({error})") from error
    return facts
