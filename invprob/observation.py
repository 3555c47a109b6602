"""One observation: the data, the instrument that made them and their noise, checked together.

    y ~ p(y | A(x)),   independently at every point that is not masked: N(A(x), noise_sigma^2), or
                       any other noise model

Everything downstream takes an `Observation`, so bad data stop here, with what to do about them.
Importing this module loads no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from invprob import obs_file, registry
from operators.errors import ObservationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from operators.base import ForwardOperator
    from operators.noise import NoiseModel

__all__ = ["Observation", "check_finite", "real_array"]

log = logging.getLogger("invprob")

SINGLE = np.finfo(np.float32)  # what inference computes in
GAUSSIAN = "gaussian"  # the noise of an observation that names no other


@dataclass(frozen=True, eq=False)
class Observation:
    """Data of one instrument, checked: what is wrong with them raises `ObservationError`.

    data: `(*y_shape)`, or `(N, *y_shape)` for N observations; float32 or float64. Integers are
        converted. Finite and not constant where not masked.
    noise_sigma: standard deviation in the data's unit, a number or `(*y_shape)`, of Gaussian noise.
    noise_model: the noise where it is another; its own mask is added to the observation's. A
        Gaussian one becomes `noise_sigma`.
    mask: boolean `(*y_shape)`, True = excluded, or None. The operator's `data_mask` is added to it
        in `noise`.
    truth: `(*x_shape)` or `(N, *x_shape)`, where x is known; `truth_sigma`: standard deviation of
        the noise that this truth has of its own, as a telescope's image does.
    prior: name of a suggested prior. unit, wcs_header: of the data, carried along. flux_scale: what
        the data were multiplied by to bring them to the prior's unit; recorded, used nowhere.
    """

    operator: ForwardOperator
    data: NDArray[Any]
    noise_sigma: float | NDArray[Any] | None = None
    mask: NDArray[np.bool_] | None = None
    truth: NDArray[Any] | None = None
    prior: str = ""
    unit: str = ""
    wcs_header: str = ""
    truth_sigma: float = 0.0
    noise_model: NoiseModel | None = None
    flux_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_sigma is None and self.noise_model is None:
            raise ObservationError(
                "noise_sigma is missing, and the noise is mandatory: give its standard deviation "
                "in the data's unit, one number or a map of the data's shape, or a noise_model"
            )
        if self.noise_sigma is not None and self.noise_model is not None:
            raise ObservationError("noise_sigma and noise_model are both given: leave one out")
        given, model = self.noise_sigma, self.noise_model
        if model is not None and registry.name_of(type(model)) == GAUSSIAN:
            given = model.config()["sigma"]
        sigma = None if given is None else real_array("noise_sigma", given)
        fields: dict[str, Any] = {
            "data": real_array("data", self.data),
            "noise_sigma": sigma if sigma is None or sigma.ndim else float(sigma),
            "mask": None if self.mask is None else _boolean("mask", self.mask),
            "truth": None if self.truth is None else real_array("truth", self.truth),
            "noise_model": model if sigma is None else None,
        }
        if model is not None and model.mask is not None:
            added = model.mask.cpu().numpy()
            fields["mask"] = added if fields["mask"] is None else added | fields["mask"]
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        name, y_shape, x_shape = self.name, self.operator.y_shape, self.operator.x_shape
        _check_shape("data", self.data, y_shape, f"{name} gives")
        if self.mask is not None and self.mask.shape != y_shape:
            raise ObservationError(
                f"mask has shape {self.mask.shape}; needed {y_shape}, that of one observation"
            )
        self.noise.count(y_shape)  # raises on a map of another shape
        self._check_values()
        own = self.truth_sigma
        if not isinstance(own, float | int) or not 0 <= own < np.inf:
            raise ObservationError(f"truth_sigma is {own!r}; needed a number of at least 0")
        scale = self.flux_scale
        if not isinstance(scale, float | int) or not 0 < scale < np.inf:
            raise ObservationError(f"flux_scale is {scale!r}; needed a positive number")
        if self.truth is not None:
            _check_shape("truth", self.truth, x_shape, f"{name} takes")
            check_finite("truth", self.truth, "replace them, or leave the truth out")

    @classmethod
    def read(cls, path: str | Path, operator: str | None = None, prior: str | None = None) -> Self:
        """Return the observation in an obs.h5.

        operator: `file.py:Class` when the file was made with a user's own operator. That runs
            `file.py`; a name stored in the observation never does. prior: the one that is used
            whatever the file suggests.
        """
        stored = obs_file.read(Path(path))
        name = stored.pop("operator")
        given = operator or name
        if ":" in name and operator is None:
            raise ObservationError(
                f"{path} was made with the operator {name}; code is not run because a file names "
                f"it: if you trust that code, pass --operator path/to/{name}"
            )
        if ":" in stored["prior"]:
            if prior is None:
                log.warning(
                    "%s suggests the prior %s, which is ignored: if you trust that code, pass "
                    "--prior path/to/%s", path, stored["prior"], stored["prior"],
                )  # fmt: skip
            stored["prior"] = ""
        noise, given_noise = stored.pop("noise"), stored.pop("noise_parameters")
        if noise != GAUSSIAN:
            stored["noise_model"] = registry.noise_class(noise).from_config(given_noise)
        cls_ = registry.operator_class(given)
        if registry.name_of(cls_).replace("-", "_") != name.replace("-", "_"):
            raise ObservationError(
                f"{path} was made with the operator {name}, not {given}: leave --operator out, or "
                "import the data again for that operator"
            )
        try:
            return cls(operator=cls_.from_config(stored.pop("parameters")), **stored)
        except ObservationError as error:
            raise ObservationError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write an obs.h5; raises `RunError` when it cannot, and then leaves `path` as it was."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        model = fields.pop("noise_model")
        fields |= {
            "operator": self.name,
            "parameters": self.operator.config(),
            "noise": self.noise_name,
            "noise_parameters": {} if model is None else model.config(),
        }
        obs_file.write(Path(path), fields)

    @property
    def name(self) -> str:
        """Name of the operator, or `file.py:Class` of a user's own."""
        return registry.name_of(type(self.operator))

    @property
    def noise_name(self) -> str:
        """Name of the noise model."""
        return GAUSSIAN if self.noise_model is None else registry.name_of(type(self.noise_model))

    @cached_property
    def noise(self) -> NoiseModel:
        """Noise model with the mask and the operator's `data_mask` united."""
        import torch

        from operators.noise import Gaussian

        mask = self.operator.data_mask
        if self.mask is not None:
            own = torch.tensor(self.mask)
            mask = own if mask is None else own | mask.cpu()
        if self.noise_model is not None:
            return type(self.noise_model).from_config(self.noise_model.config(), mask)
        sigma = self.noise_sigma
        return Gaussian(sigma if isinstance(sigma, float) else torch.tensor(sigma), mask)

    @cached_property
    def y(self) -> Tensor:
        """The data, `(N or 1, *y_shape)` float32; zero where not finite in it (all masked)."""
        import torch

        with np.errstate(over="ignore"):
            data = np.nan_to_num(self.data.astype(np.float32), nan=0, posinf=0, neginf=0)
        return torch.from_numpy(data.reshape(-1, *self.operator.y_shape))

    def one(self, index: int) -> Self:
        """Return one of several observations; raises ObservationError where there is none."""
        several = self.data.ndim > len(self.operator.y_shape)
        count = len(self.data) if several else 1
        if not 0 <= index < count:
            raise ObservationError(f"no observation {index}: there are {count}, counted from 0")
        if not several:
            return self
        own = self.truth is not None and self.truth.ndim > len(self.operator.x_shape)
        truth = self.truth[index] if own and self.truth is not None else self.truth
        return dataclasses.replace(self, data=self.data[index], truth=truth)

    def each(self) -> Iterator[Self]:
        """Yield the observations one by one."""
        several = self.data.ndim > len(self.operator.y_shape)
        for index in range(len(self.data) if several else 1):
            yield self.one(index)

    def sha256(self) -> str:
        """Return the digest of all that bears on inference: operator, data, noise and mask."""
        digest = hashlib.sha256(self.name.encode())
        facts: dict[str, Any] = {"data": self.data, "mask": self.mask}
        if self.noise_model is None:
            facts["noise_sigma"] = self.noise_sigma
        else:
            facts["noise"] = self.noise_name
            facts |= {f"noise.{k}": v for k, v in self.noise_model.config().items()}
        own = {f"operator.{k}" if k in facts else k: v for k, v in self.operator.config().items()}
        for key, value in sorted((facts | own).items()):
            digest.update(key.encode())
            if isinstance(value, np.ndarray):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            else:
                digest.update(obs_file.as_json(value).encode())
        return digest.hexdigest()

    def truth_sha256(self) -> str:
        """Return the digest of what scores against the truth rest on."""
        digest = hashlib.sha256(repr(self.truth_sigma).encode())
        if self.truth is not None:
            digest.update(np.ascontiguousarray(self.truth, float).tobytes())
        return digest.hexdigest()

    def _check_values(self) -> None:
        """Raise on values that are not finite, or all the same, where nothing masks them."""
        mask = self.noise.mask
        kept = np.ones(self.operator.y_shape, bool) if mask is None else ~mask.numpy()
        batch = self.data.reshape(-1, *self.operator.y_shape)
        check_finite(
            "data", np.where(kept, batch, 0).reshape(self.data.shape), "mask them (mask = True)"
        )
        values = batch[:, kept]
        _check_range("data", np.abs(values), 0.0, "value")
        if self.noise_sigma is not None:
            sigma = np.broadcast_to(np.asarray(self.noise_sigma, float), kept.shape)[kept]
            with np.errstate(over="ignore", divide="ignore"):
                _check_range("noise_sigma", sigma**-2, float(SINGLE.tiny), "1 / sigma^2")
        self.noise.refuse_data(values)
        if values.shape[1] > 1 and (values == values[:, :1]).all(axis=1).any():
            raise ObservationError(
                f"data are constant ({values[0, 0]:g}) at all {values.shape[1]} unmasked points; "
                "they say nothing about x: check the file that they came from"
            )


