"""Train the shipped prior `galaxies-64` and write its folder, card and sample sheet.

    python examples/train_galaxies.py --work work/ --out priors/weights/galaxies-64 \
        [--device cuda] [--real COSMOS/]

Everything follows from the seeds below. Training resumes from `--work`. `--real` points to a
GalSim COSMOS catalogue (real F814W galaxies) that the prior has never seen: the card then says how
well it denoises them compared with simulated galaxies of the same size and noise.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from invprob.prior_data import simulated
from invprob.prior_quality import RHOS, denoising_error, sheet
from invprob.prior_training import BANK_SEED, Recipe, finish, untrained
from invprob.simulate import binned, centred
from priors.pixel import Pixel
from priors.training import Training, averaged, train

SIZE = 64
POOL, HELD_OUT, BANK = 98_304, 2_048, 512
TRAINING = Training(
    steps=30_000, batch=256, rate=1.5e-3, warmup=1000, ema=0.9995, checkpoint_every=1000
)
POOL_SEED, HELD_OUT_SEED = 1, 2
GALAXIES = Recipe(
    "galaxies",
    unit="surface brightness, typical peak 1",
    summary="galaxies of 64x64 px: bulges, discs, arms, clumps (diffusion prior)",
)
QUANTILES = (10, 25, 50, 75, 90)

Images = NDArray[np.float64]


def features(images: Images) -> dict[str, NDArray[np.float64]]:
    """Return flux, half-light radius (px) and power in bands (cycles per image) of each image."""
    y, x = np.mgrid[:SIZE, :SIZE]
    radii = []
    for image in np.clip(images, 0, None):
        centre = [(image * axis).sum() / image.sum() for axis in (y, x)]
        r = np.hypot(y - centre[0], x - centre[1]).ravel()
        order = np.argsort(r)
        radii.append(np.interp(0.5, np.cumsum(image.ravel()[order]) / image.sum(), r[order]))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE) * SIZE, np.fft.fftfreq(SIZE) * SIZE))
    power = np.abs(np.fft.fft2(images)) ** 2
    bands = {
        f"power {a}-{b}": power[:, (k >= a) & (k < b)].mean(1) for a, b in ((1, 3), (3, 7), (7, 14))
    }
    return {"flux": images.sum((1, 2)), "size": np.array(radii), **bands}


def real_stamps(folder: Path) -> list[tuple[Images, float, int]]:
    """Return bright real galaxies of at least 64 px: image, native noise, binning factor."""
    rows = Table.read(folder / "real_galaxy_catalog_26_extension_example.fits")
    found = []
    with fits.open(folder / "real_galaxy_images_extension.fits") as hdus:
        for row in rows:
            image = hdus[int(row["GAL_HDU"])].data.astype(float)
            factor = min(image.shape) // SIZE
            if factor < 1:
                continue
            peak = gaussian_filter(image, 1.0).max()
            if peak < 12 * row["NOISE_VARIANCE"] ** 0.5:
                continue
            cut = centred(binned(image, factor), (SIZE, SIZE))
            found.append((cut, float(row["NOISE_VARIANCE"] ** 0.5), factor))
    return found


def correlated_noise(folder: Path, factor: int, rng: np.random.Generator) -> Images:
    """Return noise of unit native variance with the catalogue's correlation, binned alike."""
    correlation = fits.getdata(folder / "acs_I_unrot_sci_20_cf.fits").astype(float)
    n = SIZE * factor
    kernel = np.zeros((n, n))
    h = min(correlation.shape[0] // 2, n // 2 - 1)
    middle = correlation.shape[0] // 2
    window = correlation[middle - h : middle + h + 1, middle - h : middle + h + 1]
    kernel[: 2 * h + 1, : 2 * h + 1] = window / correlation.max()
    power = np.clip(np.fft.fft2(np.roll(kernel, (-h, -h), (0, 1))).real, 0, None)
    white = np.fft.fft2(rng.normal(size=(n, n)))
    return binned(np.fft.ifft2(white * np.sqrt(power)).real, factor)


def standardised(image: Images, noise: float) -> tuple[Images, float, float]:
    """Return a noisy image scaled to a smoothed peak of 1, its noise then, and its size (px)."""
    smooth = gaussian_filter(image, 1.0)
    size = features(np.clip(smooth - 2 * noise / 3, 0, None)[None])["size"][0]
    return image / smooth.max(), noise / smooth.max(), float(size)


def real_table(prior: Pixel, folder: Path, held_out: Images) -> list[str]:
    """Return the table of denoising errors, real galaxies against simulated look-alikes."""
    stamps, rng = real_stamps(folder), np.random.default_rng(0)
    real, real_noise, like, like_noise = [], [], [], []
    for image, noise, factor in stamps:
        scaled, level, size = standardised(image, noise)
        real.append(scaled)
        real_noise.append(level * correlated_noise(folder, factor, rng).std())
        rivals = []
        for galaxy in held_out[rng.choice(len(held_out), 200, replace=False)]:
            peak = gaussian_filter(galaxy, 1.0).max()
            extra = level * correlated_noise(folder, factor, rng)
            rival, rival_noise, rival_size = standardised(galaxy / peak + extra, level)
            spread = rival_noise * extra.std() / level
            rivals.append((abs(np.log(rival_size / size)), rival, spread))
        for _, rival, spread in sorted(rivals, key=lambda item: item[0])[:12]:
            like.append(rival)
            like_noise.append(spread)
    rows = []
    for rho in RHOS:
        a, b = (denoising_error(prior, np.array(images), rho) for images in (real, like))
        noise_a, noise_b = (
            np.square(np.array(level) / prior.scale) for level in (real_noise, like_noise)
        )
        galaxy = np.median(a - noise_a) / np.median(b - noise_b)
        alone = f"{galaxy:.2f}" if rho >= 2 else "-"
        rows.append(
            f"| {rho:g} | {np.median(a):.2e} | {np.median(b):.2e} "
            f"| {np.median(a) / np.median(b):.2f} | {alone} |"
        )
    return [
        f"\n## Real galaxies ({len(stamps)} HST/ACS F814W stamps, never trained on)\n",
        "Median squared denoising error per pixel in model units, beside 12 simulated galaxies of",
        "the same measured size, peak and correlated noise for each stamp. The stamps' own noise",
        f"(median variance {np.median(np.square(np.array(real_noise) / prior.scale)):.2g}) is part",
        "of both errors; the last column takes it off where it is below the added noise.\n",
        "| noise ratio | real | simulated | real / simulated | own noise taken off |",
        "|---|---|---|---|---|",
        *rows,
    ]


def card(prior: Pixel, chain: Images, held_out: Images, real: Path | None) -> str:
    """Return the README of the prior's folder."""
    lines = [
        "# galaxies-64\n",
        "Galaxies of 64x64 pixels as surface brightness; a typical peak is 1. Trained on simulated",
        "Sersic bulges and discs with spiral arms, clumps, texture and companions",
        f"(`priors/simulators/galaxies.py`), {TRAINING.steps} steps of batch {TRAINING.batch},",
        f"seeds {POOL_SEED}, {HELD_OUT_SEED}, {BANK_SEED}. Made, with every figure here, by\n",
        "    python examples/train_galaxies.py --work work/ --out priors/weights/galaxies-64 \\",
        "        --real COSMOS/\n",
        f"## The {prior.steps}-step chain ({len(chain)} draws) against {len(held_out)} held out\n",
        "Ratio of quantiles, chain / held out (sampling error of a ratio: about 0.05).\n",
        "| | " + " | ".join(f"{q}%" for q in QUANTILES) + " |",
        "|---" * (len(QUANTILES) + 1) + "|",
    ]
    ours, theirs = features(chain), features(held_out)
    for name in ours:
        ratio = np.percentile(ours[name], QUANTILES) / np.percentile(theirs[name], QUANTILES)
        lines.append(f"| {name} | " + " | ".join(f"{r:.2f}" for r in ratio) + " |")
    lines += ["\n## Held-out denoising error\n", "| noise ratio | E\\|z_0 - zhat_0\\|^2 / d |"]
    lines += ["|---|---|"]
    for rho in RHOS:
        error = denoising_error(prior, held_out[:256], rho).mean()
        lines.append(f"| {rho:g} | {error:.2e} |")
    if real:
        lines += real_table(prior, real, held_out)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, draw the bank, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--real", type=Path, help="folder of a GalSim COSMOS catalogue")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    pool_file, checkpoint = arguments.work / "pool.npy", arguments.work / "ckpt.pt"
    if not pool_file.exists():
        np.save(pool_file, simulated("galaxies", POOL, POOL_SEED, SIZE, os.cpu_count() or 1))
    pool = np.load(pool_file)
    scale = float(np.sqrt(np.square(pool, dtype=np.float64).mean()))
    prior = untrained(pool.shape[1:], scale, GALAXIES)
    prior.network.train().requires_grad_(True)
    training = replace(TRAINING, device=arguments.device)
    for step, loss, _ in train(
        prior.network, prior.encode, pool, prior.schedule, training, checkpoint
    ):
        print(f"step {step}: loss {loss:.4f}", flush=True)
    prior = untrained(pool.shape[1:], scale, GALAXIES)
    prior.network.load_state_dict(averaged(checkpoint))
    chain = finish(prior, BANK).double().numpy()
    prior.save(arguments.out)
    held_out = simulated("galaxies", HELD_OUT, HELD_OUT_SEED, SIZE).astype(float)
    sheet(chain, held_out, arguments.out / "samples.png")
    text = card(prior, chain, held_out, arguments.real)
    (arguments.out / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
