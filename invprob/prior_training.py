"""From images to a prior folder: training, bank of draws, residual model, card.

The work folder holds all that a training needs to go on: `recipe.json`, the images, `ckpt.pt`,
and, from every checkpoint, the validation error per noise level (`metrics.jsonl`) and a sheet of
samples. The same recipe goes on where it was stopped and ends with the same weights, bit by bit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invprob.latent_training import STEPS as CHAIN
from invprob.latent_training import coder, network, trained_coder
from invprob.prior_card import card
from invprob.prior_data import Split, split
from invprob.prior_quality import Quality, check
from invprob.prior_recipe import PARTS, Recipe
from invprob.prior_statistics import sheet, validation
from invprob.trajectory import Progress, batches, prior_draws
from operators.errors import ObservationError, RunError
from priors._autoencoder import Autoencoder
from priors._residual_model import ResidualModel
from priors.base import Prior
from priors.latent import Latent, LatentConfig
from priors.pixel import Pixel, PixelConfig, compact
from priors.process import Schedule, generators
from priors.training import averaged, patch_of, train, unet

log = logging.getLogger("invprob")

LEVELS = 1000  # timesteps of the network
BANK_SEED, RESIDUAL_SEED = 100, 3
BANK_BATCH = 32  # chains at once: bounds memory, changes no result
VALIDATION = 512  # held-out images of which the validation error is the mean
FIRST = 256  # draws made for a folder that holds none
SHOWN = 15  # samples drawn at every checkpoint
EXACT = 2048  # draws that a chain of known prior is judged by
TRAINED = 4096  # images trained on that a later check draws again
SHEET = 40  # of them on the sheet of a finished prior


def train_prior(
    recipe: Recipe,
    out: Path,
    work: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> Quality:
    """Train a prior, write its folder `out` and return its quality.

    workers: processes that draw a simulator's images. Raises RunError where `work` is of another
    recipe or `out` holds files of another kind, ObservationError on images that suit no network.
    """
    foreign = out.is_dir() and not (out / "invprob.json").exists()
    if foreign and any(path.is_file() for path in out.iterdir()):
        raise RunError(f"{out} holds files and is no prior: choose another folder with --out")
    work.mkdir(parents=True, exist_ok=True)
    for stored in (out / "training.json", work / "recipe.json"):
        _check_same(recipe, stored)
    images = _images(recipe, work, workers, progress)
    scale = float(np.sqrt(np.square(images.train, dtype=np.float64).mean()))
    codes = None
    if recipe.autoencoder:
        codes = trained_coder(images.train, scale, recipe.autoencoder, work, progress)
    prior, shadow = (
        untrained(images.train.shape[1:], scale, recipe, codes).to(recipe.training.device)
        for _ in range(2)
    )
    prior.network.train().requires_grad_(True)
    held_out = images.held_out.astype(np.float64)
    config, checkpoint = recipe.training, work / "ckpt.pt"
    for step, loss, weights in train(
        prior.network, prior.encode, images.train, prior.schedule, config, checkpoint
    ):
        shadow.network.load_state_dict(weights)
        errors = validation(shadow, held_out[:VALIDATION], 1)
        with (work / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "validation": errors}) + "\n")
        sheet(draw_chain(shadow, SHOWN).numpy(), held_out, work / "samples.png", rows=3)
        if progress:
            figures = {"loss": loss, "error at 0.5": errors["0.5"]}
            progress("train prior", step, config.steps, figures)
    shadow.network.load_state_dict(averaged(checkpoint))
    finish(shadow, recipe.bank)
    return write(shadow, recipe, images, out)


def write(prior: Pixel, recipe: Recipe, images: Split, out: Path) -> Quality:
    """Write the folder of a finished prior with its recipe, card and sheet; return its quality."""
    prior.save(out)  # first: what is judged are the weights as they were rounded
    held_out = images.held_out.astype(np.float64)
    quality = check(prior, held_out, images.train, recipe.training.turns)
    (out / "training.json").write_text(json.dumps(recipe.facts(), indent=1) + "\n")
    (out / "README.md").write_text(card(prior, recipe, out.name, quality))
    draws = prior.decode(prior.draw(SHEET, seed=0)).double().cpu().numpy()
    sheet(draws, held_out, out / "samples.png")
    return quality


def recipe_of(folder: Path) -> Recipe | None:
    """Return the recipe that a prior folder was made by, None where it holds none."""
    file = folder / "training.json"
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text())
        parts = {key: kind(**facts[key]) for key, kind in PARTS.items() if key in facts}
        return Recipe(**facts | parts)
    except (ValueError, TypeError, KeyError) as error:
        raise ObservationError(f"{file} is damaged ({error}): restore it") from error


def check_again(prior: Prior, recipe: Recipe, workers: int = 1) -> Quality:
    """Return the quality of a prior by its own recipe's images, drawn or read once more."""
    pool = min(recipe.pool, TRAINED)
    images = split(recipe.data, recipe.size, pool, recipe.held_out, recipe.seed, workers)
    held_out = images.held_out.astype(np.float64)
    return check(prior, held_out, images.train[:TRAINED], recipe.training.turns)


