"""`invprob train`: the RTB posterior of one observation, in a run directory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invprob_cli import console, launch, options
from invprob_cli.certificate import certificate_table, posterior_document

if TYPE_CHECKING:
    from invprob.config import TrainConfig
    from invprob.observation import Observation
    from invprob.posterior import Posterior
    from invprob.run import Run


def train(
    operator: Annotated[
        str | None, typer.Option(help="Operator that the data must come from, or file.py:Class.")
    ] = None,
    obs: Annotated[Path | None, typer.Option(help="Observation (obs.h5).")] = None,
    prior: options.PriorName = None,
    out: Annotated[Path, typer.Option("--out", "--runs", help="Folder of the runs.")] = Path(
        "runs"
    ),
    name: Annotated[str | None, typer.Option(help="Name of the run; default: by time.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this run, with its own settings.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of the chain; default: the prior's.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="guided (default), or lora or full: the prior's own network fine-tuned by RTB "
            "alone, as published, which takes thousands of --rtb-steps. --set guidance=1 starts "
            "these at guidance."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Width of the policy network.")] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Its residual blocks.")] = None,
    warm_steps: Annotated[
        int | None, typer.Option(min=0, help="Warm-start steps, by simulation.")
    ] = None,
    rtb_steps: Annotated[int | None, typer.Option(min=0, help="RTB steps, on the data.")] = None,
    paths: Annotated[int | None, typer.Option(min=2, help="Paths per RTB step.")] = None,
    quality: Annotated[
        str | None,
        typer.Option(help="draft, default or high: how long to train, where not said otherwise."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same as --quality draft.")] = False,
    amortize: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml|RUN",
            help='Train one policy for a range of instruments: "lens.0.theta_E" = [0.8, 1.4]; '
            "of a run, its own.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Refine the policy of this run, by RTB alone."),
    ] = None,
    settings: options.TrainSettings = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of all randomness; default: 0.")
    ] = None,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    nproc: options.Processes = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Train the posterior of an observation, or of many."""
    from invprob.run import NAME, Run

    if obs is None and resume is None:
        raise typer.BadParameter("give --obs FILE, or --resume RUN")
    if resume and name:
        raise typer.BadParameter("a resumed run keeps its name: leave --name out")
    flags: dict[str, Any] = {
        "steps": steps, "policy": policy, "width": width, "blocks": blocks,
        "warm_steps": warm_steps, "rtb_steps": rtb_steps, "paths": paths, "seed": seed,
    }  # fmt: skip
    if resume and (amortize or start):
        raise typer.BadParameter("a resumed run keeps its settings: leave --amortize, --from out")
    if name is not None and (NAME.fullmatch(name) is None or name == "latest"):
        raise typer.BadParameter(f"--name {name!r}: needed the name of one folder, such as first-1")
    if start and flags["warm_steps"] is None:
        flags["warm_steps"] = 0
    if quick and quality not in (None, "draft"):
        raise typer.BadParameter("--quick is --quality draft: give one of them")

    device = launch.join(nproc, device, precision)
    from invprob.observation import Observation
    from operators.errors import RunError

    run = Run.open(resume, out) if resume else None
    file = obs or (run.path / "obs.h5" if run else Path())
    stored = run.config if run else {}
    if prior is None and ":" in (stored.get("prior") or ""):
        raise RunError(
            f"{file.parent} was begun with the prior {stored['prior']}, the user's own: if you "
            "trust that code, name it, --prior"
        )
    observation = Observation.read(file, operator, prior or stored.get("prior"))
    from invprob import checkpoint, registry
    from invprob.config import TrainConfig
    from invprob.instruments import read_ranges
    from invprob.obs_file import existing_file
    from invprob.posterior import Posterior, same_prior

    base = TrainConfig()
    if stored:
        base = replace(base, **{k: v for k, v in stored["train"].items() if hasattr(base, k)})
    more: dict[str, Any] = {key: stored[key] for key in ("ranges", "start") if key in stored}
    if amortize:
        before = Run(amortize).config.get("ranges") if amortize.is_dir() else None
        more["ranges"] = before or read_ranges(existing_file(amortize))
    if start:
        more["start"] = str(Run.open(start, out).path.resolve())
    # once there is a checkpoint, what was refined is part of it
    begun = run is not None and any((run.path / name).exists() for name in checkpoint.NAMES)
    begin = None
    if "start" in more and not begun:
        begin = Posterior.from_pretrained(more["start"], operator, prior)
    if begin and not stored:
        base = replace(base, **begin.policy.settings)
        prior = prior or begin.prior_name
    if wanted := "draft" if quick else quality:
        base = base.of_quality(wanted)
    config = options.configured(base, settings, **flags)
    prior = prior or stored.get("prior")
    if run:
        named = stored.get("prior")  # may be another path to it
        same = prior and named and same_prior(prior, named)
        facts = {"prior": named if same else prior, "train": asdict(config), **more}
        if known := stored.get("prior_sha256"):  # a prior that is not found is told of below
            facts["prior_sha256"] = registry.prior_digest(prior or stored["prior"]) or known
        run.check_same(facts, observation.sha256())
    options.use_threads(threads)
    posterior, run = trained(
        observation, prior, config, out, name, run,
        more=more, begin=begin, device=device, precision=precision,
        own_code=options.own_code(operator, prior),
    )  # fmt: skip
    from invprob import distributed

    if distributed.rank() == 0:
        finish(posterior, run, as_json, options.own_code(operator, prior))


