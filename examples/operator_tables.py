"""Write docs/operators.md: posteriors of RTB and of baselines on six instruments, and the speed.

    python examples/operator_tables.py

Every table is that of stored cells: a cell is one instrument of `examples/gallery.py` with all its
methods, or the speed (`examples/operator_speed.py`, which should run where caustics is installed).
A stored cell is not run again: delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import operator_speed
import torch
from gallery import SCENES, Scene

from invprob.comparison import compare
from invprob.config import TrainConfig
from invprob.posterior_training import train

HEAD = """\
# Operators

Every operator passes one contract (`tests/test_operators_contract.py`; `invprob check --operator
NAME` tries it on your own machine and parameters). What it computes is held against something
independent:

| operator | against | order in tests |
|---|---|---|
| lensing | lenstronomy 1.14.2 (deflections, an image), caustics 1.7.1 (images) | exact |
| blur | scipy, deepinv | exact |
| tomography | chords of a disc, scipy, scikit-image | 1 at the disc's edge |
| super_resolution | Pillow | exact |
| mri | plane waves of a point, Parseval | exact |
| inverse_scattering | Mie series of a cylinder; Born in the weak limit | 2 in the pixel |
| black_hole | closed forms of one and two points | exact |
| navier_stokes | decaying vortices, laminar flow, another integrator | 3 in time |
| burgers | Hopf and Cole's solution | 3 in time |
| full_waveform | Green's function in even ground | 2 in time, 4 in space |

`python examples/gallery.py --operator NAME --quick` shows one: simulated data, draws, a figure.

Several bands: `--size 3x64x64` gives `lensing` a source (3, 64, 64), one image a band, through one
lens; `psf` may be one for all or (3, ky, kx). A prior of single images then draws each band by
itself; a trained one of three channels knows their colours.

A lens may be stated by `e1` and `e2`, by `position_angle` (degrees east of north, with `cd` where
north is not up; `import` takes it from the WCS), or by `velocity_dispersion` with the operator's
`z_lens`, `z_source` and `cosmology`, which obs.h5 keeps. A `theta_E` that is given wins.

A deepinv `Physics` or a caustics simulator is wrapped by a class of a few lines:
`operators/adapters.py`.
"""
POSTERIORS = """\
## Posteriors on six instruments

One observation each, {n} samples a method, on one busy core. Lensing is trained by the defaults;
the others, so that the table is made within an hour, {training}. Where chi2 is 1 the data are
fitted to their noise; the gap is EUBO - ELBO, measured on simulated twins, in nats. RMSE is that
of the mean. Evaluations, of the prior's network and of A or its derivative, are per sample; seconds
are those of all {n} samples, and of training. What the certificates say stands below.
"""
SPEED = """\
## Speed

