"""What all noise models p(y | mean) share, mean = A(x): pixels are independent, some are masked.

    log p(y | mean) = sum over kept pixels of log p(y_i | mean_i)
    score           = d log p / d mean
    information     = E_y[ score^2 | mean ],  Fisher's

A masked pixel carries no information: it adds nothing to any sum, its score and information are
zero, and whatever is stored there (NaN too) has no effect. A whitened residual is zero there, and
elsewhere of mean 0 and variance 1 under the model, so chi2 per kept pixel is expected to be 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators import _parameters
from operators.errors import ObservationError

__all__ = ["NoiseModel", "Pixelwise", "standard_normal"]


class NoiseModel(ABC):
    """Density and sampler of y given its noise-free mean; a subclass is a frozen dataclass.

    Its fields are `mask`, boolean `(*y_shape)`, True = excluded, or None, and parameters, each one
    number or a map `(*y_shape)`: finite and positive (or >= 0 where named in `may_be_zero`) at
    every pixel that is not masked. A number is kept as a float, a map as a float64 tensor that is 1
    under the mask. Raises `ObservationError`, naming the field, on other values, on shapes that
    differ, and on a mask that excludes everything. Device and dtype follow the mean's.
    """

    summary: ClassVar[str]
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    mask: Tensor | None

    def __post_init__(self) -> None:
        mask = None if self.mask is None else _tensor(self.mask, "mask")
        if mask is not None:
            if mask.dtype is not torch.bool:
                raise ObservationError(
                    f"mask has dtype {mask.dtype}; needed: bool, True where a pixel is excluded"
                )
            if bool(mask.all()):
                raise ObservationError("mask excludes every pixel; no data are left to fit")
        shape = None if mask is None else mask.shape
        for name in self.parameters():
            value = _tensor(getattr(self, name), f"noise {name}").double()
            if value.ndim and shape not in (None, value.shape):
                raise ObservationError(
                    f"noise {name} has shape {tuple(value.shape)} but another map or the mask "
                    f"{tuple(shape or ())}; all must have the shape of the data"
                )
            if value.ndim:
                shape = value.shape
                mask = None if mask is None else mask.to(value.device)
                value = value if mask is None else torch.where(mask, 1.0, value)
            self._refuse(name, value)
            object.__setattr__(self, name, value if value.ndim else float(value))
        object.__setattr__(self, "mask", mask)

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """Names of the fields other than the mask."""
        return tuple(f.name for f in _parameters.fields(cls) if f.name != "mask")

    @classmethod
    @abstractmethod
    def default(cls, peak: float) -> Self:
        """A sensible noise for data that peak at `peak` without it: what `simulate` uses."""

    @abstractmethod
    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of y, `(B, *y_shape)`, for each mean; where masked, what y expects."""

    @abstractmethod
    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density, (B,) float64, of y `(*y_shape)` or `(B, *y_shape)` given mean.

        `mean` is `(B, *y_shape)`; the sum over pixels is in float64. Differentiable in the mean.
        """

    @abstractmethod
    def expected_information(self, mean: Tensor) -> Tensor:
        """Fisher information of every pixel about its mean, `(B, *y_shape)`, not negative."""

    @abstractmethod
    def whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        """Residuals of mean 0 and variance 1 under the model, `(B, *y_shape)`."""

    def chi2(self, y: Tensor, mean: Tensor) -> Tensor:
        """Squared whitened residual per kept pixel, (B,) float64."""
        squares = self.whitened(y, mean).flatten(1).double().square().sum(1)
        return squares / self.count(tuple(mean.shape[1:]))

    def degrees(self, mean: Tensor) -> Tensor:
        """Degrees of freedom f of chi2 per kept pixel, (B,) float64: its variance is 2 / f.

        The number of kept pixels where residuals scatter as normal ones do.
        """
        count = float(self.count(tuple(mean.shape[1:])))
        return torch.full((len(mean),), count, dtype=torch.float64, device=mean.device)

    def misfit(self, y: Tensor, mean: Tensor) -> Tensor:
        """Minus `log_prob` up to a constant that depends on y alone, (B,) float64."""
        return -self.log_prob(y, mean)

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Gradient of `log_prob` with respect to `mean`, `(B, *y_shape)`, by autograd."""
        with torch.enable_grad():
            leaf = mean.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(y, leaf).sum(), leaf)
        return gradient

    def curvature(self, y: Tensor, mean: Tensor) -> Tensor:
        """Weight W of a quadratic model of -log p about the mean, `(B, *y_shape)`, not negative.

        Fisher's information (scoring), or what makes that model an upper bound.
        """
        return self.expected_information(mean)

    def expected(self, mean: Tensor) -> Tensor:
        """E[y | mean], `(B, *y_shape)`, in the data's unit: the mean itself for most models."""
        return mean

    def likeliest(self, y: Tensor) -> Tensor:
        """The mean under which y is likeliest, of y's shape."""
        return y

    def refuse_data(self, data: NDArray[Any]) -> None:  # noqa: B027  # most models take any number
        """Raise `ObservationError` on data that the model cannot give."""

    def count(self, y_shape: tuple[int, ...]) -> int:
        """Number of pixels of `y_shape` that are not masked."""
        self._check(tuple(y_shape))
        return math.prod(y_shape) if self.mask is None else int((~self.mask).sum())

    def kept(self, y_shape: tuple[int, ...]) -> Tensor:
        """Boolean `y_shape`, True at the pixels that are not masked."""
        self._check(tuple(y_shape))
        return torch.ones(y_shape, dtype=torch.bool) if self.mask is None else ~self.mask

    def config(self) -> dict[str, float | NDArray[np.float64]]:
        """The parameters, without the mask, as numbers or arrays; `from_config` inverts it."""
        values = {name: getattr(self, name) for name in self.parameters()}
        return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], mask: Tensor | None = None) -> Self:
        """The noise that `config` describes.

        Raises `ObservationError` naming a parameter that is unknown, missing or malformed.
        """
        _parameters.refuse_keys(cls, config, "mask")
        # every model is a dataclass of these fields and the mask, their base is not
        return cls(**config, mask=mask)  # type: ignore[call-arg]

    def _refuse(self, name: str, value: Tensor) -> None:
        """Raise on a value of a parameter that is not finite, or negative, or zero."""
        zero = name in self.may_be_zero
        bad = ~(torch.isfinite(value) & ((value >= 0) if zero else (value > 0)))
        if bool(bad.any()):
            first = tuple(int(i) for i in bad.nonzero()[0])
            where = f" at {int(bad.sum())} pixels, first {first}" if first else ""
            raise ObservationError(
                f"noise {name} is {float(value[first])}{where}; it must be "
                f"{'at least 0' if zero else 'positive'} and finite: correct it, or mask those "
                "pixels"
            )

    def _check(self, y_shape: tuple[int, ...]) -> None:
        maps = (self.mask, *(getattr(self, name) for name in self.parameters()))
        for own in maps:
            if isinstance(own, Tensor) and own.shape != y_shape:
                raise ObservationError(
                    f"noise {' or '.join((*self.parameters(), 'mask'))} has shape "
                    f"{tuple(own.shape)} but the data {y_shape}; give one number, or a map of the "
                    "data's shape"
                )

    def _check_pair(self, y: Tensor, mean: Tensor) -> None:
        self._check(tuple(mean.shape[1:]))
        if y.shape not in (mean.shape, mean.shape[1:]):
            raise ObservationError(
                f"y has shape {tuple(y.shape)}, the mean {tuple(mean.shape)}; "
                "y must have that shape, with or without the batch dimension"
            )


