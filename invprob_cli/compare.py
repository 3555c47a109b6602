"""`invprob compare`: one observation through the trained posterior and training-free samplers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from invprob_cli import console, options

if TYPE_CHECKING:
    from invprob.comparison import Result
    from invprob.posterior import Posterior
    from invprob.run import Run

# which of several values of a score is best: the key to sort by, smallest first
BEST = {
    "rmse": lambda v: v,
    "psnr": lambda v: -v,
    "ssim": lambda v: -v,
    "crps": lambda v: v,
    "chi2_per_pixel": lambda v: abs(v - 1),
    "coverage_90": lambda v: abs(v - 0.9),
    "coverage_90_noisy": lambda v: abs(v - 0.9),
    "elbo": lambda v: -v,
    "log_z": lambda v: -v,
    "ess": lambda v: -v,
    "std_log_w": lambda v: v,
    "network_evaluations": lambda v: v,
    "operator_evaluations": lambda v: v,
    "seconds": lambda v: v,
}


def compare(
    baselines: Annotated[
        str,
        typer.Option(help="Methods: dps,copaint or dps:zeta=0.5,steps=200,copaint or all or none."),
    ] = "dps",
    obs: Annotated[Path | None, typer.Option(help="Observation; default: that of the run.")] = None,
    prior: options.PriorName = None,
    run: options.RunName = None,
    n: Annotated[int, typer.Option(min=1, help="Samples of each method.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the run, or beside --obs.")
    ] = None,
    runs: options.RunsFolder = Path("runs"),
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Put one observation through several methods."""
    from invprob.observation import Observation
    from invprob.run import Run

    if obs is None:
        opened: Run | None = Run.open(run, runs)
        file = opened.path / "obs.h5" if opened else Path()
        observation = Observation.read(file)
    else:
        file, observation = obs, Observation.read(obs)
        opened = run_of(observation.sha256(), prior, runs) if run is None else Run.open(run, runs)
    left_out: dict[str, str] = {}
    methods = split_methods(baselines)
    posterior = _posterior(opened, observation.sha256(), prior)
    if methods == ("all",):
        from invprob.comparison import runnable

        methods, left_out = runnable(observation, posterior.prior_name if posterior else prior)
    if not methods and posterior is None:
        raise typer.BadParameter("nothing to compare: name --baselines, or train a run first")
    console.note(
        f"rtb: run {opened.path}" if opened else "rtb: no run with this observation, so no row"
    )
    folder = out or (opened.path if opened else file.parent / f"{file.stem}-compare")
    options.writable(folder / "compare.json")
    options.check_memory(n, observation.operator.x_shape)
    options.use_threads(threads)

    from invprob import compare as through

    with console.progress() as progress:
        results = through(observation, prior, methods, posterior, n, seed, progress)
    rows = [{"name": r.name, **r.scores} for r in results]
    facts = {"observation": file, "methods": rows, "left_out": left_out}
    wrote = write(facts, folder, observation, results)
    if as_json:
        console.document(facts)
        return
    show(results, n)
    for why in left_out.values():
        console.say(f"not run: {why}")
    trained = f"sample --n 256 --run {opened.path}" if opened else f"train --obs {file}"
    console.ending(wrote, headline(results), f"invprob {trained}")


def split_methods(text: str) -> tuple[str, ...]:
    """Return the methods of "a:x=1,y=2,b": a piece with '=' but no ':' continues the one before."""
    methods: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        if methods and "=" in piece and ":" not in piece.partition("=")[0]:
            joint = "," if ":" in methods[-1] else ":"
            methods[-1] += joint + piece
        else:
            methods.append(piece)
    return () if methods == ["none"] else tuple(methods)


def run_of(observation_sha256: str, prior: str | None, root: Path) -> Run | None:
    """Return the newest finished run of that observation (and prior, where one is named)."""
    from invprob.run import Run
    from invprob.run import runs as listing

    for facts in reversed(listing(root)):
        run = Run.open(facts["name"], root)
        card = run.path / "posterior.json"
        if run.manifest["observation_sha256"] == observation_sha256 and card.exists():
            used = json.loads(card.read_text())["prior"]
            if prior is None or prior.replace("-", "_") == used.replace("-", "_"):
                return run
    return None


def _posterior(run: Run | None, observation_sha256: str, prior: str | None) -> Posterior | None:
    """Return the posterior of the run, which must be of this observation and prior."""
    from invprob.posterior import Posterior
    from operators.errors import UnknownName

    if run is None:
        return None
    if run.manifest["observation_sha256"] != observation_sha256:
        raise UnknownName(f"run {run.name} was trained on another observation: leave --obs out")
    return Posterior.from_pretrained(run.path, prior=prior)


def show(results: list[Result], n: int) -> None:
    """Print the table: methods in columns, the best of each score in bold (or starred)."""
    rows = []
    for key in results[0].scores:
        values = [r.scores[key] for r in results]
        known = [v for v in values if v is not None]
        order = BEST.get(key)
        best = min(known, key=order) if order and len(set(known)) > 1 else None
        rows.append([escape(key), *(_score(v, v is not None and v == best) for v in values)])
    title = f"{n} samples of each; evaluations are per sample"
    console.table(("", *(escape(r.name) for r in results)), rows, title)


def headline(results: list[Result]) -> str:
    """Return the one line that matters: the best CRPS where the truth is known, else the fits."""
    scored = [(r.scores["crps"], r.name) for r in results if r.scores["crps"] is not None]
    if scored:
        value, name = min(scored)
        return f"lowest CRPS: {name} ({value:.4g})"
    fits = ", ".join(f"{r.name} {r.scores['chi2_per_pixel']:.2f}" for r in results)
    return f"chi2 per pixel, 1 expected: {fits}"


def write(
    facts: dict[str, Any], folder: Path, observation: Any, results: list[Result]
) -> list[Path]:
    """Write compare.json, compare.csv and figures/compare.png; return their paths."""
    from invprob import figures

    rows = facts["methods"]
    document, sheet = folder / "compare.json", folder / "compare.csv"
    document.write_text(json.dumps(console.jsonable(facts), indent=1, allow_nan=False) + "\n")
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    picture = figures.compare_figure(observation, results)
    return [document, sheet, figures.save(picture, folder / "figures" / "compare.png")]


def _score(value: float | None, best: bool) -> str:
    if value is None:
        return "not defined"
    text = f"{value:.4g}"
    if not best:
        return text
    return f"[bold]{text}[/bold]" if console.out.is_terminal else f"{text} *"
