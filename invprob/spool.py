"""Batches of samples on disk, before they are one file: sampling in constant memory that resumes.

Every batch is a file of its own, whole or absent, so a kill at any moment loses at most the batch
in hand, and it does not matter which process draws which. Batches are the same however often the
sampling was stopped: the samples of an uninterrupted one, bit by bit (on one machine, at one
number of threads).
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invprob import checkpoint
from invprob.certificate import Scores
from invprob.draws import Draws
from invprob.trajectory import batches
from operators.errors import RunError

SCORES = tuple(f.name for f in fields(Scores) if f.name != "island")


@dataclass(frozen=True)
class Spool:
    """The batches of one sampling, in `folder`."""

    folder: Path

    @classmethod
    def beside(cls, file: Path, facts: Mapping[str, Any]) -> Spool:
        """Return the spool of the output `file`; batches made from other facts are thrown away."""
        text = json.dumps(facts, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        spool = cls(file.with_name(f".{file.name}.{digest}.batches"))
        for folder in file.parent.glob(f".{glob.escape(file.name)}.{'?' * len(digest)}.batches"):
            if folder != spool.folder:
                shutil.rmtree(folder, ignore_errors=True)
        spool.folder.mkdir(parents=True, exist_ok=True)
        return spool

    def done(self) -> set[range]:
        """Return the rows of every batch that is there."""
        names = [path.stem.split("-") for path in self.folder.glob("[0-9]*.npz")]
        return {range(int(start), int(stop)) for start, stop in names}

    def add(self, rows: range, draws: Draws) -> None:
        """Store the samples of these rows; raises RunError where the disk is full."""
        self._refuse_gone()
        buffer = io.BytesIO()
        np.savez(buffer, x=draws.x, **{name: getattr(draws, name) for name in SCORES})
        checkpoint.replace(self._file(rows), buffer.getvalue())

    def scores(self, n: int, size: int, island: int) -> Scores:
        """Return the scores of samples 0..n-1, drawn in batches of `size`."""
        parts = [self._read(rows, SCORES) for rows in batches(n, size)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in SCORES}
        return Scores(**columns, island=island)

    def images(self, index: NDArray[np.int64], n: int, size: int) -> Iterator[NDArray[np.float32]]:
        """Yield the samples x of the ascending `index`, at most `size` at a time."""
        for rows in batches(n, size):
            first, last = np.searchsorted(index, (rows.start, rows.stop))
            here = index[first:last] - rows.start
            if len(here):
                x = self._read(rows, ("x",))["x"]
                for some in batches(len(here), size):
                    yield x[here[some]]

    def remove(self) -> None:
        """Delete the batches."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse_gone(self) -> None:
        """Raise RunError where another sampling of the same output took its place."""
        if not self.folder.is_dir():
            raise RunError(
                f"{self.folder} was removed: another sampling has begun, or ended, that writes the "
                "same file. Give each an --out of its own"
            )

    def _file(self, rows: range) -> Path:
        return self.folder / f"{rows.start}-{rows.stop}.npz"

    def _read(self, rows: range, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        path = self._file(rows)
        self._refuse_gone()
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            path.unlink(missing_ok=True)
            raise RunError(
                f"{path} is damaged ({error}) and was removed: the same command draws it again"
            ) from error
