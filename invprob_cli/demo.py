"""`invprob demo`: the whole way on a small lens whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from invprob_cli import console, options
from invprob_cli.certificate import certificate_table

OPERATOR, PRIOR = "lensing", "galaxies-64"
TRAINING: dict[str, Any] = {
    "steps": 40,
    "pairs": 8,
    "warm_steps": 20,
    "rtb_steps": 2,
    "paths": 4,
    "certified": 8,
    "twins": 6,
    "twin_paths": 1,
}
SAMPLES = 32


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("invprob-demo"),
    prior: Annotated[str, typer.Option(help="Prior of the source.")] = PRIOR,
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Go the whole way on a small lens whose truth is known."""
    options.writable(out / "obs.h5")

    from invprob import figures, registry
    from invprob.config import TrainConfig
    from invprob.simulate import draw_truth, simulate
    from invprob_cli.sample import draw_and_write
    from invprob_cli.train import trained

    options.use_threads(threads)
    loaded = registry.load_prior(prior)
    operator = registry.operator_class(OPERATOR).default(loaded.x_shape)
    console.note("1/3 simulate: a source drawn from the prior, lensed, with noise")
    observation = simulate(operator, draw_truth(loaded, seed), 0.05, seed, prior, loaded.unit)
    observation.write(out / "obs.h5")
    figures.save(figures.observation_figure(observation), out / "obs.png")
    console.note("2/3 train: a short one; `invprob train` takes longer and comes closer")
    config = TrainConfig(seed=seed, **TRAINING)
    posterior, run = trained(observation, prior, config, out / "runs")
    figures.save(figures.training_figure(run.metrics()), run.path / "figures" / "training.png")
    console.note(f"3/3 sample: {SAMPLES} draws from the posterior")
    file = run.path / "posterior.h5"
    certificate, drawn, _ = draw_and_write(posterior, run, SAMPLES, seed, file)
    certificate_table(certificate)
    console.ending(
        [out / "obs.h5", file, *drawn],
        f"look at {drawn[0]}; {certificate.verdict}",
        *("invprob", "compare", "--baselines", "dps:steps=100", "--run", run.path),
        *options.own_code(None, prior),
    )
