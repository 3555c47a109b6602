"""`invprob prior train`: a diffusion prior of images, as a folder that `--prior` takes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from invprob_cli import console, launch, options

app = typer.Typer(
    help="Train a prior on images, and check how good it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def train(
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|FOLDER|NAME|FILE.py:FUNCTION",
            help="Images (n, H, W) in an .npy, HDF5 or FITS file, a folder of images, or a "
            "simulator: galaxies, phantoms, blackhole, digits, or draw(rng, size) of your own "
            "(which runs that file).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Prior folder to write.")],
    size: Annotated[
        int | None, typer.Option(min=16, max=512, help="Side to which images are binned and cut.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of images and checkpoints; default: OUT.training."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    pool: Annotated[int, typer.Option(min=64, help="Images that a simulator draws.")] = 65_536,
    held_out: Annotated[
        int, typer.Option(min=16, help="Images kept from the training, to judge it by.")
    ] = 2_048,
    bank: Annotated[int, typer.Option(min=32, help="Draws of the prior that are stored.")] = 512,
    turns: Annotated[
        bool | None,
        typer.Option(help="Images turned or mirrored are as likely as they were; default: no."),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of the images.")] = None,
    summary: Annotated[str | None, typer.Option(help="What they are, in a line.")] = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Train a prior on images; stopped, the same command goes on."""
    device = launch.join(None, device, "float32")
    options.writable(out / "invprob.json")
    work = work or out.with_name(f"{out.name}.training")

    from invprob import registry
    from invprob.prior_data import is_simulator
    from invprob.prior_training import Recipe, train_prior
    from priors.training import Training

    stated: dict[str, object] = {}
    if is_simulator(data):
        stated = vars(sys.modules[registry.simulator(data).__module__])
    turns = bool(stated.get("turns", False)) if turns is None else turns
    training = options.configured(Training(), settings, steps=steps, batch=batch, seed=seed)
    recipe = Recipe(
        data, size, pool, held_out, bank,
        unit=str(stated.get("unit", "")) if unit is None else unit,
        summary=str(stated.get("summary", "")) if summary is None else summary,
        training=replace(training, turns=turns, device=device),
    )  # fmt: skip
    options.use_threads(threads)
    console.note(f"images and checkpoints in {work}: stopped, the same command goes on")
    with console.progress() as progress:
        errors = train_prior(recipe, out, work, threads or os.cpu_count() or 1, progress)
    if as_json:
        console.document({"folder": out, "work": work, "denoising_error": errors})
        return
    said = ", ".join(f"{error:.2g} at {rho}" for rho, error in errors.items())
    console.ending(
        [out],
        f"held-out denoising error by noise ratio: {said}",
        f"invprob simulate --operator denoising --prior {out}",
    )
