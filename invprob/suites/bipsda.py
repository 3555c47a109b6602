"""Three modes in ten dimensions under three instruments (Crafts & Villa 2025, arXiv 2503.03007).

    p(x) = 0.4 N(-5, I) + 0.3 N(0, I) + 0.3 N(5, I),   the means constant over the dimensions

    half, one   some pixels are seen with Gaussian noise, the others are dropped
    xray        y ~ Poisson(1000 exp(-A (x + 10))): 15 rays, A uniform in 0.01 to 0.05
    phase       y ~ N((A x)^2, 25^2): 5 squared projections, A standard normal

Which pixels are seen, and their noise, are ours: `one` keeps one pixel under noise so strong that
all three modes stay likely. Of the other two the matrices and the noise are the authors', from
their code; the data are ours, and so are the unit covariances (theirs grow to 2 in two modes). The
likelihood of `phase` is even, so its posterior keeps both outer modes in the prior's ratio 4 : 3.

Posteriors under `xray` and `phase` have no closed form. Exact draws, made by rejection from the
prior (`examples/make_references.py`), are stored with their evidence. One problem is one file:

    operator (dy, d)   data (dy,)   truth (d,)   draws (N, d)   weights (3,)   log_z ()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from invprob.likelihood import Likelihood
from invprob.suites.base import Array, Problem, Sampled, Suite, linear_problem, read_fields
from operators.base import ForwardOperator
from operators.linear import Linear
from operators.noise import Gaussian, NoiseModel, Poisson
from priors.gaussian_mixture import GaussianMixture

D = 10
SEEN = {"half": (tuple(range(0, D, 2)), 1.0), "one": ((0,), 5.0)}  # pixels, noise sigma
FOLDER = Path(__file__).parent / "references"
SHAPES = {"operator": 2, "data": 1, "truth": 1, "draws": 2, "weights": 1, "log_z": 0}  # dimensions


class Bipsda(Suite):
    """Inpainting with half of the pixels seen or one, x-ray transmission, and phase retrieval."""

    summary = "three modes in ten dimensions: inpainting, x-ray counts, phase retrieval (BIPSDA)"
    names = (*SEEN, "xray", "phase")

    def load(self, name: str) -> Problem:
        """Return the problem of one instrument, the data of inpainting drawn from seed 10."""
        prior = mixture()
        if name not in SEEN:
            stored = read_fields(FOLDER / f"bipsda_{name}.h5", SHAPES)
            likelihood = observed(name, stored["operator"], stored["data"])
            return Sampled(
                f"bipsda/{name}", prior, likelihood, float(stored["log_z"]), stored["draws"],
                stored["weights"],
            )  # fmt: skip
        pixels, sigma = SEEN[name]
        rng = np.random.default_rng(D)
        matrix = np.eye(D)[list(pixels)]
        truth = rng.normal(size=D)  # of the mode at 0
        y = matrix @ truth + sigma * rng.normal(size=len(pixels))
        return linear_problem(f"bipsda/{name}", prior, matrix, sigma, y)


def mixture() -> GaussianMixture:
    """Return the prior of all problems."""
    return GaussianMixture(np.outer([-5.0, 0.0, 5.0], np.ones(D)), np.array([0.4, 0.3, 0.3]))


def observed(name: str, matrix: Array, y: Array) -> Likelihood:
    """Return the likelihood of data y (dy,) through the instrument `xray` or `phase`."""
    operator: ForwardOperator = Transmission(matrix) if name == "xray" else Squared(matrix)
    return Likelihood(operator, noise(name), torch.from_numpy(y[None]).float())


def noise(name: str) -> NoiseModel:
    """Return the noise of the instrument `xray` or `phase`."""
    return Poisson(1000.0) if name == "xray" else Gaussian(25.0)


@dataclass(frozen=True, eq=False)
class Projections(ForwardOperator):
    """A function of the projections of x on the rows of a matrix (dy, d)."""

    default_prior: ClassVar[str] = "gaussian_mixture"
    matrix: Array

    @classmethod
    def default(cls, x_shape: tuple[int, ...]) -> Self:
        """The matrix of `linear`."""
        return cls(Linear.default(x_shape).matrix)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one unknown."""
        return self.matrix.shape[1:]

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.matrix.shape[:1]

    @property
    def _matrix(self) -> Tensor:
        return torch.from_numpy(self.matrix)


class Transmission(Projections):
    """Share of the light that is left after an absorption of x + 10: exp(-A (x + 10))."""

    summary: ClassVar[str] = "transmission of rays"

    def _forward(self, x: Tensor) -> Tensor:
        return (-(x + 10) @ self._table("_matrix", x).T).exp()


class Squared(Projections):
    """Squared projections (A x)^2, whose signs are lost."""

    summary: ClassVar[str] = "squared projections"

    def _forward(self, x: Tensor) -> Tensor:
        return (x @ self._table("_matrix", x).T).square()
