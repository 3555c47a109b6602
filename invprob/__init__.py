"""Bayesian inverse problems with diffusion priors: which x are plausible, and how far to trust it.

    obs = invprob.Observation.read("obs.h5")
    posterior = invprob.train(obs, prior="galaxies-64")
    x = posterior.sample(64, seed=0)
    posterior.certificate

Public names are looked up on first use (PEP 562), so `import invprob` loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invprob.certificate import Certificate
    from invprob.comparison import compare
    from invprob.config import TrainConfig
    from invprob.diagnosis import Diagnosis, diagnose
    from invprob.evidence import Evidence
    from invprob.likelihood import Likelihood
    from invprob.observation import Observation
    from invprob.policy import Policy
    from invprob.posterior import Posterior
    from invprob.posterior_training import train
    from invprob.trajectory import Trajectory
    from operators.errors import (
        InvprobError,
        NotDifferentiable,
        NumericalError,
        ObservationError,
        RunError,
        UnknownName,
    )

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "Diagnosis",
    "Evidence",
    "InvprobError",
    "Likelihood",
    "NotDifferentiable",
    "NumericalError",
    "Observation",
    "ObservationError",
    "Policy",
    "Posterior",
    "RunError",
    "TrainConfig",
    "Trajectory",
    "UnknownName",
    "compare",
    "diagnose",
    "train",
]

_HOME = {
    "Certificate": "invprob.certificate",
    "Diagnosis": "invprob.diagnosis",
    "Evidence": "invprob.evidence",
    "Likelihood": "invprob.likelihood",
    "Observation": "invprob.observation",
    "Policy": "invprob.policy",
    "Posterior": "invprob.posterior",
    "TrainConfig": "invprob.config",
    "Trajectory": "invprob.trajectory",
    "compare": "invprob.comparison",
    "diagnose": "invprob.diagnosis",
    "train": "invprob.posterior_training",
}  # whatever is not named here is an error class of operators.errors


def _check_neighbours() -> None:
    """Raise ImportError when another `operators` or `priors` is found before ours.

    Both are top-level packages, so a user's own `operators.py` in the working folder would
    shadow them. `find_spec` only looks: it runs nothing.
    """
    beside = Path(__file__).resolve().parent.parent
    for name in ("operators", "priors"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"invprob needs the package {name!r} beside it: reinstall invprob")
        # a plain folder has no origin
        found = spec.origin or next(iter(spec.submodule_search_locations or ()), name)
        if Path(found).resolve() != beside / name / "__init__.py":
            raise ImportError(
                f"{found} shadows the package {name!r} of invprob: rename it, or run elsewhere"
            )


_check_neighbours()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "operators.errors")), name)
    globals()[name] = value  # also where a module shares its function's name, as `compare` does
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
