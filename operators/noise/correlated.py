"""Gaussian noise that neighbouring pixels share, as drizzled images have.

    covariance = D C D,   D = diag(sigma),   C(d) = white [d = 0] + (1 - white) exp(-d^2 / 2 l^2)

over distances d, summed over the copies of a periodic image. C is diagonal in Fourier space, with
eigenvalues P, none below `white`; log p and the whitened residual C^-1/2 r / sigma then cost an
FFT. A pixel of blank sky scatters by sigma, its mean over many pixels by sqrt(P_0) times what
independent pixels would give: the correlation ratio R of Casertano et al. 2000
(arXiv:astro-ph/0010245).

What is masked is left out exactly: the covariance of the kept pixels is factorised, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from operators.errors import ObservationError
from operators.noise.base import NoiseModel, standard_normal

__all__ = ["Correlated"]

MOST_KEPT = 10_000  # pixels beside masked ones: their covariance has to fit into memory


@dataclass(frozen=True, eq=False)
class Correlated(NoiseModel):
    """Stationary correlation of Gaussian noise on vectors or images.

    sigma: standard deviation in the data's unit. length: l, pixels. white: share of the variance
    that is independent, > 0 and at most 1.
    """

    summary: ClassVar[str] = "Gaussian that neighbouring pixels share, as in drizzled images"

    sigma: float | Tensor
    length: float = 1.0
    white: float = 0.2
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("length", "white"):
            if isinstance(getattr(self, name), Tensor):
                raise ObservationError(f"noise {name} is a map; needed one number")
        if self.white > 1:
            raise ObservationError(f"noise white is {self.white:g}; needed a share, at most 1")

    @classmethod
    def default(cls, peak: float) -> Self:
        """5% of the peak, four fifths of it shared over a pixel."""
        return cls(0.05 * peak)

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean and correlated noise, `(B, *y_shape)`; masked pixels keep the mean."""
        power = self._power(tuple(mean.shape[1:])).to(mean)
        noise = self._sigma(mean) * _filtered(standard_normal(mean, generator), power.sqrt())
        return mean + noise * self.kept(tuple(mean.shape[1:])).to(mean)

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density of the unmasked pixels, (B,) float64; see `NoiseModel`."""
        shape = tuple(mean.shape[1:])
        count, kept = self.count(shape), self.kept(shape)
        scale = torch.as_tensor(self.sigma, dtype=torch.float64).cpu().expand(shape)[kept]
        if self.mask is None:
            log_det = float(self._power(shape).log().sum())
        else:
            log_det = 2 * float(self._factor(shape).diagonal().log().sum())
        normaliser = count * math.log(2 * math.pi) + log_det + 2 * float(scale.log().sum())
        return -self.misfit(y, mean) - normaliser / 2

    def misfit(self, y: Tensor, mean: Tensor) -> Tensor:
        """Half of chi2, (B,) float64."""
        return self.whitened(y, mean).flatten(1).double().square().sum(1) / 2

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Gradient of `log_prob` in the mean, `(B, *y_shape)`, in closed form."""
        return self.whiten_back(self.whitened(y, mean))

    def whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        """Residuals of mean 0 and variance 1, independent, `(B, *y_shape)`; zero where masked."""
        self._check_pair(y, mean)
        return self.whiten(y.to(mean) - mean)

    def whiten(self, v: Tensor) -> Tensor:
        """Return S v (B, *y_shape), S^T S the inverse of the kept pixels' covariance."""
        shape = tuple(v.shape[1:])
        if self.mask is None:
            return _filtered(v / self._sigma(v), self._power(shape).to(v).rsqrt())
        kept = self.kept(shape).to(v.device)
        inside = (torch.where(kept, v, 0.0) / self._sigma(v))[:, kept]
        factor = self._factor(shape).to(v)
        return _placed(torch.linalg.solve_triangular(factor, inside.T, upper=False).T, kept)

    def whiten_back(self, u: Tensor) -> Tensor:
        """Return S^T u (B, *y_shape)."""
        shape = tuple(u.shape[1:])
        if self.mask is None:
            return _filtered(u, self._power(shape).to(u).rsqrt()) / self._sigma(u)
        kept = self.kept(shape).to(u.device)
        factor = self._factor(shape).to(u).T
        solved = torch.linalg.solve_triangular(factor, u[:, kept].T, upper=True).T
        return _placed(solved, kept) / self._sigma(u)

    def expected_information(self, mean: Tensor) -> Tensor:
        """The diagonal of the inverse covariance, `(B, *y_shape)`, zero where masked."""
        shape = tuple(mean.shape[1:])
        if self.mask is None:
            diagonal = (1 / self._power(shape)).mean().expand(shape).to(mean)
        else:
            inverse = torch.cholesky_inverse(self._factor(shape)).diagonal()
            diagonal = _placed(inverse[None], self.kept(shape))[0].to(mean)
        return (diagonal / self._sigma(mean) ** 2).expand(mean.shape)

    def _sigma(self, like: Tensor) -> Tensor:
        self._check(tuple(like.shape[1:]))
        return torch.as_tensor(self.sigma, dtype=like.dtype, device=like.device)

    def _power(self, shape: tuple[int, ...]) -> Tensor:
        """P `shape`, the eigenvalues of C."""
        return _spectrum(shape, float(self.length), float(self.white))

    def _factor(self, shape: tuple[int, ...]) -> Tensor:
        """Lower Cholesky factor (kept, kept) of C among the kept pixels."""
        if "of" not in self._factors:
            kept = self.kept(shape).cpu()
            if int(kept.sum()) > MOST_KEPT:
                raise ObservationError(
                    f"{int(kept.sum())} pixels are kept beside masked ones; correlated noise takes "
                    f"at most {MOST_KEPT}: cut the image, or mask nothing and give those pixels a "
                    "large sigma"
                )
            places = kept.nonzero()
            first = _filtered(_delta(shape), self._power(shape))[0]
            steps = (places[:, None] - places[None]).remainder(torch.tensor(shape))
            self._factors["of"] = torch.linalg.cholesky(first[steps.unbind(-1)])
        return self._factors["of"]

    @cached_property
    def _factors(self) -> dict[str, Tensor]:
        return {}


