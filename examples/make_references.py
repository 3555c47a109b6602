"""Draw exact samples of posteriors that have no closed form, and store them with their evidence.

    python examples/make_references.py            # xray and phase of invprob/suites/bipsda.py

Rejection: x from the prior is kept with probability p(y | x) / max_x p(y | x), so what is kept are
exact independent draws, however many modes there are and whatever a sampler would do. Two runs of
other seeds, and importance sampling from a Student-t mixture fitted to the first, tell whether the
bound and the arithmetic hold: log Z three ways, and the distance between the runs beside that of
one to a random half of both. Mode weights are those of the likelihood over all prior draws.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_t

from invprob.metrics import Array, sliced_wasserstein
from invprob.obs_file import whole
from invprob.suites.bipsda import FOLDER, D, Squared, Transmission, mixture, noise, observed

SEED = 10  # of truth and data; runs have seeds of their own
STORED = 7000  # draws of a problem: float32, 280 kB
CHUNK = 10**6  # prior draws at once
PROPOSALS = 10**6  # of importance sampling
FREEDOM = 5.0  # degrees of freedom of its Student-t laws
LEAST = 50  # draws that a mode must have to be given one


def instrument(name: str) -> tuple[Array, Array, Array]:
    """Return matrix, truth and data: the authors' matrix, a truth from the prior, its data."""
    generator = torch.Generator().manual_seed(0)
    if name == "xray":
        matrix = 0.01 + 0.04 * torch.rand((15, D), generator=generator)
        operator = Transmission(matrix.double().numpy())
    else:
        operator = Squared(torch.randn((5, D), generator=generator).double().numpy())
    truth = mixture().decode(mixture().draw(1, SEED)).double()
    y = noise(name).sample(operator(truth), torch.Generator().manual_seed(SEED))
    return operator.matrix, truth[0].numpy(), y[0].float().double().numpy()


def peak(log_likelihood: Callable[[torch.Tensor], torch.Tensor], starts: Array) -> float:
    """Return max_x log p(y | x), by a search from every start."""

    def objective(u: Array) -> tuple[float, Array]:
        x = torch.from_numpy(u[None]).requires_grad_()
        value = -log_likelihood(x).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient[0].numpy()

    options = {"gtol": 1e-10, "maxiter": 10**4}
    return max(-minimize(objective, x, jac=True, options=options).fun for x in starts)


def rejected(
    log_likelihood: Callable[[torch.Tensor], torch.Tensor], top: float, seed: int
) -> tuple[Array, Array, float, int]:
    """Return STORED exact draws, Z / max p of every mode, the error of log Z, the prior draws."""
    rng, prior = np.random.default_rng([SEED, seed]), mixture()
    means = (prior.scale * prior.means).numpy()
    kept: list[Array] = []
    totals, square, count = np.zeros(3), 0.0, 0
    while sum(map(len, kept)) < STORED:
        which = rng.choice(3, CHUNK, p=prior.log_weights.exp().numpy())
        x = means[which] + rng.normal(size=(CHUNK, D))
        ratio = (log_likelihood(torch.from_numpy(x)) - top).exp().numpy()
        if ratio.max() > 1 + 1e-9:
            raise ValueError(f"p(y | x) is {ratio.max():.3g} times its supposed maximum")
        kept.append(x[rng.random(CHUNK) < ratio])
        totals += np.bincount(which, ratio, 3)
        square, count = square + (ratio**2).sum(), count + CHUNK
    mean = totals.sum() / count
    error = math.sqrt((square / count - mean**2) / count) / mean
    return np.concatenate(kept)[:STORED], totals / count, error, count


def importance(
    log_likelihood: Callable[[torch.Tensor], torch.Tensor], draws: Array, seed: int
) -> tuple[float, float, float]:
    """Return log Z, its standard error and the share of effective draws."""
    prior = mixture()
    nearest = prior.responsibilities(torch.from_numpy(draws)).argmax(1).numpy()
    parts = [draws[nearest == k] for k in range(3) if (nearest == k).sum() >= LEAST]
    shares = np.array([len(part) for part in parts]) / sum(map(len, parts))
    laws = [
        multivariate_t(part.mean(0), np.cov(part.T) * (FREEDOM - 2) / FREEDOM * 1.5, df=FREEDOM)
        for part in parts
    ]
    rng = np.random.default_rng([SEED, seed])
    counts = rng.multinomial(PROPOSALS, shares)
    x = np.concatenate([law.rvs(n, random_state=rng) for law, n in zip(laws, counts, strict=True)])
    proposal = np.logaddexp.reduce(
        [math.log(share) + law.logpdf(x) for law, share in zip(laws, shares, strict=True)]
    )
    wide = torch.from_numpy(x)
    log_w = (prior.log_prob(wide) + log_likelihood(wide)).numpy() - proposal
    w = np.exp(log_w - log_w.max())
    ess = w.sum() ** 2 / (w**2).sum()
    log_z = math.log(w.mean()) + log_w.max()
    return log_z, float(w.std() / w.mean() / math.sqrt(len(w))), ess / len(w)


def main() -> None:
    """Write one file for each problem, and print the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--problems", nargs="+", default=["xray", "phase"])
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.problems:
        matrix, truth, y = instrument(name)
        log_likelihood = observed(name, matrix, y).log_prob
        starts = np.random.default_rng(SEED).normal(scale=5, size=(20, D))
        top = peak(log_likelihood, np.concatenate([truth[None], starts]))
        (one, z, error, count), (two, z_two, error_two, count_two) = (
            rejected(log_likelihood, top, run) for run in (1, 2)
        )
        log_z, again = (math.log(modes.sum()) + top for modes in (z, z_two))
        other, other_error, efficiency = importance(log_likelihood, one, 3)
        joint = (count * z + count_two * z_two) / (count + count_two)
        mixed = np.random.default_rng(SEED).permutation(np.concatenate([one, two]))
        apart, level = sliced_wasserstein(one, two), sliced_wasserstein(one, mixed[:STORED])
        print(
            f"{name}: log Z {log_z:.4f} ± {error:.4f} of {count} prior draws, {again:.4f} ± "
            f"{error_two:.4f} of {count_two}, by importance {other:.4f} ± {other_error:.4f} "
            f"(efficiency {efficiency:.2f}); weights {z / z.sum()}, {z_two / z_two.sum()}; runs "
            f"{apart[0]:.3f} apart (max {apart[1]:.3f}), random half {level[0]:.3f} "
            f"({level[1]:.3f})",
            flush=True,
        )
        fields = {
            "operator": matrix, "data": y, "truth": truth, "draws": np.float32(one),
            "weights": joint / joint.sum(), "log_z": math.log(joint.sum()) + top,
        }  # fmt: skip
        with whole(asked.out / f"bipsda_{name}.h5", one.nbytes) as file:
            file.attrs["seed"] = SEED
            file.attrs["log_z_se"] = (error**-2 + error_two**-2) ** -0.5
            for key, value in fields.items():
                filters = {"compression": "gzip", "fletcher32": True} if np.ndim(value) else {}
                file.create_dataset(key, data=value, **filters)


if __name__ == "__main__":
    main()
