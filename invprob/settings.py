"""Changes of nested parameters by dotted paths, such as lens.0.theta_E.

Importing this module loads no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from operators.errors import UnknownName

if TYPE_CHECKING:
    from invprob.observation import Observation
    from operators.base import ForwardOperator

__all__ = ["changed", "leaves", "near", "with_settings"]

NOISE = "noise."  # begins the keys of the noise

Remodelled = Callable[[Mapping[str, Any], str], dict[str, Any]]


def with_settings(
    observation: Observation,
    values: Mapping[str, Any],
    operator: ForwardOperator | None = None,
    noise: str | None = None,
) -> Observation:
    """Return the observation as data of another instrument: parameters of operator and noise.

    operator, noise: what the parameters belong to, instead of the observation's own. The truth is
    left out, for it belongs to the stored instrument. Raises UnknownName with the valid keys, and
    what operator and noise raise.
    """
    own = {key: value for key, value in values.items() if not key.startswith(NOISE)}
    operator = operator or observation.operator
    try:
        config = changed(operator.config(), own, operator.remodelled)
    except UnknownName as error:
        raise UnknownName(f"{error}; or {NOISE}KEY") from None
    if own:
        operator = type(operator).from_config(config)
    of_noise = {k.removeprefix(NOISE): v for k, v in values.items() if k.startswith(NOISE)}
    fields = _noise(observation, noise or observation.noise_name, of_noise)
    return replace(observation, operator=operator, truth=None, **fields)


def _noise(observation: Observation, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the observation that hold its noise, changed.

    Gaussian noise has sigma and its factor scale; of another, every parameter not given is that of
    the stored noise, if it is of the same kind.
    """
    from invprob import registry

    if name != "gaussian":
        cls, stored = registry.noise_class(name), observation.noise_model
        kept = stored.config() if stored is not None and type(stored) is cls else {}
        return {"noise_sigma": None, "noise_model": cls.from_config({**kept, **values})}
    for key, value in values.items():
        if key not in ("sigma", "scale"):
            raise UnknownName(f"no parameter {NOISE + key!r}. Valid: noise.sigma, noise.scale")
        if type(value) not in (int, float):
            raise UnknownName(f"{NOISE + key}={value}: needed a number")
    sigma = values.get("sigma", observation.noise_sigma)
    if sigma is None:
        raise UnknownName("noise=gaussian: give its noise.sigma too")
    return {"noise_sigma": sigma * values.get("scale", 1.0), "noise_model": None}


def changed(
    config: Mapping[str, Any], values: Mapping[str, Any], remodelled: Remodelled | None = None
) -> dict[str, Any]:
    """Return nested `config` with the values of dotted paths changed.

    remodelled: config of a part whose `model` is set, which is done first: parameters then are
        those of that model. Raises UnknownName with the valid keys.
    """
    tree: dict[str, Any] = {"": _copy(config)}
    for path, value in sorted(values.items(), key=lambda item: not _names_model(item[0])):
        node: Any = tree
        key: str | int = ""
        for part in path.split("."):
            node = node[key]
            key = int(part) if isinstance(node, list) and part.isdigit() else part
            known = range(len(node)) if isinstance(node, list) else node
            if not isinstance(node, list | dict) or key not in known:
                raise UnknownName(
                    f"no parameter {path!r}{near(path, [leaf for leaf, _ in leaves(tree[''])])}"
                )
        if _names_model(path) and remodelled:
            new = remodelled(dict(node), str(value))
            node.clear()
            node |= new
        else:
            node[key] = value
    result: dict[str, Any] = tree[""]
    return result


def near(name: str, known: Sequence[str]) -> str:
    """Return the end of a message on an unknown name: the nearest, and all that are valid."""
    found = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {found[0]!r}?" if found else "."
    return f"{hint} Valid: {', '.join(known)}"


def _names_model(path: str) -> bool:
    return path.endswith(".model")


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every leaf of a nested config."""
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    for key, value in items:
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict) for item in value)
        )
        if nested:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
