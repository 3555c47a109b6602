"""`invprob doctor`: is this machine fine."""

from __future__ import annotations

import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import typer

from invprob import __version__
from invprob_cli import console, options

PACKAGES = ("torch", "numpy", "scipy", "h5py", "numba", "diffusers", "matplotlib", "astropy")
MATRIX = 768  # side of the matrices multiplied
FREE_GB = 1.0  # less disk space than this is a problem


def doctor(threads: options.Threads = None, as_json: options.Json = False) -> None:
    """Check that this machine and this installation are fine."""
    facts = {
        "invprob": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_versions(),
        **_torch(threads),
        "numba_compiles": _numba_compiles(),
        "disk_free_gb": shutil.disk_usage(Path.cwd()).free / 1e9,
        "priors": _priors(),
    }
    problems = [f"{key} is missing" for key in PACKAGES if facts[key] is None]
    if facts["numba_compiles"] is not True:
        problems.append(f"numba does not compile: {facts['numba_compiles']}")
    if facts["disk_free_gb"] < FREE_GB:
        problems.append(f"{facts['disk_free_gb']:.2f} GB of disk space left")
    problems += [f"prior {k}: {v}" for k, v in facts["priors"].items() if v != "intact"]
    facts |= {"problems": problems, "ok": not problems}
    if as_json:
        console.document(facts)
    else:
        console.facts_table({k: v for k, v in facts.items() if k != "problems"})
        for problem in problems:
            console.say(f"problem: {problem}")
        console.ending(
            [], "" if problems else "all fine", *(() if problems else ("invprob", "demo"))
        )
    if problems:
        raise typer.Exit(1)


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _torch(threads: int | None) -> dict[str, Any]:
    """Return threads, speed of a matrix product, and the CUDA device, if any."""
    import torch

    count = options.use_threads(threads)
    a = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0))
    a @ a  # the first product also starts the threads
    begun = time.perf_counter()
    for _ in range(5):
        a @ a
    seconds = (time.perf_counter() - begun) / 5
    return {
        "threads": count,
        "physical_cores": options.physical_cores(),
        "matmul_gflops": 2 * MATRIX**3 / seconds / 1e9,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _numba_compiles() -> bool | str:
    """Return True, or what went wrong."""
    try:
        import numba

        return bool(numba.njit(lambda x: x + 1)(1) == 2)
    except Exception as error:  # whatever it is, the report names it
        return f"{type(error).__name__}: {error}"


def _priors() -> dict[str, str]:
    """Return the state of each shipped prior: its weights against the sha256 in invprob.json."""
    from invprob.registry import WEIGHTS
    from operators.errors import ObservationError
    from priors._folder import intact_weights

    states = {}
    for card in sorted(WEIGHTS.glob("*/invprob.json")):
        try:
            facts = json.loads(card.read_text())
            if "sha256" in facts:  # one in closed form has no weights
                intact_weights(card.parent, facts["sha256"])
            state = "intact"
        except (OSError, ValueError, ObservationError) as error:
            state = f"damaged: {error}"
        states[card.parent.name] = state
    return states
