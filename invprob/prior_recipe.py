"""All that decides what a trained prior is, and the command that makes it again."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from priors._autoencoder_training import AutoencoderTraining
from priors.training import Training

AUTOENCODER = "autoencoder"
PARTS: dict[str, Any] = {"training": Training, AUTOENCODER: AutoencoderTraining}  # of a recipe
SHARED = ("turns", "device", "seed")  # settings that are one for both


@dataclass(frozen=True)
class Recipe:
    """All that decides what a trained prior is; stored as `training.json` in its folder."""

    data: str
    size: int | None = None  # px; None: 64 of a simulator, that of the images of a file
    pool: int = 65_536  # images that a simulator draws
    held_out: int = 2_048
    bank: int = 512  # draws of the chain that the folder keeps
    seed: int = 0  # of a simulator's images, or of the division of a file's
    unit: str = ""
    summary: str = ""
    training: Training = field(default_factory=Training)
    autoencoder: AutoencoderTraining | None = None  # of a latent prior

    def facts(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values; the device is no part of it."""
        found = asdict(self)
        for part in PARTS:
            if found[part]:
                del found[part]["device"]
        return {key: value for key, value in found.items() if value is not None}


def command(recipe: Recipe, name: str) -> str:
    """Return the command that trains a prior by this recipe."""
    words = ["invprob", "prior", "train", "--data", recipe.data, "--out", name]
    for key in ("size", "pool", "held_out", "bank", "unit", "summary"):
        value = getattr(recipe, key)
        if value != getattr(Recipe, key):
            words += [f"--{key.replace('_', '-')}", str(value)]
    words.append("--turns" if recipe.training.turns else "--no-turns")
    words += _settings(recipe.training, "")
    if recipe.autoencoder:
        words += ["--latent", *_settings(recipe.autoencoder, f"{AUTOENCODER}.")]
    return shlex.join(words)


def _settings(config: Training | AutoencoderTraining, prefix: str) -> list[str]:
    """Return the options that set what `config` has other than the default."""
    words = []
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name in ("steps", "batch", "seed") and not prefix:
            words += [f"--{item.name}", str(value)]
        elif item.name not in SHARED and value != item.default:
            words += ["--set", f"{prefix}{item.name}={value}"]
    return words
