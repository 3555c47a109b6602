"""The folder is the registry: operators, priors, baselines and suites go by their file's name.

A module of `operators/`, `priors/`, `priors/simulators/`, `invprob/baselines/` or `invprob/suites/`
is one of its kind; so is a folder below `priors/weights/` that holds `invprob.json`. Listing reads
the sources with `ast`, so it loads no torch. In names '-' and '_' mean the same. `file.py:Class`
runs the user's own file.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from invprob.prior_folders import LEARNED, OWN, digest, read, read_foreign
from operators.errors import ObservationError, UnknownName

if TYPE_CHECKING:
    from invprob.baselines.base import Baseline
    from invprob.suites.base import Suite
    from operators.base import ForwardOperator
    from operators.noise import NoiseModel
    from priors.base import Prior

__all__ = [
    "baseline_class",
    "load_function",
    "load_prior",
    "name_of",
    "names",
    "noise_class",
    "operator_class",
    "prior_folder",
    "simulator",
    "suite_class",
    "summary",
]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "operators": "operators",
    "priors": "priors",
    "baselines": "invprob.baselines",
    "suites": "invprob.suites",
    "noises": "operators.noise",
    "simulators": "priors.simulators",
}
BASES = {
    "operators": "ForwardOperator",
    "priors": "Prior",
    "baselines": "Baseline",
    "suites": "Suite",
    "noises": "NoiseModel",
}
WEIGHTS = ROOT / "priors" / "weights"
SHARED = {  # modules that serve the others and are not themselves of the kind
    "operators": {"adapters", "base", "errors"},
    "noises": {"base"},
    "priors": {"base", "process", "training", *LEARNED},  # nothing without a folder
    "baselines": {"base"},
    "suites": {"base"},
    "simulators": set(),
}


def operator_class(name: str) -> type[ForwardOperator]:
    """Return the operator class of that name, or of `file.py:Class`; raises `UnknownName`.

    `blur+inpainting` is the class of their compositions, the first applied first.
    """
    if "+" in name:
        kinds = [operator_class(part) for part in name.split("+")]
        from operators._composition import composition

        return composition(*kinds)
    cls: type[ForwardOperator] = _load_class("operators", name)
    return cls


def noise_class(name: str) -> type[NoiseModel]:
    """Return the noise model of that name; raises `UnknownName`, for a `file.py:Class` too.

    A name may come from an observation, which must be readable anywhere and run no code.
    """
    if ":" in name:
        raise UnknownName(
            f"noise {name!r} names code, which is not run: needed one of "
            + ", ".join(names("noises"))
        )
    cls: type[NoiseModel] = _load_class("noises", name)
    return cls


def baseline_class(name: str) -> type[Baseline]:
    """Return the baseline class of that name, or of `file.py:Class`; raises `UnknownName`."""
    cls: type[Baseline] = _load_class("baselines", name)
    return cls


def suite_class(name: str) -> type[Suite]:
    """Return the suite class of that name, or of `file.py:Class`; raises `UnknownName`."""
    cls: type[Suite] = _load_class("suites", name)
    return cls


def load_prior(name: str | Path, x_shape: tuple[int, ...] | None = None) -> Prior:
    """Return the prior of that name, of a local prior folder, or of `file.py:Class`.

    `file.py:function` is a generator, see `priors.outsourced`. x_shape: shape of the unknowns, for
    priors that come in any shape; weights and generators have their own. One of images (H, W)
    serves several bands (bands, H, W) as independent draws of each.
    Raises `UnknownName` at once for anything else: nothing is ever downloaded.
    """
    # a last axis of 2 is that of real and imaginary parts
    bands = x_shape[0] if x_shape and len(x_shape) == 3 and x_shape[-1] != 2 else 0
    try:
        loaded = _load_prior(name, x_shape)
    except ObservationError:
        if x_shape is None or not bands:
            raise
        loaded = _load_prior(name, x_shape[1:])
    if x_shape is None or not bands or loaded.x_shape != tuple(x_shape[1:]):
        return loaded
    from priors._bands import Bands

    return Bands(loaded, bands)


def _load_prior(name: str | Path, x_shape: tuple[int, ...] | None) -> Prior:
    """Return the prior of that name, of that shape where it comes in any."""
    text, folder = str(name), prior_folder(name)
    if (folder / OWN).is_file():
        loaded = read(folder)
        return loaded.on(tuple(x_shape)) if x_shape else loaded
    if (folder / "unet" / "config.json").is_file():
        return read_foreign(folder)
    if "/" in text and ":" not in text:
        raise UnknownName(
            f"no prior folder {text!r} (one that holds invprob.json, or diffusers' unet/ and "
            "scheduler/). Priors are not "
            "downloaded: fetch it yourself and give the local path, or use one of "
            + ", ".join(names("priors"))
        )
    found = _load_class("priors", text, functions=":" in text)
    if not hasattr(found, "default"):
        from priors.outsourced import Outsourced

        return Outsourced.of(found)
    prior: Prior = found.default(tuple(x_shape)) if x_shape else found.default()
    return prior


def prior_folder(name: str | Path) -> Path:
    """Return the folder of a shipped prior, or else the name as a path, whatever is there."""
    shipped = {_key(n): folder for n, folder in _weights().items()}
    return shipped.get(_key(str(name)), Path(name))


def prior_digest(name: str | Path) -> str | None:
    """Return the digest of the folder of a prior, None of priors that have none."""
    folder = prior_folder(name)
    return digest(folder) if folder.is_dir() else None


def load_function(name: str) -> Callable[..., Any]:
    """Return the function of `file.py:function`, after running that file; raises `UnknownName`."""
    file, _, wanted = name.rpartition(":")
    found = {key: value for key, value in vars(_run_file(Path(file))).items() if callable(value)}
    if wanted not in found:
        raise UnknownName(
            f"{file} has no function named {wanted!r}{_near(wanted, found)} "
            f"It has: {', '.join(found) or 'none'}"
        )
    function: Callable[..., Any] = found[wanted]
    return function


def simulator(name: str) -> Callable[..., Any]:
    """Return `draw` of the simulator of that name, or `file.py:function`; raises `UnknownName`."""
    if ":" in name:
        return load_function(name)
    package = PACKAGES["simulators"]
    draw: Callable[..., Any] = importlib.import_module(
        f"{package}.{_resolve('simulators', name)}"
    ).draw
    return draw


def names(kind: str) -> tuple[str, ...]:
    """Return the sorted names of a kind, a key of `PACKAGES`; imports nothing."""
    return tuple(sorted([*_modules(kind), *(_weights() if kind == "priors" else {})]))


def summary(kind: str, name: str) -> str:
    """Return the one-line summary of a name, read from its source or its invprob.json."""
    known = _resolve(kind, name)
    if kind == "priors" and known in _weights():
        try:
            facts = json.loads((_weights()[known] / "invprob.json").read_text())
            size = " x ".join(str(n) for n in facts["x_shape"])
            return str(facts.get("summary", f"trained diffusion prior on {size} pixels"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"damaged: invprob.json cannot be read ({error})"
    for node in ast.walk(ast.parse(_modules(kind)[known].read_text())):
        match node:
            case (
                ast.Assign(targets=[ast.Name("summary")], value=ast.Constant(str(text)))
                | ast.AnnAssign(target=ast.Name("summary"), value=ast.Constant(str(text)))
            ):
                return text
    return ""


def name_of(cls: type) -> str:
    """Return the registered name of a class, or `file.py:Class` (no folder) for a user's own.

    That of a composition is the names of its parts, joined by '+'.
    """
    if hasattr(cls, "composed_of"):
        return "+".join(map(name_of, cls.composed_of))
    package, _, module = cls.__module__.rpartition(".")
    if package in PACKAGES.values():
        return module
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or "interactive.py"
    return f"{Path(file).name}:{cls.__qualname__}"


def _load_class(kind: str, name: str, functions: bool = False) -> Any:
    """Return the first complete class of the kind that the module defines, or the one named.

    functions: what is named may be anything else that can be called, too.
    """
    file, colon, wanted = name.rpartition(":")
    known = "" if colon else _resolve(kind, name)  # a wrong name costs no import of torch
    base = getattr(importlib.import_module(f"{PACKAGES[kind]}.base"), BASES[kind])
    module = (
        _run_file(Path(file)) if colon else importlib.import_module(f"{PACKAGES[kind]}.{known}")
    )
    found = _defined(module, base)
    if functions:
        found |= {k: v for k, v in vars(module).items() if callable(v) and not inspect.isclass(v)}
    if colon and wanted in found:
        return found[wanted]
    if colon or not found:
        raise UnknownName(
            f"{file or module.__name__} has no complete {base.__name__} named "
            f"{wanted!r}{_near(wanted, found)} It has: {', '.join(found) or 'none'}"
        )
    return next(iter(found.values()))


def _defined(module: ModuleType, base: type) -> dict[str, Any]:
    """Return the complete classes of a kind that a module defines, in their order there."""
    return {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    }


def _run_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        others = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UnknownName(f"no Python file {str(path)!r}{_near(path.name, others)}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"{path.stem}_{digest}"  # never the name of an installed package
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UnknownName(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module


def _resolve(kind: str, name: str) -> str:
    """Return `name` as it is spelt on disk; raises `UnknownName` with the list."""
    known = names(kind)
    for candidate in known:
        if _key(candidate) == _key(name):
            return candidate
    raise UnknownName(
        f"no {kind[:-1]} named {name!r}{_near(name, known)} Known: {', '.join(known) or 'none'}"
    )


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _key(name: str) -> str:
    return name.replace("-", "_")


def _modules(kind: str) -> dict[str, Path]:
    if kind not in PACKAGES:
        raise UnknownName(f"no kind named {kind!r}; needed one of {', '.join(PACKAGES)}")
    files = (ROOT / PACKAGES[kind].replace(".", "/")).glob("[!_]*.py")
    return {f.stem: f for f in files if f.stem not in SHARED[kind]}


def _weights() -> dict[str, Path]:
    return {f.parent.name: f.parent for f in WEIGHTS.glob("*/invprob.json")}
