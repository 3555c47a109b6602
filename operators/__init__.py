"""Forward operators and noise models: y = A(x) + noise.

The folder is the registry: every module without a leading underscore, other than `base`, `noise`
and `errors`, is one operator, named as its file. `import operators` loads no torch; the names
below are looked up on first use (PEP 562).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.base import ForwardOperator, LinearOperator
    from operators.errors import InvprobError, ObservationError
    from operators.noise import Gaussian, NoiseModel

__all__ = [
    "ForwardOperator",
    "Gaussian",
    "InvprobError",
    "LinearOperator",
    "NoiseModel",
    "ObservationError",
    "load",
    "names",
]

_NOT_OPERATORS = {"base", "noise", "errors"}
_HOME = {
    "ForwardOperator": "base",
    "LinearOperator": "base",
    "Gaussian": "noise",
    "NoiseModel": "noise",
    "InvprobError": "errors",
    "ObservationError": "errors",
}


def names() -> tuple[str, ...]:
    """Names of the operators in this folder, sorted; nothing is imported."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if not n.startswith("_") and n not in _NOT_OPERATORS))


def load(name: str) -> type[ForwardOperator]:
    """The operator class that the module `operators/<name>.py` defines.

    Raises `UnknownName` with the list and the nearest match when there is no such module.
    """
    from operators.base import ForwardOperator
    from operators.errors import UnknownName

    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"no operator named {name!r}{hint} Known: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, ForwardOperator)
            and value.__module__ == module.__name__
        ):
            return value
    raise UnknownName(f"operators/{name}.py defines no subclass of ForwardOperator")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
