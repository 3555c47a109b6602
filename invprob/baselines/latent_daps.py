"""Latent decoupled annealing posterior sampling (Zhang et al. 2025, arXiv 2407.01521, section 3.3).

    z_0 ~ p(y | D(z_0)) N(z_0; zhat_0, rho_t^2)         (Langevin, through the decoder)

between the flow and the noise of `daps`, which on a latent prior is the same method with the
numbers of steps that suit pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from invprob.baselines.daps import DAPS


@dataclass(frozen=True)
class LatentDAPS(DAPS):
    """DAPS on the codes of an autoencoder."""

    summary = "daps on a latent prior, Langevin steps through the decoder"
    needs_latent = True
    needs_network_gradient = False
    paper = "steps=50,flow_steps=2,langevin_steps=100"
    flow_steps: int = 2
