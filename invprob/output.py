"""posterior.h5: samples with weights, data and certificate in the ArviZ (netCDF-like) layout.

Groups `posterior/x (chain, draw, *x_shape)`, `sample_stats/{log_likelihood, log_weight}` and
`observed_data/y`; opens in ArviZ, xarray and plain h5py. Provenance and the certificate are
attributes of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invprob import obs_file
from invprob.certificate import Certificate
from invprob.draws import Draws
from invprob.observation import Observation

VERSION = 1


def write_posterior(
    path: Path,
    observation: Observation,
    draws: Draws,
    certificate: Certificate,
    provenance: Mapping[str, Any],
) -> None:
    """Write posterior.h5 whole or not at all; raises `RunError` when it cannot."""
    with obs_file.whole(path, draws.x.nbytes) as file:
        file.attrs.update(format=obs_file.POSTERIOR_FORMAT, version=VERSION)
        file.attrs.update({key: str(value) for key, value in provenance.items()})
        file.attrs["certificate"] = json.dumps(asdict(certificate))
        sizes = {f"x_dim_{i}": n for i, n in enumerate(draws.x.shape[1:])}
        posterior = file.create_group("posterior")
        _variable(posterior, "x", draws.x[None], ["chain", "draw", *sizes])
        posterior["x"].attrs["units"] = observation.unit
        stats = file.create_group("sample_stats")
        for name in ("log_likelihood", "log_weight"):
            _variable(stats, name, getattr(draws, name)[None], ["chain", "draw"])
        data = file.create_group("observed_data")
        _variable(data, "y", observation.data, [f"y_dim_{i}" for i in range(observation.data.ndim)])


def _variable(group: h5py.Group, name: str, values: Any, dims: list[str]) -> None:
    """Store an array with one dimension scale per axis, as netCDF-4 readers expect."""
    group.create_dataset(name, data=values, compression="gzip", fletcher32=True)
    for axis, dim in enumerate(dims):
        if dim not in group:
            group.create_dataset(dim, data=np.arange(values.shape[axis]))
            group[dim].make_scale(dim)
        group[name].dims[axis].attach_scale(group[dim])
