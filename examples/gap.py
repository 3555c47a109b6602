"""Write docs/gap.md: what the distance EUBO - ELBO of the default lens is made of, before training.

    python examples/gap.py

Twins are simulated once for every number of steps, and every setting meets the same ones. A fitted
variance is that of z_s - m_q on exact paths of the path posterior, per step, or per step and band
of Fourier modes: fitted on one half of the twins, its gain is measured on the other, and turned.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from invprob import likelihood, registry
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.trajectory import path_guidance, prior_paths, rollout, score_path
from invprob.twins import Twins
from priors.pixel import Pixel
from priors.process import generators

Array = NDArray[np.float64]
BANDS = 8  # of |k|, of equally many modes


@dataclass(frozen=True)
class Setting:
    """One row: steps of the chain, iterations of a shift's solve, and the covariance it assumes."""

    steps: int
    iterations: int = likelihood.CG_ITERATIONS
    tangent: bool = True


SETTINGS = (
    Setting(100, 60, False),
    Setting(100, 60),
    Setting(100, tangent=False),
    Setting(50),
    Setting(100),
    Setting(200),
)
HEAD = """\
Made by `python examples/gap.py` for the data of `invprob simulate --operator lensing` (seed 0) and
the prior galaxies-64: EUBO - ELBO of {count} twins, mean ± standard error, of the policy before
training. *tangent*: below a noise ratio of {below:g} guidance follows the derivative of the network
instead of the measured covariance of its error. CPU seconds are of one sample."""
TAIL = """\
A fitted variance of the kernel, on exact paths of the last row of {steps} steps, would gain
{plain:.2f} nats of EUBO with one factor a step and {banded:.2f} with {bands} of Fourier bands
(less than 0: it does not even carry over from one half of the twins to the other)."""


def main() -> None:
    """Measure every setting, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--obs", type=Path, default=Path("obs.h5"))
    parser.add_argument("--out", type=Path, default=Path("docs/gap.md"))
    parser.add_argument("--twins", type=int, default=8)
    parser.add_argument("--paths", type=int, default=1, help="rollouts of each twin")
    asked = parser.parse_args()
    observation = Observation.read(asked.obs)
    prior = registry.load_prior("galaxies-64", observation.operator.x_shape)
    assert isinstance(prior, Pixel)
    below = prior.config.tangent_below
    lines = [
        "# What the gap is made of\n",
        textwrap.fill(HEAD.format(count=asked.twins, below=below), 100),
        "",
        "| steps | iterations | tangent | EUBO - ELBO | ELBO | CPU s |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    variance = ""
    known: dict[int, Twins] = {}
    for setting in SETTINGS:
        likelihood.CG_ITERATIONS = setting.iterations
        prior.config = replace(prior.config, tangent_below=below * setting.tangent)
        times = prior.schedule.grid(setting.steps)
        if setting.steps not in known:
            known[setting.steps] = simulated(prior, observation, times, asked.twins)
        twins = guided(prior, known[setting.steps])
        policy = Policy(prior, setting.steps)
        exact = score_path(prior, policy, twins.guidance, twins.states, twins.final, times)
        many = twins.likelihood.repeat(asked.paths)
        begun = time.process_time()
        drawn = rollout(
            prior, policy.propose(prior, many), generators(0, range(len(many.y))), times, False
        )
        seconds = (time.process_time() - begun) / len(many.y)
        lower = drawn.log_weight(prior, many).view(-1, asked.paths).mean(1)
        gap = (exact.log_weight(prior, twins.likelihood) - lower).numpy()
        error = gap.std(ddof=1) / len(gap) ** 0.5
        word = "yes" if setting.tangent else "no"
        lines.append(
            f"| {setting.steps} | {setting.iterations} | {word} | {gap.mean():.1f} ± {error:.1f} "
            f"| {float(lower.mean()):.1f} | {seconds:.1f} |"
        )
        print(lines[-1], flush=True)
        if setting == Setting(prior.steps):
            energies = residuals(prior, exact.noise, times)
            plain, banded = (fitted_gain(energies, one) for one in (True, False))
            variance = TAIL.format(steps=prior.steps, plain=plain, banded=banded, bands=BANDS)
    asked.out.write_text("\n".join([*lines, "", textwrap.fill(variance, 100), ""]))
    print(f"wrote {asked.out}")


def simulated(
    prior: Pixel, observation: Observation, times: tuple[float, ...], count: int
) -> Twins:
    """Return twins of the observation, their guidance still to come."""
    states, cleans = prior_paths(prior, generators(1, range(count)), times)
    with torch.no_grad():
        mean = observation.operator(prior.decode(cleans[-1]))
        y = observation.noise.sample(mean, torch.Generator().manual_seed(1))
    own = likelihood.Likelihood(observation.operator, observation.noise, y)
    return Twins(own, states, cleans[-1], (), times)


def guided(prior: Pixel, twins: Twins) -> Twins:
    """Return the twins with the guidance of the prior and the settings as they are now."""
    with torch.no_grad():
        steps = zip(twins.states, twins.times, strict=True)
        cleans = torch.stack([prior.denoise(z, t) for z, t in steps])
    met = path_guidance(prior, twins.likelihood, twins.states, cleans, twins.times)
    return replace(twins, guidance=met)


def residuals(prior: Pixel, noise: tuple[torch.Tensor, ...], times: tuple[float, ...]) -> Array:
    """Return |z_s - m_q|^2 / v per mode, (steps, twins, bands): means over a band's modes."""
    rows = []
    for e, (t, s) in zip(noise, pairwise(times), strict=True):
        image = prior.decode(e) / prior.scale / prior.schedule.kernel(t, s).variance ** 0.5
        power = torch.fft.fft2(image, norm="ortho").abs().square().flatten(1).double().numpy()
        ky, kx = (np.fft.fftfreq(side) for side in image.shape[-2:])
        order = np.argsort(np.hypot(ky[:, None], kx).ravel(), kind="stable")
        rows.append(power[:, order].reshape(len(e), BANDS, -1).mean(2))
    return np.stack(rows)


def fitted_gain(energies: Array, one: bool) -> float:
    """Return nats that fitted variances gain on paths they were not fitted to."""
    modes = 64 * 64 / BANDS
    if one:
        energies = np.repeat(energies.mean(2, keepdims=True), BANDS, 2)
    half = energies.shape[1] // 2
    parts = energies[:, :half].mean(1), energies[:, half:].mean(1)
    gains = [
        modes / 2 * (met * (1 - 1 / fitted) - np.log(fitted)).sum()
        for fitted, met in (parts, parts[::-1])
    ]
    return float(np.mean(gains))


if __name__ == "__main__":
    main()
