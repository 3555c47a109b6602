"""Training of an autoencoder as a variational one, and codes of mean 0 and variance 1.

    loss = E |x - D(z)|^2 / (2 tolerance^2) + KL( q(z | x) | N(0, I) ),   z ~ q(z | x)

(Kingma & Welling 2014, arXiv 1312.6114, with a decoder of fixed noise.) The tolerance, in units of
the rms image, says how much a code may blur: what lies below it is not worth its nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.errors import refuse_below
from priors._autoencoder import Autoencoder
from priors.training import TRAINED, dihedral, set_rate


@dataclass(frozen=True)
class AutoencoderTraining:
    """Settings of one training; the defaults trained the shipped 64x64 autoencoder."""

    steps: int = 4_000
    batch: int = 256
    rate: float = 1e-3
    warmup: int = 500
    tolerance: float = 0.1
    seed: int = 0
    report_every: int = 500
    turns: bool = True  # images turned by right angles and flipped are as likely as they were
    device: str = "cpu"

    def __post_init__(self) -> None:
        refuse_below(self, TRAINED | {"report_every": 1})


def train_autoencoder(
    autoencoder: Autoencoder, images: NDArray[np.float32], config: AutoencoderTraining
) -> Iterator[tuple[int, float, float]]:
    """Train on images (n, H, H).

    Yields step, rms error in units of the rms image, and KL in nats, means since the last report.
    """
    network = autoencoder.to(config.device).network
    network.train().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.rate, betas=(0.9, 0.99))
    generator = torch.Generator(config.device).manual_seed(config.seed)
    pool, found = torch.from_numpy(images).to(config.device), []
    draws: Any = {"generator": generator, "device": pool.device}
    for step in range(config.steps):
        set_rate(optimiser, config, step)
        which = torch.randint(len(pool), (config.batch,), **draws)
        turn = torch.randint(8, (config.batch,), **draws)
        chosen = pool[which].float()
        x = autoencoder.blocks(dihedral(chosen, turn) if config.turns else chosen)
        law = network.encode(x).latent_dist
        z = law.mean + law.std * torch.randn(law.mean.shape, **draws)
        square, divergence = (autoencoder.decoded(z) - x).square().mean(), law.kl().mean()
        # per pixel: gradients then have one size for all tolerances
        loss = square / 2 + config.tolerance**2 * divergence / x[0].numel()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        found.append(torch.stack([square, divergence]).detach())
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            error, nats = torch.stack(found).mean(0).tolist()
            yield step + 1, error**0.5, nats
            found = []
    network.eval().requires_grad_(False)


def whiten(autoencoder: Autoencoder, images: Tensor) -> None:
    """Give every channel of the codes of images (n, H, W) mean 0 and variance 1, in place.

    For a diffusion of the codes; those of noise need what the training gave them. The 1x1
    convolutions around the code of an AutoencoderKL take it up, so the decoded images stay the same
    and the folder needs no further numbers.
    """
    network: Any = autoencoder.network
    codes = torch.cat([autoencoder.encode(part) for part in torch.split(images, 256)])
    mean = codes.mean((0, 2, 3))
    std = codes.std((0, 2, 3)).clamp(min=1e-3)  # a channel without use stays one
    into, out, n = network.quant_conv, network.post_quant_conv, len(mean)
    with torch.no_grad():
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= std.view(1, -1, 1, 1)
        into.bias[:n] -= mean
        into.bias[:n] /= std
        into.weight[:n] /= std.view(-1, 1, 1, 1)
        into.bias[n:] -= 2 * std.log()  # log variance of q(z | x)
