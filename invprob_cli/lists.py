"""`invprob operators`, `priors`, `baselines`, `runs`: what there is, read without loading torch."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from invprob_cli import console, options
from invprob_cli.inspect import following_run, run_facts

FLAGS = {
    "operators": ("linear", "differentiable", "has_svd", "default_prior"),
    "priors": (),
    "baselines": (
        "needs_linear",
        "needs_svd",
        "needs_gaussian",
        "needs_known_prior",
        "needs_pixels",
        "needs_latent",
        "needs_gradient",
        "needs_network_gradient",
        "needs_training",
        "particles",
    ),
}
PRIOR_FACTS = ("x_shape", "unit", "steps", "licence", "sha256")


def operators(as_json: options.Json = False) -> None:
    """List the forward operators."""
    _list("operators", as_json, "invprob simulate --operator lensing --out obs.h5")


def priors(as_json: options.Json = False) -> None:
    """List the priors."""
    _list("priors", as_json, "invprob simulate --operator lensing --prior NAME --out obs.h5")


def baselines(as_json: options.Json = False) -> None:
    """List the training-free samplers."""
    _list("baselines", as_json, "invprob compare --baselines dps,copaint")


def runs(
    folder: options.RunsFolder = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """List the runs, oldest first."""
    from invprob.run import runs as listing

    found = listing(folder)
    if as_json:
        console.document(found)
        return
    rows = []
    finished = [run for run in found if (folder / run["name"] / "posterior.json").is_file()]
    for run in found:
        metrics = run["metrics"] or {}
        elbo = _certified(folder / run["name"]).get("elbo", metrics.get("elbo"))
        values = (*(run[key] for key in ("name", "operator", "created")), metrics.get("step"))
        rows.append([console.cell(value) for value in (*values, elbo, run in finished)])
    console.table(("name", "operator", "created", "steps", "ELBO", "finished"), rows)
    following: list[object] = ["invprob", "train", "--obs", "obs.h5"]
    if found:
        newest = folder / (finished or found)[-1]["name"]
        following = following_run(newest, run_facts(newest))
    console.ending([], f"{len(rows)} runs in {folder}", *following)


def _certified(run: Path) -> dict[str, Any]:
    """Return the certificate of a finished run, empty where there is none or it is damaged."""
    try:
        return json.loads((run / "posterior.json").read_text())["certificate"] or {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def facts(kind: str, name: str) -> dict[str, Any]:
    """Return name, summary and capability flags of one operator, prior or baseline."""
    from invprob import registry

    folder = registry.ROOT / registry.PACKAGES[kind].replace(".", "/")
    found: dict[str, Any] = {"name": name, "summary": registry.summary(kind, name)}
    module = folder / f"{name}.py"
    if module.is_file():
        flags = class_constants(folder / "base.py", module)
        return found | {key: flags.get(key) for key in FLAGS[kind]}
    try:
        card = json.loads((registry.WEIGHTS / name / "invprob.json").read_text())
    except ValueError:  # its summary says that it is damaged
        card = {}
    return found | {key: card.get(key) for key in PRIOR_FACTS}


def class_constants(base: Path, module: Path) -> dict[str, Any]:
    """Return what the class of a module sets or inherits from `base`, constants only.

    None stands for what is a property: it depends on the settings.
    """
    inherited, own = ({c.name: c for c in _classes(path)} for path in (base, module))

    def constants(cls: ast.ClassDef) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for parent in cls.bases:
            if isinstance(parent, ast.Name) and parent.id in inherited | own:
                found |= constants((inherited | own)[parent.id])
        for node in cls.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(key)], value=ast.Constant(value))
                    | ast.AnnAssign(target=ast.Name(key), value=ast.Constant(value))
                ):
                    found[key] = value
                case ast.FunctionDef(name=key) if key in found:
                    found[key] = None
        return found

    # a parent in neither file is itself derived from the first class of `base`
    root = next(filter(None, map(constants, inherited.values())), {})
    return root | next(filter(None, map(constants, own.values())), {})


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def _list(kind: str, as_json: bool, following: str) -> None:
    from invprob import registry

    found = [facts(kind, name) for name in registry.names(kind)]
    if as_json:
        console.document(found)
        return
    needs = [key for key in FLAGS[kind] if key.startswith("needs_")]
    columns = ["name", *(key for key in FLAGS[kind] if key not in needs), "summary"]
    heads = [column.replace("_", " ") for column in columns]
    rows = [[console.cell(row.get(key)) for key in columns] for row in found]
    if needs:  # many flags, few of them set: words take less room than columns
        heads.insert(1, "needs")
        for cells, row in zip(rows, found, strict=True):
            words = [key.removeprefix("needs_").replace("_", " ") for key in needs if row[key]]
            cells.insert(1, ", ".join(words) or "-")
    console.table(heads, rows)
    console.ending([], "", *following.split())
