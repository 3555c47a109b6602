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

from invprob.prior_recipe import Recipe
from invprob.prior_statistics import RHOS, denoising_error
from invprob.prior_training import train_prior
from invprob.simulate import binned, centred
from priors.pixel import Pixel
from priors.training import Training

SIZE = 64
GALAXIES = Recipe(
    "galaxies",
    SIZE,
    pool=98_304,
    seed=1,
    unit="surface brightness, typical peak 1",
    summary="galaxies of 64x64 px: bulges, discs, arms, clumps (diffusion prior)",
    training=Training(
        steps=12_000, batch=256, rate=1.5e-3, warmup=1000, ema=0.9995, checkpoint_every=1000
    ),
)

Images = NDArray[np.float64]


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


def half_light(image: Images) -> float:
    """Return the radius (px) about its centroid that holds half of an image's light."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centre = [(image * axis).sum() / image.sum() for axis in (y, x)]
    r = np.hypot(y - centre[0], x - centre[1]).ravel()
    order = np.argsort(r)
    return float(np.interp(0.5, np.cumsum(image.ravel()[order]) / image.sum(), r[order]))


def standardised(image: Images, noise: float) -> tuple[Images, float, float]:
    """Return a noisy image scaled to a smoothed peak of 1, its noise then, and its size (px)."""
    smooth = gaussian_filter(image, 1.0)
    size = half_light(np.clip(smooth - 2 * noise / 3, 0, None))
    return image / smooth.max(), noise / smooth.max(), size


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


def main() -> None:
    """Train, draw the bank, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="prior folder to write")
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--real", type=Path, help="folder of a GalSim COSMOS catalogue")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = replace(GALAXIES, training=replace(GALAXIES.training, device=arguments.device))
    train_prior(recipe, arguments.out, arguments.work, os.cpu_count() or 1)
    if arguments.real:
        prior = Pixel.load(arguments.out)
        held_out = np.load(arguments.work / "held_out.npy").astype(float)
        with (arguments.out / "README.md").open("a") as text:
            text.write("\n".join(real_table(prior, arguments.real, held_out)) + "\n")
    print((arguments.out / "README.md").read_text())


if __name__ == "__main__":
    main()
