"""Write docs/ablation.md: each technique of RTB on and off, at equal evaluations of the prior.

    python examples/ablation.py

A cell is one arm on one problem with one seed. Each is stored as JSON when it is done, and a
stored cell is not run again: delete the folder to start anew. The policy begins at guidance, with
no warm start, so that the modes it lacks are RTB's to find.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from invprob import registry
from invprob.certificate import certify
from invprob.comparison import counting
from invprob.config import TrainConfig
from invprob.draws import draw
from invprob.metrics import sliced_wasserstein
from invprob.rtb import Trainer
from invprob.suites.base import Problem

PROBLEMS = ("gmm/d8_dy1_s0", "bipsda/half")
BASE = TrainConfig(
    steps=20, width=32, blocks=2, warm_steps=0, paths=64, rtb_rate=3e-3, ema=0.9,
)  # fmt: skip
MIX: dict[str, Any] = {"replay": 0.25, "backtrack": 0.25}
ARMS: dict[str, dict[str, Any]] = {
    "on-policy": {},
    "replay 1/4": {"replay": 0.25},
    "replay 1/2": {"replay": 0.5},
    "backtrack 1/4": {"backtrack": 0.25},
    "backtrack 1/4, adaptive depth": {"backtrack": 0.25, "depth": "adaptive"},
    "backtrack 1/4, 10 MALA steps": {"backtrack": 0.25, "local_search": 10},
    "replay 1/4, backtrack 1/4": MIX,
    "the same, learned log Z": {**MIX, "objective": "rtb"},
    "prior paths 1/8": {"prior_paths": 0.125},
    "exploration 1.2": {"exploration": 1.2},
    "anneal from T = 10": {"anneal": 10.0},
}
COLUMNS = {
    "sliced W": "sliced_wasserstein", "mode error": "mode_weight_error", "ELBO": "elbo",
    "log Z error": "log_z_error", "ESS": "ess", "RTB steps": "rtb_steps",
    "evaluations": "network_evaluations", "CPU s": "seconds",
}  # fmt: skip
HEAD = """\
Made by `python examples/ablation.py`: {n} uncorrected samples a cell, mean ± standard deviation
over seeds of training and sampling. No warm start; {paths} paths a step on a chain of {steps} steps
at rate {rate:g}. Every arm has the same evaluations of the prior's denoiser as {rounds} on-policy
steps (a MALA step counts as one, which the column leaves out; a replayed path as none), so arms
that replay take more steps. *guided* is the policy before training, *oracle* the exact denoiser on
the same chain. Metrics as in [benchmarks](benchmarks.md); the error of log Z is that of the
importance estimate. A technique is a default where it wins beyond the spread of the seeds."""


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/ablation"))
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=25, help="on-policy steps that fix the cost")
    parser.add_argument("--n", type=int, default=1000)
    asked = parser.parse_args()
    arms = ("oracle", "guided", *ARMS)
    for seed in range(asked.seeds):  # seeds outermost: a table of fewer seeds is there early
        for name in asked.problems:
            for arm in arms:
                file = asked.cells / name / arm.replace("/", "_") / f"{seed}.json"
                if not file.exists():
                    row = cell(problem(name), arm, seed, asked.rounds, asked.n)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(row))
                    print(f"{name} {arm} {seed}: {row}", flush=True)
    head = HEAD.format(
        n=asked.n, paths=BASE.paths, steps=BASE.steps, rate=BASE.rtb_rate, rounds=asked.rounds
    )
    lines = ["# What each technique of RTB earns\n", textwrap.fill(head, 100), ""]
    for name in asked.problems:
        floor = exact_draws(problem(name), asked.n)
        lines += [
            f"## {name}\n",
            f"Sliced W of {asked.n} exact draws: {floor:.2g}.\n",
            f"| | seeds | {' | '.join(COLUMNS)} |",
            "|---|" + "---:|" * (1 + len(COLUMNS)),
        ]
        for arm in arms:
            files = (asked.cells / name / arm.replace("/", "_")).glob("*.json")
            rows = [json.loads(file.read_text()) for file in files]
            values = (shown(rows, key) for key in COLUMNS.values())
            lines.append(f"| {arm} | {len(rows)} | {' | '.join(values)} |")
        lines.append("")
    asked.out.write_text("\n".join(lines))
    print(f"wrote {asked.out}")


def problem(name: str) -> Problem:
    """Return the problem `suite/name`."""
    suite, _, own = name.partition("/")
    return registry.suite_class(suite)().problem(own)


def cell(found: Problem, arm: str, seed: int, rounds: int, n: int) -> dict[str, Any]:
    """Return the scores of one arm with one seed."""
    prior, likelihood = found.prior, found.likelihood
    prior.steps = BASE.steps or prior.steps  # the oracle walks as many as the prior says
    arm_config = replace(BASE, seed=seed, rtb_steps=0, **ARMS.get(arm, {}))
    # evaluations of one step in paths, where one on-policy step costs all of them
    cost = arm_config.paths * (
        1 - arm_config.replay + arm_config.backtrack * arm_config.local_search / prior.steps
    )
    steps = 0 if arm in ("oracle", "guided") else round(rounds * arm_config.paths / cost)
    trainer = Trainer(prior, likelihood, replace(arm_config, rtb_steps=steps))
    begun = time.process_time()
    with counting(prior, likelihood.operator) as count:
        while trainer.step < trainer.total:
            trainer.advance()
    seconds = time.process_time() - begun
    sampler = found.oracle if arm == "oracle" else lambda many: trainer.average.propose(prior, many)
    draws = draw(prior, likelihood, sampler, trainer.times, n, seed)
    x = draws.x.astype(float)
    known = certify(draws)
    assert known.log_z is not None  # every sampler here has a density
    return {
        "sliced_wasserstein": sliced_wasserstein(x, found.reference(10 * n, 10**6))[0],
        "mode_weight_error": found.mode_weight_error(x),
        "elbo": known.elbo,
        "log_z_error": abs(known.log_z - found.log_z),
        "ess": known.ess,
        "rtb_steps": steps,
        "network_evaluations": count.network,
        "seconds": seconds,
    }


def exact_draws(found: Problem, n: int) -> float:
    """Return the mean distance of n exact draws from the reference."""
    reference = found.reference(10 * n, 10**6)
    distances = [sliced_wasserstein(found.sample(n, 10**6 + 1 + i), reference) for i in range(8)]
    return float(np.mean([mean for mean, _ in distances]))


def shown(rows: list[dict[str, Any]], key: str) -> str:
    """Return mean ± standard deviation."""
    values = [row[key] for row in rows]
    if key in ("rtb_steps", "network_evaluations", "seconds"):
        return f"{np.mean(values):.0f}"
    spread = f" ± {np.std(values):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.3g}{spread}"


if __name__ == "__main__":
    main()