@lru_cache(maxsize=8)
def _spectrum(shape: tuple[int, ...], length: float, white: float) -> Tensor:
    """Eigenvalues of C on a periodic vector or image, float64; their mean is 1."""
    if len(shape) > 2:
        raise ObservationError(f"data have shape {shape}; correlated noise needs images or vectors")
    smooth = torch.ones((), dtype=torch.float64)
    for n in shape:
        around = math.ceil(10 * length / n)  # images of the periodic vector that still matter
        at = torch.arange(n)[:, None] + n * torch.arange(-around - 1, around + 1)
        share = torch.exp(-(at.double() ** 2) / (2 * length**2)).sum(1)
        smooth = smooth[..., None] * torch.fft.fft(share / share[0]).real
    return white + (1 - white) * smooth


def _filtered(v: Tensor, gain: Tensor) -> Tensor:
    """F^-1 gain F v over all but the batch."""
    over = tuple(range(1, v.ndim))
    product: Tensor = torch.fft.ifftn(torch.fft.fftn(v, dim=over) * gain, dim=over).real
    return product.contiguous()


def _placed(values: Tensor, kept: Tensor) -> Tensor:
    """Values (B, kept) at their pixels, zero elsewhere."""
    out = values.new_zeros(len(values), *kept.shape)
    out[:, kept] = values
    return out


def _delta(shape: tuple[int, ...]) -> Tensor:
    """1 at the origin, (1, *shape)."""
    point = torch.zeros(1, *shape, dtype=torch.float64)
    point.view(-1)[0] = 1.0
    return point
