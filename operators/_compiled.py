"""Numba kernels, cached on disk where that works and compiled afresh where it does not.

A read-only install, a full disk or a damaged cache file must cost a second, never the run. The
cache is a pickle, so it stays beside the source (numba's default), never in a shared folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` compiled by numba at its first call; uncached when the cache cannot be used.

    Kernels write their results into arrays they are given, so repeating a call is harmless; an
    error that has nothing to do with the cache is simply raised again by the second attempt.
    """
    try:
        dispatcher = njit(cache=True)(function)
    except RuntimeError:  # numba found no folder that it can write to
        return cast(F, njit(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal dispatcher
        try:
            return dispatcher(*arguments)
        except Exception:  # numba lets cache failures of any kind through
            dispatcher = njit(function)
            return dispatcher(*arguments)

    return cast(F, call)
