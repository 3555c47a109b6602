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
    oversample: options.Oversample = 1,
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
    beside = out.parent if out else opened.path
    options.writable(out or beside / "posterior.h5")
    options.writable(beside / "figures" / "posterior.png")
    from invprob import distributed
    from invprob.observation import Observation
    from invprob.posterior import Posterior

    posterior = Posterior.from_pretrained(opened.path, operator, prior).to(device, precision)
    observation, label = posterior.observation, ""
    if obs or index:
        several = Observation.read(obs or opened.path / "obs.h5", operator, posterior.prior_name)
        observation = several.one(index)
        label = labelled(opened.path, observation.sha256(), obs, index)
    file = out or opened.path / f"{label}posterior.h5"
    options.check_disk(n, oversample, posterior.prior.x_shape, file.parent)
    options.use_threads(threads)
    if label:
        console.note(f"{file.name}: another observation; its gap is measured on simulated twins")
        posterior = posterior.on(observation)
    certificate, drawn, seconds = draw_and_write(
        posterior, opened, n, seed, file, correct, oversample
    )
    if distributed.rank():
        return
    if as_json:
        console.document(posterior_document(opened.name, file, n, certificate, seconds))
        return
    certificate_table(certificate)
    console.ending(
        [file, *drawn],
        f"{n} samples in {seconds:.1f} s: {certificate.verdict}",
        *("invprob", "compare", "--baselines", "dps"),
        *(("--run", opened.path, "--obs", obs) if obs else options.selection(opened.path)),
        *options.own_code(operator, prior),
    )


def labelled(run: Path, sha256: str, obs: Path | None, index: int) -> str:
    """Return what begins the names of an observation's files in a run, where they have their own.

    A file of that name that is of other data stays: the name then has the observation's digest.
    """
    label = (f"{obs.stem}-" if obs else "") + (f"{index}-" if index else "")
    file = run / f"{label}posterior.h5"
    if not file.is_file():
        return label
    from invprob.obs_file import opened
    from operators.errors import ObservationError

    try:
        with opened(file) as known:
            other = known.attrs.get("observation_sha256", sha256) != sha256
    except ObservationError:  # damaged: nothing to keep
        other = False
    if not other:
        return label
    console.note(f"{file} is of other data with that name, and stays")
    return f"{label}{sha256[:6]}-"


def draw_and_write(
    posterior: Posterior,
    run: Run,
    n: int,
    seed: int,
    file: Path,
    correct: str = "auto",
    oversample: int = 1,
) -> tuple[Certificate, list[Path], float]:
    """Write posterior.h5 and figures; return certificate, figures and the seconds of sampling.

    Figures go beside the file, whose name begins theirs unless it is posterior.h5.
    """
    from invprob import __version__, distributed, figures
    from invprob.output import sample_to

    begun, observation = time.monotonic(), posterior.observation
    provenance = {
        "run": run.name, "operator": observation.name, "prior": posterior.prior_name,
        "observation_sha256": observation.sha256(), "seed": seed, "invprob_version": __version__,
    }  # fmt: skip
    with console.progress() as progress:
        certificate, drawn = sample_to(
            file, posterior, n, seed, correct, provenance, progress, oversample
        )
    seconds, folder = time.monotonic() - begun, file.parent / "figures"
    label = file.stem.removesuffix("posterior").removesuffix("-")
    label += "-" if label else ""
    if distributed.rank():
        return certificate, [], seconds
    whole = figures.posterior_figure(observation, drawn.x, drawn.mean, drawn.std)
    saved = [
        figures.save(whole, folder / f"{label}posterior.png"),
        figures.save(figures.samples_figure(observation, drawn.x), folder / f"{label}samples.png"),
    ]
    return certificate, saved, seconds