def trained(
    observation: Observation,
    prior: str | None,
    config: TrainConfig,
    out: Path,
    name: str | None = None,
    run: Run | None = None,
    again: str = "",
    more: Mapping[str, Any] | None = None,
    begin: Posterior | None = None,
    device: str = "cpu",
    precision: str = "float32",
    own_code: Sequence[str] = (),
) -> tuple[Posterior, Run]:
    """Return the posterior trained in a new run, or in the `run` to resume, and that run.

    again: the command that continues after an interruption; default: `train --resume`. more: what
    the run's config holds besides, the ranges of an amortised policy. begin: what is refined.
    own_code: the options that name the user's own code, for that command.
    """
    from invprob import distributed, registry
    from invprob.flux_scale import scale_warning
    from invprob.instruments import Instruments
    from invprob.posterior import bind, resolve_prior
    from invprob.posterior_training import Interrupted
    from invprob.posterior_training import train as train_posterior
    from invprob.rtb import Trainer
    from invprob.run import Run

    more = more or {}
    name_of_prior, loaded = resolve_prior(observation, prior)
    # what cannot be trained is told before there is a run
    instruments = Instruments(observation, more["ranges"]) if "ranges" in more else None
    Trainer(loaded, bind(observation), config, instruments)
    if warning := scale_warning(observation, loaded):
        console.note(f"warning: {warning}")
    if run is None:
        facts = {"prior": name_of_prior, "train": asdict(config), **more}
        if digest := registry.prior_digest(name_of_prior):
            facts["prior_sha256"] = digest

        def create() -> Run:
            processes, seed = distributed.size(), config.seed
            return Run.create(
                observation, facts, out, seed=seed, command=sys.argv, processes=processes, name=name
            )

        run = distributed.from_first(create)
    elif distributed.rank() == 0:
        run.become_latest()
    console.note(f"run {run.path}: {observation.name} with the prior {name_of_prior}")
    with _stoppable() as (stop, received), console.progress() as show:

        def progress(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
            show(stage, done, total, figures)
            if stage == "sample" and stop.is_set():  # training is over and saved
                raise Interrupted("stopped while drawing the samples of the certificate")

        try:
            posterior = train_posterior(
                observation,
                name_of_prior,
                config,
                run,
                progress,
                stop,
                more.get("ranges"),
                begin,
                device,
                precision,
            )
        except Interrupted as interruption:
            stopped = str(interruption)
        else:
            return posterior, run
    console.note(f"{stopped}; everything is saved. Continue with:")
    again = again or console.line("invprob", "train", "--resume", run.path, *own_code)
    console.note(f"  {again}")
    raise typer.Exit(128 + received[0])


def finish(posterior: Posterior, run: Run, as_json: bool, own_code: Sequence[str] = ()) -> None:
    """Draw the training's figure; print its certificate and what comes next."""
    from invprob import figures

    assert posterior.certificate is not None  # train always gives one
    policy = run.path / "policy.safetensors"
    figure = figures.save(
        figures.training_figure(run.metrics()), run.path / "figures" / "training.png"
    )
    if as_json:
        console.document(
            posterior_document(
                run.name, policy, posterior.certificate.n, posterior.certificate, posterior.seconds
            )
        )
        return
    certificate_table(posterior.certificate)
    console.ending(
        [policy, figure],
        f"{run.name}: {posterior.certificate.verdict} ({posterior.seconds:.0f} s)",
        *("invprob", "sample", "--n", 64, *options.selection(run.path), *own_code),
    )


@contextmanager
def _stoppable() -> Iterator[tuple[threading.Event, list[int]]]:
    """Give an event that the first SIGINT or SIGTERM sets, and the signals received.

    The same signal once more acts as it did before: it ends the program at once.
    """
    stop, received = threading.Event(), list[int]()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: Any) -> None:
        received.append(number)
        stop.set()
        signal.signal(number, before[signal.Signals(number)])
        os.write(2, b"\nstopping after this step; the same signal again stops at once\n")

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
