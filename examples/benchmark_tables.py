"""Write docs/benchmarks.md: every method on the problems whose exact posterior is known.

    python examples/benchmark_tables.py            # make tables

A cell is one method on one problem with one seed. Each is stored as JSON when it is done, and a
stored cell is not run again: delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from invprob import __version__, registry
from invprob.benchmark import VECTORS, benchmark, runnable

PROBLEMS = (
    "gaussian/d2", "gaussian/d16", "gmm/d8_dy1_s0", "gmm/d8_dy2_s0", "gmm/d8_dy4_s0",
    "gmm/d80_dy1_s0", "gmm/d80_dy2_s0", "gmm/d80_dy4_s0", "mixture16/mix", "mixture16/blind",
    "bipsda/half", "bipsda/one", "gmm25to9/d2",
)  # fmt: skip
COLUMNS = {  # headings and what stands under them
    "sliced W": "sliced_wasserstein",
    "max W": "max_sliced_wasserstein",
    "mode error": "mode_weight_error",
    "residual rms": "residual_rms",
    "log Z": "log_z",
    "ELBO": "elbo",
    "EUBO": "eubo",
    "ESS": "ess",
    "evaluations": "network_evaluations",
    "sampling s": "seconds",
    "training s": "train_seconds",
}
HEAD = f"""# Methods against exact posteriors

Made by `make tables` (`python examples/benchmark_tables.py{{options}}`) with invprob {__version__}.
{{n}} samples a method, seeds {{seeds}}; where there are several, mean ± standard deviation over
training and sampling. Distances are to a stratified exact reference of {{n}} x 10 draws; the row
*exact draws* is what {{n}} independent exact draws leave, mean ± standard deviation over 8. W is
the 1-Wasserstein distance over 1000 projections, in units of x. Mode error is the total variation
between mode weights. Residuals are in noise standard deviations. `rtb` is resampled by its path
weights, `rtb_raw` is not; `oracle` is the exact denoiser on the same chain. All walk the same grid
of times; evaluations of the denoiser are per sample; baselines have their default settings. RTB
trains with {{training}}. EUBO is the ELBO plus the gap of simulated twins (other data, same
instrument): on one observation it is an estimate, not a bound. A dash is not defined; log Z and
ELBO below -1e4 are given in powers of ten. Times are of one busy CPU core.
"""


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("benchmarks"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--n", type=int, default=1000)
    asked = parser.parse_args()
    parts = [section(name, asked.n, range(asked.seeds), asked.cells) for name in asked.problems]
    c = VECTORS
    training = (
        f"{c.warm_steps} warm-start steps of {c.warm_batch}, then {c.rtb_steps} RTB steps of "
        f"{c.paths} paths at rate {c.rtb_rate:g}"
    )
    options = f" --seeds {asked.seeds}" if asked.seeds > 1 else ""
    seeds = ", ".join(map(str, range(asked.seeds)))
    head = HEAD.format(n=asked.n, seeds=seeds, training=training, options=options)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("\n".join([head, *parts]))
    print(f"wrote {asked.out}")


def section(name: str, n: int, seeds: range, cells: Path) -> str:
    """Return the table of one problem, running the cells that are missing."""
    suite, _, own = name.partition("/")
    problem = registry.suite_class(suite)().problem(own)
    rows: dict[str, list[dict[str, Any]]] = {}
    for method in runnable(problem):
        for seed in seeds:
            file = cells / name / f"{method}-n{n}-s{seed}.json"
            if not file.exists():
                found = benchmark(problem, (method,), n, (seed,))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"floor": found.floor, "rows": found.rows}, indent=1))
                print(f"wrote {file}", flush=True)
            cell = json.loads(file.read_text())
            floor = cell["floor"]
            for row in cell["rows"]:
                rows.setdefault(row["name"], []).append(row)
    first = next(iter(rows.values()))[0]
    exact = {
        "sliced_wasserstein": f"{floor['floor']:.2g} ± {floor['floor_spread']:.1g}",
        "max_sliced_wasserstein": number(floor["floor_max"]),
        "mode_weight_error": number(floor["floor_mode_weight_error"]),
        "residual_rms": number(first["residual_rms_exact"]),
        "log_z": f"{problem.log_z:.2f}",
    }
    lines = [
        f"## {name}\n",
        f"{registry.summary('suites', suite)}; {problem.prior.steps} steps.\n",
        f"| | {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * len(COLUMNS),
        f"| *exact draws* | {' | '.join(exact.get(key, '') for key in COLUMNS.values())} |",
    ]
    for method, repeats in rows.items():
        values = (spread([row[key] for row in repeats], key) for key in COLUMNS.values())
        lines.append(f"| {method} | {' | '.join(values)} |")
    lines.append("\nVerdicts: " + "; ".join(f"**{m}** {r[0]['verdict']}" for m, r in rows.items()))
    return "\n".join(lines) + "\n"


def spread(values: list[float | None], key: str) -> str:
    """Return the mean of the values, with their standard deviation where they are several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    shown = f"{np.mean(known):.2f}" if key in ("log_z", "elbo", "eubo") else number(np.mean(known))
    if abs(np.mean(known)) > 1e4:
        return f"{np.mean(known):.0e}"
    return f"{shown} ± {np.std(known):.2g}" if len(known) > 1 else shown


def number(value: float | None) -> str:
    """Return a number of two digits below 10, whole above it."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 else "0" if value < 5e-4 else f"{value:.2g}"


if __name__ == "__main__":
    main()
