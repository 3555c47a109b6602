"""Write docs/step_cost.md: what one RTB step costs, part by part, and the memory of long chains.

The parts are the evaluations of a step, made alone on the states of its own paths; what the whole
step takes beyond their sum is overhead. CPU time, one thread. Memory is the peak of a process that
takes one step.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from invprob import registry
from invprob.config import TrainConfig
from invprob.likelihood import Likelihood
from invprob.rtb import Trainer
from invprob.trajectory import Guidance, guide, rollout
from operators.noise import Gaussian
from priors.process import generators

HEAD = """# What a step of RTB costs

Made by `python examples/step_cost.py --steps {steps} --paths {paths}`: a
64x64 {operator}, the prior `galaxies-64`, {paths} paths, a
chain of {steps} steps; CPU seconds on one thread, each the second of two.

| | seconds |
|---|---:|
"""
MEMORY = """
What autograd holds does not grow with the chain, since the second pass takes it step by step. The
paths do: of every step they keep the state, the prior's clean estimate, the shift and score of the
data, and the noise, so that the second pass needs neither the prior's network nor a solve.

| steps | peak memory, MB |
|---:|---:|
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operator", default="lensing")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--paths", type=int, default=TrainConfig.paths)
    parser.add_argument("--peak", action="store_true", help="print the peak memory of one step")
    asked = parser.parse_args()
    if asked.peak:
        trainer(asked).advance()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # KB on Linux
        return
    rows, profile = parts(asked)
    page = HEAD.format(**vars(asked)) + "".join(f"| {k} | {v:.2f} |\n" for k, v in rows.items())
    command = [sys.executable, __file__, "--peak", f"--operator={asked.operator}"]
    page += MEMORY
    for steps in (asked.steps, 4 * asked.steps):
        sized = [*command, f"--paths={asked.paths}", f"--steps={steps}"]
        peak = float(subprocess.run(sized, check=True, capture_output=True, text=True).stdout)
        page += f"| {steps} | {peak:.0f} |\n"
    page += f"\nFunctions that take most of the step, with their own CPU seconds:\n\n{profile}"
    Path("docs/step_cost.md").write_text(page)


def trainer(asked: argparse.Namespace) -> Trainer:
    """Return a training whose next step is one of RTB."""
    prior = registry.load_prior("galaxies-64")
    operator = registry.operator_class(asked.operator).default(prior.x_shape)
    with torch.no_grad():
        y = operator(prior.decode(prior.draw(1, seed=0)))
    likelihood = Likelihood(operator, Gaussian(0.05 * float(y.max())), y)
    config = TrainConfig(steps=asked.steps, paths=asked.paths, warm_steps=0)
    return Trainer(prior, likelihood, config)


def parts(asked: argparse.Namespace) -> tuple[dict[str, float], str]:
    """Return CPU seconds of the parts and of the whole, and the profile of the whole."""
    ours = trainer(asked)
    prior, policy, times = ours.prior, ours.policy, ours.times[:-1]
    many = ours.likelihood.repeat(asked.paths)
    propose = policy.propose(prior, many)
    paths = rollout(prior, propose, generators(0, range(asked.paths)), ours.times)
    met: list[Guidance] = [g for g in paths.guidance if g is not None]
    steps = list(zip(paths.states, times, met, range(len(times)), strict=False))

    def networks() -> None:
        with torch.no_grad():
            for z, t, _, _ in steps:
                prior.denoise(z, t)
            prior.denoise(paths.states[-1], 0.0)

    def first() -> None:
        with torch.no_grad():
            for z, _, g, i in steps:
                policy(z, g, i)

    def second() -> None:
        for z, _, g, i in steps:
            policy(z, g, i).sum().backward()

    def solves() -> None:
        for z, t, g, _ in steps:
            guide(prior, many, z, t, g.clean)

    rows = {
        "prior's network": seconds(networks),
        "policy, first pass": seconds(first),
        "policy, second pass with gradient": seconds(second),
        "the operator's solves": seconds(solves),
    }
    whole = seconds(lambda: ours.advance())
    rows |= {"sum of these": sum(rows.values()), "whole step": whole}
    rows["whole step / sum"] = whole / rows["sum of these"]
    profile = cProfile.Profile(time.process_time)
    profile.runcall(ours.advance)
    table = pstats.Stats(profile).get_stats_profile().func_profiles
    top = sorted(table.items(), key=lambda item: -item[1].tottime)[:12]
    return rows, "".join(f"    {p.tottime:7.2f}  {name}\n" for name, p in top)


def seconds(part: Callable[[], object]) -> float:
    """Return the CPU seconds of the second call."""
    part()
    begun = time.process_time()
    part()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
