"""Stationary Gaussian random field on a periodic image: closed-form denoiser in Fourier space.

P(k) proportional to (1 + (k / k_0)^2)^(-p),   k in cycles per image
E[z_0 | z_t] = F^-1 [ alpha P / (alpha^2 P + sigma^2) F z_t ]
Cov(z_0 | z_t) = F^-1 [ sigma^2 P / (alpha^2 P + sigma^2) F ]

On a square of side L that is N(0, c (-laplacian + tau^2)^-p), tau = 2 pi k_0 / L (Whittle 1954).
A folder holds these numbers as `invprob.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from operators.errors import ObservationError
from priors._folder import FORMAT_VERSION, described
from priors.base import Prior
from priors.process import Schedule, generators, randn

SPECTRUM = ("std", "turnover", "slope", "centred", "steps")  # what a folder says of P


class RandomField(Prior):
    """Zero-mean field of standard deviation `std` on (H, W) pixels, periodic borders."""

    summary = "stationary Gaussian random field; exact denoiser and posterior"

    def __init__(
        self,
        x_shape: tuple[int, ...] = (64, 64),
        std: float = 1.0,
        turnover: float = 3.0,
        slope: float = 2.0,
        steps: int = 100,
        centred: bool = False,
        unit: str = "",
    ) -> None:
        """Set up P(k) with `turnover` k_0 in cycles per image and exponent `slope` p.

        centred: every field has mean 0 over its pixels, P(0) = 0; as vorticity does, a derivative
        of periodic flow.
        """
        if len(x_shape) != 2 or min(std, turnover, slope) <= 0:
            raise ObservationError(
                f"a random field needs an (H, W) shape and std, turnover, slope > 0, "
                f"found {x_shape}, {std}, {turnover}, {slope}"
            )
        self.x_shape = self.z_shape = x_shape
        self.scale, self.steps, self.unit = std, steps, unit
        self.turnover, self.slope, self.centred = turnover, slope, centred
        ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) * n for n in x_shape)
        power = (1 + (ky[:, None] ** 2 + kx**2) / turnover**2) ** -slope
        power[0, 0] *= not centred
        self.power = power / power.mean()  # pixel variance 1 in model units
        low, high = (float(power.sqrt()) for power in torch.aminmax(self.power[self.power > 0]))
        self.schedule = Schedule(rho_min=0.1 * low, rho_max=20 * high)

    @classmethod
    def default(cls, x_shape: tuple[int, ...] = (64, 64)) -> RandomField:
        """Return the field on this shape with its default spectrum."""
        return cls(x_shape)

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, H, W)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        gain = alpha * self.power / (alpha**2 * self.power + sigma**2)
        return _filtered(z, gain)

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the exact Cov(x | z_t), the same for every z."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        spread = sigma**2 * self.power / (alpha**2 * self.power + sigma**2) * self.scale**2

        return lambda u: _filtered(u, spread)

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, H, W)."""
        white = randn(self.z_shape, generators(seed, range(n)), torch.empty(0, device=self.device))
        return _filtered(white, self.power.sqrt())

    def on(self, x_shape: tuple[int, ...]) -> RandomField:
        """Return the field of the same square, or rectangle, seen on other pixels (H, W)."""
        return RandomField(
            x_shape, self.scale, self.turnover, self.slope, self.steps, self.centred, self.unit
        )

    def save(self, folder: Path, summary: str = "") -> None:
        """Write the prior folder: invprob.json alone."""
        folder.mkdir(parents=True, exist_ok=True)
        values = (self.scale, self.turnover, self.slope, self.centred, self.steps)
        facts = {
            "module": "random_field", "version": FORMAT_VERSION, "x_shape": self.x_shape,
            **dict(zip(SPECTRUM, values, strict=True)), "unit": self.unit, "summary": summary,
        }  # fmt: skip
        (folder / "invprob.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> RandomField:
        """Read a prior folder; raises ObservationError on one that cannot be read."""
        facts = described(folder)
        spectrum = {key: facts[key] for key in SPECTRUM}
        return cls(facts["x_shape"], unit=facts["unit"], **spectrum)


def _filtered(field: Tensor, gain: Tensor) -> Tensor:
    """Return fields (B, H, W) with every Fourier mode multiplied by its gain (H, W)."""
    product: Tensor = torch.fft.ifft2(torch.fft.fft2(field) * gain.to(field.dtype)).real
    return product
