"""Priors from folders: our own, by the module that invprob.json names, and those of diffusers."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.errors import ObservationError

if TYPE_CHECKING:
    from priors.base import Prior

OWN = "invprob.json"
LEARNED = ("latent", "outsourced", "pixel")  # modules of `priors/` that have nothing but folders
MODULES = {name: name.title().replace("_", "") for name in (*LEARNED, "random_field")}  # and class


def read(folder: Path) -> Prior:
    """Return the prior of a folder of our own; raises ObservationError naming what is wrong."""
    _refuse_links(folder)
    file = folder / OWN
    try:
        name = json.loads(file.read_text()).get("module", "pixel")
    except (OSError, ValueError, AttributeError) as error:
        raise ObservationError(f"{file}: not a readable JSON object ({error})") from error
    if name not in MODULES:
        raise ObservationError(
            f"{file} names the module {name!r}; needed one of {', '.join(MODULES)}"
        )
    cls: Any = getattr(importlib.import_module(f"priors.{name}"), MODULES[name])
    prior: Prior = cls.load(folder)
    return prior


def read_foreign(folder: Path) -> Prior:
    """Return the prior of a folder that diffusers saved, which draws its bank when first asked."""
    from invprob.prior_training import first_bank
    from priors._autoencoder import folder_of
    from priors.latent import Latent
    from priors.pixel import Pixel

    _refuse_links(folder)
    loaded = Latent.load(folder) if folder_of(folder) else Pixel.load(folder)
    loaded.chain = first_bank
    return loaded


def digest(folder: Path) -> str:
    """Return the sha256 of what tells a prior's folder from others of its name.

    That is its invprob.json, which knows the digest of the weights, or the weights themselves.
    """
    facts = folder / OWN
    if facts.is_file():
        return hashlib.sha256(facts.read_bytes()).hexdigest()
    from priors._folder import weights_digest

    return weights_digest(folder)


def _refuse_links(folder: Path) -> None:
    """Raise ObservationError on a link that leads out of a prior's folder.

    Those of the hub's cache lead from snapshots to blobs of the same repository.
    """
    home = folder.resolve()
    home = home.parents[1] if home.parent.name == "snapshots" else home
    for file in folder.rglob("*") if folder.is_dir() else ():
        if not file.resolve().is_relative_to(home):
            raise ObservationError(
                f"{file} is a link to {file.resolve()}, out of the prior's folder, which is "
                "refused: put a copy there"
            )
