"""`invprob inspect`: what is in a file or folder of ours; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from invprob_cli import console, options

DIFFUSERS = "unet/config.json"  # what a folder holds that diffusers saved


def inspect(
    path: Annotated[
        Path, typer.Argument(help="An obs.h5, a posterior.h5, a prior folder or a run.")
    ],
    as_json: options.Json = False,
) -> None:
    """Show what an observation, a posterior, a prior or a run holds."""
    found = facts_of(path)
    if as_json:
        console.document(found)
        return
    console.facts_table(found, str(path))
    bad = found.get("not_finite")
    said = f"{bad} values are NaN or infinite and not masked: mask them first" if bad else ""
    console.ending([], said, *following(path, found))


def following(path: Path, found: Mapping[str, Any]) -> list[object]:
    """Return the next command's words, none where a posterior is away from its run or its data."""
    if found["kind"] == "run":
        return following_run(path, found)
    if found["kind"] == "prior":
        return ["invprob", "simulate", "--operator", "lensing", "--prior", path]
    if found["kind"] == "observation":
        own = options.own_code(None, found["prior"])
        return ["invprob", "train", "--operator", found["operator"], "--obs", path, *own]
    places = (path.parent, Path("runs", str(found.get("run"))))
    run = next((place for place in places if (place / "manifest.json").is_file()), None)
    data = read_json(run / "manifest.json")["observation_sha256"] if run else None
    if found.get("observation_sha256", data) != data:
        return []  # of other data than the run's, whose file only `sample` knew
    own = options.own_code(found.get("operator"), found.get("prior"))
    return ["invprob", "compare", "--baselines", "dps", "--run", run, *own] if run else []


def following_run(path: Path, found: Mapping[str, Any]) -> list[object]:
    """Return the words that sample a finished run, or finish its training."""
    go_on = ["sample", "--n", "64", "--run"] if found["finished"] else ["train", "--resume"]
    own = options.own_code(found["operator"], found["config"].get("prior"))
    return ["invprob", *go_on, path, *own]


def facts_of(path: Path) -> dict[str, Any]:
    """Return the facts of whatever lies at `path`, with its `kind`."""
    from invprob import obs_file
    from operators.errors import ObservationError

    if path.is_dir():
        if (path / "manifest.json").is_file():
            return run_facts(path)
        if any((path / name).is_file() for name in ("invprob.json", DIFFUSERS)):
            return prior_facts(path)
        raise ObservationError(
            f"{path} is neither a run nor a prior folder (invprob.json, or {DIFFUSERS})"
        )
    file = obs_file.existing_file(path)
    if file.suffix == ".h5" and _format(path) == obs_file.POSTERIOR_FORMAT:
        return posterior_facts(path)
    return {"kind": "observation", **obs_file.facts(path)}


def posterior_facts(path: Path) -> dict[str, Any]:
    """Return provenance, shapes and the certificate of a posterior.h5."""
    import h5py

    from operators.errors import ObservationError

    with h5py.File(path, "r") as file:
        facts = {
            key: value.item() if hasattr(value, "item") else value
            for key, value in file.attrs.items()
        }
        try:
            chains, draws, *shape = file["posterior/x"].shape
            certificate = json.loads(facts.pop("certificate"))
        except (KeyError, TypeError, ValueError) as error:
            raise ObservationError(f"{path} is not a whole posterior file ({error})") from error
    counts = {"chains": chains, "draws": draws, "x_shape": shape}
    return {"kind": "posterior", **facts, **counts, "certificate": certificate}


def prior_facts(folder: Path) -> dict[str, Any]:
    """Return what a prior folder, ours or of diffusers, says of itself, with its files."""
    own = folder / "invprob.json"
    foreign = not own.is_file()
    facts = read_json(folder / DIFFUSERS if foreign else own)
    facts = {"network": facts["_class_name"]} if foreign else facts
    residuals: list[float] = facts.pop("residuals", [])
    files = [f for f in folder.rglob("*") if f.is_file()]
    return {
        "kind": "prior", "name": folder.resolve().name, **facts, "residual_times": len(residuals),
        "files": sorted(str(f.relative_to(folder)) for f in files),
        "bytes": sum(f.stat().st_size for f in files),
    }  # fmt: skip


def run_facts(folder: Path) -> dict[str, Any]:
    """Return manifest, configuration, last figures and certificate of a run."""
    from invprob.run import Run

    run, card = Run(folder), folder / "posterior.json"
    metrics = run.metrics()
    trained = read_json(card) if card.is_file() else {}
    return {
        "kind": "run", **run.manifest, "config": run.config, "finished": card.is_file(),
        "metrics": metrics[-1] if metrics else None, "certificate": trained.get("certificate"),
        "files": sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()),
    }  # fmt: skip


def _format(path: Path) -> str:
    """Return the format that an HDF5 file states, empty where it cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("format", ""))
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises ObservationError where it is damaged."""
    from operators.errors import ObservationError

    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ObservationError(f"{path} is damaged ({error}): restore it") from error
    return facts
