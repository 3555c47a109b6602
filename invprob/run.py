"""A run directory: everything that one training leaves behind, and nothing half-written.

    runs/latest                                 name of the run trained last, a small text file
    runs/<YYYYmmdd-HHMMSS>-<operator>-<hex4>/   config.json  manifest.json  obs.h5  metrics.jsonl
                                                checkpoint.pt  checkpoint.prev.pt

Importing this module loads no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import platform
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from invprob import __version__, checkpoint
from operators.errors import RunError

if TYPE_CHECKING:
    from invprob.observation import Observation

__all__ = ["Run", "runs"]

ROOT = Path("runs")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # one plain folder name, on any system

log = logging.getLogger("invprob")


@dataclass(frozen=True)
class Run:
    """An existing run directory at `path`."""

    path: Path

    @classmethod
    def create(
        cls,
        observation: Observation,
        config: dict[str, Any],
        root: str | Path = ROOT,
        *,
        seed: int = 0,
        command: Sequence[str] = (),
        processes: int = 1,
        name: str | None = None,
    ) -> Self:
        """Make a run directory with config, manifest and a copy of the observation.

        config: JSON-able. seed, command, processes: for the manifest. name: of the folder, instead
            of time and operator. Raises `RunError` on a bad or taken name, or when `root` cannot be
            written.
        """
        if name is not None and (NAME.fullmatch(name) is None or name == "latest"):
            raise RunError(
                f"run name {name[:60]!r} is refused; needed at most 100 letters, digits, '.', '_' "
                "or '-', starting with a letter or digit, and not 'latest'"
            )
        root, now = Path(root), datetime.now().astimezone()
        operator = re.sub(r"[^A-Za-z0-9_]+", "-", observation.name)[:60]
        path = root / (name or f"{now:%Y%m%d-%H%M%S}-{operator}-{secrets.token_hex(2)}")
        begun = root / f".{secrets.token_hex(8)}"  # becomes the run once it is whole
        try:
            begun.mkdir(parents=True)
        except OSError as error:
            raise RunError(
                f"cannot write runs in {root.absolute()}: {error.strerror}; choose another folder"
            ) from error
        manifest = {
            "name": path.name,
            "operator": observation.name,
            "observation_sha256": observation.sha256(),
            "created": now.isoformat(timespec="seconds"),
            "seed": seed,
            "command": list(command),
            "processes": processes,
            "versions": _versions(),
        }
        try:
            observation.write(begun / "obs.h5")
            checkpoint.replace(begun / "config.json", _pretty(config))
            checkpoint.replace(begun / "manifest.json", _pretty(manifest))
            try:
                begun.rename(path)
            except OSError as error:
                raise RunError(
                    f"{path} exists already: resume that run, or choose another name"
                ) from error
        except BaseException:
            shutil.rmtree(begun, ignore_errors=True)
            raise
        run = cls(path)
        run.become_latest()
        return run

    @classmethod
    def open(cls, run: str | Path | None = None, root: str | Path = ROOT) -> Self:
        """Return the run of that path, or name below `root`; the latest one for None.

        Raises `RunError` with the list of runs when there is none.
        """
        root = Path(root)
        if run is None:
            latest = root / "latest"
            name = latest.read_text(errors="replace").strip() if latest.is_file() else ""
            if NAME.fullmatch(name) and _is_run(root / name):
                return cls(root / name)
            problem = f"{latest} names {name[:100]!r}, not a run" if name else f"no {latest}"
            raise RunError(f"{problem}: name one with --run. {_list(root)}")
        for path in (Path(run), root / run):
            if _is_run(path):
                return cls(path)
        raise RunError(f"no run {str(run)[:100]!r}. {_list(root)}")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was created with."""
        return _read_json(self.path / "config.json")

    @property
    def manifest(self) -> dict[str, Any]:
        """Where the run comes from: versions, seed, command, digest of the observation."""
        return _read_json(self.path / "manifest.json")

    def become_latest(self) -> None:
        """Make this the run that `open` gives where none is named."""
        path = self.path.resolve()
        checkpoint.replace(path.parent / "latest", f"{path.name}\n".encode())

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by `state` and keep the one before.

        state: tensors, numbers, text, and lists and dicts of these: what loads without pickle.
        Raises `RunError` on anything else, and when the disk is full: the old ones then stay.
        """
        checkpoint.save(state, self.path)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state whose file is whole, or None when none was ever saved.

        Logs a warning when the newest is damaged and the one before is used. Raises `RunError`
        when all are damaged, and on a file that would run code.
        """
        return checkpoint.load(self.path)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; NaN and infinity become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(clean) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; of rows with one `step` (a resumed run) the last."""
        file = self.path / "metrics.jsonl"
        rows: dict[Any, dict[str, Any]] = {}
        for i, line in enumerate(file.read_text().splitlines() if file.exists() else ()):
            try:
                row = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            rows[row.get("step", f"line {i}")] = row
        return list(rows.values())

    def check_same(self, config: dict[str, Any], observation_sha256: str) -> None:
        """Raise `RunError` showing what differs from the run's own config and observation."""
        old, new = _flat(self.config), _flat(json.loads(json.dumps(config)))
        differences = [
            f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, "absent") != new.get(key, "absent")
        ]
        if self.manifest["observation_sha256"] != observation_sha256:
            differences.append("observation: another operator, data, noise or mask")
        if differences:
            raise RunError(
                f"run {self.name} was made with other settings: {'; '.join(differences)}. "
                "Resume with the same ones, or start a new run"
            )


def runs(root: str | Path = ROOT) -> list[dict[str, Any]]:
    """Return the facts of every run below `root`, oldest first."""
    found = []
    # a name that begins with a dot is of a run that was killed before it was whole
    for path in sorted(Path(root).glob("[!.]*/")) if Path(root).is_dir() else ():
        if not _is_run(path):
            continue
        run = Run(path)
        try:
            manifest, rows = run.manifest, run.metrics()
        except RunError as error:
            log.warning("%s", error)
            continue
        found.append(
            {
                "name": run.name,
                **{key: manifest.get(key) for key in ("operator", "created", "seed")},
                "checkpoint": any((path / name).exists() for name in checkpoint.NAMES),
                "metrics": rows[-1] if rows else None,
            }
        )
    return sorted(found, key=lambda facts: str(facts["created"]))


def _is_run(path: Path) -> bool:
    try:
        return (path / "manifest.json").is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _list(root: Path) -> str:
    names = [facts["name"] for facts in runs(root)]
    return f"Runs in {root}: {', '.join(names) or 'none; `invprob train` makes one'}"


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "invprob": __version__}
    for package in ("torch", "numpy", "diffusers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _pretty(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged ({error}): restore it") from error
    return document


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": leaf} of nested dicts."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        leaves |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves
