"""Several processes (ranks) that share one computation; with one process every call is a no-op.

A launcher such as torchrun starts the ranks and `join` makes them one group. All of them walk
through the same program. The random numbers of a batch are a function of (seed, step, item), so
it does not matter which rank computes an item: a rank takes its share of the rows, sums over rows
are added up between the ranks, and N ranks give the result of one up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from operators.errors import PeerLost, RunError

TIMEOUT = timedelta(days=1)  # launchers see a dead rank at once; a slow one is no fault

Made = TypeVar("Made")


def launched() -> bool:
    """Return whether a launcher has started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join(device: torch.device, expected: int | None = None) -> None:
    """Make one group of the ranks that were launched: gloo on CPU, NCCL between GPUs.

    Raises RunError unless `expected` ranks answer, where a number is expected.
    """
    if launched() and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    answered = round(total(1.0))  # counted, not believed: some launchers start fewer
    if expected not in (None, answered):
        raise RunError(
            f"{answered} processes run where {expected} were asked for: start them with --nproc "
            f"alone, or with torchrun --nproc-per-node {expected} -m invprob_cli"
        )


def size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank; the first one, 0, writes and reports."""
    return dist.get_rank() if size() > 1 else 0


def share(n: int) -> slice:
    """Return the rows of n that are this rank's; none where there are more ranks than rows."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def gathered(part: Tensor, n: int) -> Tensor:
    """Return (..., n) on every rank, of which each has given its share (..., rows)."""
    if size() == 1:
        return part
    whole = part.new_zeros(*part.shape[:-1], n)
    whole[..., share(n)] = part
    with _peers():
        dist.all_reduce(whole)
    return whole


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one type by their sums over the ranks, in one message."""
    if size() == 1:
        return
    kept = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in kept])
    with _peers():
        dist.all_reduce(flat)
    for tensor, summed in zip(kept, torch.split(flat, [t.numel() for t in kept]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def total(value: float) -> float:
    """Return the sum of one number over the ranks; every rank waits for the others."""
    if size() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    with _peers():
        dist.all_reduce(summed)
    return float(summed)


def wait() -> None:
    """Wait for the other ranks."""
    total(0.0)


def from_first(make: Callable[[], Made]) -> Made:
    """Return on every rank what the first one makes."""
    if size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    with _peers():
        dist.broadcast_object_list(box)
    made: Made = box[0]  # type: ignore[assignment]  # a list of one
    return made


def collected(own: list[Made]) -> list[Made]:
    """Return on every rank the lists of all, one after another."""
    if size() == 1:
        return own
    lists: list[list[Made]] = [[] for _ in range(size())]
    with _peers():
        dist.all_gather_object(lists, own)
    return [item for some in lists for item in some]


@contextmanager
def _peers() -> Iterator[None]:
    """Tell by PeerLost that another rank has gone: each backend has an error of its own for it."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run has ended; see its message") from error
