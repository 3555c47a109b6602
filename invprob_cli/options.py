"""Options that several commands share, and the parsing of `--set key=value`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from invprob.settings import changed, near
from operators.errors import RunError, UnknownName

Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all randomness.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: the physical cores available.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a parameter of operator or noise: lens.0.theta_E=1.3, noise.sigma=0.1. An "
        "unknown key shows all there are, `invprob inspect obs.h5` their values.",
    ),
]
TrainSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting of the training: ema=0.98. An unknown key shows all there are.",
    ),
]
RunName = Annotated[
    str | None, typer.Option("--run", help="Name or folder of a run; default: the latest.")
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Precision = Annotated[
    str, typer.Option(help="Of the prior's network: float32, bfloat16 or float16.")
]
Processes = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Processes that share the work, each with its own GPU."),
]
PriorName = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="Name of a prior, a local prior folder, or file.py:Class or file.py:generator, which "
        "runs that file (and is named again wherever the run is used).",
    ),
]
OperatorName = Annotated[
    str | None,
    typer.Option(
        "--operator",
        help="file.py:Class of an operator of your own, which runs that file; others are known.",
    ),
]
Oversample = Annotated[
    int,
    typer.Option(min=1, max=1000, help="Draws for each sample, for correction to choose from."),
]
Tune = Annotated[bool, typer.Option("--tune", help="Search step sizes on simulated twins first.")]
Size = Annotated[
    str | None,
    typer.Option(metavar="N|NYxNX", help="Size of x, for priors that come in any size."),
]

POINTED = re.compile(r"[+-]?(\d+\.|\d*\.\d+)([eE][+-]?\d+)?")  # some are no JSON: .5, 1.
TUNED = "tuned on simulated twins: what their names say of a step size"

Config = TypeVar("Config")


def own_code(operator: str | None, prior: str | None) -> list[str]:
    """Return the options that name the user's own code, which no file is trusted to name."""
    named = {"--operator": operator, "--prior": prior}
    own = {option: name for option, name in named.items() if name and ":" in name}
    return [word for pair in own.items() for word in pair]


def selection(run: Path) -> list[str]:
    """Return the option that picks this run, none where it is the latest of the default folder."""
    latest = Path("runs", "latest")
    newest = latest.read_text().strip() if latest.is_file() else ""
    return [] if run == Path("runs", newest) else ["--run", str(run)]


def use_threads(wanted: int | None) -> int:
    """Set torch's threads: as asked, else OMP_NUM_THREADS, else one per core; return them.

    Processes that a launcher has started on this machine share its cores.
    """
    import torch

    if wanted or "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(wanted or max(1, physical_cores() // processes))
    return torch.get_num_threads()


def physical_cores() -> int:
    """Return the number of physical cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(topology.format(cpu))
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


def check_memory(n: int, shape: Sequence[int]) -> None:
    """Raise UnknownName (usage) when n samples of this shape do not fit into memory.

    Counted: the float32 samples, their joined copy, and a float64 copy for scores.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    needed = n * math.prod(shape) * 16
    if needed > free:
        most = free // (math.prod(shape) * 16)
        raise UnknownName(
            f"--n {n} samples of shape {tuple(shape)} need {needed / 2**30:.3g} GiB, "
            f"{free / 2**30:.3g} GiB are free: ask for at most {most}"
        )


def check_disk(n: int, oversample: int, shape: Sequence[int], folder: Path) -> None:
    """Raise UnknownName (usage) when n samples of this shape do not fit on the disk of `folder`.

    Counted: float32 draws in batches, and the samples in the file that is made of them.
    """
    free, one = shutil.disk_usage(folder).free, 4 * (oversample + 1) * math.prod(shape)
    if n * one > free:
        raise UnknownName(
            f"--n {n} samples of shape {tuple(shape)} need {n * one / 2**30:.3g} GiB of disk, "
            f"{free / 2**30:.3g} GiB are free in {folder}: ask for at most {free // one}"
        )


def sides(size: str) -> tuple[int, ...]:
    """Return the numbers of `--size N` or `--size NYxNX`; raises UnknownName on other text."""
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", size):
        raise UnknownName(f"--size {size!r}: needed N, or NYxNX such as 48x64")
    return tuple(int(n) for n in size.split("x"))


def numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    """Return `count` finite numbers with commas between; raises UnknownName on other text."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UnknownName(f"{option} {text!r}: needed {count} numbers with commas between")
    return found


def writable(path: Path) -> Path:
    """Return `path` once its folder exists and takes files; raises RunError before any work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # rights alone do not tell, as in /proc
            allowed = not path.is_dir()
    except OSError:
        allowed = False
    if not allowed:
        raise RunError(f"cannot write {path}: choose another place with --out")
    return path


def observation_file(out: Path, *inputs: str | Path | None) -> Path:
    """Return `out` where an observation goes there and its figure beside it.

    Raises UnknownName where that would replace one of the `inputs`, of which a.fits[2] is a.fits,
    or the figure the observation; RunError as `writable` does.
    """
    if out.suffix == ".png":
        raise UnknownName(f"--out {out}: its figure takes that name; needed one such as obs.h5")
    files = [Path(str(given).partition("[")[0]).resolve() for given in inputs if given]
    if out.resolve() in files:
        raise UnknownName(f"--out {out} would replace what is read: needed another, such as obs.h5")
    return writable(out)


def assignments(settings: Sequence[str] | None, option: str = "--set") -> Iterator[tuple[str, Any]]:
    """Yield key and value of every `key=value`: JSON, a number such as .5, or else text."""
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UnknownName(f"{option} {text!r} is not key=value")
        try:
            yield key.strip(), json.loads(value)
        except ValueError:
            yield key.strip(), float(value) if POINTED.fullmatch(value) else value


def override(
    config: Mapping[str, Any],
    settings: Sequence[str] | None,
    remodelled: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return nested `config` with settings such as `lens.0.theta_E=1.3`; see `changed`."""
    try:
        return changed(config, dict(assignments(settings)), remodelled)
    except UnknownName as error:
        raise UnknownName(f"--set: {error}") from None


def configured(
    base: Config, settings: Sequence[str] | None, option: str = "--set", **flags: Any
) -> Config:
    """Return the dataclass `base` with flags that are not None and `field=value` settings.

    option: what brought the settings, for messages. Raises UnknownName on a field that does not
        exist or a value of another type.
    """
    hints = get_type_hints(type(base))
    changes = {key: value for key, value in flags.items() if value is not None}
    for key, value in assignments(settings, option):
        if key not in hints:
            raise UnknownName(f"{option}: no setting {key!r}{near(key, list(hints))}")
        accepts: Callable[[Any], bool] = {
            int: lambda v: type(v) is int,
            float: lambda v: type(v) in (int, float) and math.isfinite(v),
            str: lambda v: isinstance(v, str),
        }.get(hints[key], lambda v: v is None or type(v) is int)
        if not accepts(value) or (isinstance(value, int | float) and value < 0):
            kind = getattr(hints[key], "__name__", str(hints[key]))
            raise UnknownName(f"{option} {key}={value}: needed {key}=<{kind}>, not negative")
        changes[key] = float(value) if hints[key] is float else value
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]
