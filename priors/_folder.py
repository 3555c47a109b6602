"""What every prior folder has: invprob.json of one format, and weights whose digest it knows."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from operators.errors import ObservationError
from priors._diffusers import read_json

FORMAT_VERSION = 1
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # of every network of a folder
NETWORKS = ("unet", "vae", "vqvae", "flow")  # the folders that hold one
WEIGHTS = f"unet/{WEIGHTS_FILE}"
ALL_WEIGHTS = f"*/{WEIGHTS_FILE}"


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what a prior folder's invprob.json says, its weights intact; raises ObservationError.

    Nothing is read before the format's version fits.
    """
    facts = described(folder)
    intact_weights(folder, facts.get("sha256", ""))
    return facts


def described(folder: Path) -> dict[str, Any]:
    """Return what a prior folder's invprob.json says; raises ObservationError on another format."""
    facts = read_json(folder / "invprob.json")
    if facts.get("version") != FORMAT_VERSION:
        raise ObservationError(
            f"{folder}: prior format version {facts.get('version')}, this program reads "
            f"{FORMAT_VERSION}: install a matching invprob"
        )
    return facts | {key: tuple(facts[key]) for key in ("x_shape", "residuals") if key in facts}


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a prior folder's weights files, one after another by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob(ALL_WEIGHTS)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def readable(folder: Path) -> None:
    """Let others read the weights as they may read other files: safetensors lets the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def intact_weights(folder: Path, sha256: str) -> None:
    """Raise ObservationError where a network's weights are missing, or those of all changed."""
    found = [folder / name for name in NETWORKS if (folder / name).is_dir()]
    for network in found or [folder / NETWORKS[0]]:
        file = network / WEIGHTS_FILE
        if any(network.glob(f"{file.stem}*{file.suffix}")):  # in parts, or in another precision
            continue
        pickle = file.with_suffix(".bin")
        if pickle.exists():
            raise ObservationError(
                f"{pickle} is a pickle, which can run code: save the model again with "
                "safe_serialization=True"
            )
        raise ObservationError(f"{file} is missing: restore the prior folder")
    if sha256 and weights_digest(folder) != sha256:
        raise ObservationError(
            f"the weights of {folder} are corrupt: their sha256 differs from the one in "
            "invprob.json; restore the prior folder"
        )
