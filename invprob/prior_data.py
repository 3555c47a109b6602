"""Images that a prior is trained on: drawn by a simulator, or read from files.

A simulator is a function `draw(rng, size) -> (size, size)`: one of `priors/simulators` by its name,
or the user's own as `file.py:function`. Image i under a seed is the same for any number of images
and processes. Files are an .npy, HDF5 or FITS array (n, H, W), or a folder of images (.npy, FITS,
PNG, JPEG, TIFF), which are averaged over colours, binned and cut to the size asked for;
`a.fits[2]` is HDU 2.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from invprob import registry
from invprob.fits import read_fits_image, read_image
from invprob.obs_file import array, opened
from operators.errors import ObservationError

if TYPE_CHECKING:
    from invprob.trajectory import Progress

Images = NDArray[np.float32]
Draw = Callable[[np.random.Generator, int], NDArray[Any]]

CHUNK = 64  # images that a process draws at a time
FITS = (".fits", ".fit", ".fits.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LEAST = 64  # images: fewer are no training set


@dataclass(frozen=True, eq=False)
class Split:
    """Images to train on and images held out, each (n, H, W)."""

    train: Images
    held_out: Images


def split(
    data: str,
    size: int | None,
    pool: int,
    held_out: int,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> Split:
    """Return the images of `data`: `pool` and `held_out` drawn, or a file's, shuffled and divided.

    Of a file's images at most a tenth is held out. Raises `ObservationError` on images that do not
    fit, `UnknownName` on a simulator that does not exist.
    """
    if is_simulator(data):
        drawn = partial(simulated, data, size=size or 64, workers=workers, progress=progress)
        return Split(drawn(n=pool, seed=seed), drawn(n=held_out, seed=seed + 1))
    images = read(Path(data), size)
    order = np.random.default_rng(seed).permutation(len(images))
    least = min(held_out, max(len(images) // 10, 1))
    return Split(images[order[least:]], images[order[:least]])


def is_simulator(data: str) -> bool:
    """Return whether `data` names a simulator, not a file or folder of images, there or missing."""
    return ".py:" in data or not (Path(data).exists() or Path(data).suffix or "/" in data)


def simulated(
    data: str, n: int, seed: int, size: int, workers: int = 1, progress: Progress | None = None
) -> Images:
    """Return n images (n, size, size) of a simulator, drawn by so many processes."""
    registry.simulator(data)  # a wrong name is told here, not in a process
    work = partial(_drawn, data, seed, size)
    chunks = [range(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]
    if workers == 1:
        return np.concatenate(list(_told(map(work, chunks), n, progress)))
    # spawned: a forked process must not touch torch's threads or the GPU
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        return np.concatenate(list(_told(processes.map(work, chunks), n, progress)))


def _told(parts: Iterable[Images], n: int, progress: Progress | None) -> Iterator[Images]:
    """Yield the parts of n images, reporting progress."""
    done = 0
    for part in parts:
        done += len(part)
        if progress:
            progress("draw images", done, n, {})
        yield part


def _drawn(data: str, seed: int, size: int, rows: range) -> Images:
    draw = _simulator(data)
    streams = (np.random.SeedSequence(seed, spawn_key=(i,)) for i in rows)
    images = [np.asarray(draw(np.random.default_rng(s), size), np.float32) for s in streams]
    for image in images:
        if image.shape != (size, size) or not np.isfinite(image).all():
            raise ObservationError(
                f"{data} drew an image of shape {image.shape}, or with values that are not finite; "
                f"needed finite ({size}, {size})"
            )
    return np.stack(images)


_simulator = lru_cache(registry.simulator)  # a user's file runs once in a process


def read(path: Path, size: int | None = None) -> Images:
    """Return the images (n, H, W) of a file or folder, fitted to (size, size) where one is given.

    Raises `ObservationError` on anything that is not at least `LEAST` finite images of one shape.
    """
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if _reader(f))
        images = [_fitted(_reader(f)(f), size) for f in files]  # type: ignore[misc]
    else:
        images = [_fitted(image, size) for image in _stack(path)]
    shapes = {image.shape for image in images}
    if len(images) < LEAST or len(shapes) > 1:
        raise ObservationError(
            f"{path} holds {len(images)} images of shapes {sorted(shapes)[:4]}; needed {LEAST} or "
            "more of one shape: --size fits them to one"
        )
    stacked = np.stack(images).astype(np.float32)
    if not np.isfinite(stacked).all():
        bad = int(np.argmin(np.isfinite(stacked).all((1, 2))))
        raise ObservationError(f"{path}: image {bad} has values that are not finite: leave it out")
    return stacked


def _stack(path: Path) -> NDArray[Any]:
    """Return the array (n, H, W) of an .npy, HDF5 or FITS file."""
    if path.suffix in (".h5", ".hdf5"):
        with opened(path) as file:
            held = [key for key in file if len(getattr(file.get(key), "shape", ())) == 3]
            name = "images" if "images" in held else held[0] if len(held) == 1 else ""
            found = array(file, name, path) if name else None
        if found is None:
            raise ObservationError(f"{path} has no array /images (n, H, W); it has {held}")
        return found
    images = read_fits_image(path, 3)[0] if _is_fits(path) else read_image(path)[0]
    if images.ndim != 3:
        raise ObservationError(f"{path} has shape {images.shape}; needed images (n, H, W)")
    return images


def _reader(path: Path) -> Callable[[Path], NDArray[Any]] | None:
    """Return what reads a file of one image, None where nothing does."""
    if path.suffix.lower() in PICTURES:
        return _picture
    return (lambda p: read_image(p)[0]) if path.suffix == ".npy" or _is_fits(path) else None


def _is_fits(path: Path) -> bool:
    name = path.name.partition("[")[0]  # a.fits[2] is HDU 2 of a.fits
    return name.lower().endswith(FITS)


def _picture(path: Path) -> NDArray[np.float64]:
    """Return the grey values 0..1 (H, W) of a picture; of float and 32-bit ones as they are."""
    from matplotlib.image import imread
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.format == "TIFF" and picture.mode in ("F", "I"):  # imread would clip these
                return np.asarray(picture, float)[::-1]
        image = np.asarray(imread(path))
    except (OSError, ValueError, SyntaxError) as error:
        raise ObservationError(f"{path}: not a readable picture ({error})") from error
    grey = image[..., :3].mean(-1) if image.ndim == 3 else image.astype(float)
    if image.dtype.kind == "u":
        grey = grey / np.iinfo(image.dtype).max
    return np.asarray(grey[::-1], float)  # origin lower


def _fitted(image: NDArray[Any], size: int | None) -> NDArray[Any]:
    """Return an image binned by the largest whole factor and cut or padded to (size, size)."""
    from invprob.simulate import binned, centred  # loads torch, which processes do not need

    if image.ndim != 2:
        raise ObservationError(f"an image has shape {image.shape}; needed (H, W)")
    if size is None:
        return image
    factor = max(1, min(image.shape) // size)
    return centred(binned(np.asarray(image, float), factor), (size, size))
