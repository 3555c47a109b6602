"""Every error that invprob raises on purpose, each with the exit code of the command line.

They live here because `operators` is the lowest layer: it imports none of the other packages, so
each of those can import these names without a cycle. A message says what was found, what was
needed and what to do; only `invprob_cli` turns it into one line and an exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "InvprobError",
    "NotDifferentiable",
    "NumericalError",
    "ObservationError",
    "PeerLost",
    "RunError",
    "UnknownName",
    "refuse_below",
]


class InvprobError(Exception):
    """Base class of the errors that a user can cause or cure."""

    exit_code: ClassVar[int] = 1


class ObservationError(InvprobError):
    """Bad data, or operator and noise parameters that cannot describe an instrument."""

    exit_code: ClassVar[int] = 3


class UnknownName(InvprobError):
    """A name (operator, prior, baseline, capability) that does not exist."""

    exit_code: ClassVar[int] = 2


class NotDifferentiable(InvprobError):
    """A method that needs gradients was asked to use an operator that has none."""

    exit_code: ClassVar[int] = 2


class RunError(InvprobError):
    """A run that cannot start, resume or be read."""

    exit_code: ClassVar[int] = 1


class PeerLost(InvprobError):
    """Another of the processes that share a run has ended, so this one cannot go on."""

    exit_code: ClassVar[int] = 6  # seen by the launcher alone, which tells of the other


class NumericalError(InvprobError):
    """A computation that diverged or lost all its precision."""

    exit_code: ClassVar[int] = 5


def refuse_below(settings: Any, least: Mapping[str, float]) -> None:
    """Raise ObservationError where one of the settings is below the least that it may be.

    One that is None is left to be found out.
    """
    for name, value in least.items():
        found = getattr(settings, name)
        if found is not None and not found >= value:
            raise ObservationError(f"{name} must be at least {value:g}, found {found}")
