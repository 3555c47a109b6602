"""Latent diffusion prior: a diffusers UNet2DModel on the codes of an autoencoder.

    x = D(z_0),   z_0 from the chain                  (Rombach et al. 2022, arXiv 2112.10752)

A folder in diffusers layout (`unet/`, `scheduler/`, `vae/`) with `invprob.json`; its bank holds
codes. The prior is what D makes of the chain: no other image has a density.

Guidance works in z, by Gauss-Newton through the derivative of D, with the measured covariance of
the code's error. To shift the decoded estimate as that of a pixel prior, and to take the shift back
by the encoder, costs a tenth, but leaves the images that D can make: 150 nats of ELBO on a lensed
galaxy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from priors._autoencoder import Autoencoder
from priors._code_covariance import CodeCovariance
from priors.base import Covariance
from priors.pixel import Pixel, PixelConfig


@dataclass(frozen=True)
class LatentConfig(PixelConfig):
    """What `invprob.json` holds besides the networks."""

    module: str = "latent"


class Latent(Pixel):
    """A trained image prior over x (H, W); states z are codes (C, h, w)."""

    summary = "diffusion prior on the codes of an autoencoder (AutoencoderKL or VQModel)"
    isometric = False
    guided_in_x = False

    def __init__(
        self,
        autoencoder: Autoencoder,
        network: torch.nn.Module,
        config: LatentConfig,
        log_rho: tuple[float, ...],
        prediction: str = "v_prediction",
        bank: Tensor | None = None,
        timesteps: tuple[float, ...] | None = None,
    ) -> None:
        """Wrap an autoencoder and a network for its codes, see `Pixel`; the bank holds codes."""
        super().__init__(network, config, log_rho, prediction, bank, timesteps)
        self.autoencoder = autoencoder
        self.z_shape = autoencoder.z_shape(config.x_shape)

    @cached_property
    def code_covariance(self) -> CodeCovariance:
        """Cov(z_0 | z_t), measured on the bank at first use: seconds for the shipped prior."""
        return CodeCovariance.fit(self)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Covariance:
        """Return the measured Cov(z_0 | z_t = z)."""
        return self.code_covariance.at(t)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, H, W) in physical units of codes z (B, *z_shape)."""
        x: Tensor = self.autoencoder(z)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, *z_shape) nearest to images x (B, H, W), by the encoder."""
        return self.autoencoder.encode(x)

    def banked(self, z: Tensor) -> Tensor:
        """Return what the bank keeps of draws z (B, *z_shape): these codes."""
        return z

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n draws of z_0 from the stored bank of the chain's codes."""
        bank, rng = self._stored(), np.random.default_rng(seed)
        rows = np.resize(rng.permutation(len(bank)), n)
        return bank[torch.from_numpy(rows)].float()

    def save(self, folder: Path) -> None:
        """Write the prior folder: that of a pixel prior, and the autoencoder."""
        self.autoencoder.save(folder)
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> Latent:
        """Read a prior folder, or a latent pipeline of diffusers whose images have one channel.

        Raises ObservationError naming what is missing, corrupt or of another kind.
        """
        facts, *network = cls._parts(folder)
        autoencoder = Autoencoder.load(folder, facts["scale"], facts.get("patch", 1))
        if not (folder / "invprob.json").is_file():  # what its network draws are codes
            codes = torch.zeros(1, *facts["x_shape"])
            codes = codes if codes.ndim == 4 else codes[:, None]
            with torch.no_grad():
                facts["x_shape"] = tuple(autoencoder(codes).shape[1:])
        config = LatentConfig(**facts)
        return cls(autoencoder, network[0], config, *network[1:])
