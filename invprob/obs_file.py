"""obs.h5, version 1: reading what may be hostile or damaged, writing what cannot end half-written.

    /data (*y_shape) or (N, *y_shape)    /noise_sigma () or (*y_shape)    /mask True = excluded
    /psf, /truth (optional)              /operator: parameters as attributes, arrays as datasets
    /noise: the same of a noise that is not Gaussian, which has no /noise_sigma
    root attributes: format, version, operator, unit, wcs_header, prior (a suggestion), truth_sigma,
    flux_scale, noise (absent: gaussian)

HDF5 can read foreign files (external storage, virtual datasets, links) and declare terabytes in a
kilobyte, so nothing is read before links, storage, dtype and size have been looked at.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from invprob import checkpoint
from operators.errors import ObservationError, RunError

__all__ = ["MAX_BYTES", "array", "as_json", "existing_file", "facts", "opened", "read", "write"]

FORMAT = "invprob-observation"
POSTERIOR_FORMAT = "invprob-posterior"  # of what `invprob.output` writes
VERSION = 1
MAX_BYTES = 2**31  # of one array in a file: more is refused before anything is read
ARRAYS = ("data", "noise_sigma", "mask", "truth")
TEXTS = ("operator", "prior", "unit", "wcs_header")
NUMBERS = {"truth_sigma": 0.0, "flux_scale": 1.0}  # and what they are where absent


def read(path: Path) -> dict[str, Any]:
    """Return the stored fields: arrays (None where absent), texts, and the dicts `parameters` and
    `noise_parameters`.

    Raises `ObservationError` naming what is wrong with the file.
    """
    with opened(path) as file:
        return _fields(file, path)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Give an HDF5 file to read; raises `ObservationError` naming what is wrong with it."""
    existing_file(path)
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        message = str(error)
        sizes = re.search(r"eof = (\d+),.*stored_eof = (\d+)", message)
        if sizes:
            said = f"truncated: {sizes[1]} of {sizes[2]} bytes; copy it again"
        elif "lock file" in message:
            said = "open elsewhere for writing: close it there, or wait until it is written"
        elif "signature not found" in message:
            said = "not an HDF5 file; `invprob import` and `invprob simulate` make one"
        else:
            said = f"damaged, or not readable: {message}"
        raise ObservationError(f"{path}: {said}") from error


def write(path: Path, fields: dict[str, Any]) -> None:
    """Write the fields that `read` returns, with checksums, to a temporary file, then rename it.

    Raises `RunError` when the folder is missing or unwritable; what was at `path` then stays.
    """
    with whole(path, fields["data"].nbytes) as file:
        _fill(file, fields)


@contextmanager
def whole(path: Path, size: int) -> Iterator[h5py.File]:
    """Give an HDF5 file to fill, of about `size` bytes, that appears at `path` whole or not at all.

    Raises `RunError` when the folder is missing or unwritable; what was at `path` then stays.
    """
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: the folder {path.parent} does not exist; create it")
    temporary = checkpoint.beside(path)
    try:
        with h5py.File(temporary, "w", libver="v110") as file:  # v110: metadata checksums too
            yield file
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error}; it needs a writable folder with "
            f"{size / 1e6:.1f} MB or more free"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def facts(path: str | Path) -> dict[str, Any]:
    """Return what an obs.h5 holds, as JSON-able facts; runs no operator and loads no torch."""
    stored = read(Path(path))
    data, sigma, mask, truth = (stored[key] for key in ARRAYS)
    kept = True if mask is None else ~mask.astype(bool)
    ranges = {
        name: [float(a[np.isfinite(a)].min()), float(a[np.isfinite(a)].max())]
        if a is not None and np.isfinite(a).any()
        else None
        for name, a in (("data_range", data), ("noise_sigma_range", sigma))
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        **{key: stored[key] for key in (*TEXTS, "flux_scale", "noise")},
        **{
            group: {
                key: {"shape": list(value.shape)} if isinstance(value, np.ndarray) else value
                for key, value in stored[group].items()
            }
            for group in ("parameters", "noise_parameters")
        },
        "data_shape": list(data.shape),
        **ranges,
        "masked": 0 if mask is None else int(np.count_nonzero(mask)),
        "not_finite": int(np.count_nonzero(~np.isfinite(data) & kept)),
        "truth_shape": None if truth is None else list(truth.shape),
    }


