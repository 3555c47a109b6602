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

__all__ = ["NOISE", "changed", "near", "with_settings"]

NOISE = ("noise.sigma", "noise.scale")  # keys besides the operator's own parameters

Remodelled = Callable[[Mapping[str, Any], str], dict[str, Any]]


def with_settings(
    observation: Observation, values: Mapping[str, Any], operator: ForwardOperator | None = None
) -> Observation:
    """Return the observation as data of another instrument: operator parameters and `NOISE`.

    operator: what the parameters belong to, instead of the observation's own. The truth is left
    out, for it belongs to the stored instrument. Raises UnknownName with the valid keys, and what
    operator and noise raise.
    """
    own = {key: value for key, value in values.items() if key not in NOISE}
    operator = operator or observation.operator
    try:
        config = changed(operator.config(), own, operator.remodelled)
    except UnknownName as error:
        raise UnknownName(f"{error}; or {', '.join(NOISE)}") from None
    for key in NOISE:
        if type(values.get(key, 1.0)) not in (int, float):
            raise UnknownName(f"{key}={values[key]}: needed a number")
    sigma = values.get("noise.sigma", observation.noise_sigma) * values.get("noise.scale", 1.0)
    if own:
        operator = type(operator).from_config(config)
    return replace(observation, operator=operator, noise_sigma=sigma, truth=None)


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
                raise UnknownName(f"no parameter {path!r}{near(path, list(_paths(tree[''])))}")
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


def _paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every leaf."""
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    for key, value in items:
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict) for item in value)
        )
        if nested:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