class Pixelwise(NoiseModel):
    """A model given by formulas of one pixel, which are evaluated in float64."""

    @abstractmethod
    def _log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """log p(y | mean) of every pixel."""

    @abstractmethod
    def _score(self, y: Tensor, mean: Tensor) -> Tensor:
        """d log p / d mean of every pixel."""

    @abstractmethod
    def _information(self, mean: Tensor) -> Tensor:
        """Fisher information of every pixel."""

    @abstractmethod
    def _whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        """Residual of mean 0 and variance 1 of every pixel."""

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """Normalised log density over the unmasked pixels, (B,) float64; see `NoiseModel`."""
        return self._kept_only(self._log_density(*self._wide(y, mean))).flatten(1).sum(1)

    def score(self, y: Tensor, mean: Tensor) -> Tensor:
        """Gradient of `log_prob` with respect to `mean`, `(B, *y_shape)`, in closed form."""
        return self._kept_only(self._score(*self._wide(y, mean))).to(mean.dtype)

    def expected_information(self, mean: Tensor) -> Tensor:
        """Fisher information of every pixel about its mean, `(B, *y_shape)`, not negative."""
        self._check(tuple(mean.shape[1:]))
        return self._kept_only(self._information(mean.double()).expand(mean.shape)).to(mean.dtype)

    def whitened(self, y: Tensor, mean: Tensor) -> Tensor:
        """Residuals of mean 0 and variance 1 under the model, `(B, *y_shape)`."""
        return self._kept_only(self._whitened(*self._wide(y, mean))).to(mean.dtype)

    def _wide(self, y: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """y and mean in float64, checked; y is what is expected where it is masked."""
        self._check_pair(y, mean)
        wide, y = mean.double(), y.to(dtype=torch.float64, device=mean.device)
        if self.mask is not None:
            y = torch.where(self.mask.to(mean.device), self.expected(wide).detach(), y)
        return y, wide

    def _given(self, like: Tensor) -> tuple[Tensor, ...]:
        """The parameters, `()` or `(*y_shape)` float64, on the device of `like`."""
        values = (getattr(self, name) for name in self.parameters())
        return tuple(torch.as_tensor(v, dtype=torch.float64, device=like.device) for v in values)

    def _kept_only(self, a: Tensor) -> Tensor:
        return a if self.mask is None else torch.where(self.mask.to(a.device), 0.0, a)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `like`.

    They are drawn where the generator is, so that the same seed gives the same on every device.
    """
    source = like.device if generator is None else generator.device
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=source)
    return drawn.to(like.device)


def _tensor(value: Any, field: str) -> Tensor:
    """`value` as a tensor; numpy arrays of any byte order are accepted."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ObservationError(f"{field} has dtype {array.dtype}; needed: real numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
