"""`invprob diagnose`: is the trained posterior calibrated on data simulated from the prior?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from invprob_cli import console, options

if TYPE_CHECKING:
    from invprob.calibration import Check
    from invprob.diagnosis import Diagnosis
    from invprob.trajectory import Progress

FAILED = 4  # exit code under --strict
# settings that have options of their own in `train`, the others are set
FLAGS = ("steps", "policy", "width", "blocks", "warm_steps", "rtb_steps", "paths", "seed")


def diagnose(
    run: options.RunName = None,
    operator: options.OperatorName = None,
    prior: options.PriorName = None,
    observations: Annotated[int, typer.Option(min=8, help="Observations to simulate.")] = 64,
    n: Annotated[
        int, typer.Option(min=9, help="Samples of each; 19, 39, ... make 90% intervals exact.")
    ] = 19,
    summary: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:FUNCTION", help="Check f(x) too; this runs that file."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when a check fails.")] = False,
    runs: options.RunsFolder = Path("runs"),
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Check the calibration of a trained posterior."""
    from invprob.run import Run

    opened = Run.open(run, runs)
    console.note(f"run {opened.path}{'' if run else ' (the latest)'}")
    file = options.writable(opened.path / "diagnose.json")
    from invprob import diagnose as check
    from invprob import figures, registry, trust_figures
    from invprob.posterior import Posterior

    own = {name.rpartition(":")[2]: registry.load_function(name) for name in summary or ()}
    posterior = Posterior.from_pretrained(opened.path, operator, prior)
    options.check_memory(observations * n, posterior.prior.x_shape)
    options.use_threads(threads)
    with console.progress() as progress:
        diagnosis = check(
            posterior, observations, n, seed, own, forecast(progress, observations, n)
        )
    facts = {"checks": [asdict(c) for c in diagnosis.checks], "passed": diagnosis.passed}
    file.write_text(json.dumps(console.jsonable(facts), indent=1, allow_nan=False) + "\n")
    drawn = figures.save(
        trust_figures.calibration_figure(diagnosis.calibration),
        file.parent / "figures" / "diagnose.png",
    )
    if as_json:
        console.document(facts)
    else:
        rate = diagnosis.calibration.rate
        show(
            diagnosis.checks,
            f"{observations} simulated observations, {n} samples of each; a check fails by chance "
            f"in {rate:.1%} of exact samplers, any of them in at most 5%",
        )
        said = headline(diagnosis.checks, "no sign that truth and samples differ")
        own_code = options.own_code(operator, prior)
        console.ending([file, drawn], said, *following(diagnosis, opened.path), *own_code)
    if strict and not diagnosis.passed:
        raise typer.Exit(FAILED)


def forecast(progress: Progress, observations: int, n: int) -> Progress:
    """Return the progress callback that also tells, from the first samples, how long it takes."""
    from invprob.diagnosis import OWN, SIMULATED

    begun: dict[str, float] = {}

    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if stage not in begun:
            begun[stage] = time.monotonic()
            if stage == SIMULATED:
                seconds = (begun[SIMULATED] - begun[OWN]) * observations
                took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
                console.note(f"{observations} observations x {n} samples: about {took}")
        progress(stage, done, total, figures)

    return report


def show(checks: Sequence[Check], title: str) -> None:
    """Print checks as a table, each with its verdict and, where it failed, the remedy."""
    rows = [
        (
            escape(c.name), f"{c.statistic:.3f}", console.cell(c.threshold),
            mark(c.passed, c.threshold), escape(c.verdict), escape(c.remedy or ""),
        )
        for c in checks
    ]  # fmt: skip
    console.table(("check", "statistic", "at most", "", "verdict", "remedy"), rows, title)


def mark(passed: bool, threshold: float | None) -> str:
    """Return how the table marks a check: nothing for one that only informs."""
    if threshold is None:
        return ""
    return "pass" if passed else "[bold red]fail[/bold red]"


def headline(checks: Sequence[Check], fine: str) -> str:
    """Return the one line that matters: the worst failure, or that all passed and so is `fine`."""
    judged = [c for c in checks if c.threshold is not None]
    failed = [c for c in judged if not c.passed]
    if not failed:
        return f"all {len(judged)} checks pass: {fine}"
    worst = max(failed, key=lambda c: c.statistic / (c.threshold or 1.0))
    return f"{len(failed)} of {len(judged)} checks fail, {worst.name} most: {worst.verdict}"


def following(diagnosis: Diagnosis, run: Path) -> list[str]:
    """Return the next command: the same training, longer, after a failure, else samples to use."""
    if diagnosis.passed:
        return ["invprob", "sample", "--n", "256", "--run", str(run)]
    from invprob.config import TrainConfig
    from invprob.run import Run

    facts: dict[str, Any] = Run.open(run).config
    prior, default = facts["prior"], asdict(TrainConfig())
    trained = default | {key: value for key, value in facts["train"].items() if key in default}
    warmed = trained["warm_steps"] and (trained["policy"] == "guided" or trained["guidance"])
    longer = "warm_steps" if warmed else "rtb_steps"
    trained[longer] = 2 * max(trained[longer], 1)
    words = ["invprob", "train", "--obs", str(run / "obs.h5")]
    words += [] if ":" in prior else ["--prior", prior]  # own code is named by who trusts it
    words += ["--from", facts["start"]] if "start" in facts else []
    words += ["--amortize", str(run)] if "ranges" in facts else []
    for key, value in trained.items():
        if key in FLAGS and (key == longer or value != default[key]):
            words += [f"--{key.replace('_', '-')}", str(value)]
        elif value != default[key]:
            words += ["--set", f"{key}={value}"]
    return words
