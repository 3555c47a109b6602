"""Write docs/benchmarks.md: every method on the problems whose exact posterior is known.

    python examples/benchmark_tables.py            # make tables

A cell is one method on one problem with one seed. Each is stored as JSON when it is done, and a
stored cell is not run again: delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from invprob import __version__, registry
from invprob.benchmark import TRAINED, VECTORS, benchmark, runnable

PROBLEMS = (
    "gaussian/d2", "gaussian/d16", "gmm/d8_dy1_s0", "gmm/d8_dy2_s0", "gmm/d8_dy4_s0",
    "gmm/d80_dy1_s0", "gmm/d80_dy2_s0", "gmm/d80_dy4_s0", "gmm/d800_dy1_s0", "gmm/d800_dy2_s0",
    "gmm/d800_dy4_s0", "gmm25to9/d2", "mixture16/mix", "mixture16/blind",
    "bipsda/half", "bipsda/one", "bipsda/xray", "bipsda/phase", "levy/gauss_denoising",
    "levy/gauss_convolution", "levy/laplace_convolution", "levy/laplace_fourier",
    "levy/student_imputation", "levy/bernoulli_laplace_convolution",
)  # fmt: skip
BASELINES = registry.names("baselines")
OVERVIEW = ("oracle", "rtb", "rtb_smc", "rtb_raw", "guided", "pigdm", "tds", "copaint", "dps")
FAR = 3.0  # times the floor: no verdict may be trust beyond
LEVEL = 0.3  # times the floor, which its own scatter may be: distances this close are level
Rows = dict[str, list[dict[str, Any]]]  # of every method, one a seed
COLUMNS = {  # headings and what stands under them
    "sliced W": "sliced_wasserstein",
    "max W": "max_sliced_wasserstein",
    "MMD²": "mmd_squared",
    "mode error": "mode_weight_error",
    "MMSE gap / dB": "mmse_gap_db",
    "coverage 90%": "coverage_90",
    "residual rms": "residual_rms",
    "log Z": "log_z",
    "ELBO": "elbo",
    "EUBO": "eubo",
    "ESS": "ess",
    "evaluations": "network_evaluations",
    "sampling s": "seconds",
    "training s": "train_seconds",
}
HEAD = """\
Made by `python examples/benchmark_tables.py{options}` (`make tables`) with invprob {version}: {n}
samples a method, {seeds}. Distances are to a stratified exact reference of
ten times as many draws; the row *exact draws* is what {n} independent exact draws leave, mean ±
standard deviation over 8.
Where the posterior is known by stored draws alone (`levy` but for its Gauss law, `bipsda/xray`,
`bipsda/phase`) one half of them is the reference, and exact draws are halves dealt anew. W is the
1-Wasserstein distance over 1000 projections, in units of x; mode error the total variation between
mode weights; MMD² is without bias, so about 0 where laws agree; the MMSE gap is how much worse than
the exact posterior's the mean of the samples estimates the truth, given the data; coverage is the
share of exact draws inside central 90% intervals of the samples, value by value; residuals are in
noise standard deviations. Problems of `levy` are compared as processes. `rtb` is resampled by its
path weights where they are reliable and mend more than this blurs, `rtb_raw` is not, `rtb_smc` are
its policy's particles, resampled on the way (`sample --correct smc`); `guided` is the policy before
training; `oracle` is the exact denoiser on the same chain. All walk the same grid of times;
evaluations of the denoiser are per sample. Step sizes of baselines are tuned on simulated twins,
with the first seed, as `--tune` does, and stand below the tables; other settings are the defaults.
RTB trains with {training}. The ELBO of particles is log Z less 3 nats, below the true one in 19 of
20 runs (Markov's inequality). EUBO is the mean of log w under the normalised weights where these
are reliable, else the ELBO plus the gap of simulated twins (other data, same instrument), which is
an estimate and no bound; particles have that of their policy's single paths. A dash is not
defined. Times are of one busy CPU core. Baselines beside
what their papers print are in [published_numbers.md](published_numbers.md)."""


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/exact"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument(
        "--baselines", nargs="+", default=list(BASELINES), choices=BASELINES, metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the methods of the overview")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--stored", action="store_true", help="run nothing: cells that are there")
    asked = parser.parse_args()
    parts: list[str] = []
    lines: list[str] = []
    tables: dict[str, tuple[Rows, float]] = {}
    for name in asked.problems:
        part, line, tables[name] = section(
            name, asked.baselines, asked.n, range(asked.seeds), asked.cells, asked.stored
        )
        parts.append(part)
        lines.append(line)
    c = VECTORS
    training = (
        f"{c.warm_steps} warm-start steps of {c.warm_batch}, then {c.rtb_steps} RTB steps of "
        f"{c.paths} paths at rate {c.rtb_rate:g}, of a network of width {c.width}"
    )
    options = " --stored" if asked.stored else ""
    options += f" --seeds {asked.seeds}" if asked.seeds != 3 else ""
    if asked.baselines != list(BASELINES):
        options += f" --baselines {' '.join(asked.baselines)}"
    seeds = "one seed"
    if asked.seeds > 1:
        seeds = (
            f"mean ± standard deviation over {asked.seeds} seeds of training and sampling where a "
            "spread is given, one seed elsewhere"
        )
    head = HEAD.format(
        n=asked.n, seeds=seeds, training=training, options=options, version=__version__
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    overview = [
        "Sliced W, with the mode error in brackets:\n",
        f"| | exact draws | {' | '.join(OVERVIEW)} |",
        "|---|" + "---:|" * (1 + len(OVERVIEW)),
        *lines,
    ]
    said = [f"- {textwrap.fill(text, 98, subsequent_indent='  ')}" for text in findings(tables)]
    title = "# Methods against exact posteriors\n"
    page = [title, textwrap.fill(head, 100), "", *overview, "", *said, ""]
    asked.out.write_text("\n".join([*page, *parts]))
    print(f"wrote {asked.out}")


def findings(tables: dict[str, tuple[Rows, float]]) -> list[str]:
    """Return, in words, what the tables say of bounds, verdicts, and RTB against the others."""
    cells = [
        (f"{name} {method}", row, floor)
        for name, (rows, floor) in tables.items()
        for method, repeats in rows.items()
        for row in repeats
    ]
    bounded = [
        (name, row["elbo"] <= row["log_z_exact"] <= row["eubo"])
        for name, row, _ in cells
        if None not in (row["elbo"], row["eubo"], row["log_z_exact"])
    ]
    trusted = [
        (name, row["sliced_wasserstein"] / floor)
        for name, row, floor in cells
        if row["verdict"].startswith("trust")
    ]
    missed = [name for name, held in bounded if not held]
    far = [f"{name} ({ratio:.1f})" for name, ratio in trusted if ratio > FAR]
    said = [
        f"[ELBO, EUBO] holds the exact log Z in {len(bounded) - len(missed)} of {len(bounded)} "
        f"rows that have all three{listed(missed)}.",
        f"{len(trusted)} rows are to be trusted, by their verdict. {len(trusted) - len(far)} of "
        f"them lie within {FAR:g} times the distance of exact draws{listed(far)}.",
    ]
    for ours, others in (
        ("rtb", ("rtb_smc", "rtb_raw", "guided", *BASELINES)),
        ("rtb_smc", BASELINES),
    ):
        said += [against(ours, other, tables) for other in others]
    return [line for line in said if line]


def against(ours: str, other: str, tables: dict[str, tuple[Rows, float]]) -> str:
    """Return, in words, on which problems one method is nearer than the other; "" on none."""
    near, level, far = 0, 0, list[str]()
    for name, (rows, floor) in tables.items():
        if not {ours, other} <= rows.keys():
            continue
        a, b = distance(rows[ours]), distance(rows[other])
        if abs(a - b) < LEVEL * floor:
            level += 1
        elif a < b:
            near += 1
        else:
            far.append(f"{name} ({a:.2g} against {b:.2g})")
    count = near + level + len(far)
    if not count:
        return ""
    losses = f", farther on {', '.join(far)}" if far else ""
    return f"{ours} against {other}: nearer on {near} of {count}, level on {level}{losses}."


def distance(repeats: list[dict[str, Any]]) -> float:
    """Return the mean sliced Wasserstein distance of a method, infinity where it is not defined."""
    found = [row["sliced_wasserstein"] for row in repeats]
    return float("inf") if None in found else float(np.mean(found))


def listed(names: list[str]) -> str:
    """Return the names as the end of a sentence, nothing where there are none."""
    return f"; not {', '.join(names)}" if names else ""


def section(
    name: str, baselines: list[str], n: int, seeds: range, cells: Path, stored: bool = False
) -> tuple[str, str, tuple[Rows, float]]:
    """Return the table of one problem, its line of the overview, and its rows with the floor.

    Runs what is missing, unless only what is stored is wanted.
    """
    suite, _, own = name.partition("/")
    problem = registry.suite_class(suite)().problem(own)
    rows: Rows = {}
    able = runnable(problem)
    for method in (name for name in (*TRAINED, "oracle", *baselines) if name in able):
        for seed in seeds if method in OVERVIEW else seeds[:1]:
            tuned = "-tuned" if method in baselines else ""
            file = cells / name / f"{method}{tuned}-n{n}-s{seed}.json"
            if stored and not file.exists():
                continue
            if not file.exists():
                # a step size is found once, with the first seed
                chosen = rows[method][0]["name"] if method in rows else method
                found = benchmark(problem, (chosen,), n, (seed,), tune=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"floor": found.floor, "rows": found.rows}, indent=1))
                print(f"wrote {file}", flush=True)
            cell = json.loads(file.read_text())
            floor = cell["floor"]
            for row in cell["rows"]:
                rows.setdefault(row["name"].partition(":")[0], []).append(row)
    first = next(iter(rows.values()))[0]
    exact = {
        "sliced_wasserstein": f"{floor['floor']:.2g} ± {floor['floor_spread']:.1g}",
        "max_sliced_wasserstein": number(floor["floor_max"]),
        "mmd_squared": number(floor["floor_mmd_squared"]),
        "mode_weight_error": number(floor["floor_mode_weight_error"]),
        "mmse_gap_db": number(floor["floor_mmse_gap_db"]),
        "coverage_90": number(floor["floor_coverage_90"]),
        "residual_rms": number(first["residual_rms_exact"]),
        "log_z": "-" if problem.log_z is None else f"{problem.log_z:.2f}",
    }
    lines = [
        f"## {name}\n",
        f"{registry.summary('suites', suite)}; {problem.prior.steps} steps.\n",
        f"| | {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * len(COLUMNS),
        f"| *exact draws* | {' | '.join(exact.get(key, '') for key in COLUMNS.values())} |",
    ]
    for method, repeats in rows.items():
        values = (spread([row.get(key) for row in repeats], key) for key in COLUMNS.values())
        lines.append(f"| {method} | {' | '.join(values)} |")
    sizes = [row["name"] for repeats in rows.values() for row in repeats if ":" in row["name"]]
    if sizes:
        lines.append("\nTuned: " + ", ".join(dict.fromkeys(sizes)))
    heads = (f"**{m}** {re.split('[:(]', r[0]['verdict'])[0].strip()}" for m, r in rows.items())
    lines.append("\nVerdicts: " + "; ".join(heads))
    brief = [
        " ".join(
            [
                spread([row["sliced_wasserstein"] for row in rows[method]], ""),
                *(f"({number(value)})" for value in mode_errors(rows[method])),
            ]
        )
        if method in rows
        else "-"
        for method in OVERVIEW
    ]
    line = f"| {name} | {floor['floor']:.2g} | {' | '.join(brief)} |"
    return "\n".join(lines) + "\n", line, (rows, floor["floor"])


def mode_errors(repeats: list[dict[str, Any]]) -> list[float]:
    """Return the mean mode error, or nothing where there is one mode."""
    errors = [row["mode_weight_error"] for row in repeats]
    return [] if None in errors else [float(np.mean(errors))]


def spread(values: list[float | None], key: str) -> str:
    """Return the mean of the values, with their standard deviation where they are several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean = float(np.mean(known))
    if abs(mean) > 1e4:
        return f"{mean:.0e}"
    shown = f"{mean:.2f}" if key in ("log_z", "elbo", "eubo") else number(mean)
    return f"{shown} ± {number(float(np.std(known, ddof=1)))}" if len(known) > 1 else shown


def number(value: float | None) -> str:
    """Return a number of two digits below 10, whole above it."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 else "0" if abs(value) < 5e-4 else f"{value:.2g}"


if __name__ == "__main__":
    main()
