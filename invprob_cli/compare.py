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
    from invprob.observation import Observation
    from invprob.posterior import Posterior
    from invprob.results import Result
    from invprob.run import Run

# which of several values of a score is best: the key to sort by, smallest first
BEST = {
    **dict.fromkeys(("rmse", "rmse_samples"), lambda v: v),
    **dict.fromkeys(("psnr", "psnr_samples", "ssim", "ssim_samples"), lambda v: -v),
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
    "seconds_amortised": lambda v: v,
}
COLUMNS = 6  # methods side by side; of more, `MAIN` scores in a row each
MAIN = (
    "rmse", "ssim_samples", "crps", "coverage_90", "chi2_per_pixel", "elbo", "network_evaluations",
    "seconds",
)  # fmt: skip


def compare(
    baselines: Annotated[
        str,
        typer.Option(help="Methods: dps,copaint or dps:zeta=0.5,steps=200,copaint or all or none."),
    ] = "dps",
    obs: Annotated[Path | None, typer.Option(help="Observation; default: that of the run.")] = None,
    operator: options.OperatorName = None,
    prior: options.PriorName = None,
    run: options.RunName = None,
    n: Annotated[int, typer.Option(min=1, help="Samples of each method.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Repeats, from --seed on.")] = 1,
    budget: Annotated[
        str | None, typer.Option(help="Of each method: nfe=2000, seconds=60 or paper.")
    ] = None,
    tune: options.Tune = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: the run, or beside --obs.")
    ] = None,
    runs: options.RunsFolder = Path("runs"),
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Put observations through several methods.

    What has finished is kept in the folder: the same command goes on where it was stopped.
    """
    from invprob.observation import Observation
    from invprob.run import Run

    if obs is None:
        opened: Run | None = Run.open(run, runs)
        file = opened.path / "obs.h5" if opened else Path()
        observation = Observation.read(file, operator, prior)
    else:
        file, observation = obs, Observation.read(obs, operator, prior)
        opened = run_of(observation.sha256(), prior, runs) if run is None else Run.open(run, runs)
    left_out: dict[str, str] = {}
    methods = split_methods(baselines)
    posterior = _posterior(opened, observation, operator, prior)
    own = opened is not None and opened.manifest["observation_sha256"] == observation.sha256()
    if methods == ("all",):
        from invprob.comparison import runnable

        methods, left_out = runnable(observation, posterior.prior_name if posterior else prior)
    if not methods and posterior is None:
        raise typer.BadParameter("nothing to compare: name --baselines, or train a run first")
    trained = f"run {opened.path}" if opened else "no run with this observation, so no row"
    console.note(f"rtb: {trained}{', of another observation' if opened and not own else ''}")
    folder = out or (opened.path if opened and own else file.parent / f"{file.stem}-compare")
    options.writable(folder / "compare.json")
    options.check_memory(n, observation.operator.x_shape)
    options.use_threads(threads)
    from invprob import compare as through
    from invprob.results import averaged

    with console.progress() as progress:
        methods = adjusted(methods, observation.one(0), posterior, prior, n, seed, budget, tune)
        results = [
            through(
                one, prior, methods, posterior, n, each, progress, folder / "kept"
            )
            for one in observation.each()
            for each in range(seed, seed + seeds)
        ]  # fmt: skip
    rows = [averaged(column, seeds) for column in zip(*results, strict=True)]
    observations = len(results) // seeds
    facts = {
        "observation": file, "n": n, "observations": observations, "runs": len(results),
        "budget": budget, "tuned": tune,
        "methods": rows, "left_out": left_out,
    }  # fmt: skip
    wrote = write(facts, folder, observation.one(0), results[0])
    if as_json:
        console.document(facts)
        return
    show(rows, n, observations, seeds)
    if any(row["coverage_90"] is None and row["crps"] is not None for row in rows):
        console.say("coverage is not defined: 90% intervals take at least 19 samples, --n 19")
    for why in left_out.values():
        console.say(f"not run: {why}")
    if tune:
        console.say(options.TUNED)
    following = ["sample", "--n", 256, "--run", opened.path] if opened else ["train", "--obs", file]
    following += ["--obs", file] if opened and not own else []
    own_code = options.own_code(operator, prior)
    console.ending(wrote, headline(rows), "invprob", *following, *own_code)


def adjusted(
    methods: tuple[str, ...],
    observation: Observation,
    posterior: Posterior | None,
    prior: str | None,
    n: int,
    seed: int,
    budget: str | None,
    tune: bool,
) -> tuple[str, ...]:
    """Return the methods with the settings that the budget leads to, and tuned."""
    from invprob.budgets import Budget, tuned
    from invprob.posterior import bind, resolve_prior

    if not (budget or tune):
        return methods
    limit = Budget.of(budget) if budget else None
    loaded = posterior.prior if posterior else resolve_prior(observation, prior)[1]
    likelihood = bind(observation)
    if limit:
        methods = tuple(limit.spent_by(name, loaded, likelihood, n) for name in methods)
    if tune:
        methods = tuple(tuned(name, loaded, likelihood, seed) for name in methods)
    return methods


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
    from invprob import registry
    from invprob.posterior import same_prior
    from invprob.run import Run
    from invprob.run import runs as listing

    for facts in reversed(listing(root)):
        run = Run.open(facts["name"], root)
        card = run.path / "posterior.json"
        if run.manifest["observation_sha256"] == observation_sha256 and card.exists():
            used = json.loads(card.read_text())
            if prior is None or (
                same_prior(prior, used["prior"])
                and used.get("prior_sha256") in (None, registry.prior_digest(prior))
            ):
                return run
    return None


def _posterior(
    run: Run | None, observation: Observation, operator: str | None, prior: str | None
) -> Posterior | None:
    """Return the posterior of the run, whose policy must serve this observation."""
    from invprob.posterior import Posterior

    if run is None:
        return None
    posterior = Posterior.from_pretrained(run.path, operator, prior)
    if run.manifest["observation_sha256"] != observation.sha256():
        posterior.refuse_other(observation)
    return posterior


def show(rows: list[dict[str, Any]], n: int, observations: int, seeds: int) -> None:
    """Print the table, the best of each score in bold (or starred): methods in columns, or rows."""
    keys = [key for key in rows[0] if key not in ("name", "se")]
    best = {}
    for key in keys:
        known = [row[key] for row in rows if row[key] is not None]
        order = BEST.get(key)
        best[key] = min(known, key=order) if order and len(set(known)) > 1 else None
    repeats = f"{observations} observations" if observations > 1 else f"{seeds} seeds"
    if observations > 1 and seeds > 1:
        repeats += f", {seeds} seeds each"
    several = f", mean ± standard error of {repeats}" if observations * seeds > 1 else ""
    title = f"{n} samples of each{several}; evaluations are per sample"
    wide = len(rows) > COLUMNS
    cells = [
        [_score(row[key], row["se"].get(key), best[key]) for key in (MAIN if wide else keys)]
        for row in rows
    ]
    names = [escape(row["name"]) for row in rows]
    if wide:
        heads = [key.replace("_", " ") for key in MAIN]
        console.table(("", *heads), [[n, *own] for n, own in zip(names, cells, strict=True)], title)
        console.say("all scores: compare.csv")
        return
    columns = [[escape(key), *own] for key, *own in zip(keys, *cells, strict=True)]
    console.table(("", *names), columns, title)


def headline(rows: list[dict[str, Any]]) -> str:
    """Return the one line that matters: the best CRPS where the truth is known, else the fits."""
    scored = [(row["crps"], row["name"]) for row in rows if row["crps"] is not None]
    if scored:
        value, name = min(scored)
        return f"lowest CRPS: {name} ({value:.4g})"
    fits = ", ".join(f"{row['name']} {row['chi2_per_pixel']:.2f}" for row in rows)
    return f"chi2 per pixel, 1 expected: {fits}"


def write(
    facts: dict[str, Any], folder: Path, observation: Any, results: list[Result]
) -> list[Path]:
    """Write compare.json, compare.csv and figures/compare.png; return their paths."""
    from invprob import figures

    rows = [
        {k: v for k, v in row.items() if k != "se"} | {f"{k}_se": v for k, v in row["se"].items()}
        for row in facts["methods"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    document, sheet = folder / "compare.json", folder / "compare.csv"
    document.write_text(json.dumps(console.jsonable(facts), indent=1, allow_nan=False) + "\n")
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    picture = figures.compare_figure(observation, results)
    if facts["observations"] > 1:
        picture.suptitle(f"the first of {facts['observations']} observations", fontsize=10)
    return [document, sheet, figures.save(picture, folder / "figures" / "compare.png")]


def _score(value: float | None, error: float | None, best: float | None) -> str:
    if value is None:
        return "not defined"
    text = console.measured(value, error)
    if value != best:
        return text
    return f"[bold]{text}[/bold]" if console.out.is_terminal else f"{text} *"
