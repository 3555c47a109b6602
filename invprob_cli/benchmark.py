"""`invprob benchmark`: methods against problems whose exact posterior is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from invprob_cli import console, options
from invprob_cli.compare import split_methods

if TYPE_CHECKING:
    from invprob.benchmark import Benchmark
    from invprob.suites.base import Problem

COLUMNS = {  # scores of the table, by their headings
    "sliced W": "sliced_wasserstein",
    "max W": "max_sliced_wasserstein",
    "MMD²": "mmd_squared",
    "mode error": "mode_weight_error",
    "MMSE gap / dB": "mmse_gap_db",
    "coverage 90%": "coverage_90",
    "residual / σ": "residual_rms",
    "log Z": "log_z",
    "ELBO": "elbo",
    "EUBO": "eubo",
    "ESS": "ess",
    "evaluations": "network_evaluations",
    "seconds": "seconds",
    "training s": "train_seconds",
}


def benchmark(
    suite: Annotated[str | None, typer.Option(help="Suite of problems; default: gmm.")] = None,
    problem: Annotated[
        str | None, typer.Option(help="Problem of the suite; default: its smallest.")
    ] = None,
    instance: Annotated[
        Path | None, typer.Option(help="A stored instance (HDF5) instead of a suite.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="rtb,guided,oracle,dps:zeta=0.5,...; default: all that run.")
    ] = None,
    n: Annotated[int, typer.Option(min=2, max=10**5, help="Samples of each method.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Repeats, from --seed on.")] = 1,
    oversample: options.Oversample = 1,
    seed: options.Seed = 0,
    tune: options.Tune = False,
    settings: options.TrainSettings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: benchmark-<problem>.")
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Score methods against an exact posterior."""
    source, chosen = _problem(suite, problem, instance)
    folder = out or Path(f"benchmark-{chosen.name.replace('/', '-')}")
    options.writable(folder / "benchmark.json")
    options.use_threads(threads)
    from invprob.benchmark import VECTORS, left_out
    from invprob.benchmark import benchmark as score

    config = options.configured(VECTORS, settings)
    options.check_memory((10 + oversample) * n, chosen.prior.x_shape)
    asked = None if methods is None else split_methods(methods)
    with console.progress() as progress:
        repeats = range(seed, seed + seeds)
        found = score(chosen, asked, n, repeats, config, progress, tune, oversample)
    facts = {
        **source, "n": n, "seeds": seeds, "oversample": oversample, "steps": chosen.prior.steps,
        "tuned": tune,
        "log_z_exact": chosen.log_z, **found.floor, "methods": found.rows,
        "left_out": left_out(chosen) if asked is None else {},
    }  # fmt: skip
    wrote = _write(facts, folder, found)
    if as_json:
        console.document(facts)
        return
    _show(found, n, seeds)
    for why in facts["left_out"].values():
        console.say(f"not run: {why}")
    if tune:
        console.say(options.TUNED)
    asked_for = {
        **source, "methods": methods, "n": n, "oversample": oversample,
        "seeds": max(5, 2 * seeds), "seed": seed, "out": out,
    }  # fmt: skip
    given = ((f"--{key}", value) for key, value in asked_for.items() if value is not None)
    again = [*(word for pair in given for word in pair), *(["--tune"] if tune else [])]
    again += [word for text in settings or () for word in ("--set", text)]
    console.ending(wrote, _headline(found), "invprob", "benchmark", *again)


def _problem(
    suite: str | None, problem: str | None, instance: Path | None
) -> tuple[dict[str, Any], Problem]:
    """Return what names the problem in the document, and the problem."""
    if instance is not None:
        if suite or problem:
            raise typer.BadParameter("give --instance, or --suite with --problem, not both")
        from invprob.suites.gmm import read_instance

        return {"instance": instance}, read_instance(instance)
    from invprob import registry

    name = suite or "gmm"
    family = registry.suite_class(name)()
    chosen = family.problem(problem)
    own = problem or family.names[0]
    console.note(f"problem {own} of {name}; it has {', '.join(family.names)}")
    return {"suite": name, "problem": own}, chosen


def _show(found: Benchmark, n: int, seeds: int) -> None:
    """Print the table: one method a row, the floor and the exact values first."""
    problem, floor = found.problem, found.floor
    exact = {
        "sliced_wasserstein": floor["floor"], "max_sliced_wasserstein": floor["floor_max"],
        "mmd_squared": floor["floor_mmd_squared"],
        "mode_weight_error": floor["floor_mode_weight_error"],
        "mmse_gap_db": floor["floor_mmse_gap_db"], "coverage_90": floor["floor_coverage_90"],
        "residual_rms": found.rows[0]["residual_rms_exact"], "log_z": problem.log_z,
    }  # fmt: skip
    rows = [["exact draws", *(console.cell(exact.get(key)) for key in COLUMNS.values())]]
    for row in found.rows:
        spread: Any = row.get("spread", {})
        cells = [_score(row[key], spread.get(key)) for key in COLUMNS.values()]
        rows.append([escape(str(row["name"])), *cells])
    repeats = f", mean ± spread over {seeds} seeds" if seeds > 1 else ""
    title = (
        f"{problem.name}: {n} samples a method on {problem.prior.steps} steps{repeats}; "
        "evaluations are per sample"
    )
    console.table(("", *COLUMNS), rows, title)
    for row in found.rows:
        console.say(f"{row['name']}: {row['verdict']}")


def _score(value: Any, spread: float | None) -> str:
    return console.cell(value) + (f" ± {spread:.2g}" if spread else "")


def _headline(found: Benchmark) -> str:
    """Return the one line that matters: the method closest to the exact posterior."""
    scored = [row for row in found.rows if row["sliced_wasserstein"] is not None]
    rows = [row for row in scored if row["name"] != "oracle"] or scored
    if not rows:
        return "no method gave finite samples"
    best = min(rows, key=lambda row: float(row["sliced_wasserstein"]))
    return (
        f"closest to the exact posterior: {best['name']}, sliced Wasserstein "
        f"{best['sliced_wasserstein']:.3g} (exact draws leave {found.floor['floor']:.3g} "
        f"± {found.floor['floor_spread']:.2g})"
    )


def _write(facts: dict[str, Any], folder: Path, found: Benchmark) -> list[Path]:
    """Write benchmark.json and figures/benchmark.png; return their paths."""
    from invprob import figures, trust_figures

    document = folder / "benchmark.json"
    document.write_text(json.dumps(console.jsonable(facts), indent=1, allow_nan=False) + "\n")
    picture = trust_figures.benchmark_figure(found)
    return [document, figures.save(picture, folder / "figures" / "benchmark.png")]
