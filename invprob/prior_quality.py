"""How good an image prior is: its denoiser and its draws against images that it has not seen.

    denoising        E|z_0 - zhat_0|^2 over that of the best stationary linear filter (Wiener),
                     P / (P + rho^2) by the mean and power of the other half of the images, at the
                     worst noise ratio rho
    generalisation   the same error on held-out images over that on those trained on
    sliced distance  mean 1-Wasserstein distance of projections, over that of two sets of images
    power spectrum   median power of draws over that of images, in the worst band of frequencies
    flux, peak, extent   1-Wasserstein distance to the images' own, in standard deviations of these
                     (or tenths of their mean, where that is more)
    copies           share of draws nearer to an image trained on than 95 in 100 held-out images are
                     (in the manner of Meehan et al. 2020, arXiv 2004.05675)

Limits are sizes of effects, not significances: no network is exact, and enough draws would show it.
Where images are few, a limit rises to what chance alone gives: the statistic of both sets dealt out
anew (Pitman 1937, doi:10.2307/2984124), which an exact prior exceeds in `FALSE_ALARM` of cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import wasserstein_distance

from invprob.calibration import Check
from invprob.metrics import sliced_wasserstein
from invprob.prior_statistics import (
    RHOS,
    Denoise,
    Images,
    denoising_error,
    extent,
    flux,
    linear_filter,
    nearest,
    peak,
    power_ratio,
    powers,
)
from operators.errors import ObservationError
from priors.base import Prior

Statistic = Callable[[Images, Images], Any]  # of two sets, a number

MOST = 512  # draws, and images whose denoising errors are averaged
FEWEST = 50  # images held out: fewer tell no prior from another
FALSE_ALARM = 1 / 400  # of one check of an exact prior
SPLITS = 8  # pairs of sets of images whose distance is the floor
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

    @property
    def unjudged(self) -> bool:
        """Whether the images were too few for a verdict."""
        return [check.name for check in self.checks] == ["images"]


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
    of images. Under `FEWEST` held-out images there is no verdict, which is what the one check says.
    Raises ObservationError on images of another shape.
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
        own = _errors(prior, held_out[:n])
        errors = {f"{rho:g}": float(own[:, i].mean()) for i, rho in enumerate(RHOS)}
    power = power_ratio(draws / prior.scale, held_out / prior.scale, prior.schedule.rho_min)
    if len(held_out) < FEWEST:
        said = f"{len(held_out)} images held out are too few for a verdict; needed {FEWEST}"
        remedy = "hold out more images, or give others that it has not seen"
        return Quality(
            (Check("images", FEWEST / len(held_out), 1.0, False, said, remedy),), errors, power
        )
    if prior.isometric:
        found.append(
            _denoising(own, _errors(prior, held_out[:n], linear_filter(prior, held_out[n:])))
        )
    if trained is not None and prior.isometric:
        seen = _errors(prior, trained[:n].astype(np.float64))
        gap = _ratios(own, seen)
        said = f"of the error on images trained on, at {RHOS[int(gap.argmax())]:g}"
        found.append(_judged("generalisation", lambda a, b: _ratios(a, b).max(), own, seen, said))
    found.append(_sliced(draws, held_out))
    if power:
        ours, theirs = (
            np.stack([each[band] for band in power], 1) for each in map(powers, (draws, held_out))
        )
        band = list(power)[int(_factors(ours, theirs).argmax())]
        said = f"draws have {power[band]:.2f} of the power at {band}"
        found.append(
            _judged("power spectrum", lambda a, b: _factors(a, b).max(), ours, theirs, said)
        )
    rounding = ROUNDING * np.abs(held_out).sum((1, 2)).mean()  # where all have the same flux
    for name, of in (("flux", flux), ("peak", peak), ("extent", extent)):
        ours, theirs = of(draws), of(held_out)
        if not len(ours):
            continue  # nothing but zeros has no extent
        medians = f"median {np.median(ours):.3g}, of images {np.median(theirs):.3g}"
        found.append(_judged(name, partial(_shift, rounding=rounding), ours, theirs, medians))
    if trained is not None:
        found.append(_copies(draws, held_out[:n], trained, turns))
    else:
        found = [c if c.passed else replace(c, remedy=OTHER) for c in found]
    return Quality(tuple(found), errors, power)


def _errors(prior: Prior, images: Images, denoise: Denoise | None = None) -> Images:
    """Return the denoising errors (n, len(RHOS)) of images (n, H, W), the same noise in each."""
    return np.stack([denoising_error(prior, images, rho, 1, denoise) for rho in RHOS], 1)


def _denoising(own: Images, linear: Images) -> Check:
    """Return the check of a prior's errors (n, len(RHOS)) beside those of the linear filter."""
    ratio = _ratios(own, linear)
    worst = int(ratio.argmax())
    # both denoise the same noisy images, so that their difference tells more than each
    apart = own[:, worst] - ratio[worst] * linear[:, worst]
    error = float(apart.std() / len(own) ** 0.5 / linear[:, worst].mean())
    said = f"of the best linear filter's error at {RHOS[worst]:g}"
    return _check("denoising", ratio[worst], said, 1 + normal.isf(FALSE_ALARM) * error)


def _ratios(ours: Images, theirs: Images) -> Images:
    """Return the ratio of mean errors (n, len(RHOS)) at every noise ratio."""
    return np.asarray(ours.mean(0) / np.maximum(theirs.mean(0), SMALLEST))


def _factors(ours: Images, theirs: Images) -> Images:
    """Return the factors of at least 1 between the median powers (n, bands) of two sets."""
    one, two = (np.maximum(np.median(x, 0), np.finfo(float).tiny) for x in (ours, theirs))
    return np.asarray(np.maximum(one / two, two / one))


def _shift(ours: Images, theirs: Images, rounding: float) -> float:
    """Return the distance of numbers from those of images, in standard deviations of these."""
    spread = max(theirs.std(), LEAST_SPREAD * abs(theirs.mean()), rounding)
    return float(wasserstein_distance(ours, theirs) / spread)


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
    ours, theirs = (nearest(x, trained, turns) for x in (draws, held_out))
    said = f"of draws are nearer to one of {len(trained)} trained on"
    return _judged("copies", lambda a, b: (a < np.quantile(b, NEAR)).mean(), ours, theirs, said)


def _judged(name: str, statistic: Statistic, ours: Images, theirs: Images, said: str) -> Check:
    """Return the check of a statistic of two sets (n, ...) and (m, ...), by limit and chance.

    Chance is what it is at most when both are dealt out anew, `1 / FALSE_ALARM - 1` times.
    """
    both, n, rng = np.concatenate([ours, theirs]), len(ours), np.random.default_rng(0)
    dealt = (rng.permutation(both) for _ in range(round(1 / FALSE_ALARM) - 1))
    chance = max(float(statistic(deal[:n], deal[n:])) for deal in dealt)
    return _check(name, float(statistic(ours, theirs)), said, chance)


def _check(name: str, statistic: float, said: str, chance: float = 0.0) -> Check:
    threshold = max(LIMITS[name], float(chance))
    passed = bool(statistic <= threshold)
    remedy = None if passed else REMEDIES.get(name, LONGER)
    return Check(name, float(statistic), threshold, passed, f"{statistic:.3g}: {said}", remedy)
