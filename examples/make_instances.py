"""Draw instances of the 25-mode mixture benchmark and store them (see invprob/suites/gmm.py).

python examples/make_instances.py OUT --dimensions 8 80 --data 1 2 4 --seeds 0 1 2
invprob benchmark --instance OUT/d8_dy1_s0.h5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from invprob.obs_file import whole
from priors.gaussian_mixture import mode_grid


def write(path: Path, d: int, dy: int, seed: int) -> None:
    """Write one instance: the recipe of Cardoso et al. (2023, arXiv 2308.07983)."""
    rng = np.random.default_rng([d, dy, seed])
    means = mode_grid(d)
    weights = rng.normal(size=len(means)) ** 2
    weights /= weights.sum()
    u, _, vt = np.linalg.svd(rng.normal(size=(dy, d)), full_matrices=False)
    values = np.sort(rng.uniform(size=dy))[::-1]
    matrix = (u * values) @ vt
    sigma = rng.uniform() * values.max()
    truth = means[rng.choice(len(means), p=weights)] + rng.normal(size=d)
    data = matrix @ truth + sigma * rng.normal(size=dy)
    fields = {
        "means": means, "weights": weights, "operator": matrix, "noise_sigma": sigma,
        "data": data, "truth": truth,
    }  # fmt: skip
    with whole(path, matrix.nbytes) as file:
        for key, value in fields.items():
            filters = {"compression": "gzip", "fletcher32": True} if np.ndim(value) else {}
            file.create_dataset(key, data=np.float32(value) if np.ndim(value) else value, **filters)


def main() -> None:
    """Write d x dy x seed files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[8, 80, 800])
    parser.add_argument("--data", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for d in asked.dimensions:
        for dy in asked.data:
            for seed in asked.seeds:
                write(asked.out / f"d{d}_dy{dy}_s{seed}.h5", d, dy, seed)
    print(f"wrote {len(list(asked.out.glob('*.h5')))} instances to {asked.out}")


if __name__ == "__main__":
    main()
