"""Images as codes of an autoencoder: diffusers' AutoencoderKL, or VQModel with its codebook.

    x = scale * D(z / scaling_factor + shift_factor),   z = (E(x / scale) - shift) * scaling_factor

The factors are those of the network's own config, the mean is taken of what E says (Rombach et al.
2022, arXiv 2112.10752). D writes blocks of p x p pixels as p^2 channels, so a 64x64 image with
p = 4 costs what a 16x16 one does. Of images between 0 and a limit D may write the log odds, x =
limit / (1 + exp(-D)): a smooth D then draws sharp edges. A codebook rounds; gradients pass it
unchanged (van den Oord et al. 2017, arXiv 1711.00937).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from operators.errors import ObservationError
from priors._folder import WEIGHTS_FILE

FOLDER = "vae"  # of a prior folder, as in diffusers
FOLDERS = (FOLDER, "vqvae")  # of its pipelines
SAID = 200  # letters quoted of what torch says of tensors that do not fit
KINDS = ("AutoencoderKL", "VQModel")


class Autoencoder(torch.nn.Module):
    """Codes z (B, *z_shape) to images (B, H, W) in physical units, and back."""

    def __init__(self, network: Any, scale: float, patch: int, limit: float | None = None) -> None:
        """Wrap a diffusers autoencoder of images of one channel, `patch` the side of its blocks.

        limit: of images from 0 to there, whose log odds the network writes; None: images.
        """
        super().__init__()
        self.network, self.scale, self.patch = network.eval().requires_grad_(False), scale, patch
        self.limit = limit
        if network.config.out_channels != patch**2:
            raise ObservationError(
                f"the autoencoder writes {network.config.out_channels} channels; an image of one "
                f"channel in blocks of {patch}x{patch} px needs {patch**2}"
            )
        self.factor = float(getattr(network.config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(network.config, "shift_factor", None) or 0.0)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, H, W) of codes z (B, *z_shape)."""
        blocks = self.decoded(z / self.factor + self.shift)
        return self.scale * pixel_shuffle(blocks, self.patch)[:, 0]

    def decoded(self, code: Tensor) -> Tensor:
        """Return the blocks, in units of the scale, of codes as the network takes them."""
        blocks: Tensor = self.network.decode(code).sample
        return blocks if self.limit is None else self.limit / self.scale * blocks.sigmoid()

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean codes (B, *z_shape) of images x (B, H, W)."""
        found = self.network.encode(self.blocks(x))
        z: Tensor = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
        return (z - self.shift) * self.factor

    def blocks(self, x: Tensor) -> Tensor:
        """Return images x (B, H, W) as the network takes them."""
        return pixel_unshuffle(x[:, None] / self.scale, self.patch)

    def z_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the codes of images of `x_shape`."""
        return tuple(self.encode(torch.zeros(1, *x_shape)).shape[1:])

    def save(self, folder: Path) -> None:
        """Write the network below a prior folder, in half precision."""
        self.network.half().save_pretrained(folder / FOLDER)
        self.network.float()

    @classmethod
    def load(
        cls, folder: Path, scale: float, patch: int, limit: float | None = None
    ) -> Autoencoder:
        """Read the network below a prior folder; raises ObservationError where it is none.

        What cannot be read of it is named, so that it can be restored.
        """
        import diffusers
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        own = folder_of(folder) or folder / FOLDER
        file = own / "config.json"
        try:
            settings = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ObservationError(f"{file}: not a readable JSON file ({error})") from error
        kind = settings.get("_class_name")
        if kind not in KINDS:
            raise ObservationError(f"{file} describes a {kind}; needed {' or '.join(KINDS)}")
        weights = own / WEIGHTS_FILE
        try:
            network = getattr(diffusers, kind).from_config(settings)
            network.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())[:SAID]
            raise ObservationError(
                f"{weights} cannot be read as the {kind} of its config.json ({said}): restore both"
            ) from error
        return cls(network.float(), scale, patch, limit)


def folder_of(folder: Path) -> Path | None:
    """Return where a prior folder keeps its autoencoder, None where it has none."""
    return next((folder / name for name in FOLDERS if (folder / name).is_dir()), None)
