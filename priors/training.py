"""Training of pixel diffusion priors: v-prediction, exponential moving average, resume.

    loss = E |F(z_t, t) - v|^2 / d,   v = alpha eps - sigma z_0

(Salimans & Ho 2022, arXiv 2202.00512). Under a VP process and data of unit variance this is the
EDM-preconditioned loss (Karras et al. 2022, arXiv 2206.00364): the network's target has unit
variance at every noise level. Levels are drawn three quarters from a log-normal around the
informative ones, one quarter evenly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import NumericalError, ObservationError, refuse_below
from priors.process import Schedule


@dataclass(frozen=True)
class Training:
    """Settings of one training; the defaults trained the shipped 64x64 prior."""

    steps: int = 10_000
    batch: int = 32
    rate: float = 8e-4
    warmup: int = 200
    ema: float = 0.999
    rho_centre: float = 0.6
    rho_spread: float = 1.3
    seed: int = 0
    checkpoint_every: int = 250
    turns: bool = True  # images turned by right angles and flipped are as likely as they were
    device: str = "cpu"  # of everything, the random draws too

    def __post_init__(self) -> None:
        refuse_below(self, TRAINED | {"checkpoint_every": 1, "rho_centre": 1e-3})


# the least that settings of any training may be
TRAINED: dict[str, float] = {"steps": 1, "batch": 1, "warmup": 1}
PATCHES = (8, 4, 2, 1)  # sides of space-to-depth blocks, px: the first that fits is taken
LEAST_SIDE = 16  # of the network's input; its three scales need a multiple of 4


def patch_of(side: int) -> int:
    """Return the block side with which an image of `side` pixels suits the network.

    Raises ObservationError where none does.
    """
    for patch in PATCHES:
        if side % (4 * patch) == 0 and side // patch >= LEAST_SIDE:
            return patch
    raise ObservationError(
        f"images of side {side} px suit no network; needed a multiple of 4, at least {LEAST_SIDE}"
    )


def unet(side: int, patch: int) -> torch.nn.Module:
    """Return the untrained network: 2.0 M parameters, 4 ms per image of 16x16 blocks on one core.

    The same for every seed of the training: its initial weights are those of seed 0.
    """
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network: Any = UNet2DModel(  # type: ignore[no-untyped-call]  # diffusers
        sample_size=side // patch,
        in_channels=patch**2,
        out_channels=patch**2,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
    )
    module: torch.nn.Module = network
    return module


def dihedral(images: Tensor, which: Tensor) -> Tensor:
    """Return images (B, H, H), each turned and flipped by its symmetry number 0..7 (B,)."""
    pixels = torch.arange(images[0].numel(), device=images.device).view(images[0].shape)
    turned = [torch.rot90(pixels, k) for k in range(4)]
    order = torch.stack(turned + [pixel.flip(0) for pixel in turned]).flatten(1)
    return images.flatten(1).gather(1, order[which]).view(images.shape)


def levels(schedule: Schedule, config: Training, generator: torch.Generator) -> Tensor:
    """Return times (batch,) of one training batch."""
    low, high = math.log(schedule.rho_min), math.log(schedule.rho_max)
    draws: Any = {"size": (config.batch,), "generator": generator, "device": generator.device}
    peaked = math.log(config.rho_centre) + config.rho_spread * torch.randn(**draws)
    even = low + (high - low) * torch.rand(**draws)
    pick = torch.rand(**draws) < 0.75
    return ((torch.where(pick, peaked, even) - low) / (high - low)).clamp(0, 1)


def train(
    network: torch.nn.Module,
    encode: Callable[[Tensor], Tensor],
    images: NDArray[np.float32],
    schedule: Schedule,
    config: Training,
    checkpoint: Path,
) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    """Train `network` on images (n, H, H); yield (step, mean loss, averaged weights).

    One item is yielded at every checkpoint, after it is on disk. An interrupted training resumes
    from `checkpoint` and ends with the same weights as an uninterrupted one; nothing is
    left to yield of a finished one. Raises NumericalError on a loss that is not finite, before its
    weights are on disk.
    """
    network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    current = network.state_dict()
    average = {k: v.clone() for k, v in current.items()}
    optimiser = torch.optim.Adam(network.parameters(), lr=config.rate, betas=(0.9, 0.99))
    generator = torch.Generator(config.device).manual_seed(config.seed)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        average = {k: v.to(config.device) for k, v in state["average"].items()}
        start = state["step"]
    pool, losses = torch.from_numpy(images).to(config.device), []
    low, span = math.log(schedule.rho_min), math.log(schedule.rho_max / schedule.rho_min)
    for step in range(start, config.steps):
        set_rate(optimiser, config, step)
        draws: Any = {"generator": generator, "device": pool.device}
        which = torch.randint(len(pool), (config.batch,), **draws)
        turn = torch.randint(8, (config.batch,), **draws)
        chosen = pool[which].float()
        z0 = encode(dihedral(chosen, turn) if config.turns else chosen)
        t = levels(schedule, config, generator)
        eps = torch.randn(z0.shape, **draws)
        rho = (low + span * t).exp().view(-1, 1, 1, 1)
        alpha = (1 + rho**2) ** -0.5
        zt, target = alpha * (z0 + rho * eps), alpha * (eps - rho * z0)
        loss = (network(zt, t * 999).sample - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.detach())
        follow(average, current, config.ema, step)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise NumericalError(
                    f"the loss is {mean} near step {step + 1}: lower `rate` ({config.rate:g}) and "
                    f"start again from {checkpoint}, which holds the last finite state"
                )
            state = {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "average": average,
                "step": step + 1,
            }
            _write(state, checkpoint)
            yield step + 1, mean, average
            losses = []


class Cosine(Protocol):
    """Settings of any training whose rate rises in `warmup` steps and falls as a cosine."""

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...


def set_rate(optimiser: torch.optim.Optimizer, config: Cosine, step: int) -> None:
    """Set the learning rate of one step, in place."""
    rate = min(1.0, (step + 1) / config.warmup)
    rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
    for group in optimiser.param_groups:
        group["lr"] = config.rate * max(rate, 1e-3)


def follow(average: dict[str, Tensor], current: dict[str, Tensor], ema: float, step: int) -> None:
    """Move the average of the weights towards the current ones, in place."""
    decay = min(ema, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.values()), list(current.values()), 1 - decay)


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a training's checkpoint."""
    weights: dict[str, Tensor] = torch.load(checkpoint, weights_only=True, map_location="cpu")[
        "average"
    ]
    return weights


def _write(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
