"""`invprob sample`: draws from a trained posterior."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invprob_cli import console, launch, options
from invprob_cli.certificate import certificate_table, posterior_document

if TYPE_CHECKING:
    from invprob.certificate import Certificate
    from invprob.posterior import Posterior
    from invprob.run import Run


def sample(
    n: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    run: options.RunName = None,
    operator: options.OperatorName = None,
    prior: options.PriorName = None,
    obs: Annotated[
        Path | None,
        typer.Option(help="Another observation for the same policy; default: the run's own."),
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of several observations in the file.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: posterior.h5 in the run.")
    ] = None,
    runs: options.RunsFolder = Path("runs"),
    correct: Annotated[
        str, typer.Option(help="auto, none, psis (importance) or smc (resampled on the way).")
    ] = "auto",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    nproc: options.Processes = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Draw posterior samples and certify them.

    Once stopped, the same command goes on.
    """
    device = launch.join(nproc, device, precision)
    from invprob.run import Run

    opened = Run.open(run, runs)
    console.note(f"run {opened.path}{'' if run else ' (the latest)'}")
    label = (f"{obs.stem}-" if obs else "") + (f"{index}-" if index else "")
    file = options.writable(out or opened.path / f"{label}posterior.h5")
    from invprob import distributed
    from invprob.observation import Observation
    from invprob.posterior import Posterior

    posterior = Posterior.from_pretrained(opened.path, operator, prior).to(device, precision)
    options.check_disk(n, posterior.prior.x_shape, file.parent)
    options.use_threads(threads)
    if obs or index:
        observation = Observation.read(obs or opened.path / "obs.h5", operator).one(index)
        console.note(f"{file.name}: another observation; its gap is measured on simulated twins")
        posterior = posterior.on(observation)
    certificate, drawn, seconds = draw_and_write(posterior, opened, n, seed, file, correct, label)
    if distributed.rank():
        return
    if as_json:
        console.document(posterior_document(opened.name, file, n, certificate, seconds))
        return
    certificate_table(certificate)
    where = f" --run {run}" if run else "" if runs == Path("runs") else f" --runs {runs}"
    console.ending(
        [file, *drawn],
        f"{n} samples in {seconds:.1f} s: {certificate.verdict}",
        f"invprob compare --baselines dps{where}{options.own_code(operator, prior)}",
    )


def draw_and_write(
    posterior: Posterior,
    run: Run,
    n: int,
    seed: int,
    file: Path,
    correct: str = "auto",
    label: str = "",
) -> tuple[Certificate, list[Path], float]:
    """Write posterior.h5 and figures; return certificate, figures and the seconds of sampling.

    label: of the figures' names, to tell one observation from another.
    """
    from invprob import __version__, distributed, figures
    from invprob.output import sample_to

    begun, observation = time.monotonic(), posterior.observation
    provenance = {
        "run": run.name, "operator": observation.name, "prior": posterior.prior_name,
        "observation_sha256": observation.sha256(), "seed": seed, "invprob_version": __version__,
    }  # fmt: skip
    try:
        with console.progress() as progress:
            certificate, drawn = sample_to(file, posterior, n, seed, correct, provenance, progress)
    except (KeyboardInterrupt, SystemExit):  # SIGINT, SIGTERM
        console.note("stopped; what was drawn is kept: the same command goes on from there")
        raise
    seconds, folder = time.monotonic() - begun, run.path / "figures"
    if distributed.rank():
        return certificate, [], seconds
    whole = figures.posterior_figure(observation, drawn.x, drawn.mean, drawn.std)
    saved = [
        figures.save(whole, folder / f"{label}posterior.png"),
        figures.save(figures.samples_figure(observation, drawn.x), folder / f"{label}samples.png"),
    ]
    return certificate, saved, seconds
