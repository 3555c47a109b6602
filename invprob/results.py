"""Results of methods: kept in files, so that a comparison goes on where it stopped, and averaged.

<folder>/<digest of what was asked>.npz holds the samples with their scores and, as JSON, the row.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from invprob import __version__, checkpoint
from invprob.certificate import Certificate
from invprob.draws import Draws

Scores = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Result:
    """One method on one observation; `scores` are the keys of its row."""

    name: str
    draws: Draws
    certificate: Certificate
    scores: Scores
    errors: Scores = field(default_factory=dict)  # standard errors, where they are known


def kept(folder: Path | None, asked: dict[str, Any], run: Callable[[], Result]) -> Result:
    """Return the result stored for what is asked, or that of `run`, which is then stored.

    asked: JSON-able, all that decides the result. A file that cannot be read is made again.
    """
    if folder is None:
        return run()
    text = json.dumps({**asked, "version": __version__}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    known = _read(path)
    if known is not None:
        return known
    result = run()
    folder.mkdir(parents=True, exist_ok=True)
    row = {
        "name": result.name,
        "scores": result.scores,
        "errors": result.errors,
        "certificate": asdict(result.certificate),
    }
    arrays = {f.name: np.asarray(getattr(result.draws, f.name)) for f in fields(Draws)}
    file = io.BytesIO()
    np.savez(file, **arrays | {"row": np.array(json.dumps(row))})  # type: ignore[arg-type]
    checkpoint.replace(path, file.getvalue())
    return result


def averaged(results: Sequence[Result], seeds: int = 1) -> dict[str, Any]:
    """Return the row of one method over its observations and seeds: means, and "se" of each.

    results: all seeds of the first observation, then of the next. Seeds tell nothing of other
    data, so with several observations errors are those of the means of each. Of one result alone
    they are its own, those of its samples. A score that one result does not have is not defined.
    """
    first = results[0]
    row: dict[str, Any] = {"name": first.name}
    errors: Scores = dict(first.errors)
    for key in first.scores:
        values = [one.scores[key] for one in results]
        known = [value for value in values if value is not None]
        complete = len(known) == len(values)
        row[key] = float(np.mean(known)) if complete else None
        if len(results) > 1:
            errors[key] = _spread(known, seeds) if complete else None
    return row | {"se": {key: error for key, error in errors.items() if error is not None}}


def _spread(values: list[float], seeds: int) -> float:
    """Return the standard error of the mean: over observations, or over seeds of one alone."""
    means = np.reshape(values, (-1, seeds)).mean(1) if len(values) > seeds else np.array(values)
    return float(means.std(ddof=1) / len(means) ** 0.5)


def _read(path: Path) -> Result | None:
    """Return a stored result, None where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            row = json.loads(str(file["row"]))
            columns: dict[str, Any] = {f.name: file[f.name] for f in fields(Draws)}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    draws = Draws(**columns | {"island": int(columns["island"])})
    certificate = Certificate(**row["certificate"])
    return Result(row["name"], draws, certificate, row["scores"], row["errors"])
