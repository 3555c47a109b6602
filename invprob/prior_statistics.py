"""What images are measured by where priors are judged: denoising errors, power, flux, extent.

Images (n, H, W) are in the unit of x.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from invprob.panels import norm
from invprob.trajectory import batches
from priors.base import Prior
from priors.training import dihedral

Images = NDArray[np.float64]
Denoise = Callable[[Tensor, float], Tensor]  # z_t (B, *z_shape) and t to the estimate of z_0

RHOS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # noise ratios of the denoising table
AT_ONCE = 256  # images that a network sees in one call; changes no result
BANDS = (1, 3, 7, 14, 28, 56, 112, 224)  # edges, cycles per image
COARSE = 16  # side to which images are binned before nearest neighbours are sought, px
# A chain ends at the noise ratio rho_min, and draws modes well below that noise as their mean. A
# band is judged where the images' median power per mode is this many times rho_min^2.
RESOLVED = 10.0


def validation(prior: Prior, images: Images, draws: int = 4) -> dict[str, float]:
    """Return the mean denoising error of images (n, H, W) at each noise ratio."""
    return {f"{r:g}": float(denoising_error(prior, images, r, draws).mean()) for r in RHOS}


def denoising_error(
    prior: Prior, images: Images, rho: float, draws: int = 4, denoise: Denoise | None = None
) -> Images:
    """Return |z_0 - zhat_0|^2 / d of images (n, H, W) at one noise ratio: (n,), a mean of draws.

    zhat_0 is the prior's, or that of another denoiser of its states.
    """
    denoise = denoise or prior.denoise
    z0 = prior.encode(torch.from_numpy(images).float().to(prior.device))
    t, errors = prior.schedule.time(rho), []
    for seed in range(draws):
        eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
        zt = prior.schedule.noise(z0, t, eps)
        with torch.no_grad():
            clean = torch.cat([denoise(part, t) for part in torch.split(zt, AT_ONCE)])
        errors.append((clean - z0).square().flatten(1).mean(1).double().cpu().numpy())
    mean: Images = np.mean(errors, 0)
    return mean


def linear_filter(prior: Prior, images: Images) -> Denoise:
    """Return the best stationary linear denoiser of images (n, H, W) by their mean and power."""
    x = torch.from_numpy(images)
    mean = x.mean(0)
    power = torch.fft.fft2((x - mean) / prior.scale, norm="ortho").abs().square().mean(0)

    def denoise(z: Tensor, t: float) -> Tensor:
        noisy = prior.decode(z / prior.schedule.alpha(t)).double().cpu()  # x + scale rho eps
        gain = power / (power + prior.schedule.rho(t) ** 2)
        clean = mean + torch.fft.ifft2(gain * torch.fft.fft2(noisy - mean)).real
        return prior.encode(clean.float().to(z.device))

    return denoise


def power_ratio(draws: Images, images: Images, rho_min: float) -> dict[str, float]:
    """Return the ratio of median powers in the bands that a chain from `rho_min` up resolves.

    Bands are named by their edges in cycles per image, its shorter side where it is no square;
    images (n, H, W) are in model units.
    """
    ours, theirs = powers(draws), powers(images)
    medians = {name: float(np.median(each)) for name, each in theirs.items()}
    return {
        name: float(np.median(ours[name])) / median
        for name, median in medians.items()
        if median >= RESOLVED * rho_min**2
    }


def powers(images: Images) -> dict[str, Images]:
    """Return the mean power (n,) of images (n, H, W) in every band, by its name."""
    side, frequencies = min(images.shape[1:]), map(np.fft.fftfreq, images.shape[1:])
    rows, columns = (f * side for f in frequencies)
    k = np.hypot(rows[:, None], columns)
    power, found = np.abs(np.fft.fft2(images, norm="ortho")) ** 2, {}
    for low, high in pairwise(BANDS):
        band = (k >= low) & (k < high) & (k <= side / 2)
        if not band.any():
            break
        found[f"{low}-{min(high, side // 2)} cycles"] = power[:, band].mean(1)
    return found


def flux(images: Images) -> Images:
    """Return the sum of every image (n, H, W)."""
    return np.asarray(images.sum((1, 2)))


def peak(images: Images) -> Images:
    """Return the largest absolute value of every image (n, H, W)."""
    return np.asarray(np.abs(images).max((1, 2)))


def extent(images: Images) -> Images:
    """Return the root mean square distance (px) of |x| from its centroid, of images (n, H, W).

    Those that are all zeros have none, and are left out.
    """
    total = np.abs(images).sum((1, 2), keepdims=True)
    weight = np.abs(images)[total[:, 0, 0] > 0] / total[total[:, 0, 0] > 0]
    rows, columns = np.indices(images.shape[1:])
    moments = [(weight * axis**p).sum((1, 2)) for axis in (rows, columns) for p in (1, 2)]
    return np.asarray(np.sqrt(moments[1] - moments[0] ** 2 + moments[3] - moments[2] ** 2))


def nearest(images: Images, trained: NDArray[Any], turns: bool) -> Images:
    """Return the distance (n,) of images to the nearest of those trained on, turned if may be."""
    x = torch.from_numpy(images)
    seen = [_coarse(dihedral(x, torch.full((len(x),), i))) for i in range(8 if turns else 1)]
    parts = [
        torch.cdist(ours, _coarse(torch.from_numpy(trained[rows.start : rows.stop]))).amin(1)
        for rows in batches(len(trained), AT_ONCE * 32)
        for ours in seen
    ]
    return np.asarray(torch.stack(parts).amin(0).numpy())


def _coarse(images: torch.Tensor) -> torch.Tensor:
    """Return images (n, H, W) averaged over blocks, as vectors."""
    factor = max(1, images.shape[-1] // COARSE)
    return torch.nn.functional.avg_pool2d(images[:, None].float(), factor).flatten(1)


def sheet(chain: Images, held_out: Images, path: Path, rows: int = 8) -> None:
    """Draw rows of 5 draws of the chain beside as many held-out images, on one scale."""
    figure = Figure(figsize=(16, 1.075 * rows), layout="constrained")
    scale = norm(held_out[: 5 * rows])
    halves: Any = figure.subfigures(1, 2)
    for half, images, title in zip(halves, (chain, held_out), ("chain", "held out"), strict=True):
        half.suptitle(title)
        for axis, image in zip(half.subplots(rows, 5).flat, images, strict=False):
            axis.imshow(image, origin="lower", cmap="magma", norm=scale)
            axis.set_axis_off()
    figure.savefig(path, dpi=70)
