"""Write docs/gap.md: what the distance EUBO - ELBO of the default lens is made of, before training.

    python examples/gap.py

Twins are simulated once for every number of steps, and every setting meets the same ones. A fitted
variance is that of z_s - m_q on exact paths of the path posterior, by windows of steps, or by these
and bands of Fourier modes. It is fitted on one half of the twins and its gain measured on the
other, and the other way round.
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
from invprob.policy import Guided
from invprob.trajectory import guide, prior_paths, rollout, score_path
from invprob.twins import Twins
from priors.pixel import Pixel
from priors.process import generators

Array = NDArray[np.float64]
RATIOS = (6.0, 2.0, 1.0, 0.6, 0.5, 0.42, 0.35, 0.3, 0.2, 0.13, 0.09, 0.06, 0.03)
BANDS = 8  # of |k|, of equally many modes
WINDOW = 11  # steps that share a fitted variance: 9 windows of the prior's 99 transitions


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
{plain:.1f} nats of EUBO with one factor every {window} steps and {banded:.1f} with one for each of
{bands} Fourier bands too. Less than 0: it does not carry over between halves of the twins."""

LEVELS = """\
What the tangent gains over the measured covariance at one step, in nats of EUBO, on the same exact
paths: the reason for where it begins."""
READING = """\
How to read it. What a kernel of fixed variance loses falls as 1 / N: the rows of three lengths part
the gap into that and a rest that no number of steps takes away. Fitted variances gain nothing, so
the modes that data narrow are no Fourier bands but the instrument's own. A solve of the shift that
stops short costs most on bright sources, which are the tail of log w. The rest is the mean of
guidance: the covariance that it assumes of the denoiser's error. At low noise the network's own
derivative is a better one; at higher noise it is none, for a good part of it is antisymmetric or
negative."""


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
    variance, levels = "", list[str]()
    known: dict[int, Twins] = {}
    for setting in SETTINGS:
        likelihood.CG_ITERATIONS = setting.iterations
        prior.config = replace(prior.config, tangent_below=below * setting.tangent)
        times = prior.schedule.grid(setting.steps)
        if setting.steps not in known:
            known[setting.steps] = simulated(prior, observation, times, asked.twins)
        twins = guided(prior, known[setting.steps])
        policy = Guided(prior, setting.steps)
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
            levels = tangent_gains(prior, twins)
            energies = residuals(prior, exact.noise, times)
            plain, banded = (fitted_gain(energies, one) for one in (True, False))
            variance = TAIL.format(
                steps=prior.steps, plain=plain, banded=banded, bands=BANDS, window=WINDOW
            )
    lines += ["", textwrap.fill(variance, 100), "", *levels]
    asked.out.write_text("\n".join([*lines, "", textwrap.fill(READING, 100), ""]))
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
    policy = Guided(prior, len(twins.times))
    met = policy.path_guidance(prior, twins.likelihood, twins.states, cleans)
    return replace(twins, guidance=met)


def tangent_gains(prior: Pixel, twins: Twins) -> list[str]:
    """Return a table of what the tangent gains at one step, by noise ratio.

    That is pull^2 / 2v times the fall of the squared error of the clean estimate on exact paths:
    nats of EUBO.
    """
    lines = [
        textwrap.fill(LEVELS, 100), "", "| noise ratio | nats a step |", "|---:|---:|"
    ]  # fmt: skip
    below = prior.config.tangent_below
    for rho in RATIOS:
        levels = np.log([prior.schedule.rho(t) for t in twins.times[:-1]])
        i = int(np.abs(levels - np.log(rho)).argmin())
        t, clean = twins.times[i], twins.guidance[i].clean
        kernel = prior.schedule.kernel(t, twins.times[i + 1])
        errors = []
        for limit in (0.0, np.inf):
            prior.config = replace(prior.config, tangent_below=limit)
            met = guide(prior, twins.likelihood, twins.states[i], t, clean)
            error = (clean + met.delta - twins.final).double().square().flatten(1).sum(1)
            errors.append(kernel.pull**2 / (2 * kernel.variance) * error.numpy())
        gain = errors[0] - errors[1]
        spread = gain.std(ddof=1) / len(gain) ** 0.5
        lines.append(f"| {prior.schedule.rho(t):.2g} | {gain.mean():.2f} ± {spread:.2f} |")
    prior.config = replace(prior.config, tangent_below=below)
    return lines


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
    modes = WINDOW * 64 * 64 / BANDS
    energies = energies.reshape(-1, WINDOW, *energies.shape[1:]).mean(1)
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
