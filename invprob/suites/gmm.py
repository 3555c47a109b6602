"""The 25-mode mixtures of Cardoso et al. (2023, arXiv 2308.07983, section 4), from stored files.

Modes at (-8i, -8j), i, j in -2..2, repeated over d dimensions, unit covariance, weights ~ squared
normals; A = U diag(s) V^T with sorted uniform s, sigma uniform between 0 and max s. The instances
are stored (singular vectors differ in sign between machines); `examples/make_instances.py` draws
others. One instance is one HDF5 file:

    means (K, d)   weights (K,)   operator (dy, d)   noise_sigma ()   data (dy,)   truth (d,)
"""

from __future__ import annotations

from pathlib import Path

from invprob.suites.base import Mixture, Suite, linear_problem, read_fields
from operators.errors import ObservationError
from priors.gaussian_mixture import GaussianMixture

FOLDER = Path(__file__).parent / "instances"
SHAPES = {"means": 2, "weights": 1, "operator": 2, "noise_sigma": 0, "data": 1}  # dimensions
STEPS = 100  # of the chain: the oracle then lies near the floor, and d = 8 costs seconds


class GMM(Suite):
    """Every stored instance; a name is d, dy and the seed it was drawn from."""

    summary = "25 modes in d = 8, 80, 800 dimensions, 1, 2 or 4 of them observed (MCGDiff)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored instances, by dimension, data and seed."""
        return tuple(sorted((f.stem for f in FOLDER.glob("*.h5")), key=_numbers))

    def load(self, name: str) -> Mixture:
        """Return the problem of one stored instance."""
        return read_instance(FOLDER / f"{name}.h5", f"gmm/{name}")


def read_instance(path: Path, name: str = "") -> Mixture:
    """Return the problem that a file of this format holds.

    Raises ObservationError naming the field that is missing, malformed or not finite.
    """
    fields = read_fields(path, SHAPES)
    try:
        prior = GaussianMixture(fields["means"], fields["weights"], steps=STEPS)
        sigma = float(fields["noise_sigma"])
        return linear_problem(name or path.stem, prior, fields["operator"], sigma, fields["data"])
    except ObservationError as error:
        raise ObservationError(f"{path}: {error}") from error


def _numbers(name: str) -> tuple[int, ...]:
    """Return the numbers in a name such as d8_dy1_s0."""
    return tuple(int("".join(filter(str.isdigit, part))) for part in name.split("_"))
