"""`invprob prior`: train a diffusion prior on images, into a folder for `--prior`; judge it."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invprob_cli import console, launch, options
from invprob_cli.diagnose import FAILED, headline, show

if TYPE_CHECKING:
    from invprob.prior_quality import Quality

FINE = "its draws are like the images, and its denoiser is good"

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
    latent: Annotated[
        bool,
        typer.Option(
            "--latent",
            help="A diffusion on the codes of an autoencoder, which is trained first; its settings "
            "are --set autoencoder.KEY=VALUE.",
        ),
    ] = False,
    unit: Annotated[str | None, typer.Option(help="Unit of the images.")] = None,
    summary: Annotated[str | None, typer.Option(help="What they are, in a line.")] = None,
    settings: options.TrainSettings = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Train a prior on images; stopped, the same command goes on."""
    place = launch.join(None, device, "float32")
    if out.name in ("", ".."):  # a folder of no name of its own
        out = out.resolve()
    options.writable(out / "invprob.json")
    work = work or out.with_name(f"{out.name}.training")

    from invprob import registry
    from invprob.prior_data import is_simulator
    from invprob.prior_recipe import AUTOENCODER, Recipe, command
    from invprob.prior_training import train_prior
    from operators.errors import UnknownName
    from priors._autoencoder_training import AutoencoderTraining
    from priors.training import Training

    stated: dict[str, object] = {}
    if is_simulator(data):
        stated = vars(sys.modules[registry.simulator(data).__module__])
    turns = bool(stated.get("turns", False)) if turns is None else turns
    prefix = f"{AUTOENCODER}."
    own = [text.removeprefix(prefix) for text in settings or () if text.startswith(prefix)]
    settings = [text for text in settings or () if not text.startswith(prefix)]
    if own and not latent:
        raise UnknownName(f"--set {prefix}{own[0]} is of an autoencoder: add --latent")
    training = options.configured(Training(), settings, steps=steps, batch=batch, seed=seed)
    coding = options.configured(AutoencoderTraining(), own, f"--set {AUTOENCODER}", seed=seed)
    recipe = Recipe(
        data, size, pool, held_out, bank, seed,
        unit=str(stated.get("unit", "")) if unit is None else unit,
        summary=str(stated.get("summary", "")) if summary is None else summary,
        training=replace(training, turns=turns, device=place),
        autoencoder=replace(coding, turns=turns, device=place) if latent else None,
    )  # fmt: skip
    options.use_threads(threads)
    console.note(f"images and checkpoints in {work}: stopped, the same command goes on")
    with console.progress() as progress:
        quality = train_prior(recipe, out, work, threads or os.cpu_count() or 1, progress)
    if as_json:
        console.document({"folder": out, "work": work, **document(quality)})
        return
    show(quality.checks, f"{out} against images held out")
    said = headline(quality.checks, FINE)
    longer = replace(recipe, training=replace(recipe.training, steps=2 * training.steps))
    again = [*shlex.split(command(longer, f"{out}-longer")), "--device", device]
    good = ["invprob", "simulate", "--operator", "denoising", "--prior", out]
    # longer training is no cure for images that are too few to judge by
    console.ending([out], said, *(good if quality.passed or quality.unjudged else again))


@app.command()
def check(
    prior: Annotated[str, typer.Argument(help="Name of a prior, or a local prior folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER|NAME|FILE.py:FUNCTION",
            help="Judge it by these images; default: those held out from its training, or exact "
            "draws of a prior known in closed form.",
        ),
    ] = None,
    n: Annotated[int, typer.Option(min=64, help="Images that a simulator draws.")] = 2_048,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when a check fails.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of a simulator's images.")
    ] = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Judge a prior by images: those held out from its training, exact draws, or your own."""
    from invprob import registry
    from invprob.prior_data import is_simulator, read, simulated
    from invprob.prior_quality import check as judge
    from invprob.prior_training import check_again, check_exact, recipe_of

    loaded = registry.load_prior(prior)
    recipe = recipe_of(registry.prior_folder(prior))
    options.use_threads(threads)
    workers = threads or os.cpu_count() or 1
    if data:
        size = loaded.x_shape[-1]
        images = (
            simulated(data, n, seed, size, workers)
            if is_simulator(data)
            else read(Path(data), size)
        )
        quality, of = judge(loaded, images.astype(float)), data
    elif recipe:
        quality, of = check_again(loaded, recipe, workers), f"{recipe.data}, held out"
    elif loaded.isometric and not loaded.learned:
        quality, of = check_exact(loaded), "exact draws of it"
    else:
        raise typer.BadParameter(f"{prior} does not say what it was trained on: give --data")
    if as_json:
        console.document({"prior": prior, "data": of, **document(quality)})
    else:
        show(quality.checks, f"{prior} against {of}")
        said = headline(quality.checks, FINE)
        own = ["prior", "train", "--data", data, "--out", f"{Path(data or prior).stem}-prior"]
        good = ["simulate", "--operator", "denoising", "--prior", prior]
        console.ending([], said, "invprob", *(own if data and not quality.passed else good))
    if strict and not quality.passed:
        raise typer.Exit(FAILED)


def document(quality: Quality) -> dict[str, Any]:
    """Return what --json prints of a prior's quality."""
    return {
        "checks": [asdict(c) for c in quality.checks], "passed": quality.passed,
        "denoising_error": quality.denoising_error, "power_ratio": quality.power_ratio,
    }  # fmt: skip
