"""Policies that fine-tune the prior's own network F, as the papers of RTB do:

    zhat_0 -> zhat_0 + u,   u = zhat_0(F + dF) - zhat_0(F) + guidance * delta

`full` trains a copy of all weights, `lora` adapters of low rank, dF = B A on every layer, and
B = 0 at first (Hu et al. 2021, arXiv 2106.09685). With guidance = 0, as published (Venkatraman et
al. 2024, arXiv 2405.20971; 2025, 2503.09746), a new policy is the prior to the last bit, and reads
the data through its weights alone: it serves one observation, and simulated ones teach it nothing.
With guidance = 1 it starts where the guided policy does and serves what that serves.

Each step costs the prior's evaluation and one of the tuned network, in training with gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from invprob.config import TrainConfig
from invprob.likelihood import Likelihood
from invprob.policy import Guided, Policy
from invprob.trajectory import Guidance, Move, Propose
from operators.errors import RunError, UnknownName
from priors.base import Prior
from priors.pixel import Pixel

ADAPTER = ".lora_"  # in the names of what peft adds to a network


def build(prior: Prior, config: TrainConfig) -> Policy:
    """Return a new policy of the kind that the settings name.

    Raises UnknownName where the prior has no network to tune, RunError where peft is missing.
    """
    steps = config.chain_steps(prior.steps)
    if config.policy == "guided":
        return Guided(prior, steps, config.width, config.blocks)
    return FineTuned(prior, steps, config.rank if config.policy == "lora" else 0, config.guidance)


class FineTuned(Policy):
    """The prior's network, fine-tuned in full or by adapters."""

    def __init__(self, prior: Prior, steps: int, rank: int = 0, guidance: float = 0.0) -> None:
        """Copy the network of the prior; rank 0 trains all of it, another rank adapters of it."""
        super().__init__(prior, steps)
        kind = "lora" if rank else "full"
        if not isinstance(prior, Pixel):
            raise UnknownName(
                f"policy {kind} fine-tunes the prior's network, and {type(prior).__name__} has "
                "none: use --policy guided, or a trained prior such as galaxies-64"
            )
        self.settings = {"policy": kind, "steps": steps, "guidance": guidance}
        self.guidance, self.reads_data = guidance, guidance > 0
        self.network = copy.deepcopy(prior.network).requires_grad_(True)
        if rank:
            self.settings["rank"] = rank
            _adapt(self.network, rank)
            self.register_state_dict_post_hook(_adapters_alone)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_post_hook(_base_from_prior)  # type: ignore[no-untyped-call]

        def estimate(z: Tensor, t: float, network: nn.Module) -> Tensor:
            return prior.denoise(z, t, network)

        self.estimate = estimate  # a closure: copies of the policy share the prior

    def forward(self, z: Tensor, met: Guidance, i: int) -> Tensor:
        """Return the shift u (B, *z_shape) of the clean estimate at step i of the grid."""
        shift: Tensor = self.estimate(z, self.times[i], self.network) - met.clean
        return shift + self.guidance * met.delta if self.reads_data else shift

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return this policy as the sampler of one likelihood; the data cost it no solves."""
        if self.reads_data:
            return super().propose(prior, likelihood)

        def move(z: Tensor, t: float, i: int) -> Move:
            clean = prior.denoise(z, t)
            nothing = clean.new_zeros(1).expand_as(clean)
            none = torch.zeros(len(z), dtype=torch.float64, device=z.device)
            met = Guidance(clean, nothing, nothing, none)
            return Move(clean, self(z, met, i), guidance=met, foreseen=none)

        return move


def _adapt(network: nn.Module, rank: int) -> None:
    """Add adapters to every linear and convolutional layer and freeze the rest, in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RunError(
            'policy lora needs the package peft: pip install "invprob[lora]", or --policy full'
        ) from error
    layers = [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)


def _adapters_alone(policy: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the prior's own weights out of what is saved."""
    for name in [n for n in state if n.startswith(f"{prefix}network.") and ADAPTER not in n]:
        del state[name]


def _base_from_prior(policy: nn.Module, keys: Any) -> None:
    """Take the prior's own weights for known where the rest is loaded."""
    base = {name for name, _ in policy.named_parameters() if ADAPTER not in name}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in base]
