"""The covariance of a denoiser's error on images, measured: what guidance assumes of it.

    z_0 - zhat_0 ~ N(0, R),   R = (S^-1 + I / rho^2)^-1,   S = D F^-1 P' F D
    D^2 = floor(t) + slope(t) * (smoothed |zhat_0|),   P' = P / (1 - P D_b^2 / rho^2),   P = P(k, t)

The errors of a network that has learned galaxies are far from white: they are as smooth as the
galaxies are and lie where the light is. D is fitted to the squared errors as a function of local
brightness, P is the mean power spectrum of the errors divided by D. No direction can be less
certain than the noisy state alone leaves it, rho^2 (for a log-concave prior: Tweedie's formula with
a denoiser that contracts), and D F^-1 P F D breaks that where the light is. So it is taken for the
prior's own spread S, P' such that R has the measured spectrum where pixels are bright, D_b^2 being
the mean of D^2 weighted by itself. F works on a grid half as wide again as the image, zero outside
it: on a periodic one the data of a source at one edge would put light on the other. A single number
r2 = tr R / d (Boys et al. 2023, arXiv 2310.06721) is the special case of a flat D and P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import conv2d

from priors.base import Prior, denoised_draws

BANDS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 11.0, 16.0, 23.0, 33.0)  # lower edges, cycles per image
SMOOTHING = (0.06, 0.24, 0.40, 0.24, 0.06)  # of |zhat_0|, px
FLOOR = 1e-3  # least floor(t), as a fraction of the mean squared error
SATURATION = 0.5  # largest share of rho^2 that P D_b^2 may count for
TIMES = 21
DRAWS = 192
MARGIN = 0.5  # of the Fourier grid beyond the image, as a fraction of its side


@dataclass(frozen=True)
class ResidualModel:
    """Tables over even times from 0 to 1, in model units; `log_spectrum` is (times, bands)."""

    floor: tuple[float, ...]
    slope: tuple[float, ...]
    log_spectrum: tuple[tuple[float, ...], ...]

    @classmethod
    def fit(cls, prior: Prior, seed: int) -> ResidualModel:
        """Return the model measured on noised draws of an image prior."""
        rows = []
        for z0, clean in denoised_draws(prior, DRAWS, seed, TIMES):
            image = prior.decode(clean)
            error = image - prior.decode(z0)
            rows.append(_fit(error.cpu() / prior.scale, image.cpu() / prior.scale))
        floor, slope, spectrum = zip(*rows, strict=True)
        return cls(floor, slope, tuple(tuple(row) for row in spectrum))

    def spread(self, t: float, clean: Tensor, limit: float) -> Callable[[Tensor], Tensor]:
        """Return u -> S u on images (B, H, W), given the clean estimate (B, H, W) at time t."""
        where = t * (len(self.floor) - 1)
        low = min(int(where), len(self.floor) - 2)
        mix = where - low

        def at(table: tuple[float, ...]) -> float:
            return (1 - mix) * table[low] + mix * table[low + 1]

        bands = tuple(at(column) for column in zip(*self.log_spectrum, strict=True))
        height, width = int(clean.shape[-2]), int(clean.shape[-1])
        wide = (_wide(height), _wide(width))
        local = at(self.floor) + at(self.slope) * smoothed(clean)
        root, power = local.sqrt(), _power(bands, (height, width), wide).to(clean)
        bright = (local.square().mean((1, 2)) / local.mean((1, 2))).view(-1, 1, 1)
        power = power / (1 - (power * bright / limit).clamp(max=SATURATION))

        def apply(u: Tensor) -> Tensor:
            modes = power * torch.fft.rfft2(root * u, s=wide)
            out: Tensor = root * torch.fft.irfft2(modes, s=wide)[..., :height, :width]
            return out

        return apply


def smoothed(clean: Tensor) -> Tensor:
    """Return |clean| (B, H, W) after a light separable smoothing."""
    weights = torch.tensor(SMOOTHING).to(clean)
    rows = conv2d(clean[:, None].abs(), weights.view(1, 1, 1, -1), padding=(0, 2))
    return conv2d(rows, weights.view(1, 1, -1, 1), padding=(2, 0))[:, 0]


def _fit(error: Tensor, clean: Tensor) -> tuple[float, float, NDArray[np.float64]]:
    """Return floor, slope and log P per band of errors (B, H, W)."""
    bright, square = smoothed(clean).double().flatten().numpy(), error.double().square()
    edges = np.quantile(bright, np.linspace(0, 1, 41))
    group = np.clip(np.searchsorted(edges, bright) - 1, 0, 39)
    count = np.maximum(np.bincount(group, minlength=40), 1)
    x = np.bincount(group, bright, 40) / count
    y = np.bincount(group, square.flatten().numpy(), 40) / count
    weight = 1 / np.maximum(y, 1e-12)  # relative errors: faint pixels count as bright ones do
    floor, slope = nnls(np.stack([weight, weight * x], 1), np.ones(40))[0]
    floor = max(float(floor), FLOOR * float(square.mean()))
    white = error / (floor + slope * smoothed(clean)).sqrt()
    power = torch.fft.rfft2(white, norm="ortho").abs().double().square().mean(0).flatten().numpy()
    shape = (int(error.shape[-2]), int(error.shape[-1]))
    band = np.searchsorted(BANDS, _frequencies(shape, shape).ravel(), side="right") - 1
    total, many = (np.bincount(band, w, len(BANDS)) for w in (power, np.ones_like(power)))
    return floor, float(slope), np.log(total / np.maximum(many, 1) + 1e-12)


def _frequencies(shape: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return |k| in cycles per image of `shape` on the half-plane of `rfft2` of `grid`."""
    ky, kx = np.fft.fftfreq(grid[0]) * shape[0], np.fft.rfftfreq(grid[1]) * shape[1]
    frequencies: NDArray[np.float64] = np.hypot(ky[:, None], kx)
    return frequencies


@lru_cache(maxsize=256)
def _power(bands: tuple[float, ...], shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return P on the half-plane of `rfft2` of `grid`, interpolated in log P over log(1 + k)."""
    centres = np.log1p((np.array(BANDS) + np.append(BANDS[1:], 1.4 * BANDS[-1])) / 2)
    centres[0] = 0.0  # the first band holds k = 0 alone
    power = np.exp(np.interp(np.log1p(_frequencies(shape, grid)), centres, bands))
    return torch.from_numpy(power)


def _wide(side: int) -> int:
    """Return the side of the Fourier grid of an image of `side` pixels."""
    return 2 * round(side * (1 + MARGIN) / 2)
