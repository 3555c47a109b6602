"""`--nproc N`: the command runs once more in N processes, which torchrun's own agent starts.

Where a launcher (torchrun on several machines, accelerate) has already started the command, it
joins the others instead. Only the first process prints; the log of another is shown when it fails.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from invprob_cli import console
from operators.errors import PeerLost, UnknownName

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

PRECISIONS = ("float32", "bfloat16", "float16")
GRACE = 120  # seconds for a step to end and be saved after a signal
TAIL = 20  # lines shown of a log
# exit codes of processes that ended because another one had: it was gone, or the agent stopped all
STOPPED = (PeerLost.exit_code, 128 + signal.SIGTERM, -signal.SIGTERM)


def join(nproc: int | None, device: str, precision: str) -> str:
    """Return this process's device, once it is one of `nproc`; or start those, and exit with them.

    Raises UnknownName (usage) where the device, or one for every process, does not exist.
    """
    if precision not in PRECISIONS:
        raise UnknownName(f"no precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if device not in ("cpu", "cuda"):
        raise UnknownName(
            f"no device {device!r}: choose cpu or cuda (mps lacks float64, which log weights need)"
        )
    if nproc is None and device == "cpu" and "RANK" not in os.environ:
        return device  # the common case needs none of what follows

    import torch

    from invprob import distributed

    begun = distributed.launched()
    place = int(os.environ.get("LOCAL_RANK", 0))
    found, needed = torch.cuda.device_count(), (place if begun else (nproc or 1) - 1) + 1
    if device == "cuda" and found < needed:
        raise UnknownName(
            f"--device cuda: PyTorch {torch.__version__} finds {found} CUDA devices, {needed} are "
            "needed, one for each process: use --device cpu, or fewer processes"
        )
    if not begun and (nproc or 1) > 1:
        raise typer.Exit(_start(nproc or 1))
    if device == "cuda":
        torch.cuda.set_device(place)
        device = f"cuda:{place}"
    distributed.join(torch.device(device), nproc)
    return device


def _start(nproc: int) -> int:
    """Run this command line in so many processes; return its exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # the agent's own: what matters is said below
    package = str(Path(__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([package, before] if before else [package])
    with tempfile.TemporaryDirectory(prefix="invprob-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, dict.fromkeys(range(1, nproc), Std.ALL)),
            shutdown_timeout=GRACE,
        )
        command = ("-P", "-m", "invprob_cli", *sys.argv[1:])  # -P: nothing from the working folder
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as failed:
            return _explain(failed.failures, nproc, Path(logs))
    return 0


def _explain(failures: dict[int, ProcessFailure], nproc: int, logs: Path) -> int:
    """Show the logs of those that failed by themselves; return their exit code."""
    guilty = {r: f for r, f in failures.items() if f.exitcode not in STOPPED} or failures
    code = max(failure.exitcode for failure in guilty.values())
    if 0 in guilty and guilty[0].exitcode > 0:  # it has said why
        return guilty[0].exitcode
    for rank, failure in guilty.items():
        how = (
            f"was killed by signal {-failure.exitcode}"
            if failure.exitcode < 0
            else f"ended with exit code {failure.exitcode}"
        )
        console.note(f"error: process {rank} of {nproc} {how}: all were stopped")
        for file in logs.glob(f"*/attempt_0/{rank}/stderr.log"):
            for line in file.read_text(errors="replace").splitlines()[-TAIL:]:
                console.note(f"  {rank}: {line}")
    return max(code, 1)
