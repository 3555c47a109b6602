"""Standard normal noise to the codes of an autoencoder, by an ordinary differential equation.

    dz/dt = v(z, t),  z(0) = u ~ N(0, I),  z(1) a code     (Heun's method, equal steps)
    v by flow matching:  min E |v((1 - t) u + t c, t) - (c - u)|^2,  c a code, u apart from it

(Lipman et al. 2023, arXiv 2210.02747.) What a variational autoencoder calls N(0, I) its codes are
not, unless they blur: this is the map between the two.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from priors._autoencoder import Autoencoder
from priors._folder import WEIGHTS_FILE
from priors.training import follow, set_rate

FOLDER = "flow"  # of a prior folder
EMBEDDING = 32  # width of the time embedding


@dataclass(frozen=True)
class FlowConfig:
    """The network's size and the steps of the equation."""

    z_shape: tuple[int, ...]
    width: int = 384
    blocks: int = 4
    steps: int = 8  # of Heun: two evaluations each


@dataclass(frozen=True)
class FlowTraining:
    """Settings of one training."""

    steps: int = 10_000
    batch: int = 256
    rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    seed: int = 0
    device: str = "cpu"


class CodeFlow(nn.Module):
    """u (B, *z_shape) to codes of the same shape; batch items apart from each other."""

    def __init__(self, config: FlowConfig) -> None:
        """Set up the untrained network; its weights are those of torch's current seed."""
        super().__init__()
        self.config, d = config, math.prod(config.z_shape)
        self.first = nn.Linear(d + EMBEDDING, config.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.width),
                nn.Linear(config.width, config.width),
                nn.SiLU(),
                nn.Linear(config.width, config.width),
            )
            for _ in range(config.blocks)
        )
        self.last = nn.Linear(config.width, d)

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """Return v (B, *z_shape) at z (B, *z_shape) and times t (B,)."""
        rates = math.pi * 2.0 ** torch.arange(EMBEDDING // 2).to(z)
        angles = t[:, None] * rates
        h = self.first(torch.cat([z.flatten(1), angles.sin(), angles.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.last(silu(h)).view_as(z)
        return out

    def forward(self, u: Tensor) -> Tensor:
        """Return the codes of noise u (B, *z_shape)."""
        step, z = 1 / self.config.steps, u
        for i in range(self.config.steps):
            t = torch.full((len(u),), i * step).to(u)
            here = self.velocity(z, t)
            there = self.velocity(z + step * here, t + step)
            z = z + step / 2 * (here + there)
        return z

    def save(self, folder: Path) -> None:
        """Write the network below a prior folder, in half precision."""
        from safetensors.torch import save_file

        own = folder / FOLDER
        own.mkdir(parents=True, exist_ok=True)
        (own / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n")
        save_file(
            {k: v.half().contiguous() for k, v in self.state_dict().items()}, own / WEIGHTS_FILE
        )

    @classmethod
    def load(cls, folder: Path) -> CodeFlow:
        """Read the network below a prior folder, whose weights are known to be intact."""
        from safetensors.torch import load_file

        facts = json.loads((folder / FOLDER / "config.json").read_text())
        flow = cls(FlowConfig(**facts | {"z_shape": tuple(facts["z_shape"])}))
        flow.load_state_dict(load_file(folder / FOLDER / WEIGHTS_FILE))
        return flow.float().eval().requires_grad_(False)


class Flowed(nn.Module):
    """Noise (B, *z_shape) to images (B, H, W): a flow, then the decoder of an autoencoder."""

    def __init__(self, flow: CodeFlow, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.flow, self.autoencoder = flow.eval().requires_grad_(False), autoencoder

    def forward(self, u: Tensor) -> Tensor:
        """Return images in physical units."""
        x: Tensor = self.autoencoder(self.flow(u))
        return x


def train_flow(flow: CodeFlow, mean: Tensor, std: Tensor, config: FlowTraining) -> float:
    """Train on codes of mean and standard deviation (n, *z_shape), those of their encoder.

    Returns the loss per number, a mean over the last tenth of the steps. The weights end as their
    moving average.
    """
    flow, mean, std = flow.to(config.device), mean.to(config.device), std.to(config.device)
    average = {k: v.clone() for k, v in flow.state_dict().items()}
    optimiser = torch.optim.Adam(flow.parameters(), lr=config.rate, betas=(0.9, 0.99))
    generator = torch.Generator(config.device).manual_seed(config.seed)
    draws: Any = {"generator": generator, "device": config.device}
    losses = list[Tensor]()
    for step in range(config.steps):
        set_rate(optimiser, config, step)
        which = torch.randint(len(mean), (config.batch,), **draws)
        noise, u = torch.randn(2, *mean[which].shape, **draws)
        code = mean[which] + std[which] * noise
        t = torch.rand(config.batch, **draws)
        mix = t.view(-1, *[1] * (mean.ndim - 1))
        loss = (flow.velocity(torch.lerp(u, code, mix), t) - (code - u)).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        follow(average, flow.state_dict(), config.ema, step)
    flow.load_state_dict(average)
    return torch.stack(losses[-max(1, config.steps // 10) :]).mean().item()
