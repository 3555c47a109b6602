"""What a shared posterior is read back from: its card (JSON) and its policy (safetensors).

Both may come from elsewhere or be damaged, so each is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import torch

from operators.errors import RunError

__all__ = ["FILES", "VERSION", "load_weights", "read_card"]

VERSION = 1  # of posterior.json
FILES = ("posterior.json", "policy.safetensors", "obs.h5")


def read_card(folder: Path) -> dict[str, Any]:
    """Return posterior.json of a folder that holds all of `FILES`.

    Raises `RunError` where a file is missing, or the card is damaged or of another version.
    """
    if not folder.is_dir():
        raise RunError(f"no folder {str(folder)!r}: it was moved or deleted; needed a finished run")
    again = resuming(folder)
    for name in FILES:
        if not (folder / name).exists():
            raise RunError(
                f"{folder} holds no {name}: its training has not finished. Resume it with {again}"
            )
    try:
        card: dict[str, Any] = json.loads((folder / "posterior.json").read_text())
        found = card.get("version", VERSION)
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder}/posterior.json is corrupt ({error}): {again} writes it again"
        ) from error
    if found != VERSION:
        raise RunError(
            f"{folder}/posterior.json has format version {found}, this program reads {VERSION}: "
            "install a matching invprob"
        )
    return card


def resuming(folder: Path) -> str:
    """Return the command that finishes the training of a run, for messages."""
    return f"`{shlex.join(['invprob', 'train', '--resume', str(folder)])}`"


def load_weights(module: torch.nn.Module, path: Path, sha256: str | None = None) -> None:
    """Give a module the tensors of a safetensors file.

    sha256: the file's, where that is known. Raises `RunError` where the file is corrupt, or its
    tensors are not exactly the module's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    cure = f"restore it, or write it again with {resuming(path.parent)}"
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {cure}") from error
    except SafetensorError as error:
        raise RunError(f"{path} is corrupt ({error}): {cure}") from error
    own = module.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        kind = "lacks the tensor" if name in own else "holds an unknown tensor"
        raise RunError(f"{path} {kind} {name!r}: {cure}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise RunError(
                f"{path} holds {name!r} of shape {tuple(tensors[name].shape)}, the configuration "
                f"beside it needs {tuple(value.shape)}: {cure}"
            )
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise RunError(f"{path} is corrupt: its sha256 is not that of posterior.json: {cure}")
    module.load_state_dict(tensors)
