"""From images to a prior folder: training, bank of draws, residual model, card.

The work folder holds all that a training needs to go on: `recipe.json`, the images, `ckpt.pt`,
and, from every checkpoint, the validation error per noise level (`metrics.jsonl`) and a sheet of
samples. The same recipe goes on where it was stopped and ends with the same weights, bit by bit.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

from invprob.prior_data import Split, split
from invprob.prior_quality import RHOS, Images, denoising_error, sheet
from invprob.trajectory import Progress, batches, prior_paths
from operators.errors import ObservationError, RunError
from priors._residual_model import ResidualModel
from priors.pixel import Pixel, PixelConfig
from priors.process import Schedule, generators
from priors.training import Training, averaged, patch_of, train, unet

LEVELS = 1000  # timesteps of the network
BANK_SEED, RESIDUAL_SEED = 100, 3
BANK_BATCH = 32  # chains at once: bounds memory, changes no result
VALIDATION = 512  # held-out images of which the validation error is the mean
SHOWN = 15  # samples drawn at every checkpoint


@dataclass(frozen=True)
class Recipe:
    """All that decides what a trained prior is; stored as `training.json` in its folder."""

    data: str
    size: int | None = None  # px; None: 64 of a simulator, that of the images of a file
    pool: int = 65_536  # images that a simulator draws
    held_out: int = 2_048
    bank: int = 512  # draws of the chain that the folder keeps
    unit: str = ""
    summary: str = ""
    training: Training = field(default_factory=Training)

    def facts(self) -> dict[str, object]:
        """Return the recipe as JSON-able values; the device is no part of it."""
        found = asdict(self)
        del found["training"]["device"]
        return found


def train_prior(
    recipe: Recipe,
    out: Path,
    work: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train a prior, write its folder `out` and return its held-out denoising error by noise ratio.

    workers: processes that draw a simulator's images. Raises RunError where `work` is of another
    recipe, ObservationError on images that suit no network.
    """
    work.mkdir(parents=True, exist_ok=True)
    for stored in (out / "training.json", work / "recipe.json"):
        _check_same(recipe, stored)
    (work / "recipe.json").write_text(json.dumps(recipe.facts(), indent=1) + "\n")
    images = _images(recipe, work, workers, progress)
    scale = float(np.sqrt(np.square(images.train, dtype=np.float64).mean()))
    prior = untrained(images.train.shape[1:], scale, recipe)
    prior.network.train().requires_grad_(True)
    shadow = untrained(images.train.shape[1:], scale, recipe).to(recipe.training.device)
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
    errors = validation(shadow, held_out)
    drawn = finish(shadow, recipe.bank)
    shadow.save(out)
    (out / "training.json").write_text(json.dumps(recipe.facts(), indent=1) + "\n")
    sheet(drawn.double().numpy(), held_out, out / "samples.png")
    (out / "README.md").write_text(card(shadow, recipe, out.name, errors))
    return errors


def validation(prior: Pixel, held_out: Images, draws: int = 4) -> dict[str, float]:
    """Return the mean denoising error of held-out images (n, H, W) at each noise ratio."""
    return {f"{r:g}": float(denoising_error(prior, held_out, r, draws).mean()) for r in RHOS}


def untrained(shape: tuple[int, ...], scale: float, recipe: Recipe) -> Pixel:
    """Return the prior of this recipe before its training, for images of this shape."""
    if shape[0] != shape[1]:
        raise ObservationError(f"images are {shape[0]}x{shape[1]} px; needed squares: use --size")
    side, schedule = shape[0], Schedule()
    patch = patch_of(side)
    config = PixelConfig(
        (side, side), scale, patch, unit=recipe.unit, summary=recipe.summary,
        turns=recipe.training.turns,
    )  # fmt: skip
    log_rho = np.linspace(np.log(schedule.rho_min), np.log(schedule.rho_max), LEVELS)
    return Pixel(unet(side, patch), config, tuple(log_rho))


def draw_chain(prior: Pixel, n: int, seed: int = BANK_SEED) -> torch.Tensor:
    """Return n draws (n, H, W) of the prior's own chain, on the CPU."""
    times = prior.schedule.grid(prior.steps)
    draws = [
        prior.decode(prior_paths(prior, generators(seed, rows), times)[1][-1]).cpu()
        for rows in batches(n, BANK_BATCH)
    ]
    return torch.cat(draws)


def finish(prior: Pixel, bank: int) -> torch.Tensor:
    """Draw and return the bank of a trained prior and measure its residuals; it ends on the CPU."""
    drawn = draw_chain(prior, bank).half()
    prior.bank = drawn.to(prior.device)
    model = ResidualModel.fit(prior, RESIDUAL_SEED)
    prior.config = replace(prior.config, residual_model=model, residuals=prior.residuals)
    prior.to("cpu")
    return drawn


def card(prior: Pixel, recipe: Recipe, name: str, errors: dict[str, float]) -> str:
    """Return the README of the prior's folder."""
    config = recipe.training
    lines = [
        f"# {name}\n",
        f"{recipe.summary or 'Images'}: {prior.x_shape[0]}x{prior.x_shape[1]} px"
        f"{f', {recipe.unit}' if recipe.unit else ''}. {config.steps} steps of batch",
        f"{config.batch}, seed {config.seed}; the sheet is `samples.png`. Made by\n",
        f"    {command(recipe, name)}\n",
        "## Denoising error on held-out images\n",
        "| noise ratio | E\\|z_0 - zhat_0\\|^2 / d |",
        "|---|---|",
        *(f"| {rho} | {error:.2e} |" for rho, error in errors.items()),
    ]
    return "\n".join(lines) + "\n"


def command(recipe: Recipe, name: str) -> str:
    """Return the command that trains a prior by this recipe."""
    words = ["invprob", "prior", "train", "--data", recipe.data, "--out", name]
    for key in ("size", "pool", "held_out", "bank", "unit", "summary"):
        value = getattr(recipe, key)
        if value != getattr(Recipe, key):
            words += [f"--{key.replace('_', '-')}", str(value)]
    words.append("--turns" if recipe.training.turns else "--no-turns")
    for item in fields(Training):
        value = getattr(recipe.training, item.name)
        if item.name in ("steps", "batch", "seed"):
            words += [f"--{item.name}", str(value)]
        elif item.name not in ("turns", "device") and value != item.default:
            words += ["--set", f"{item.name}={value}"]
    return shlex.join(words)


def _check_same(recipe: Recipe, stored: Path) -> None:
    """Raise RunError where `stored` holds another recipe."""
    if not stored.exists():
        return
    facts, before = json.loads(json.dumps(recipe.facts())), json.loads(stored.read_text())
    other = [key for key in facts if before.get(key) != facts[key]]
    if other:
        raise RunError(
            f"{stored.parent} is of a training with other {', '.join(other)} "
            f"({', '.join(str(before.get(key)) for key in other)}): use those to go on, or choose "
            "another folder"
        )


def _images(recipe: Recipe, work: Path, workers: int, progress: Progress | None) -> Split:
    """Return the images of a recipe, drawn or read once and then kept in the work folder."""
    files = [work / f"{part}.npy" for part in ("held_out", "train")]
    if not files[1].exists():
        made = split(
            recipe.data, recipe.size, recipe.pool, recipe.held_out, recipe.training.seed, workers,
            progress,
        )  # fmt: skip
        for file, images in zip(files, (made.held_out, made.train), strict=True):
            partial = file.with_suffix(".partial.npy")
            np.save(partial, images)
            partial.replace(file)
    return Split(np.load(files[1]), np.load(files[0]))
