"""Latent diffusion posterior sampling (Song et al. 2024, arXiv 2307.08123, section 3.1; Rout et al.
2023, arXiv 2307.00619, section 3): DPS with the residual taken through the decoder.

    z_s = (ancestral step) - zeta grad_{z_t} |y - A(D(zhat_0(z_t)))|

`dps` on a latent prior is the same method with the step that suits pixels; the zeta here is that of
the comparisons in latent space.
"""

from __future__ import annotations

from dataclasses import dataclass

from invprob.baselines.dps import DPS


@dataclass(frozen=True)
class LatentDPS(DPS):
    """DPS on the codes of an autoencoder, with step `zeta`."""

    summary = "dps on a latent prior, through the decoder"
    needs_latent = True
    zeta: float = 0.5
