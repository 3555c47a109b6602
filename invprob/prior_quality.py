"""How good a trained image prior is: its denoiser and its chain against held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invprob.panels import norm
from priors.base import Prior

Images = NDArray[np.float64]

RHOS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # noise ratios of the denoising table
AT_ONCE = 256  # images that a network sees in one call; changes no result


def denoising_error(prior: Prior, images: Images, rho: float, draws: int = 4) -> Images:
    """Return |z_0 - zhat_0|^2 / d of images (n, H, W) at one noise ratio: (n,), a mean of draws."""
    z0 = prior.encode(torch.from_numpy(images).float().to(prior.device))
    low, high = np.log(prior.schedule.rho_min), np.log(prior.schedule.rho_max)
    t = float((np.log(rho) - low) / (high - low))
    errors = []
    for seed in range(draws):
        eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
        zt = prior.schedule.noise(z0, t, eps)
        with torch.no_grad():
            clean = torch.cat([prior.denoise(part, t) for part in torch.split(zt, AT_ONCE)])
        errors.append((clean - z0).square().flatten(1).mean(1).double().cpu().numpy())
    mean: Images = np.mean(errors, 0)
    return mean


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
