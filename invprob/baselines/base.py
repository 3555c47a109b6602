"""What every training-free sampler is: a proposal on the shared kernel, with declared needs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invprob.likelihood import Likelihood, column
from invprob.trajectory import Noise, Propose
from operators.base import ForwardOperator
from operators.errors import UnknownName
from operators.noise import Gaussian, NoiseModel
from priors.base import Prior

POWER_ITERATIONS = 12  # their product bounds an eigenvalue from below, within some 10%
Limits = Mapping[str, tuple[float, float]]  # least and greatest value, of a setting


class Baseline(ABC):
    """A frozen dataclass of the method's own settings; a new method is one file with one class."""

    summary: ClassVar[str]
    needs_linear: ClassVar[bool] = False
    needs_svd: ClassVar[bool] = False  # of a linear operator, and noise of one sigma
    needs_gaussian: ClassVar[bool] = False  # noise
    needs_known_prior: ClassVar[bool] = False  # its score in closed form
    needs_pixels: ClassVar[bool] = False  # a prior whose states are x, turned and scaled
    needs_latent: ClassVar[bool] = False  # a prior on the codes of an autoencoder
    needs_gradient: ClassVar[bool] = True  # through the operator
    needs_network_gradient: ClassVar[bool] = True
    needs_training: ClassVar[bool] = False  # on simulated pairs, see `train`
    particles: ClassVar[bool] = False  # of SMC, resampled on the way; else independent samples
    step_size: ClassVar[str] = ""  # the setting that tuning may change
    paper: ClassVar[str] = ""  # settings of the paper, where ours differ: "steps=1000,..."
    # least and greatest that settings may be; of others whole numbers are at least 1, floats 0
    limits: ClassVar[Limits] = {}
    steps: int

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every method is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            least = {"steps": 2, "seed": 0}.get(field.name, int(isinstance(value, int)))
            low, high = self.limits.get(field.name, (least, math.inf))
            if not (low <= value <= high and math.isfinite(value)):
                most = f", at most {high:g}" if high < math.inf else ""
                raise UnknownName(
                    f"baseline setting '{field.name}={value}': needed at least {low:g}{most}"
                )

    @abstractmethod
    def propose(self, prior: Prior, likelihood: Likelihood) -> Propose:
        """Return this method as the sampler of one likelihood."""

    def times(self, prior: Prior) -> tuple[float, ...]:
        """Return the times the chain visits, 1 first and 0 last."""
        return prior.schedule.grid(self.steps)

    def train(self, prior: Prior, likelihood: Likelihood) -> float:
        """Learn what `propose` needs of a prior and an instrument; return the seconds it took.

        Methods that are training-free, which is all but the amortised ones, have nothing to learn.
        """
        return 0.0

    def lacks(self, prior: Prior, operator: ForwardOperator, noise: NoiseModel) -> str | None:
        """Return what the method needs and a problem does not have, None where it can run."""
        kind = type(operator).__name__
        if self.needs_known_prior and prior.learned:
            return "needs a prior known in closed form, this one is learned"
        if self.needs_pixels and not prior.isometric:
            return "needs a prior of x itself, this one decodes x from codes"
        if self.needs_latent and prior.isometric:
            return "needs a latent prior, this one is of x itself"
        if self.needs_latent and not prior.has_encoder:
            return "needs a latent prior with an encoder, this one is a generator alone"
        if self.needs_linear and not operator.linear:
            return f"needs a linear operator, {kind} is not"
        if self.needs_gradient and not operator.differentiable:
            return f"needs a gradient, {kind} has none"
        if self.needs_gaussian and not isinstance(noise, Gaussian):
            return f"needs Gaussian noise, this is {type(noise).__name__}"
        if self.needs_svd and not getattr(operator, "has_svd", False):
            return f"needs a singular value decomposition, {kind} has no cheap one"
        if self.needs_svd and common_sigma(operator, noise) is None:
            return "needs noise of one sigma on all that the operator sees, this has a map or mask"
        return None


def common_sigma(operator: ForwardOperator, noise: NoiseModel) -> float | None:
    """Return the sigma of Gaussian noise where it is one, and no datum is masked but by `operator`.

    None otherwise.
    """
    if not isinstance(noise, Gaussian):
        return None
    unseen = operator.data_mask
    kept = noise.kept(operator.y_shape)
    if bool((~kept if unseen is None else ~kept & ~unseen).any()):
        return None
    sigma = torch.as_tensor(noise.sigma).expand(operator.y_shape)[kept]
    return float(sigma[0]) if bool((sigma == sigma[0]).all()) else None


def misfit(prior: Prior, likelihood: Likelihood, clean: Tensor) -> Tensor:
    """Return |y - A x|^2 per item, (B,), over unmasked data, in the prior's model units."""
    residual = missing(likelihood, prior.decode(clean)) / prior.scale
    return residual.square().flatten(1).sum(1)


def missing(likelihood: Likelihood, x: Tensor) -> Tensor:
    """Return y - A x, (B, *y_shape), zero where masked, of x (B, *x_shape) in physical units.

    Where y is not in the unit of A x, as counts are not, the mean that is likeliest stands for it.
    """
    residual = likelihood.noise.likeliest(likelihood.y) - likelihood.operator(x)
    kept = likelihood.noise.kept(likelihood.operator.y_shape).to(residual.device)
    return torch.where(kept, residual, 0.0)


def misfit_slope(
    prior: Prior, likelihood: Likelihood, z: Tensor, t: float
) -> tuple[Tensor, Tensor]:
    """Return zhat_0(z_t) and the gradient in z_t of |y - A x(zhat_0)|, (B, *z_shape) each."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        clean = prior.denoise(leaf, t)
        norm = misfit(prior, likelihood, clean).sqrt()
        (gradient,) = torch.autograd.grad(norm.sum(), leaf)
    return clean.detach(), gradient


def flowed(
    prior: Prior, z: Tensor, t: float, evaluations: int, noise: Noise | None = None
) -> Tensor:
    """Return z_0 (B, *z_shape) by so many network evaluations from z_t, on the grid below t.

    A draw of the reverse chain where `noise` is given, else the end of the probability flow by DDIM
    (Song et al. 2021, arXiv 2010.02502).
    """
    if evaluations > 1:
        for u, v in pairwise(t * w for w in prior.schedule.grid(evaluations)):
            kernel = prior.schedule.kernel(u, v, eta=1.0 if noise else 0.0)
            z = kernel.mean(z, prior.denoise(z, u))
            if noise:
                z = z + kernel.variance**0.5 * noise()
        t = 0.0
    return prior.denoise(z, t)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return that of a symmetric, not negative map on (B, ...), per item, (B,) float64.

    By power iteration, from one vector for all items.
    """
    source = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape[1:], generator=source).to(like)
    v = (start / start.norm()).expand_as(like)
    size = torch.ones(len(like), dtype=torch.float64, device=like.device)
    for _ in range(POWER_ITERATIONS):
        turned = product(v)
        size = turned.flatten(1).double().norm(dim=1)
        v = turned / column(size.clamp(min=torch.finfo(like.dtype).tiny), turned)
    return size


def time_travel(grid: tuple[float, ...], jump: int, walks: int) -> tuple[float, ...]:
    """Return the times of a grid, every block of `jump` of them walked `walks` times."""
    path = [grid[0]]
    for start in range(0, len(grid) - 1, jump):
        block = grid[start + 1 : start + 1 + jump]
        path += [*block, *(walks - 1) * (grid[start], *block)]
    return tuple(path)
