"""Processes for tests: forked from a server that has loaded torch once and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from invprob import distributed

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["invprob.output", "torch._dynamo", "safetensors.torch"]
)  # what training loads late too


def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Return a process that runs function(*arguments) on one thread."""
    process = CONTEXT.Process(target=_alone, args=(function, arguments))
    process.start()
    return process


def on_ranks(count: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return what function(*arguments) gave on each of so many ranks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    files = [folder / f"rank{rank}.pt" for rank in range(count)]
    ranks = [started(_rank, rank, count, port, function, file, arguments)
             for rank, file in enumerate(files)]  # fmt: skip
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * count
    return [torch.load(file, weights_only=True) for file in files]


def _alone(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def _rank(
    rank: int, count: int, port: int, function: Callable[..., Any], file: Path, rest: Any
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    distributed.join(torch.device("cpu"), count)
    torch.save(function(*rest), file)
    distributed.wait()
