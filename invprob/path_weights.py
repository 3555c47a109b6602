"""What importance weights tell: the mean, its error, and whether their tail can be trusted.

The tail is judged by the Pareto shape k of Vehtari et al. (2024, arXiv 1507.02646), fitted as in
Zhang & Stephens (2009, doi:10.1198/tech.2009.08017).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

PARETO_LIMIT = 0.7  # above it importance weights are not reliable (Vehtari et al. 2024)
FEWEST = 25  # weights whose largest fifth has a shape
ALIKE = 1e-9  # relative spread of weights that is rounding
MIN_ESS = 20.0  # below it a few samples would stand for all

Array = NDArray[np.float64]


def reliable(ess: float | None, k: float | None) -> bool:
    """Return whether samples may be corrected by their path weights."""
    return ess is not None and ess >= MIN_ESS and k is not None and k < PARETO_LIMIT


def log_mean(log_w: Array) -> float:
    """Return the log of the mean of weights (n,)."""
    return float(np.logaddexp.reduce(log_w) - math.log(len(log_w)))


def log_mean_se(log_w: Array) -> float | None:
    """Return the standard error of `log_mean` of independent weights (n,), None for one."""
    if len(log_w) < 2:
        return None
    weights = np.exp(log_w - log_w.max())
    return float(weights.std(ddof=1) / weights.mean() / math.sqrt(len(weights)))


def pareto_k(log_w: Array) -> float | None:
    """Return the Pareto shape of the largest importance weights, None under 25 of them.

    Where these are all alike there is no tail: 0.
    """
    tail = pareto_tail(log_w)
    if tail is None:
        return None if len(log_w) < FEWEST else 0.0
    return tail[0]


def pareto_tail(log_w: Array) -> tuple[float, float, int] | None:
    """Return shape, scale and size of the tail of weights exp(log_w - max log_w), (n,).

    The scale is that of the excess over the weight below the tail. None under 25 weights, or
    where they are all alike.
    """
    n = len(log_w)
    if n < FEWEST:
        return None
    count = int(min(0.2 * n, 3 * math.sqrt(n)))
    order = np.sort(log_w)
    excess = np.exp(order[-count:] - order[-1]) - np.exp(order[-count - 1] - order[-1])
    if excess[-1] <= ALIKE:
        return None
    m = 30 + int(math.sqrt(count))
    j = np.arange(1, m + 1)
    quartile = excess[max(int(count / 4 + 0.5) - 1, 0)]
    theta = 1 / excess[-1] + (1 - np.sqrt(m / (j - 0.5))) / (3 * max(quartile, 1e-300))
    shapes = np.log1p(-theta[:, None] * excess).mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        profile = count * (np.log(-theta / shapes) - shapes - 1)
    share = np.exp(profile - np.nanmax(profile))
    share = np.nan_to_num(share) / np.nansum(share)
    best = float((theta * share).sum())
    k = float(np.log1p(-best * excess).mean())
    scale = -k / best
    return (k * count + 5) / (count + 10), scale, count  # weak prior towards 1/2, as in PSIS
