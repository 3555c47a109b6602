"""Noise models p(y | mean), where mean = A(x).

The folder is the registry: every module other than `base` is one model, named as its file.
"""

from operators.noise.base import NoiseModel
from operators.noise.gaussian import Gaussian
from operators.noise.poisson import Poisson
from operators.noise.poisson_gaussian import PoissonGaussian
from operators.noise.student_t import StudentT
from operators.noise.transmission import Transmission

__all__ = ["Gaussian", "NoiseModel", "Poisson", "PoissonGaussian", "StudentT", "Transmission"]
