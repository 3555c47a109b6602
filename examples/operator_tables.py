"""Write docs/operators.md: posteriors of RTB and of baselines on six instruments, and the speed.

    python examples/operator_tables.py

Every table is that of stored cells: a cell is one instrument of `examples/gallery.py` with all its
methods, or the speed (`examples/operator_speed.py`, which should run where caustics is installed).
A stored cell is not run again: delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gallery import SCENES, Scene

from invprob.comparison import compare
from invprob.config import TrainConfig
from invprob.posterior import train

BASELINES = ("dps:steps=30", "pigdm:steps=16", "diffpir:steps=30")
SAMPLES = 8
SHORT: dict[str, Any] = {
    "steps": 30, "warm_steps": 40, "warm_batch": 16, "rtb_steps": 2, "paths": 8, "certified": 8,
    "twins": 4, "twin_paths": 1,
}  # fmt: skip
SHORTER = {
    "steps": 16, "warm_steps": 12, "warm_batch": 8, "rtb_steps": 1, "paths": 4, "certified": 8,
    "twins": 2, "twin_paths": 1,
}  # fmt: skip
CASES: dict[str, tuple[Scene, dict[str, Any]]] = {
    "tomography": (SCENES["tomography"], SHORT),
    "lensing": (Scene(), SHORTER),
    "black_hole": (Scene(), SHORTER),
    "phase_retrieval": (SCENES["phase_retrieval"], SHORTER),
    "inverse_scattering": (
        Scene("random_field", (16, 16), {"transmitters": 4, "receivers": 24, "contrast": 0.05}),
        SHORTER,
    ),
    "navier_stokes": (Scene(shape=(16, 16), settings={"duration": 0.5, "steps": 8}), SHORTER),
}


def main() -> None:
    """Fill the cells, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("operators-cells"))
    parser.add_argument("--only", nargs="*", default=list(CASES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.cells.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        file = asked.cells / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(cell(name), indent=1))
            print(f"wrote {file}", flush=True)


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
