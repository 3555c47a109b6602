"""Forward operators and noise models: y = A(x) + noise.

The folder is the registry: every module without a leading underscore, other than `base` and
`errors`, is one operator, named as its file; those of `noise` are noise models. `import operators`
loads no torch; the names below are looked up on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.base import ForwardOperator, LinearOperator
    from operators.errors import InvprobError, ObservationError
    from operators.noise import (
        Gaussian,
        NoiseModel,
        Poisson,
        PoissonGaussian,
        StudentT,
        Transmission,
    )

__all__ = [
    "ForwardOperator",
    "Gaussian",
    "InvprobError",
    "LinearOperator",
    "NoiseModel",
    "ObservationError",
    "Poisson",
    "PoissonGaussian",
    "StudentT",
    "Transmission",
]

_HOME = {
    "ForwardOperator": "base",
    "LinearOperator": "base",
    "Gaussian": "noise",
    "NoiseModel": "noise",
    "Poisson": "noise",
    "PoissonGaussian": "noise",
    "StudentT": "noise",
    "Transmission": "noise",
    "InvprobError": "errors",
    "ObservationError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
