"""Draw the reference posteriors of the suite `levy` by Gibbs sampling and store them.

    python examples/levy_references.py invprob/suites/instances/levy

Every law is Gaussian given variances w of the increments x, so that both conditionals are exact
(Bohra et al. 2022, arXiv 2203.09920):

    x | w, y   Gaussian
    w | x      Gauss: fixed;  Student: inverse-gamma;  Laplace: generalised inverse Gaussian with
               index 1/2, which is an inverse Gaussian plus a gamma variable of shape 1/2
    Bernoulli-Laplace: w is switched on or off, one increment after the other, x integrated out

Chains start from draws of the prior, three times as wide. The file states the largest split R-hat
(Gelman et al. 2013, section 11.4) of the values of the process, of their squares and of the
log-likelihood, and the smallest effective sample size. Log Z comes by stepping stones (Xie et al.
2011, doi:10.1093/sysbio/syq085) through powers of the likelihood, each a Gibbs run of its own:

    Z = prod_k E[ L^(beta_(k+1) - beta_k) ]  under the posterior of L^beta_k

Upwards the estimate of log Z tends to be low, and downwards, by E[L^-(...)], high: their mean is
stored, and half their difference, or the scatter of groups of chains if larger, is its error.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from invprob.obs_file import whole
from invprob.path_weights import log_mean
from invprob.suites.levy import PROCESS, Levy, setting, simulated
from priors.increments import Laplace, Law, Student

Array = NDArray[np.float64]

BURN = 300
DRAWS = 2000  # kept, of all chains
POWERS = np.linspace(0, 1, 31) ** 5  # of the likelihood, denser at the prior
GROUPS = 4  # of chains, for the error of log Z
POWER_SWEEPS = (20, 60)  # of each power: left out, kept


def main() -> None:
    """Write one file a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    known = [name for name in Levy.names if not name.startswith("gauss")]
    parser.add_argument("--problems", nargs="+", choices=known, default=known)
    parser.add_argument("--chains", type=int, default=40, help=f"a divisor of {DRAWS}")
    parser.add_argument(
        "--thin", type=int, default=25, help="sweeps from one kept draw to the next"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.problems:
        write(asked.out / f"{name}.h5", name, asked.chains, asked.thin, asked.seed)


def write(path: Path, name: str, count: int, thin: int, seed: int) -> None:
    """Write the reference of one problem, from `count` chains."""
    prior, matrix, sigma = setting(name)
    truth, y = simulated(name)
    rng = np.random.default_rng([seed, Levy.names.index(name)])
    law, scale = prior.law, prior.scale
    chains = gibbs(law, matrix * scale, sigma, y, count, BURN, DRAWS // count * thin, rng) * scale
    process = chains @ PROCESS.T
    fit = -np.square((y - chains @ matrix.T) / sigma).sum(-1) / 2
    watched = np.concatenate([process, process**2, fit[..., None]], -1)
    thinned = slice(thin - 1, None, thin)
    kept = chains[:, thinned].reshape(-1, matrix.shape[1])
    rhat, ess, ess_kept = (
        split_rhat(watched).max(), effective(watched).min(), effective(watched[:, thinned]).min()
    )  # fmt: skip
    log_z, error = evidence(law, matrix * scale, sigma, y, count, rng)
    facts = {
        "seed": seed, "chains": count, "burn": BURN, "sweeps": chains.shape[1], "rhat": rhat,
        "ess": ess, "ess_kept": ess_kept, "log_z": log_z, "log_z_se": error,
    }  # fmt: skip
    with whole(path, kept.nbytes) as file:
        fields = {"samples": np.float16(rng.permutation(kept)), "data": y, "truth": truth}
        for key, value in fields.items():
            file.create_dataset(
                key, data=value, compression="gzip", compression_opts=9, shuffle=True,
                fletcher32=True,
            )  # fmt: skip
        file.attrs.update(facts)
    print(
        f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB: split R-hat {rhat:.4f}, ESS {ess:.0f}, "
        f"of the {len(kept)} kept draws {ess_kept:.0f}, log Z {log_z:.2f} ± {error:.2f}",
        flush=True,
    )


def gibbs(
    law: Law,
    matrix: Array,
    sigma: float,
    y: Array,
    chains: int,
    burn: int,
    sweeps: int,
    rng: np.random.Generator,
    power: float = 1.0,
) -> Array:
    """Return draws (chains, sweeps, d) of p(x) N(y; matrix x, sigma^2)^power, x of unit variance.

    Every sweep after the first `burn` is returned.
    """
    precision = power / sigma**2
    gram, pull = precision * matrix.T @ matrix, precision * matrix.T @ y
    x = 3 * law.draw(rng, (chains, matrix.shape[1]))
    on = x != 0
    out = np.empty((chains, sweeps, matrix.shape[1]))
    for i in range(-burn, sweeps):
        w = variances(law, x, on, rng)
        if isinstance(law, Laplace) and law.share < 1:
            on = switched(law.share, w, on, gram, pull, rng)
        x = gaussian(np.sqrt(w * on), gram, pull, rng)
        if i >= 0:
            out[:, i] = x
    return out


def variances(law: Law, x: Array, on: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Return w given x, shaped as x; from its prior where it is off."""
    if isinstance(law, Student):
        unit = (law.freedom - 2) / 2
        return (unit + x**2 / 2) / rng.gamma((law.freedom + 1) / 2, size=x.shape)
    if isinstance(law, Laplace):
        b, size = law.width, np.maximum(np.abs(x), 1e-12)  # zero has no inverse Gaussian
        given = rng.wald(b * size, size**2) + b**2 * rng.chisquare(1, x.shape)
        return np.where(on, given, 2 * b**2 * rng.exponential(size=x.shape))
    return np.ones_like(x)


def switched(
    share: float,
    w: Array,
    on: NDArray[np.bool_],
    gram: Array,
    pull: Array,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return which increments are on, (C, d): each drawn given the others, x integrated out.

    With S = noise + A diag(w on) A^T these hold K = A^T S^-1 A and h = A^T S^-1 y, which change by
    one rank with every switch.
    """
    root = np.sqrt(w * on)
    half = root[:, :, None] * gram
    known = torch.from_numpy(np.concatenate([half, (root * pull)[..., None]], -1))
    solved = torch.from_numpy(half).mT @ torch.cholesky_solve(known, cholesky(root, gram))
    k, h = gram - solved[..., :-1].numpy(), pull - solved[..., -1].numpy()
    return walk(np.log(share / (1 - share)), w, on.copy(), k, h, rng.random(on.shape))


@numba.njit  # type: ignore[untyped-decorator]
def walk(
    odds: float, w: Array, on: NDArray[np.bool_], k: Array, h: Array, uniform: Array
) -> NDArray[np.bool_]:
    """Return `on` after one pass over the increments of every chain; changes k and h as well."""
    for c in range(len(w)):
        for j in range(w.shape[1]):
            wj = w[c, j]
            left = 1 - wj * on[c, j] * k[c, j, j]  # what the increment itself explains: taken out
            tau, beta = k[c, j, j] / left, h[c, j] / left
            total = 1 + wj * tau
            logit = odds - math.log(total) / 2 + wj * beta**2 / total / 2
            new = uniform[c, j] * (1 + math.exp(-logit)) < 1
            if new == on[c, j]:
                continue
            change = wj if new else -wj
            factor, hj = change / (1 + change * k[c, j, j]), h[c, j]
            column = k[c, j].copy()
            for i in range(len(column)):  # plain loops: array expressions take long to compile
                h[c, i] -= factor * hj * column[i]
                for m in range(len(column)):
                    k[c, i, m] -= factor * column[i] * column[m]
            on[c, j] = new
    return on


def gaussian(root: Array, gram: Array, pull: Array, rng: np.random.Generator) -> Array:
    """Return x (C, d) given its standard deviations `root` (C, d), zero where x is off."""
    factor = cholesky(root, gram)
    mean = torch.cholesky_solve(torch.from_numpy(root * pull)[..., None], factor)
    noise = torch.from_numpy(rng.normal(size=(*root.shape, 1)))
    spread = torch.linalg.solve_triangular(factor.mT, noise, upper=True)
    return root * (mean + spread)[..., 0].numpy()


def cholesky(root: Array, gram: Array) -> torch.Tensor:
    """Return the Cholesky factor of 1 + diag(root) gram diag(root), (C, d, d)."""
    inner = np.eye(len(gram)) + root[:, :, None] * gram * root[:, None, :]
    return torch.linalg.cholesky(torch.from_numpy(inner))


def evidence(
    law: Law, matrix: Array, sigma: float, y: Array, chains: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return log Z and its error, by stepping stones in both directions."""
    burn, sweeps = POWER_SWEEPS
    fits = []
    for power in POWERS:
        x = gibbs(law, matrix, sigma, y, chains, burn, sweeps, rng, power)
        fits.append(norm.logpdf(y, x @ matrix.T, sigma).sum(-1))
    steps = np.diff(POWERS)

    def both(rows: slice) -> Array:
        """Return the estimates upwards and downwards from some of the chains."""
        pairs = zip(steps, fits[:-1], fits[1:], strict=True)
        ways = [
            (log_mean(step * low[rows].ravel()), -log_mean(-step * high[rows].ravel()))
            for step, low, high in pairs
        ]
        return np.sum(ways, axis=0)

    up, down = both(slice(None))
    groups = [both(slice(i, None, GROUPS)).mean() for i in range(GROUPS)]
    scatter = np.std(groups, ddof=1) / np.sqrt(GROUPS)
    return float(up + down) / 2, float(max(scatter, abs(up - down) / 2))


def split_rhat(draws: Array) -> Array:
    """Return the split R-hat of every quantity of draws (C, N, Q), (Q,)."""
    halves = np.concatenate(np.array_split(draws, 2, axis=1))
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    return np.sqrt(1 - 1 / halves.shape[1] + between / within)


def effective(draws: Array) -> Array:
    """Return the effective sample size of every quantity of draws (C, N, Q), (Q,).

    Autocorrelations of all chains about their common mean are summed up to the first pair whose
    sum is not positive (Geyer 1992, doi:10.1214/ss/1177011137).
    """
    chains, n, count = draws.shape
    sizes = np.empty(count)
    for q in range(count):
        centred = draws[..., q] - draws[..., q].mean()
        spectrum = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
        covariance = np.fft.irfft(spectrum.mean(0))[:n] / n
        pairs = (covariance / covariance[0])[: n // 2 * 2].reshape(-1, 2).sum(1)
        last = np.argmax(pairs <= 0) if (pairs <= 0).any() else len(pairs)
        sizes[q] = chains * n / max(2 * pairs[:last].sum() - 1, 1.0)
    return sizes


if __name__ == "__main__":
    main()
