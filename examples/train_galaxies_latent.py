"""Train the shipped prior `galaxies-64-latent` and write its folder, card and sample sheet.

    python examples/train_galaxies_latent.py --work work/ --out priors/weights/galaxies-64-latent \
        [--device cuda]

First the autoencoder, on the galaxies of `train_galaxies.py`, then the diffusion of its codes.
Everything follows from the seeds below. Both trainings leave their results in `--work`, and a
second call goes on from there.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from train_galaxies import GALAXIES

from invprob.prior_data import Images
from invprob.prior_statistics import extent, flux, peak, power_ratio
from invprob.prior_training import train_prior
from priors._autoencoder import Autoencoder
from priors._autoencoder_training import AutoencoderTraining
from priors.latent import Latent
from priors.training import Training

LATENT = replace(
    GALAXIES,
    bank=1536,
    summary="galaxies of 64x64 px: diffusion on the codes of an autoencoder",
    training=Training(
        steps=5_500, batch=256, rate=1.5e-3, warmup=1000, ema=0.9995, checkpoint_every=1000
    ),
    autoencoder=AutoencoderTraining(),
)


def table(autoencoder: Autoencoder, draws: Images, held_out: Images) -> list[str]:
    """Return medians of draws beside those of held-out images, before and after their coding."""
    x = torch.from_numpy(held_out)
    coded = torch.cat([autoencoder(autoencoder.encode(part)) for part in x.split(64)]).numpy()
    error = np.sqrt(np.square(coded - held_out).mean() / np.square(held_out).mean())
    lines = [
        f"Medians over {len(draws)} draws, over {len(held_out)} held-out images, and over these",
        f"once they went through the autoencoder, whose error is {error:.1%} of the rms image.",
        "Power is relative to that of the held-out ones.\n",
        "| | draws | through the autoencoder | held out |",
        "|---|---|---|---|",
    ]
    for of, unit in ((flux, ""), (peak, ""), (extent, ", px")):
        medians = (f"{np.median(of(images)):.3g}" for images in (draws, coded, held_out))
        lines.append(f"| {of.__name__}{unit} | {' | '.join(medians)} |")
    ours, theirs = (power_ratio(images, held_out, 0.0) for images in (draws, coded))
    lines += [f"| power, {band} | {ours[band]:.2f} | {theirs[band]:.2f} | 1 |" for band in ours]
    return lines


def main() -> None:
    """Train, draw the bank, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    parser.add_argument("--device", default="cpu", help="of the trainings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    training = replace(LATENT.training, device=device)
    recipe = replace(LATENT, training=training, autoencoder=AutoencoderTraining(device=device))
    train_prior(recipe, arguments.out, arguments.work, os.cpu_count() or 1)
    prior = Latent.load(arguments.out)
    assert prior.bank is not None  # the training has drawn it
    drawn = torch.cat([prior.decode(part) for part in prior.bank.float().split(64)]).numpy()
    lines = table(prior.autoencoder, drawn, np.load(arguments.work / "held_out.npy"))
    with (arguments.out / "README.md").open("a") as text:
        text.write("\n".join(["\n## What the autoencoder loses\n", *lines]) + "\n")
    print((arguments.out / "README.md").read_text())


if __name__ == "__main__":
    main()
