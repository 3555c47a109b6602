"""Train the shipped prior `galaxies-64-latent` and write its folder, card and sample sheet.

    python examples/train_galaxies_latent.py --work work/ --out priors/weights/galaxies-64-latent \
        [--device cuda] [--share 0.01]

First the autoencoder, on the galaxies of `train_galaxies.py`, then the diffusion of its codes.
Everything follows from the seeds below. Both trainings leave their results in `--work`, and a
second call goes on from there. `--share` takes that part of pool and steps: a trial.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DModel
from numpy.typing import NDArray
from train_galaxies import (
    BANK_SEED,
    HELD_OUT,
    HELD_OUT_SEED,
    LEVELS,
    POOL,
    POOL_SEED,
    SIZE,
    quantile_table,
    sheet,
    training_pool,
)

from invprob.trajectory import batches, prior_paths
from priors._autoencoder import Autoencoder
from priors._autoencoder_training import AutoencoderTraining, train_autoencoder
from priors.latent import Latent, LatentConfig
from priors.process import Schedule, generators
from priors.simulators.galaxies import draw_many
from priors.training import Training, train

PATCH, CODE = 4, 8  # side of the decoder's blocks, px; channels of the code, of 8x8 each
STEPS, BANK = 50, 1536  # of the chain; its stored draws
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
    pool: NDArray[np.float32], scale: float, config: AutoencoderTraining, work: Path
) -> Autoencoder:
    """Return the autoencoder: the one in `work`, or a new one that is put there."""
    if not (work / "vae").exists():
        autoencoder = Autoencoder(coder(), scale, PATCH)
        for step, error, nats in train_autoencoder(autoencoder, pool, config):
            print(f"autoencoder step {step}: rms error {error:.4f}, KL {nats:.0f}", flush=True)
        autoencoder.cpu().save(work)
    return Autoencoder.load(work, scale, PATCH)  # as shipped: rounded to half precision


def card(prior: Latent, chain: NDArray[np.float64], held_out: NDArray[np.float64]) -> str:
    """Return the README of the prior's folder."""
    x = torch.from_numpy(held_out).float()
    decoded = torch.cat([prior.decode(prior.encode(part)) for part in x.split(64)])
    error = (decoded - x).flatten(1).double()
    share = float(error.square().sum() / x.double().square().sum()) ** 0.5
    peak = float((error.abs().amax(1) / x.flatten(1).amax(1)).median())
    lines = [
        "# galaxies-64-latent\n",
        "Galaxies of 64x64 pixels as surface brightness, a typical peak is 1: diffusion on the",
        f"{' x '.join(map(str, prior.z_shape))} codes of an autoencoder. Trained on the simulated",
        "galaxies of `galaxies-64` (`priors/simulators/galaxies.py`), the autoencoder by",
        f"{CODES.steps} steps of {CODES.batch} images, the diffusion by {CHAIN.steps} of",
        f"{CHAIN.batch}, seeds {POOL_SEED}, {HELD_OUT_SEED}, {BANK_SEED}. Made, with every figure",
        "here, by\n",
        "    python examples/train_galaxies_latent.py --work work/ \\",
        "        --out priors/weights/galaxies-64-latent --device cuda\n",
        f"## Codes of {len(x)} held-out galaxies\n",
        f"Decoded again they are off by {share:.1%} of their rms, at worst by {peak:.1%} of the",
        "peak (median over galaxies).\n",
        f"## The {prior.steps}-step chain ({len(chain)} draws) against {len(held_out)} held out\n",
        *quantile_table(chain, held_out),
        "\nThe same for held-out galaxies that went through the autoencoder:\n",
        *quantile_table(decoded.double().numpy(), held_out),
    ]
    return "\n".join(lines) + "\n"


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
    pool = training_pool(arguments.work, round(share * POOL))
    scale = float(np.sqrt(np.square(pool, dtype=np.float64).mean()))
    config = LatentConfig(
        (SIZE, SIZE),
        scale=scale,
        patch=PATCH,
        steps=STEPS,
        unit="surface brightness, typical peak 1",
        summary="galaxies of 64x64 px: diffusion on the codes of an autoencoder",
    )
    codes = replace(CODES, steps=round(share * CODES.steps), device=device)
    chain = replace(CHAIN, steps=round(share * CHAIN.steps), device=device)
    autoencoder = trained_coder(pool, scale, codes, arguments.work)
    schedule, unet, checkpoint = Schedule(), network(), arguments.work / "ckpt.pt"
    log_rho = tuple(np.linspace(np.log(schedule.rho_min), np.log(schedule.rho_max), LEVELS))
    prior = Latent(autoencoder, unet, config, log_rho).to(device)
    unet.train().requires_grad_(True)
    for step, loss, _ in train(unet, prior.encode, pool, schedule, chain, checkpoint):
        print(f"diffusion step {step}: loss {loss:.4f}", flush=True)
    weights = torch.load(checkpoint, weights_only=True, map_location=device)["average"]
    unet.load_state_dict(weights)
    unet.eval().requires_grad_(False)
    count = round(share * BANK)
    times = schedule.grid(prior.steps)
    draws = [
        prior_paths(prior, generators(BANK_SEED, rows), times)[1][-1]
        for rows in batches(count, 256)
    ]
    prior.bank = torch.cat(draws).half()
    prior.residuals  # noqa: B018  # measured here, stored by `save`
    prior.to("cpu").save(arguments.out)
    prior = Latent.load(arguments.out)
    held_out = draw_many(round(share * HELD_OUT), HELD_OUT_SEED).astype(float)
    drawn = torch.cat([prior.decode(part) for part in prior.bank.float().split(64)])
    images = drawn.double().numpy()
    sheet(images, held_out, arguments.out / "samples.png")
    text = card(prior, images, held_out)
    (arguments.out / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
