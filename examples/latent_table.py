"""Write docs/latent.md: RTB in latent space beside training-free samplers there.

    python examples/latent_table.py

Truths are draws of `galaxies-64-latent` itself, so that the exact posterior is calibrated. One
policy is trained for all observations of a problem. A cell is one method on one observation; each
is stored as JSON when it is done, and a stored cell is not run again: delete the folder to start
anew.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np
import torch

from invprob import registry
from invprob.comparison import compare
from invprob.config import TrainConfig
from invprob.observation import Observation
from invprob.posterior import Posterior
from invprob.posterior_training import train
from invprob.simulate import draw_truth
from operators.base import ForwardOperator
from operators.inpainting import Inpainting
from operators.lensing import Lensing

PRIOR, SHAPE, SIGMA = "galaxies-64-latent", (64, 64), 0.05
PROBLEMS: dict[str, ForwardOperator] = {
    "inpainting": Inpainting(SHAPE, kind="box", box=(22, 22, 20, 20)),
    "lensing": Lensing.default(SHAPE),
}
CONFIG = TrainConfig(
    warm_steps=60, rtb_steps=4, paths=8, certified=2, twins=2, twin_paths=1, seed=1
)
# so many steps that a sample costs about half of what one of RTB does, whose chain has 50
METHODS = (
    "latent_dps:steps=300",
    "psld:steps=300",
    "resample:steps=150,every=5,iterations=20",
    "latent_daps:steps=30,langevin_steps=5",
    "copaint:steps=36",
)
COLUMNS = {
    "network evaluations": "network_evaluations", "ELBO": "elbo", "CRPS": "crps", "RMSE": "rmse",
    "90% intervals hold": "coverage_90", "chi2 / pixel": "chi2_per_pixel", "seconds": "seconds",
}  # fmt: skip
HEAD = """\
Made by `python examples/latent_table.py --seeds {seeds}`: {n} samples of each observation, whose
truths are draws of `{prior}`, 64x64 px, peak about 1, seen with noise of {sigma}. Inpainting
lacks the central 20x20 px; lensing is the default lens with its PSF. RTB is one policy for all
observations of a problem: {warm} steps of warm start, then {rtb} of RTB with {paths} paths each,
minutes on one CPU core. The others take so many steps that a sample costs about half of what one
of RTB does; seconds are those of all {n} samples, on a core that was busy with more, a dash
where it was stopped on the way. Where there are several observations of a problem, mean ±
standard deviation over them; the ELBO, in nats, is of the uncorrected samples, and methods whose
moves have no density have none. 90% intervals should hold 90% of the bright pixels (above a
tenth of the truth's peak); {n} samples are the fewest that give them. *worse* counts the
observations on which a method's ELBO and CRPS are worse than RTB's."""


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/latent"))
    parser.add_argument("--out", type=Path, default=Path("docs/latent.md"))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=3, help="observations of each problem, 1 to 3")
    parser.add_argument("--n", type=int, default=19, help="samples of each observation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    observed = {name: observe(PROBLEMS[name]) for name in asked.problems}
    posteriors = {
        name: trained(observed[name], asked.cells / name / "policy") for name in asked.problems
    }
    for seed in range(asked.seeds):  # outermost: a table of fewer seeds is there early
        for method in ("rtb", *METHODS):
            for name, posterior in posteriors.items():
                one = observed[name].one(seed)
                cell(posterior, one, method, asked.cells / name, seed, asked.n)
    write(asked.cells, asked.out, asked.problems, asked.seeds, asked.n)
    print(f"wrote {asked.out}")


def observe(operator: ForwardOperator, n: int = 3) -> Observation:
    """Return n observations of truths from the prior, one file's worth."""
    prior = registry.load_prior(PRIOR)
    truths = np.stack([draw_truth(prior, seed) for seed in range(n)])
    mean = operator(torch.from_numpy(truths)).numpy()
    y = mean + SIGMA * np.random.default_rng(0).normal(size=mean.shape)
    return Observation(operator, y, SIGMA, truth=truths, prior=PRIOR)


def trained(observation: Observation, folder: Path) -> Posterior:
    """Return the posterior in `folder`, or a new one that is put there."""
    if not (folder / "posterior.json").exists():
        posterior = train(observation, config=CONFIG, progress=tell)
        posterior.save_pretrained(folder)
    return Posterior.from_pretrained(folder)


def tell(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
    """Print how far a training is."""
    if done % 10 == 0 or done == total:
        print(f"{stage} {done} of {total}: {figures}", flush=True)


def cell(
    posterior: Posterior, observation: Observation, method: str, folder: Path, seed: int, n: int
) -> None:
    """Store the scores of one method on one observation, unless they are there."""
    file = folder / method.replace(":", "_") / f"{seed}.json"
    if file.exists():
        return
    if method == "rtb":
        own = posterior.on(observation, CONFIG)
        (result,) = compare(observation, posterior=own, baselines=(), n=n, seed=seed)
    else:
        (result,) = compare(observation, PRIOR, baselines=(method,), n=n, seed=seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result.scores))
    print(f"{file}: {result.scores}", flush=True)


def write(cells: Path, out: Path, problems: list[str], seeds: int, n: int) -> None:
    """Write the page from the stored cells."""
    head = HEAD.format(
        n=n, seeds=seeds, prior=PRIOR, sigma=SIGMA, warm=CONFIG.warm_steps, rtb=CONFIG.rtb_steps,
        paths=CONFIG.paths,
    )  # fmt: skip
    lines = ["# Latent space: RTB and training-free samplers\n", textwrap.fill(head, 100), ""]
    for name in problems:
        lines += [
            f"## {name}\n",
            f"| | {' | '.join(COLUMNS)} | ELBO worse | CRPS worse |",
            "|---|" + "---:|" * (len(COLUMNS) + 2),
        ]
        rows = {
            method: [
                json.loads((cells / name / method.replace(":", "_") / f"{i}.json").read_text())
                for i in range(seeds)
            ]
            for method in ("rtb", *METHODS)
        }
        for method, own in rows.items():
            shown = [spread([row[key] for row in own]) for key in COLUMNS.values()]
            pairs = list(zip(own, rows["rtb"], strict=True))
            elbo = sum(a["elbo"] < b["elbo"] for a, b in pairs if a["elbo"] is not None)
            crps = sum(a["crps"] > b["crps"] for a, b in pairs)
            counts = [f"{elbo}/{seeds}" if own[0]["elbo"] is not None else "-", f"{crps}/{seeds}"]
            counts = ["", ""] if method == "rtb" else counts
            lines.append(f"| {method} | {' | '.join([*shown, *counts])} |")
        lines.append("")
    out.write_text("\n".join(lines))


def spread(values: list[float | None]) -> str:
    """Return mean ± standard deviation, a dash where a method has no such figure."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean = f"{np.mean(known):.4g}"
    return f"{mean} ± {np.std(known):.2g}" if len(known) > 1 else mean


if __name__ == "__main__":
    main()
