"""Checkpoints that survive a kill, a full disk and a flipped bit, and cannot run code.

A checkpoint is a torch zip archive: every member carries a CRC-32, which is verified before the
file is believed, and it is read with `weights_only=True`. It replaces its predecessor by a rename,
and the predecessor stays as `checkpoint.prev.pt`, so at any moment one of the two loads.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

from operators.errors import RunError

__all__ = ["NAMES", "beside", "load", "replace", "save"]

NAMES = ("checkpoint.pt", "checkpoint.prev.pt")  # newest first

log = logging.getLogger("invprob")


def save(state: dict[str, Any], folder: Path) -> None:
    """Replace the checkpoint in `folder` by `state` and keep the one before.

    Raises `RunError` on a state that would not load again, and when it cannot be written: what
    was there then stays.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise RunError(
            f"this checkpoint would not load safely ({_first_line(error)}): "
            "store tensors and plain Python values only"
        ) from error
    newest, previous = (folder / name for name in NAMES)
    replace(newest, buffer.getvalue(), keep=previous)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole state in `folder`, on the CPU, or None when none was ever saved.

    Logs a warning when the newest is corrupt and the one before is used. Raises `RunError` when
    all are corrupt, and on a file that would run code.
    """
    corrupt: list[str] = []
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        try:
            state = _load(path)
        except (OSError, RuntimeError, ValueError, EOFError, NotImplementedError) as error:
            corrupt.append(f"{path} is corrupt ({_first_line(error)})")
            continue
        if corrupt:
            log.warning("%s; previous checkpoint used", corrupt[0])
        return state
    if corrupt:
        raise RunError(f"{'; '.join(corrupt)}: no good checkpoint is left, start a new run")
    return None


def replace(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Put `content` at `path` durably, by a rename; what was there goes to `keep`, if given."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {path}: {error.strerror}; it needs {len(content) / 1e6:.1f} MB of free "
            "space. What was saved before is intact: make room and resume"
        ) from error


def beside(path: Path) -> Path:
    """Return the name under which this process writes `path`; what dead processes left goes."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid = other.suffix[1:]
        if pid.isdecimal() and not _alive(int(pid)):
            other.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _load(path: Path) -> dict[str, Any]:
    import torch

    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"truncated or damaged: {error}") from error
    if broken is not None:
        raise ValueError(f"checksum mismatch in {broken}")
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), weights_only=True, map_location="cpu"
        )
    except pickle.UnpicklingError as error:
        raise RunError(
            f"unsafe file refused: {path} holds more than tensors ({_first_line(error)}); "
            "delete it unless you know where it comes from"
        ) from error
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
