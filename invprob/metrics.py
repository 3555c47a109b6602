"""Scores of posterior samples against data and, where it is known, the truth.

CRPS (Gneiting & Raftery 2007, doi:10.1198/016214506000001437, eq. 21), per pixel and averaged:
    E|X - x| - E|X - X'| / 2
SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861) with their Gaussian window of 1.5 px.
MMD^2 (Gretton et al. 2012, JMLR 13, eq. 3) without bias, under the kernel of Crafts & Villa (2025,
arXiv 2503.03007): sum over j = -2..2 of exp(-|u - v|^2 / (2^j h)), h the mean |u - v| of the
reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]

CHUNK = 10**6  # projected values held at once
TRUTH_SCORES = (
    "rmse", "psnr", "ssim", "rmse_samples", "psnr_samples", "ssim_samples", "crps", "coverage_90",
    "coverage_90_noisy",
)  # fmt: skip
BRIGHT = 0.1  # a pixel is bright above this fraction of the truth's peak


def against_truth(
    samples: Array, truth: Array, truth_sigma: float = 0.0
) -> dict[str, float | None]:
    """Return `TRUTH_SCORES` of samples (n, *x_shape), those of their mean and the means of each's.

    Where the truth has noise of its own, of standard deviation `truth_sigma`, so does a fair
    draw of it: `coverage_90_noisy` is that of samples to which such noise is added.
    """
    noise = np.random.default_rng(0).normal(0.0, truth_sigma, samples.shape)
    mean = samples.mean(0)
    error = float(np.sqrt(np.square(mean - truth).mean()))
    span = float(truth.max() - truth.min())
    errors = np.sqrt(np.square(samples - truth).reshape(len(samples), -1).mean(1))
    image = truth.ndim == 2 and span > 0
    return {
        "rmse": error,
        "psnr": _psnr(span, error),
        "ssim": ssim(mean, truth, span) if image else None,
        "rmse_samples": float(errors.mean()),
        "psnr_samples": _mean([_psnr(span, float(one)) for one in errors]),
        "ssim_samples": _mean([ssim(x, truth, span) if image else None for x in samples]),
        "crps": crps(samples, truth),
        "coverage_90": coverage(samples, truth),
        "coverage_90_noisy": coverage(samples + noise, truth) if truth_sigma > 0 else None,
    }


def _psnr(span: float, error: float) -> float | None:
    return 20 * float(np.log10(span / error)) if error > 0 and span > 0 else None


def _mean(values: list[float | None]) -> float | None:
    """Return the mean of values, None where one of them is not defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def coverage(samples: Array, truth: Array, level: float = 0.9) -> float | None:
    """Return the share of bright pixels whose central interval of samples holds the truth.

    A pixel is bright above `BRIGHT` of the truth's peak. The interval runs between the order
    statistics that n exact samples cover with probability `level`; None where n is too small to
    have them (under 19 samples at 90%).
    """
    bright = np.abs(truth) > BRIGHT * np.abs(truth).max()
    return posterior_coverage(samples[:, bright], truth[bright], level)


def posterior_coverage(samples: Array, exact: Array, level: float = 0.9) -> float | None:
    """Return the share of values of exact (m, *shape) inside central intervals of samples.

    `exact` are draws of the exact posterior, or one truth (*shape): the mean over draws is the
    expected coverage of the truth. Intervals and None as in `coverage`.
    """
    n = len(samples)
    tail = (n + 1) * (1 - level) / 2
    if tail < 1 - 1e-9:
        return None
    # between the order statistics a and n + 1 - a of n exact samples lies (n + 1 - 2a) / (n + 1)
    where = np.clip(np.array([tail - 1, n - tail]) / (n - 1), 0, 1)  # rounding only
    low, high = np.quantile(samples, where, axis=0)
    return float(((exact >= low) & (exact <= high)).mean())


def optimality_gap(samples: Array, exact: Array) -> float:
    """Return how much worse than optimal the mean of samples (n, d) estimates x, in dB.

    The mean squared error to the truth over the least one, that of the posterior's mean, given
    the data: the truth is averaged over `exact` (m, d), draws of the posterior.
    """
    off = np.square(samples.mean(0) - exact.mean(0)).sum()
    return 10 * float(np.log10(1 + off / exact.var(0).sum()))


def crps(samples: Array, truth: Array) -> float:
    """Return the continuous ranked probability score, averaged over pixels, in x's unit."""
    n = len(samples)
    order = np.sort(samples, axis=0)
    rank = 2 * np.arange(1, n + 1) - n - 1
    spread = np.tensordot(rank, order, axes=1) / (n * max(n - 1, 1))  # E|X - X'| / 2, unbiased
    return float((np.abs(samples - truth).mean(0) - spread).mean())


def ssim(a: Array, b: Array, span: float) -> float:
    """Return the structural similarity of two images (H, W) whose values span `span`."""
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2

    def smooth(image: Array) -> Array:
        return np.asarray(gaussian_filter(image, 1.5, truncate=3.5))

    ma, mb = smooth(a), smooth(b)
    va, vb, vab = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    index = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(index.mean())


def sliced_wasserstein(
    a: Array, b: Array, seed: int = 0, projections: int = 1000
) -> tuple[float, float]:
    """Return the mean and the largest 1-Wasserstein distance of projections of (n, d) samples.

    b may have a multiple of the samples of a: a larger reference has less noise of its own.
    """
    directions = np.random.default_rng(seed).normal(size=(projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distance = []
    for some in np.array_split(directions, max(1, projections * len(b) // CHUNK)):
        one, two = np.sort(a @ some.T, axis=0), np.sort(b @ some.T, axis=0)
        distance.append(np.abs(one[:, None] - two.reshape(len(a), -1, len(some))).mean((0, 1)))
    joined = np.concatenate(distance)
    return float(joined.mean()), float(joined.max())


def mmd_squared(a: Array, b: Array) -> float:
    """Return the squared maximum mean discrepancy of samples a (n, d) from a reference b (m, d).

    It is 0 on average where both have one law, so it may be negative; 5 is the kernel's peak.
    """
    apart = cdist(b, b)
    width = apart.sum() / (len(b) * (len(b) - 1))

    def summed(one: Array, two: Array) -> float:
        """Return the sum of the kernel over all pairs; its width is that of b."""
        total = 0.0
        for rows in np.array_split(one, max(1, len(one) * len(two) // CHUNK)):
            value = np.exp(-np.square(cdist(rows, two)) / (4 * width))  # of j = 2
            for _ in range(5):
                total += float(value.sum())
                value = np.square(value)  # the others by squares
        return total

    within = [(summed(x, x) - 5 * len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return sum(within) - 2 * summed(a, b) / (len(a) * len(b))
