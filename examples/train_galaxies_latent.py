"""Train the shipped prior `galaxies-64-latent` and write its folder, card and sample sheet.

    python examples/train_galaxies_latent.py --work work/ --out priors/weights/galaxies-64-latent \
        [--device cuda] [--share 0.01]

First the autoencoder, on the galaxies of `train_galaxies.py`, then the diffusion of its codes.
Everything follows from the seeds below. Both trainings leave their results in `--work`, and a
second call goes on from there. `--share` takes that part of pool and steps: a trial.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DModel
from train_galaxies import GALAXIES

from invprob.prior_data import Images, split
from invprob.prior_quality import extent, flux, peak, power_ratio, sheet
from invprob.prior_training import BANK_SEED, LEVELS, RESIDUAL_SEED
from invprob.trajectory import batches, prior_paths
from priors._autoencoder import Autoencoder
from priors._autoencoder_training import AutoencoderTraining, train_autoencoder, whiten
from priors._residual_model import ResidualModel
from priors.latent import Latent, LatentConfig
from priors.process import Schedule, generators
from priors.training import Training, averaged, train

SIZE, PATCH, CODE = 64, 4, 8  # px; side of the decoder's blocks; channels of the code, 8x8 each
STEPS, BANK = 50, 1536  # of the chain; its stored draws
WHITENED = 4096  # images whose codes are made to have mean 0 and variance 1
CODES = AutoencoderTraining()
CHAIN = Training(
    steps=15_000, batch=256, rate=1.5e-3, warmup=1000, ema=0.9995, checkpoint_every=1000
)


def coder() -> AutoencoderKL:
    """Return the untrained autoencoder: 0.7 M parameters, its decoder 3 ms an image on one core."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=PATCH**2,
        out_channels=PATCH**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(48, 64),
        layers_per_block=1,
        latent_channels=CODE,
        norm_num_groups=8,
        sample_size=SIZE // PATCH,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def network() -> UNet2DModel:
    """Return the untrained network of the codes: 2.3 M parameters."""
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=8,
        in_channels=CODE,
        out_channels=CODE,
        block_out_channels=(80, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
    )


def trained_coder(
    pool: Images, scale: float, config: AutoencoderTraining, work: Path
) -> Autoencoder:
    """Return the autoencoder: the one in `work`, or a new one that is put there."""
    if not (work / "vae").exists():
        autoencoder = Autoencoder(coder(), scale, PATCH)
        for step, error, nats in train_autoencoder(autoencoder, pool, config):
            print(f"autoencoder step {step}: rms error {error:.4f}, KL {nats:.0f}", flush=True)
        whiten(autoencoder.cpu(), torch.from_numpy(pool[:WHITENED]))
        autoencoder.save(work)
    return Autoencoder.load(work, scale, PATCH)  # as shipped: rounded to half precision


def card(prior: Latent, chain: Images, held_out: Images) -> str:
    """Return the README of the prior's folder."""
    lines = [
        "# galaxies-64-latent\n",
        "Galaxies of 64x64 pixels as surface brightness, a typical peak is 1: diffusion on the",
        f"{' x '.join(map(str, prior.z_shape))} codes of an autoencoder, trained on the simulated",
        "galaxies of `galaxies-64` (`priors/simulators/galaxies.py`). The autoencoder took",
        f"{CODES.steps} steps of {CODES.batch} images, the diffusion {CHAIN.steps} of",
        f"{CHAIN.batch}. Made, with every figure here, by\n",
        "    python examples/train_galaxies_latent.py --work work/ \\",
        "        --out priors/weights/galaxies-64-latent --device cuda\n",
        f"## The {prior.steps}-step chain\n",
        *table(prior.autoencoder, chain, held_out),
    ]
    return "\n".join(lines) + "\n"


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
    ours, theirs = (power_ratio(images, held_out) for images in (draws, coded))
    lines += [f"| power, {band} | {ours[band]:.2f} | {theirs[band]:.2f} | 1 |" for band in ours]
    return lines


def main() -> None:
    """Train, draw the bank, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    parser.add_argument("--device", default="cpu", help="of training and of the bank's chains")
    parser.add_argument("--share", type=float, default=1.0, help="of pool and steps: a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    share, device = arguments.share, arguments.device
    pool, held_out = (round(share * n) for n in (GALAXIES.pool, GALAXIES.held_out))
    images = split("galaxies", SIZE, pool, held_out, GALAXIES.seed, os.cpu_count() or 1)
    scale = float(np.sqrt(np.square(images.train, dtype=np.float64).mean()))
    config = LatentConfig(
        (SIZE, SIZE),
        scale=scale,
        patch=PATCH,
        steps=STEPS,
        unit=GALAXIES.unit,
        summary="galaxies of 64x64 px: diffusion on the codes of an autoencoder",
    )
    codes = replace(CODES, steps=round(share * CODES.steps), device=device)
    chain = replace(CHAIN, steps=round(share * CHAIN.steps), device=device)
    autoencoder = trained_coder(images.train, scale, codes, arguments.work)
    schedule, unet, checkpoint = Schedule(), network(), arguments.work / "ckpt.pt"
    log_rho = tuple(np.linspace(np.log(schedule.rho_min), np.log(schedule.rho_max), LEVELS))
    prior = Latent(autoencoder, unet, config, log_rho).to(device)
    unet.train().requires_grad_(True)
    for step, loss, _ in train(unet, prior.encode, images.train, schedule, chain, checkpoint):
        print(f"diffusion step {step}: loss {loss:.4f}", flush=True)
    unet.load_state_dict(averaged(checkpoint))
    unet.eval().requires_grad_(False)
    times = schedule.grid(prior.steps)
    draws = [
        prior_paths(prior, generators(BANK_SEED, rows), times)[1][-1]
        for rows in batches(round(share * BANK), 256)
    ]
    prior.bank = torch.cat(draws).half()
    prior.config = replace(config, residual_model=ResidualModel.fit(prior, RESIDUAL_SEED))
    prior.to("cpu").save(arguments.out)
    prior = Latent.load(arguments.out)
    drawn = torch.cat([prior.decode(part) for part in prior.bank.float().split(64)]).numpy()
    sheet(drawn, images.held_out, arguments.out / "samples.png")
    text = card(prior, drawn, images.held_out)
    (arguments.out / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
