"""Outsourced prior: standard normal noise under any deterministic generator, x = f(z).

    z ~ N(0, I),   z_t = alpha z + sigma eps
    E[z | z_t] = alpha z_t / (alpha^2 + sigma^2),   Cov(z | z_t) = sigma^2 / (alpha^2 + sigma^2) I

The generator may be a GAN's, the decoder of a VAE, a flow, or the deterministic sampler of a
diffusion model: the posterior is drawn in its noise (Venkatraman et al. 2025, arXiv 2502.06999),
where the denoiser is exact and costs nothing.

A folder holds `vae/` (the decoder of an autoencoder), `invprob.json` and, where the codes are not
themselves normal, `flow/` (a flow from noise to codes). `file.py:function` is the user's own
generator: it maps z (B, *z_shape) to x (B, *x_shape), batch items apart from each other,
and says `function.z_shape = (...)`; an `nn.Module` with that attribute is one too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from operators.errors import NotDifferentiable, ObservationError
from priors._autoencoder import Autoencoder
from priors._code_flow import FOLDER, CodeFlow, Flowed
from priors._folder import FORMAT_VERSION, read_facts, readable, weights_digest
from priors.base import Prior
from priors.process import Schedule, generators, randn

MEASURED = 256  # draws behind the typical size of x


class Outsourced(Prior):
    """x = generator(z), z ~ N(0, I) of shape `z_shape`."""

    summary = "standard normal noise under a deterministic generator"
    isometric = False
    has_encoder = False
    guided_in_x = False

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        z_shape: tuple[int, ...],
        steps: int = 50,
        unit: str = "",
    ) -> None:
        """Set up the noise of `generator`; raises ObservationError where that does not draw x."""
        self.generator, self.z_shape, self.steps, self.unit = generator, z_shape, steps, unit
        self.schedule = Schedule(rho_min=0.03, rho_max=20.0)
        with torch.no_grad():
            x = generator(self.draw(MEASURED, seed=0))
        if x.ndim < 2 or len(x) != MEASURED or not torch.isfinite(x).all():
            raise ObservationError(
                f"the generator made {tuple(x.shape)} of noise {(MEASURED, *z_shape)}; needed "
                f"finite x of shape ({MEASURED}, *x_shape)"
            )
        self.x_shape = tuple(x.shape[1:])
        self.scale = float(x.double().square().mean().sqrt())

    def denoise(self, z: Tensor, t: float) -> Tensor:
        """Return E[z_0 | z_t = z], shape (B, *z_shape)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha / (alpha**2 + sigma**2) * z

    def covariance(self, z: Tensor, t: float, clean: Tensor) -> float:
        """Return the exact variance of every number of z_0 given z_t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return sigma**2 / (alpha**2 + sigma**2)

    def decode(self, z: Tensor) -> Tensor:
        """Return x = f(z), (B, *x_shape)."""
        return self.generator(z)

    def encode(self, x: Tensor) -> Tensor:
        """Raise NotDifferentiable: a generator has no inverse."""
        raise NotDifferentiable(
            "an outsourced prior has a generator z -> x and no way back from x to z: "
            "start from noise, or use a latent prior, whose autoencoder has an encoder"
        )

    def draw(self, n: int, seed: int) -> Tensor:
        """Return n exact draws of z_0, (n, *z_shape)."""
        like = torch.empty(0, device=self.device)
        return randn(self.z_shape, generators(seed, range(n)), like)

    def save(self, folder: Path, summary: str = "") -> None:
        """Write the prior folder; raises ObservationError where x is no autoencoder's."""
        decoder = self.generator
        if isinstance(decoder, Flowed):
            decoder.flow.save(folder)
            decoder = decoder.autoencoder
        if not isinstance(decoder, Autoencoder):
            raise ObservationError(
                "only the decoder of an autoencoder has a folder: keep other generators as "
                "file.py:function"
            )
        decoder.save(folder)
        readable(folder)
        facts = {
            "module": "outsourced",
            "version": FORMAT_VERSION,
            "x_shape": self.x_shape,
            "scale": decoder.scale,
            "patch": decoder.patch,
            "limit": decoder.limit,
            "steps": self.steps,
            "unit": self.unit,
            "summary": summary,
            "sha256": weights_digest(folder),
        }
        (folder / "invprob.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def of(cls, generator: Callable[[Tensor], Tensor]) -> Outsourced:
        """Return the prior of a generator that has `z_shape`; raises ObservationError without."""
        z_shape = getattr(generator, "z_shape", None)
        if z_shape is None:
            name = getattr(generator, "__name__", type(generator).__name__)
            raise ObservationError(
                f"the generator {name} does not say what noise it takes: set {name}.z_shape = (...)"
            )
        return cls(generator, tuple(z_shape))

    @classmethod
    def load(cls, folder: Path) -> Outsourced:
        """Read a prior folder; raises ObservationError naming a missing or corrupt file."""
        facts = read_facts(folder)
        known = (facts["scale"], facts["patch"], facts.get("limit"))
        autoencoder = Autoencoder.load(folder, *known)
        z_shape = autoencoder.z_shape(facts["x_shape"])
        flowed = (folder / FOLDER).is_dir()
        generator = Flowed(CodeFlow.load(folder), autoencoder) if flowed else autoencoder
        return cls(generator, z_shape, facts["steps"], facts["unit"])
