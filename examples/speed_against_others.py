"""Write docs/speed.md: what a sample costs here and in other libraries, same network and steps.

    python examples/speed_against_others.py

DPS against deepinv's, where that can be imported, and unconditional sampling against diffusers' own
pipeline. The network is a small UNet of diffusers with weights as drawn: its cost is that of
trained ones. Runs alternate, in CPU seconds of one thread, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from invprob import __version__, registry
from invprob.comparison import parse
from invprob.draws import draw
from invprob.likelihood import Likelihood
from invprob.trajectory import Move, Propose, rollout
from operators.blur import Blur
from operators.noise import Gaussian
from priors.base import Prior
from priors.process import generators

SIDE, BATCH, STEPS = 32, 4, 50


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/speed.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = small_pipeline()
        pipeline.save_pretrained(folder)
        prior = registry.load_prior(folder)
    lines = [
        line(
            f"unconditional samples against diffusers {diffusers.__version__}",
            partial(unconditional, prior),
            partial(pipelined, pipeline),
            asked.repeats,
        )
    ]
    try:
        import deepinv
    except ImportError as error:
        print(f"DPS against deepinv is left out: {error}")
    else:
        operator = Blur((SIDE, SIDE))
        y = operator(prior.decode(torch.zeros(1, *prior.z_shape)))
        likelihood = Likelihood(operator, Gaussian(0.1), y)
        method = parse(f"dps:steps={STEPS}")
        ours = partial(
            draw, prior, likelihood, lambda many: method.propose(prior, many),
            method.times(prior), BATCH, 0,
        )  # fmt: skip
        theirs = deepinv_dps(deepinv, prior, likelihood)
        lines.append(
            line(f"DPS against deepinv {deepinv.__version__}", ours, theirs, asked.repeats)
        )
    asked.out.write_text(page(lines, asked.repeats))
    print(f"wrote {asked.out}")


def small_pipeline() -> Any:
    """Return diffusers' pipeline of a small UNet."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(32, 64),
        layers_per_block=1, norm_num_groups=8, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unconditional(prior: Prior) -> torch.Tensor:
    """Return a batch of the prior's chain, each sample with a generator of its own."""

    def move(z: torch.Tensor, t: float, i: int) -> Move:
        return Move(prior.denoise(z, t))

    propose: Propose = move
    times = prior.schedule.grid(STEPS)
    path = rollout(prior, propose, generators(0, range(BATCH)), times, keep=False)
    return prior.decode(path.final)


def pipelined(pipeline: Any) -> Any:
    """Return a batch from diffusers' own pipeline."""
    return pipeline(batch_size=BATCH, num_inference_steps=STEPS, output_type="np").images


def deepinv_dps(deepinv: Any, prior: Prior, likelihood: Likelihood) -> Callable[[], Any]:
    """Return deepinv's DPS with the same denoiser, operator and number of times."""

    schedule = prior.schedule

    class Denoiser(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            rho = np.clip(float(sigma), schedule.rho_min, schedule.rho_max)
            t = np.log(rho / schedule.rho_min) / np.log(schedule.rho_max / schedule.rho_min)
            return prior.denoise(schedule.alpha(t) * x, float(t))

    physics = deepinv.physics.Physics(A=lambda x, **_: likelihood.operator(prior.decode(x)))
    model = deepinv.sampling.DPS(Denoiser(), num_steps=STEPS)
    shape = (BATCH, *prior.z_shape)
    return lambda: model(likelihood.y.expand(BATCH, *likelihood.y.shape[1:]), physics, x_init=shape)


def line(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> str:
    """Return a row of the table: seconds of both, and the ratio of neighbouring runs."""
    seconds = np.array([[cpu(ours), cpu(theirs)] for _ in range(repeats + 1)])[1:]  # first: warm up
    ratio = seconds[:, 0] / seconds[:, 1]
    low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
    mine, other = np.median(seconds, 0) / BATCH
    return f"| {what} | {mine:.3f} | {other:.3f} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def cpu(run: Callable[[], Any]) -> float:
    """Return the CPU seconds of one run."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def page(lines: list[str], repeats: int) -> str:
    """Return the page."""
    text = (
        f"Made by `python examples/speed_against_others.py` with invprob {__version__}: {BATCH} "
        f"images of {SIDE} x {SIDE} pixels, {STEPS} steps, the same small UNet of diffusers for "
        "both (DPS: the same blur too). CPU seconds of one thread; runs alternate, the ratio is "
        f"that of neighbours, over {repeats} pairs. Our DPS samples include their scores and path "
        "weights."
    )
    table = ["| | s a sample | theirs | ratio | 10% to 90% |", "|---|---:|---:|---:|---:|", *lines]
    title = "# What a sample costs, here and elsewhere"
    return "\n".join([title, "", textwrap.fill(text, 100), "", *table, ""])


if __name__ == "__main__":
    main()
