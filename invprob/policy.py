"""Policies q(z_s | z_t, y): the prior's kernel, its clean estimate shifted. The guided one:

    zhat_0 -> zhat_0 + (1 + s(t)) delta + r(t) n(z_t, zhat_0, delta, g, t)

A new one has s = 0 and n = 0, which is calibrated guidance; s = -1 and n = 0 is the prior. The
network n reads the data only through delta and the score g, so one policy serves any observation,
mask, noise level and operator (Langevin parametrisation: Zhang & Chen 2022, arXiv 2111.15141;
Sendera et al. 2024, arXiv 2402.05098).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from invprob.denoised_shift import denoised
from invprob.likelihood import Likelihood
from invprob.trajectory import Guidance, Move, Propose, guide
from operators.errors import ObservationError
from priors.base import Prior

EMBEDDING = 64  # width of the time embedding


class Policy(nn.Module, ABC):
    """What training and sampling need of a policy for one prior and one number of steps."""

    foresight: Tensor
    denoised: Tensor
    settings: dict[str, Any]  # fields of TrainConfig that make another one like it
    reads_data: bool = True  # by guidance; else its weights know the one observation it learnt

    def __init__(self, prior: Prior, steps: int) -> None:
        """Set up what all have."""
        super().__init__()
        self.times = prior.schedule.grid(steps)[:-1]
        self.scales = [prior.residual_variance(t) ** 0.5 for t in self.times]
        # slope of a path's future log weight on its guidance's potential, fitted by RTB
        self.register_buffer("foresight", torch.zeros(len(self.times), dtype=torch.float64))
        # noise ratio and share at which guidance's shift is denoised, see `denoised_shift`
        self.register_buffer("denoised", torch.zeros(2, len(self.times), dtype=torch.float64))

    @abstractmethod
    def forward(self, z: Tensor, met: Guidance, i: int) -> Tensor:
        """Return the shift u (B, *z_shape) of the clean estimate at step i of the grid."""

    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return this policy as the sampler of one likelihood."""

        def move(z: Tensor, t: float, i: int) -> Move:
            met = self.guide(prior, likelihood, z, i)
            foreseen = self.foresight[i] * met.potential
            return Move(met.clean, self(z, met, i), guidance=met, foreseen=foreseen)

        return move

    def guide(
        self, prior: Prior, likelihood: Likelihood, z: Tensor, i: int, clean: Tensor | None = None
    ) -> Guidance:
        """Return the guidance at state z and step i, its shift denoised; see `trajectory.guide`."""
        met = guide(prior, likelihood, z, self.times[i], clean)
        level, share = self.denoised[:, i].tolist()
        return denoised(prior, met, level, share) if share else met

    def path_guidance(
        self, prior: Prior, likelihood: Likelihood, states: Tensor, cleans: Tensor
    ) -> tuple[Guidance, ...]:
        """Return the guidance along paths whose clean estimates are known."""
        steps = zip(states[:-1], cleans, strict=False)
        return tuple(
            self.guide(prior, likelihood, z, i, clean) for i, (z, clean) in enumerate(steps)
        )

    def refuse_other_data(self) -> None:
        """Raise ObservationError where this policy cannot serve data that it was not trained on."""
        if not self.reads_data:
            raise ObservationError(
                f"a policy {self.settings['policy']!r} without guidance knows the observation that "
                "it was trained on and no other: train one for these data, or one that reads them "
                "(--policy guided, or --set guidance=1)"
            )


class Guided(Policy):
    """The default: guidance, and a small network for what it misses."""

    def __init__(self, prior: Prior, steps: int, width: int = 64, blocks: int = 3) -> None:
        """Set up a guided start; the network is convolutional on images, dense on vectors."""
        super().__init__(prior, steps)
        self.settings: dict[str, Any] = {"steps": steps, "width": width, "blocks": blocks}
        times = self.times
        self.gain = nn.Parameter(torch.zeros(len(times)))
        self.embed = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())
        self.register_buffer("features", _fourier(torch.tensor(times)), persistent=False)
        self.fold = _fold(prior.z_shape)
        channels = _channels(prior.z_shape, self.fold)
        conv = len(prior.z_shape) > 1
        self.first = _layer(4 * channels, width, conv)
        self.blocks = nn.ModuleList(_Block(width, conv) for _ in range(blocks))
        self.last = _layer(width, channels, conv)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, met: Guidance, i: int) -> Tensor:
        """Return the shift u (B, *z_shape) of the clean estimate at step i of the grid."""
        r = self.scales[i]
        # asinh: the score spans many decades over the chain, and its sign and order matter most
        inputs = (z, met.clean, met.delta / r, torch.asinh(r * met.score))
        h = self.first(torch.cat([self._folded(a) for a in inputs], 1))
        time = self.embed(self.features[i])  # type: ignore[index]
        for block in self.blocks:
            h = block(h, time)
        learned = self._unfolded(self.last(silu(h)), z)
        shift: Tensor = (1 + self.gain[i]) * met.delta + r * learned
        return shift

    def _folded(self, a: Tensor) -> Tensor:
        if a.ndim == 3:  # images without channels
            a = a[:, None]
        return pixel_unshuffle(a, self.fold) if self.fold > 1 else a

    def _unfolded(self, a: Tensor, like: Tensor) -> Tensor:
        return (pixel_shuffle(a, self.fold) if self.fold > 1 else a).view_as(like)


class _Block(nn.Module):
    """Residual block whose features are scaled and shifted by the time embedding."""

    def __init__(self, width: int, conv: bool) -> None:
        super().__init__()
        self.film = nn.Linear(EMBEDDING, 2 * width)
        self.norm = nn.GroupNorm(min(8, width // 4), width)  # never one value a group
        self.one, self.two = _layer(width, width, conv), _layer(width, width, conv)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.film(time).view(2, -1, *[1] * (h.ndim - 2))
        inner = silu(self.norm(h) * (1 + scale) + shift)
        out: Tensor = h + self.two(silu(self.one(inner)))
        return out


def _layer(inputs: int, outputs: int, conv: bool) -> nn.Conv2d | nn.Linear:
    return nn.Conv2d(inputs, outputs, 3, padding=1) if conv else nn.Linear(inputs, outputs)


def _fold(z_shape: tuple[int, ...]) -> int:
    """Return the space-to-depth factor that brings an image to at most 16 px a side."""
    if len(z_shape) == 1:
        return 1
    height, width = z_shape[-2:]
    fold = 1
    while max(height, width) // fold > 16 and not (height % (2 * fold) or width % (2 * fold)):
        fold *= 2
    return fold


def _channels(z_shape: tuple[int, ...], fold: int) -> int:
    return z_shape[0] * fold**2 if len(z_shape) != 2 else fold**2


def _fourier(times: Tensor) -> Tensor:
    """Return sinusoidal features (N, EMBEDDING) of times in [0, 1]."""
    rates = math.pi * 2.0 ** torch.linspace(-1, 6, EMBEDDING // 2)
    angles = times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()