def real_array(name: str, value: Any) -> NDArray[Any]:
    """Return a read-only native float32 or float64 copy of real numbers of any size or order."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        kind = {"c": "complex", "O": "object", "S": "text", "U": "text"}.get(array.dtype.kind, "")
        raise ObservationError(
            f"{name} has dtype {array.dtype}{f' ({kind})' if kind else ''}; needed real numbers: "
            + ("split it into real and imaginary parts" if kind == "complex" else "convert it")
        )
    if array.size == 0:
        raise ObservationError(f"{name} is empty: it has shape {array.shape}")
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    array = np.array(array, dtype=np.float32 if single else np.float64)
    array.setflags(write=False)
    return array


def _check_range(name: str, array: NDArray[Any], least: float, what: str) -> None:
    """Raise `ObservationError` on positive numbers that float32, which inference uses, lacks."""
    beyond = array[(array < least) | (array > SINGLE.max)]
    if beyond.size:
        raise ObservationError(
            f"{name}: {beyond.size} pixels have a {what} such as {beyond[0]:.3g}, out of the range "
            "of float32: rescale data and noise alike to a unit in which they are about 1 (import "
            "--flux-scale), or mask these pixels"
        )


def _boolean(name: str, value: Any) -> NDArray[np.bool_]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ObservationError(
            f"{name} has dtype {array.dtype} and values other than 0 and 1; needed: bool, True "
            "where a pixel is excluded"
        )
    return array.astype(bool)


def _check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...], whose: str) -> None:
    if shape not in (array.shape, array.shape[1:]):
        raise ObservationError(
            f"{name} has shape {array.shape} but {whose} {shape}: crop or pad it to that shape (a "
            "leading N for several is fine), or set the operator's shape to fit"
        )


def check_finite(name: str, array: NDArray[Any], cure: str) -> None:
    """Raise `ObservationError` with the number of values that are not finite, and the first."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ObservationError(
            f"{name} has {int(bad.sum())} values that are NaN or infinite, first at {first}: {cure}"
        )
