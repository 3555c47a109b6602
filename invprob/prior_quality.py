"""How good an image prior is: its denoiser and its draws against images that it has not seen.

    denoising        E|z_0 - zhat_0|^2 over that of the best stationary linear filter (Wiener),
                     mean over k of P rho^2 / (P + rho^2), at the worst noise ratio rho
    generalisation   the same error on held-out images over that on those trained on
    sliced distance  mean 1-Wasserstein distance of projections, over that of two sets of images
    power spectrum   median power of draws over that of images, in the worst band of frequencies
    flux, peak, extent   1-Wasserstein distance to the images' own, in standard deviations of these
                     (or tenths of their mean, where that is more)
    copies           share of draws nearer to an image trained on than 95 in 100 held-out images are
                     (in the manner of Meehan et al. 2020, arXiv 2004.05675)

Limits are sizes of effects, not significances: no network is exact, and enough draws would show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from invprob.calibration import Check
from invprob.metrics import sliced_wasserstein
from invprob.panels import norm
from invprob.trajectory import batches
from operators.errors import ObservationError
from priors.base import Prior
from priors.training import dihedral

Images = NDArray[np.float64]

RHOS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # noise ratios of the denoising table
AT_ONCE = 256  # images that a network sees in one call; changes no result
MOST = 512  # draws, and images whose denoising errors are averaged
SPLITS = 8  # pairs of sets of images whose distance is the floor
BANDS = (1, 3, 7, 14, 28, 56, 112, 224)  # edges, cycles per image
COARSE = 16  # side to which images are binned before nearest neighbours are sought, px
NEAR = 0.05  # quantile of held-out images' distances below which a draw is called a copy

LIMITS = {
    "denoising": 1.05,
    "generalisation": 1.1,
    "sliced distance": 2.0,
    "power spectrum": 1.35,
    "flux": 0.25,
    "peak": 0.25,
    "extent": 0.25,
    "copies": 0.15,
}
SMALLEST = 1e-12  # error of images trained on that is told from none
ROUNDING = 1e-6  # of what is summed over an image, as a fraction
LEAST_SPREAD = 0.1  # of flux, peak and extent, as a fraction of their mean
# A chain ends at the noise ratio rho_min, and draws modes well below that noise as their mean. A
# band is judged where the images' median power per mode is this many times rho_min^2.
RESOLVED = 10.0
LONGER = "train longer, or on more images"
OTHER = "another prior, one trained on such images, or images in this one's unit"
REMEDIES = {
    "denoising": LONGER,
    "generalisation": "train on more images, or fewer steps",
    "copies": "train on more images, or fewer steps",
}


@dataclass(frozen=True, eq=False)
class Quality:
    """Checks of a prior, and the figures behind them."""

    checks: tuple[Check, ...]
    denoising_error: dict[str, float]  # of held-out images, by noise ratio
    power_ratio: dict[str, float]  # draws over images, by band of cycles per image

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def check(
    prior: Prior,
    held_out: Images,
    trained: NDArray[Any] | None = None,
    turns: bool = False,
    draws: Images | None = None,
) -> Quality:
    """Return the quality of a prior by held-out images (n, H, W) and images it was trained on.

    Without the latter, generalisation and copies are left out; `turns` says that its training
    turned and flipped them. `draws` (m, H, W) are judged in place of those that it has. Where the
    decoder is not an isometry, what concerns the denoiser is left out: its errors are of codes, not
    of images. Raises ObservationError on images of another shape.
    """
    if held_out.shape[1:] != prior.x_shape:
        raise ObservationError(
            f"the images are {held_out.shape[1:]}, the prior draws {prior.x_shape}: needed equal "
            "shapes"
        )
    if np.ptp(held_out, axis=0).max() == 0:
        raise ObservationError("the images are all the same: needed some that differ")
    n = min(MOST, len(held_out) // 2)
    if draws is None:
        draws = prior.decode(prior.draw(n, seed=0)).double().cpu().numpy()
    found, errors = [], {}
    if prior.isometric:
        errors = validation(prior, held_out[:n], 1)
        ratio = {rho: error / _wiener(held_out / prior.scale, rho) for rho, error in errors.items()}
        worst = max(ratio, key=lambda rho: ratio[rho])
        found = [_check("denoising", ratio[worst], f"of the best linear filter's error at {worst}")]
    if trained is not None and prior.isometric:
        own = validation(prior, trained[:n].astype(np.float64), 1)
        gap = {rho: errors[rho] / max(own[rho], SMALLEST) for rho in errors}
        worst = max(gap, key=lambda rho: gap[rho])
        found.append(
            _check("generalisation", gap[worst], f"of the error on images trained on, at {worst}")
        )
    found.append(_sliced(draws, held_out))
    power = power_ratio(draws / prior.scale, held_out / prior.scale, prior.schedule.rho_min)
    if power:
        band = max(power, key=lambda name: abs(np.log(power[name])))
        factor = max(power[band], 1 / power[band])
        said = f"draws have {power[band]:.2f} of the power at {band}"
        found.append(_check("power spectrum", factor, said))
    for name, of in (("flux", flux), ("peak", peak), ("extent", extent)):
        ours, theirs = of(draws), of(held_out)
        rounding = ROUNDING * np.abs(held_out).sum((1, 2)).mean()  # where all have the same flux
        spread = max(theirs.std(), LEAST_SPREAD * abs(theirs.mean()), rounding)
        shift = wasserstein_distance(ours, theirs) / spread
        medians = f"median {np.median(ours):.3g}, of images {np.median(theirs):.3g}"
        found.append(_check(name, shift, medians))
    if trained is not None:
        found.append(_copies(draws, held_out[:n], trained, turns))
    else:
        found = [c if c.passed else replace(c, remedy=OTHER) for c in found]
    return Quality(tuple(found), errors, power)


def validation(prior: Prior, images: Images, draws: int = 4) -> dict[str, float]:
    """Return the mean denoising error of images (n, H, W) at each noise ratio."""
    return {f"{r:g}": float(denoising_error(prior, images, r, draws).mean()) for r in RHOS}


def denoising_error(prior: Prior, images: Images, rho: float, draws: int = 4) -> Images:
    """Return |z_0 - zhat_0|^2 / d of images (n, H, W) at one noise ratio: (n,), a mean of draws."""
    z0 = prior.encode(torch.from_numpy(images).float().to(prior.device))
    t, errors = prior.schedule.time(rho), []
    for seed in range(draws):
        eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
        zt = prior.schedule.noise(z0, t, eps)
        with torch.no_grad():
            clean = torch.cat([prior.denoise(part, t) for part in torch.split(zt, AT_ONCE)])
        errors.append((clean - z0).square().flatten(1).mean(1).double().cpu().numpy())
    mean: Images = np.mean(errors, 0)
    return mean


def power_ratio(draws: Images, images: Images, rho_min: float) -> dict[str, float]:
    """Return the ratio of median powers in the bands that a chain from `rho_min` up resolves.

    Bands are named by their edges in cycles per image; images (n, H, W) are in model units.
    """
    side = images.shape[-1]
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(side) * side, np.fft.fftfreq(side) * side))
    ours, theirs = (np.abs(np.fft.fft2(x, norm="ortho")) ** 2 for x in (draws, images))
    found = {}
    for low, high in pairwise(BANDS):
        band = (k >= low) & (k < high) & (k <= side / 2)
        if not band.any():
            break
        one, two = (float(np.median(x[:, band].mean(1))) for x in (ours, theirs))
        if two >= RESOLVED * rho_min**2:
            found[f"{low}-{min(high, side // 2)} cycles"] = one / two
    return found


def flux(images: Images) -> Images:
    """Return the sum of every image (n, H, W)."""
    return np.asarray(images.sum((1, 2)))


def peak(images: Images) -> Images:
    """Return the largest absolute value of every image (n, H, W)."""
    return np.asarray(np.abs(images).max((1, 2)))


def extent(images: Images) -> Images:
    """Return the root mean square distance (px) of |x| from its centroid, of images (n, H, W)."""
    weight = np.abs(images) / np.abs(images).sum((1, 2), keepdims=True)
    rows, columns = np.indices(images.shape[1:])
    moments = [(weight * axis**p).sum((1, 2)) for axis in (rows, columns) for p in (1, 2)]
    return np.asarray(np.sqrt(moments[1] - moments[0] ** 2 + moments[3] - moments[2] ** 2))


def _wiener(z: Images, rho: str) -> float:
    """Return the error of the best stationary linear denoiser of z (n, H, W), its mean known."""
    power = np.square(np.abs(np.fft.fft2(z - z.mean(0), norm="ortho"))).mean(0)
    return float((power * float(rho) ** 2 / (power + float(rho) ** 2)).mean())


def _sliced(draws: Images, images: Images) -> Check:
    """Return the check of the sliced distance of draws to images, beside that of two such sets."""
    n, rng = len(draws), np.random.default_rng(0)
    flat, distances, floor = images.reshape(len(images), -1), [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(flat))
        one, two = flat[order[:n]], flat[order[n : 2 * n]]
        distances.append(sliced_wasserstein(draws.reshape(n, -1), two, projections=200)[0])
        floor.append(sliced_wasserstein(one, two, projections=200)[0])
    ratio = float(np.mean(distances) / np.mean(floor))
    return _check("sliced distance", ratio, "times the distance of two sets of images")


def _copies(draws: Images, held_out: Images, trained: NDArray[Any], turns: bool) -> Check:
    """Return the check that draws lie no nearer to images trained on than held-out ones do."""
    ours, theirs = (_nearest(x, trained, turns) for x in (draws, held_out))
    share = float((ours < np.quantile(theirs, NEAR)).mean())
    return _check("copies", share, f"of draws are nearer to one of {len(trained)} trained on")


def _nearest(images: Images, trained: NDArray[Any], turns: bool) -> Images:
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


def _check(name: str, statistic: float, said: str) -> Check:
    passed = bool(statistic <= LIMITS[name])
    remedy = None if passed else REMEDIES.get(name, LONGER)
    return Check(name, float(statistic), LIMITS[name], passed, f"{statistic:.3g}: {said}", remedy)


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
