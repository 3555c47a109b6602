"""posterior.h5: samples with weights, data and certificate in the ArviZ (netCDF-like) layout.

Groups `posterior/x (chain, draw, *x_shape)`, `sample_stats/{log_likelihood, log_weight}` and
`observed_data/y`; opens in ArviZ, xarray and plain h5py. Provenance and the certificate are
attributes of the file.

Samples pass through in batches, so that memory does not grow with their number: they are drawn to
a spool, their scores tell which of them to keep (correction), and those are copied to the file,
while their mean and spread are added up (Chan, Golub & LeVeque 1983,
doi:10.1080/00031305.1983.10483115, eq. 2.1).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from invprob import distributed, obs_file, registry
from invprob.certificate import Certificate, Scores
from invprob.draws import batch_size, known_correction
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.posterior import Posterior
from invprob.spool import Spool
from invprob.trajectory import Progress

VERSION = 1
SHOWN = 512  # samples kept for figures
CHUNK = 2**18  # bytes of x that are compressed together: fits the cache of HDF5
FILTERS = {"compression": "gzip", "fletcher32": True}


@dataclass
class Summary:
    """Mean and standard deviation of all samples, and the first `SHOWN` of them."""

    count: int = 0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    first: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, x: NDArray[np.float32]) -> None:
        """Take in samples (B, *x_shape)."""
        self.first.append(x[: max(0, SHOWN - self.count)].copy())
        new, mean = len(x), x.mean(0, dtype=float)
        apart, both = mean - self.mean, self.count + new
        self.squares = (
            self.squares + np.square(x - mean).sum(0) + apart**2 * (self.count * new / both)
        )
        self.mean, self.count = self.mean + apart * (new / both), both

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of all samples, (*x_shape)."""
        return np.sqrt(self.squares / self.count)

    @property
    def x(self) -> NDArray[np.float32]:
        """The first samples, (at most `SHOWN`, *x_shape)."""
        return np.concatenate(self.first)


def sample_to(
    path: Path,
    posterior: Posterior,
    n: int,
    seed: int = 0,
    correct: str = "auto",
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    oversample: int = 1,
) -> tuple[Certificate, Summary]:
    """Write n samples, corrected by one of `CORRECTIONS`, to posterior.h5.

    They are chosen from `oversample` times as many draws, all of which are on disk until then.
    Ranks share the batches. A sampling that was stopped goes on where it was when it is asked for
    once more. Returns the certificate and a summary of the samples. Raises RunError when the disk
    is full: what was drawn stays.
    """
    smc, total = known_correction(correct, oversample) == "smc", oversample * n
    prior, size = posterior.prior, batch_size(posterior.prior.x_shape)
    facts = {
        "policy": _digest(posterior.policy),
        "observation": posterior.observation.sha256(),
        "prior": [posterior.prior_name, registry.prior_digest(posterior.prior_name)],
        "seed": seed,
        "smc": smc,
        "device": prior.device.type,
        "precision": str(prior.precision),
    }
    spool = distributed.from_first(lambda: Spool.beside(path, facts))
    done = distributed.from_first(spool.done)
    for rows, draws in posterior.drawn(total, seed, progress, smc, done):
        spool.add(rows, draws)
    distributed.wait()

    def finish() -> tuple[Certificate, Summary]:
        scores = spool.scores(total, size, island=size if smc else 1)
        index, kept, certificate = posterior.corrected(scores, seed, correct, n)
        images = spool.images(index, total, size)
        summary = write_posterior(
            path, posterior.observation, kept, images, certificate, provenance or {}
        )
        spool.remove()
        return certificate, summary

    return distributed.from_first(finish)


def write_posterior(
    path: Path,
    observation: Observation,
    scores: Scores,
    images: Iterable[NDArray[np.float32]],
    certificate: Certificate,
    provenance: Mapping[str, Any],
) -> Summary:
    """Write posterior.h5 whole or not at all and return a summary of its samples.

    images: the samples x that the scores (n,) belong to, in pieces. Raises `RunError` when the
    file cannot be written.
    """
    summary, shape = Summary(), observation.operator.x_shape
    n, one = len(scores.chi2), 4 * math.prod(shape)
    with obs_file.whole(path, n * one) as file:
        file.attrs.update(format=obs_file.POSTERIOR_FORMAT, version=VERSION)
        file.attrs.update({key: str(value) for key, value in provenance.items()})
        file.attrs["certificate"] = json.dumps(asdict(certificate))
        posterior = file.create_group("posterior")
        x = posterior.create_dataset(
            "x", (1, n, *shape), "f4", chunks=(1, max(1, min(n, CHUNK // one)), *shape), **FILTERS
        )
        for some in images:
            x[0, summary.count : summary.count + len(some)] = some
            summary.add(some)
        x.attrs["units"] = observation.unit
        _scales(posterior, "x", ["chain", "draw", *(f"x_dim_{i}" for i in range(len(shape)))])
        stats = file.create_group("sample_stats")
        for name in ("log_likelihood", "log_weight"):
            stats.create_dataset(name, data=getattr(scores, name)[None], **FILTERS)
            _scales(stats, name, ["chain", "draw"])
        data = file.create_group("observed_data")
        data.create_dataset("y", data=observation.data, **FILTERS)
        _scales(data, "y", [f"y_dim_{i}" for i in range(observation.data.ndim)])
    return summary


def _scales(group: h5py.Group, name: str, dims: list[str]) -> None:
    """Give an array one dimension scale per axis, as netCDF-4 readers expect."""
    for axis, dim in enumerate(dims):
        if dim not in group:
            group.create_dataset(dim, data=np.arange(group[name].shape[axis]))
            group[dim].make_scale(dim)
        group[name].dims[axis].attach_scale(group[dim])


def _digest(policy: Policy) -> str:
    """Return the SHA-256 of a policy's weights."""
    digest = hashlib.sha256()
    for name, value in policy.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