CPU milliseconds an item, one thread, median and quartiles of interleaved repeats
(`examples/operator_speed.py`), of lensing by themselves and of the equations by themselves.
Lensing is forward and gradient: image 128 x 128, source 64 x 64, a PSF of 15 x 15 without symmetry.
The arithmetic floor is two sparse products of {nnz} weights and
two FFT convolutions of 144 x 144, without autograd, checks or padding. caustics has 2 x 2 rays a
pixel by its quadrature; its batch is `torch.vmap`, which traces the rays once for all.
"""
BASELINES = ("dps:steps=100", "pigdm:steps=30", "diffpir:steps=30")
SAMPLES = 32
SHORT: dict[str, Any] = {
    "steps": 30, "warm_steps": 20, "warm_batch": 16, "rtb_steps": 2, "paths": 8, "certified": 32,
    "twins": 4, "twin_paths": 1,
}  # fmt: skip
CASES: dict[str, tuple[Scene, dict[str, Any]]] = {
    "tomography": (SCENES["tomography"], SHORT),
    "lensing": (Scene(), {}),
    "black_hole": (Scene(), SHORT),
    "phase_retrieval": (SCENES["phase_retrieval"], SHORT),
    "inverse_scattering": (
        Scene("random_field", (16, 16), {"transmitters": 4, "receivers": 24, "contrast": 0.05}),
        SHORT,
    ),
    "navier_stokes": (
        Scene("random_field", (16, 16), settings={"duration": 0.5, "steps": 8}),
        SHORT,
    ),
}


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/operators"))
    parser.add_argument("--only", nargs="*", default=list(CASES), help="cells to fill")
    parser.add_argument("--out", type=Path, default=Path("docs/operators.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.cells.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        file = asked.cells / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(cell(name), indent=1))
            print(f"wrote {file}", flush=True)
    cells = {file.stem: json.loads(file.read_text()) for file in asked.cells.glob("*.json")}
    parts = [HEAD]
    if posteriors := [name for name in CASES if name in cells]:
        parts += [*posterior_table({name: cells[name] for name in posteriors})]
    if "speed" in cells:
        parts += [*speed_table(cells["speed"])]
    asked.out.write_text("\n".join(parts))
    print(f"wrote {asked.out}")


def posterior_table(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return the heading and a table of all instruments, a row each method."""
    training = (
        f"by {SHORT['warm_steps']} warm and {SHORT['rtb_steps']} RTB steps on a chain of "
        f"{SHORT['steps']}"
    )
    heading, text = POSTERIORS.format(n=SAMPLES, training=training).split("\n\n")
    lines = [heading, "", textwrap.fill(text, 100), ""]
    lines += [
        "| instrument, prior | method | RMSE | chi2 | ELBO | gap | network | A | s | training s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in cells.items():
        shapes = " to ".join(" x ".join(map(str, one[key])) for key in ("x_shape", "y_shape"))
        head = f"{name}, {one['prior']}, {shapes}"
        for row in one["rows"]:
            known = row["certificate"]
            values = (
                row["rmse"], row["chi2_per_pixel"], row["elbo"], known["gap"],
                row["network_evaluations"], row["operator_evaluations"], row["seconds"],
                row["train_seconds"],
            )  # fmt: skip
            shown = " | ".join(number(v) for v in values)
            lines.append(f"| {head} | {row['name']} | {shown} |")
            head = ""
    said = [
        textwrap.fill(f"- {name} {row['name']}: {row['certificate']['verdict']}", 100,
                      subsequent_indent="  ")
        for name, one in cells.items()
        for row in one["rows"]
    ]  # fmt: skip
    return [*lines, "", "The certificates:", "", *said, ""]


def speed_table(found: dict[str, Any]) -> list[str]:
    """Return the heading, the tables and the ratios of the speed cell."""
    nnz = len(operator_speed.instrument(operator_speed.lopsided_psf(), 2)._rays.weights)
    lines = [SPEED.format(nnz=nnz), "| | median | quartiles |", "|---|---:|---:|"]
    for part in ("lensing", "pde"):
        for name, t in found[part].items():
            lines.append(f"| {name} | {t['median']:.3g} | {t['q1']:.3g} to {t['q3']:.3g} |")
    time = {key: t["median"] for part in found.values() for key, t in part.items()}
    ratios = [f"- 4x supersampling costs {ratio(time, 'ours, 4x, batch 16', 'ours, 1x, batch 16')} "
              "of 1x, in a batch of 16."]  # fmt: skip
    for batch in (1, 16):
        ours = f"ours, 2x, batch {batch}"
        ratios.append(f"- Batch {batch}: {ratio(time, ours, f'arithmetic, batch {batch}')} of the "
                      "floor.")  # fmt: skip
        for theirs in (f"caustics, 2x, batch {batch}", f"caustics, 2x, batch {batch}, in a loop"):
            if theirs in time:
                ratios.append(f"- {theirs}: {ratio(time, theirs, ours)} of ours.")
    for name in operator_speed.PDES:
        forward = time[f"{name}, forward"]
        gradient = (time[f"{name}, forward and gradient"] - forward) / forward
        ratios.append(f"- {name}: the gradient costs {gradient:.2g} times A(x).")
    return [*lines, "", *ratios, ""]


def number(value: float | None) -> str:
    """Return three digits, all of a whole number, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def ratio(time: dict[str, float], one: str, other: str) -> str:
    """Return how many times as long the one takes."""
    return f"{time[one] / time[other]:.2g} times that"


def cell(name: str) -> dict[str, Any]:
    """Return the scores and certificates of RTB and the baselines on one instrument."""
    scene, settings = CASES[name]
    observation = scene.observed(name, seed=0)
    posterior = train(observation, config=TrainConfig(**settings))
    results = compare(observation, None, BASELINES, posterior, SAMPLES)
    return {
        "training": settings,
        "baselines": BASELINES,
        "prior": observation.prior,
        "x_shape": observation.operator.x_shape,
        "y_shape": observation.operator.y_shape,
        "noise": observation.noise_name,
        "seconds": posterior.seconds,
        "rows": [
            {"name": r.name, **r.scores, "certificate": asdict(r.certificate)} for r in results
        ],
    }


if __name__ == "__main__":
    main()