def check_exact(prior: Prior) -> Quality:
    """Return the quality of the chain of a prior that can draw exactly, by such draws.

    Raises ObservationError on a prior of vectors.
    """
    if len(prior.x_shape) != 2:
        raise ObservationError(
            f"the prior draws x of shape {prior.x_shape}; images (H, W) are what this check judges"
        )
    exact = prior.decode(prior.draw(EXACT, seed=1)).double().cpu().numpy()
    return check(prior, exact, draws=draw_chain(prior, EXACT // 4).double().numpy())


def untrained(
    shape: tuple[int, ...], scale: float, recipe: Recipe, autoencoder: Autoencoder | None = None
) -> Pixel:
    """Return the prior of this recipe before its training, for images of this shape.

    With an autoencoder it is that of its codes.
    """
    if shape[0] != shape[1]:
        raise ObservationError(f"images are {shape[0]}x{shape[1]} px; needed squares: use --size")
    side, schedule = shape[0], Schedule()
    log_rho = tuple(np.linspace(np.log(schedule.rho_min), np.log(schedule.rho_max), LEVELS))
    own: dict[str, Any] = {
        "unit": recipe.unit, "summary": recipe.summary, "turns": recipe.training.turns,
    }  # fmt: skip
    if autoencoder:
        config = LatentConfig((side, side), scale, autoencoder.patch, CHAIN, **own)
        return Latent(autoencoder, network(side), config, log_rho)
    patch = patch_of(side)
    return Pixel(unet(side, patch), PixelConfig((side, side), scale, patch, **own), log_rho)


def draw_chain(prior: Prior, n: int, seed: int = BANK_SEED) -> torch.Tensor:
    """Return n draws x (n, *x_shape) of the prior's own chain, on the CPU."""
    return torch.cat([prior.decode(z).cpu() for z in chain_states(prior, n, seed)])


def chain_states(prior: Prior, n: int, seed: int = BANK_SEED) -> Iterator[torch.Tensor]:
    """Yield batches of n draws z_0 (b, *z_shape) of the prior's own chain."""
    times = prior.schedule.grid(prior.steps)
    for rows in batches(n, BANK_BATCH):
        yield prior_draws(prior, generators(seed, rows), times)


def first_bank(prior: Pixel) -> torch.Tensor:
    """Return the bank of a prior whose folder holds none, as those of diffusers do."""
    log.info(
        "this prior's folder holds no draws: %d are made now, of %d steps each", FIRST, prior.steps
    )
    return torch.cat([prior.banked(z) for z in chain_states(prior, FIRST)])


def finish(prior: Pixel, bank: int) -> None:
    """Draw the bank of a trained prior and measure its residuals."""
    prior.bank = compact(torch.cat([prior.banked(z) for z in chain_states(prior, bank)]))
    model = ResidualModel.fit(prior, RESIDUAL_SEED) if prior.guided_in_x else None
    prior.config = replace(prior.config, residual_model=model, residuals=prior.residuals)


def _check_same(recipe: Recipe, stored: Path) -> None:
    """Raise RunError where `stored` holds another recipe."""
    if not stored.exists():
        return
    before, now = (_flat(facts) for facts in (json.loads(stored.read_text()), recipe.facts()))
    other = [
        f"{key} {before.get(key)}, now {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key)
    ]
    if other:
        raise RunError(
            f"{stored.parent} is of another training ({'; '.join(other)}): use its settings to go "
            "on, or choose another folder"
        )


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts with those of the training beside the others."""
    inner = {f"{part}.{key}": value for part in PARTS for key, value in facts.get(part, {}).items()}
    return {key: value for key, value in facts.items() if key not in PARTS} | inner


def _images(recipe: Recipe, work: Path, workers: int, progress: Progress | None) -> Split:
    """Return the images of a recipe, drawn or read once and then kept with it in the work folder.

    Raises ObservationError on images that suit no network, of which nothing is kept.
    """
    files = [work / f"{part}.npy" for part in ("held_out", "train")]
    if not files[1].exists():
        made = split(
            recipe.data, recipe.size, recipe.pool, recipe.held_out, recipe.seed, workers,
            progress,
        )  # fmt: skip
        untrained(made.train.shape[1:], 1.0, recipe)
        if recipe.autoencoder:
            coder(made.train.shape[-1])
        (work / "recipe.json").write_text(json.dumps(recipe.facts(), indent=1) + "\n")
        for file, images in zip(files, (made.held_out, made.train), strict=True):
            partial = file.with_suffix(".partial.npy")
            np.save(partial, images)
            partial.replace(file)
    return Split(np.load(files[1]), np.load(files[0]))
