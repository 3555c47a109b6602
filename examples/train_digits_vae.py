"""Train the prior `digits-32-vae`, noise under the decoder of a variational autoencoder.

    python examples/train_digits_vae.py --out priors/weights/digits-32-vae [--device cuda]

It draws x = D(f(z)), z ~ N(0, I), so its posteriors are those of noise (`priors/outsourced.py`). f
is a flow to the autoencoder's codes: without it the codes would have to be normal themselves, at
the price of a blur. Everything follows from the seed. `--share` takes that part of pool and steps:
a trial.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from train_galaxies_latent import table

from invprob.prior_card import report
from invprob.prior_data import split
from invprob.prior_quality import check
from invprob.prior_statistics import sheet
from priors._autoencoder import Autoencoder
from priors._autoencoder_training import AutoencoderTraining, train_autoencoder
from priors._code_flow import CodeFlow, FlowConfig, Flowed, FlowTraining, train_flow
from priors.outsourced import Outsourced
from priors.simulators import digits

SIZE, PATCH, CODE = 32, 4, 8  # px; side of the decoder's blocks; channels of the code, 4x4 each
INK = 1.0  # the most of a pixel
WIDTH = 512  # of the flow
POOL, HELD_OUT, SEED = 65_536, 2_048, 1
TRAINING = AutoencoderTraining(steps=12_000, batch=64, tolerance=0.015, turns=False)
FLOW = FlowTraining(steps=30_000, seed=SEED)


def coder() -> AutoencoderKL:
    """Return the untrained autoencoder: 128 numbers a digit, seen whole by attention."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=PATCH**2,
        out_channels=PATCH**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(48, 96),
        layers_per_block=1,
        latent_channels=CODE,
        norm_num_groups=8,
        sample_size=SIZE // PATCH,
        scaling_factor=1.0,
    )


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--share", type=float, default=1.0, help="of pool and steps: a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    share = arguments.share
    count, few = round(share * POOL), round(share * HELD_OUT)
    images = split("digits", SIZE, count, few, SEED, os.cpu_count() or 1)
    scale = float(np.sqrt(np.square(images.train, dtype=np.float64).mean()))
    autoencoder = Autoencoder(coder(), scale, PATCH, INK)
    config = replace(TRAINING, steps=round(share * TRAINING.steps), device=arguments.device)
    for step, error, nats in train_autoencoder(autoencoder, images.train, config):
        print(f"step {step}: rms error {error:.4f}, KL {nats:.1f}", flush=True)
    autoencoder = autoencoder.cpu()
    z_shape = autoencoder.z_shape((SIZE, SIZE))
    with torch.no_grad():
        parts = torch.from_numpy(images.train).split(256)
        laws = [autoencoder.network.encode(autoencoder.blocks(x)).latent_dist for x in parts]
    mean, std = (torch.cat([getattr(law, key) for law in laws]) for key in ("mean", "std"))
    flow = CodeFlow(FlowConfig(z_shape, width=WIDTH))
    few_steps = replace(FLOW, steps=round(share * FLOW.steps), device=arguments.device)
    print(f"flow: loss {train_flow(flow, mean, std, few_steps):.3f} a number", flush=True)
    prior = Outsourced(Flowed(flow.cpu(), autoencoder), z_shape, unit=digits.unit)
    prior.save(arguments.out, "digits 0 to 9 of 32x32 px: noise under a flow and a decoder")
    prior = Outsourced.load(arguments.out)
    drawn = prior.decode(prior.draw(few, seed=0)).numpy()
    sheet(drawn, images.held_out, arguments.out / "samples.png")
    lines = [
        "# digits-32-vae\n",
        f"Digits 0 to 9 as ink from 0 to 1, {SIZE}x{SIZE} pixels: {int(np.prod(z_shape))} standard",
        "normal numbers under a flow to the codes of a variational autoencoder and its decoder,",
        "trained on the simulated digits of `priors/simulators/digits.py`: the autoencoder by",
        f"{TRAINING.steps} steps of {TRAINING.batch} images, the flow by {FLOW.steps} of",
        f"{FLOW.batch} codes. Made, with every figure here, by\n",
        "    python examples/train_digits_vae.py --out priors/weights/digits-32-vae\n",
        *table(autoencoder, drawn, images.held_out),
        "",
        *report(check(prior, images.held_out.astype(float), images.train)),
    ]
    (arguments.out / "README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
