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
from torch import Tensor

from invprob import proximal, registry
from invprob.config import TrainConfig
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.posterior import bind
from invprob.rtb import Trainer
from invprob.simulate import draw_truth, simulate
from invprob.trajectory import Move, Trajectory, guide, prior_paths, rollout, score_path
from invprob.twins import Twins
from operators.lensing import Lensing
from priors.pixel import Pixel
from priors.process import generators

Array = NDArray[np.float64]
RATIOS = (6.0, 2.0, 1.0, 0.6, 0.5, 0.42, 0.35, 0.3, 0.2, 0.13, 0.09, 0.06, 0.03)
STARTS = (200.0, 10.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.12, 0.05)
BANDS = 8  # of |k|, of equally many modes
WINDOW = 11  # steps that share a fitted variance: 9 windows of the prior's 99 transitions


@dataclass(frozen=True)
class Setting:
    """One row: steps of the chain, iterations of a shift's solve, and what guidance assumes."""

    steps: int
    iterations: int = proximal.CG_ITERATIONS
    tangent: bool = True
    denoised: bool = False


SETTINGS = (
    Setting(100, 60, False),
    Setting(100, 60),
    Setting(100, tangent=False),
    Setting(50),
    Setting(100),
    Setting(200),
    Setting(50, denoised=True),
    Setting(100, denoised=True),
    Setting(200, denoised=True),
)
HEAD = """\
Made by `python examples/gap.py` for the data of `invprob simulate --operator lensing` (seed 0) and
the prior galaxies-64: EUBO - ELBO of {count} twins, mean ± standard error, of the policy before
training. *tangent*: below a noise ratio of {below:g} guidance follows the derivative of the network
instead of the measured covariance of its error. *denoised*: its shift is denoised
(`invprob/denoised_shift.py`). CPU seconds are of one sample."""
TAIL = """\
A fitted variance of the kernel, on exact paths of the last row of {steps} steps, would gain
{plain:.1f} nats of EUBO with one factor every {window} steps and {banded:.1f} with one for each of
{bands} Fourier bands too. Less than 0: it does not carry over between halves of the twins."""

LEVELS = """\
What the tangent gains over the measured covariance at one step, in nats of EUBO, on the same exact
paths: the reason for where it begins."""
WHERE = """\
Where it arises: the gap of the denoised policy of {steps} steps that begins on exact states at a
noise ratio, so that what is above has no share in it."""
READING = """\
How to read it. What a kernel of fixed variance loses falls as 1 / N: the rows of three lengths part
the gap into that and a rest that no number of steps takes away. Fitted variances gain nothing, so
the modes that data narrow are no Fourier bands but the instrument's own. A solve of the shift that
stops short costs most on bright sources, which are the tail of log w. The rest is the mean of
guidance: the covariance that it assumes of the denoiser's error. At low noise the network's own
derivative is a better one; at higher noise it is none, for a good part of it is antisymmetric or
negative."""
WHY = """\
Why the shift is denoised as a difference. For a learned denoiser E[z_0 | z_t] under its own chain
is not zhat_0: the last step alone takes out of z_0 what zhat_0 still has, and D'(zhat_0) - zhat_0
explained 20 to 30% of the squared residual z_0 - zhat_0 - delta at noise ratios of 0.4 to 8. No
transition knows of that. D'(zhat_0 + delta) as the shifted estimate was nearer to z_0 by a third of
the squared error and made the gap 83 nats. The same bias is in what a warm start on pairs
(z_t, z_0) learns."""