def existing_file(path: str | Path) -> Path:
    """Return `path`; raises `ObservationError` with the nearest match when it is not a file."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise ObservationError(f"{path} is a folder; needed a file")
    others = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, others, n=1)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
    raise ObservationError(f"no file {str(path)!r}{hint}")


def as_json(value: Any) -> str:
    """Return `value` as JSON, with arrays inside it as nested lists."""
    return json.dumps(value, default=np.ndarray.tolist)


def _fields(file: h5py.File, path: Path) -> dict[str, Any]:
    attributes = {key: _decode(value) for key, value in file.attrs.items()}
    found, version = attributes.get("format"), attributes.get("version")
    if found != FORMAT:
        raise ObservationError(
            f"{path} is HDF5 of format {found!r}; needed {FORMAT!r}: `invprob import` makes one"
        )
    if version != VERSION:
        raise ObservationError(
            f"{path} has format version {version}, this program reads {VERSION}: "
            "install a matching invprob"
        )
    arrays = {key: array(file, key, path) for key in ARRAYS}
    if arrays["data"] is None:
        raise ObservationError(f"{path} has no /data; store the observation there")
    parameters = _group(file, "operator", path)
    noise = str(attributes.get("noise", "gaussian"))
    given = {} if noise == "gaussian" else _group(file, "noise", path)
    psf = array(file, "psf", path)
    if psf is not None:
        parameters["psf"] = psf
    texts = {key: str(attributes.get(key, "")) for key in TEXTS}
    numbers = {key: attributes.get(key, absent) for key, absent in NUMBERS.items()}
    return {
        **arrays, **texts, **numbers, "parameters": parameters, "noise": noise,
        "noise_parameters": given,
    }  # fmt: skip


def _group(file: h5py.File, key: str, path: Path) -> dict[str, Any]:
    """Return what a group holds: attributes and arrays."""
    group = _item(file, key, path) if key in file else None
    if not isinstance(group, h5py.Group):
        raise ObservationError(f"{path} has no group /{key} with the {key}'s parameters")
    values = {name: _decode(value) for name, value in group.attrs.items()}
    return values | {name: array(group, name, path, "biufc") for name in group}


def _fill(file: h5py.File, fields: dict[str, Any]) -> None:
    file.attrs.update({"format": FORMAT, "version": VERSION})
    file.attrs.update({key: _encode(fields[key]) for key in (*TEXTS, *NUMBERS, "noise")})
    places = [(file, key, fields[key]) for key in ARRAYS if fields[key] is not None]
    groups = {"operator": fields["parameters"]}
    if fields["noise_parameters"]:
        groups["noise"] = fields["noise_parameters"]
    for name, values in groups.items():
        group = file.create_group(name)
        for key, value in values.items():
            if isinstance(value, np.ndarray):
                places.append((file if key == "psf" else group, key, value))
            else:
                group.attrs[key] = _encode(value)
    for place, key, value in places:
        filters = {"compression": "gzip", "fletcher32": True} if np.size(value) > 1 else {}
        place.create_dataset(key, data=value, **filters)


def _item(group: h5py.Group, key: str, path: Path) -> Any:
    """Return what is at `key`, unless that is a link to somewhere else: a file stands alone."""
    link = group.get(key, getlink=True)
    if isinstance(link, h5py.HardLink):
        return group[key]
    target = f"{getattr(link, 'filename', '')}:{getattr(link, 'path', '')}".lstrip(":")
    raise ObservationError(
        f"{path}: {group.name.rstrip('/')}/{key} is a link to {target}, which is refused: "
        "store the array in the file itself"
    )


def array(group: h5py.Group, key: str, path: Path, kinds: str = "biuf") -> NDArray[Any] | None:
    """Return the array at `key`, or None, once its storage, dtype and size look harmless."""
    if group.get(key, getlink=True) is None:
        return None
    item = _item(group, key, path)
    name = f"{path}: {group.name.rstrip('/')}/{key}"
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ObservationError(f"{name} is not an array; store one there")
    if item.external or item.is_virtual:
        raise ObservationError(f"{name} lies in another file, which is refused: store it inside")
    if item.dtype.kind not in kinds:
        raise ObservationError(
            f"{name} has dtype {item.dtype}; needed real numbers: convert it, or split complex "
            "values into real and imaginary parts"
        )
    size = max(math.prod(item.shape), math.prod(item.chunks or ())) * item.dtype.itemsize
    if size > MAX_BYTES:
        raise ObservationError(
            f"{name} declares {item.shape} {item.dtype}, {size / 2**30:.3g} GiB; at most "
            f"{MAX_BYTES / 2**30:.3g} GiB are read: cut it into smaller observations"
        )
    try:
        return np.asarray(item[()])
    except OSError as error:
        why = "fletcher32 mismatch" if item.fletcher32 else str(error)
        raise ObservationError(f"{name} is damaged ({why}): restore or copy the file") from error


def _encode(value: Any) -> Any:
    """Return an attribute: numbers and text as they are, the rest (and text like it) as JSON."""
    plain = isinstance(value, str) and value != "null" and value[:1] not in ("[", "{", '"')
    return value if plain or isinstance(value, bool | int | float) else as_json(value)


def _decode(value: Any) -> Any:
    """Return the value that `_encode` stored; what others wrote as text stays text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and (value == "null" or value[:1] in ("[", "{", '"')):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