def main() -> None:
    """Measure every setting, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--obs", type=Path, help="other data than the default lens' of seed 0")
    parser.add_argument("--out", type=Path, default=Path("docs/gap.md"))
    parser.add_argument("--twins", type=int, default=8)
    parser.add_argument("--paths", type=int, default=1, help="rollouts of each twin")
    asked = parser.parse_args()
    prior = registry.load_prior("galaxies-64")
    assert isinstance(prior, Pixel)
    lens = Lensing.default(prior.x_shape)
    observation = (
        Observation.read(asked.obs) if asked.obs else simulate(lens, draw_truth(prior, seed=0))
    )
    below = prior.config.tangent_below
    lines = [
        "# What the gap is made of\n",
        textwrap.fill(HEAD.format(count=asked.twins, below=below), 100),
        "",
        "| steps | iterations | tangent | denoised | EUBO - ELBO | ELBO | CPU s |",
        "|---:|---:|---|---|---:|---:|---:|",
    ]
    variance, levels, where = "", list[str](), list[str]()
    known: dict[int, Twins] = {}
    for setting in SETTINGS:
        proximal.CG_ITERATIONS = setting.iterations
        prior.config = replace(prior.config, tangent_below=below * setting.tangent)
        times = prior.schedule.grid(setting.steps)
        if setting.steps not in known:
            known[setting.steps] = simulated(prior, observation, times, asked.twins)
        policy = calibrated(prior, observation, setting)
        twins = guided(prior, policy, known[setting.steps])
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
        words = " | ".join("yes" if on else "no" for on in (setting.tangent, setting.denoised))
        lines.append(
            f"| {setting.steps} | {setting.iterations} | {words} | {gap.mean():.1f} ± {error:.1f} "
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
        if setting == Setting(prior.steps, denoised=True):
            where = by_start(prior, policy, twins, exact)
    lines += ["", textwrap.fill(variance, 100), "", *levels, "", *where]
    asked.out.write_text(
        "\n".join([*lines, "", textwrap.fill(READING, 100), "", textwrap.fill(WHY, 100), ""])
    )
    print(f"wrote {asked.out}")


def simulated(
    prior: Pixel, observation: Observation, times: tuple[float, ...], count: int
) -> Twins:
    """Return twins of the observation, their guidance still to come."""
    states, cleans = prior_paths(prior, generators(1, range(count)), times)
    with torch.no_grad():
        mean = observation.operator(prior.decode(cleans[-1]))
        y = observation.noise.sample(mean, torch.Generator().manual_seed(1))
    own = Likelihood(observation.operator, observation.noise, y)
    return Twins(own, states, cleans[-1], (), times)


def calibrated(prior: Pixel, observation: Observation, setting: Setting) -> Policy:
    """Return the policy before training."""
    config = TrainConfig(steps=setting.steps)
    trainer = Trainer(prior, bind(observation), config)
    if setting.denoised:
        trainer.calibrate()
    return trainer.average


def guided(prior: Pixel, policy: Policy, twins: Twins) -> Twins:
    """Return the twins with the guidance of the policy and the settings as they are now."""
    with torch.no_grad():
        steps = zip(twins.states, twins.times, strict=True)
        cleans = torch.stack([prior.denoise(z, t) for z, t in steps])
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


def by_start(prior: Pixel, policy: Policy, twins: Twins, exact: Trajectory) -> list[str]:
    """Return a table of the gap of the policy from exact states at some noise ratios on."""
    lines = [
        textwrap.fill(WHERE.format(steps=len(twins.times)), 100), "",
        "| noise ratio | EUBO - ELBO from there on |", "|---:|---:|",
    ]  # fmt: skip
    levels = np.log([prior.schedule.rho(t) for t in twins.times[:-1]])
    fit = twins.likelihood.log_prob(prior.decode(twins.final))
    count = len(twins.final)
    for rho in STARTS:
        i = int(np.abs(levels - np.log(rho)).argmin())

        def propose(z: Tensor, t: float, step: int, first: int = i) -> Move:
            met = policy.guide(prior, twins.likelihood, z, first + step)
            return Move(met.clean, policy(z, met, first + step), met)

        def hold(z: Tensor, step: int, first: int = i) -> Tensor:
            return z if step else twins.states[first]

        drawn = rollout(
            prior, propose, generators(7, range(count)), twins.times[i:], False, hold=hold
        )
        upper = exact.log_ratio - exact.past[i] + fit
        gap = (upper - drawn.log_weight(prior, twins.likelihood)).numpy()
        lines.append(
            f"| {np.exp(levels[i]):.2g} | {gap.mean():.1f} ± {gap.std(ddof=1) / count**0.5:.1f} |"
        )
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
