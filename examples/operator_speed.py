"""Measure operators: lensing against caustics and against its arithmetic, PDEs and their gradients.

    python examples/operator_speed.py [--repeats 15] [--out benchmarks/operators/speed.json]

One thread. What is compared is interleaved in one run, so that a busy machine slows all alike;
each figure is the median over the repeats, with the quartiles. caustics is measured where it is
installed (`pip install caustics`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators._sparse import SparseMatrix
from operators.base import ForwardOperator
from operators.burgers import Burgers
from operators.full_waveform import FullWaveform
from operators.inverse_scattering import InverseScattering
from operators.lensing import SIE, Lensing, Shear
from operators.navier_stokes import NavierStokes

IMAGE, SOURCE, PSF = 128, 64, 15  # pixels a side
SIE_, SHEAR = SIE(1.2, 0.8, 0.5, 0.04, -0.03), Shear(0.03, -0.02)
PDES: dict[str, ForwardOperator] = {
    "navier_stokes 64x64": NavierStokes((64, 64)),
    "inverse_scattering 64x64, 20 x 180": InverseScattering((64, 64)),
    "full_waveform 32x32, 2 shots": FullWaveform((32, 32), shots=2, duration=0.5, samples=50),
    "burgers 128": Burgers(128),
}
Once = Callable[[], Any]


def main() -> None:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/operators/speed.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {"lensing": lensing(asked.repeats), "pde": pdes(max(3, asked.repeats // 5))}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def lensing(repeats: int) -> dict[str, Any]:
    """Return milliseconds of forward and gradient, by code, supersampling and batch."""
    psf = lopsided_psf()
    ours = {s: instrument(psf, s) for s in (1, 2, 4)}
    tasks: dict[str, tuple[int, Once]] = {}
    for batch in (1, 16):
        x = torch.rand(batch, SOURCE, SOURCE, generator=torch.Generator().manual_seed(0))
        for s, operator in ours.items():
            tasks[f"ours, {s}x, batch {batch}"] = batch, gradient_of(operator, x)
        tasks[f"arithmetic, batch {batch}"] = batch, arithmetic(ours[2], batch)
        theirs = caustics_simulator(psf)
        if theirs is not None:
            tasks[f"caustics, 2x, batch {batch}"] = batch, gradient_of(theirs, x)
        if theirs is not None and batch > 1:
            one_by_one = gradient_of(theirs, x[:1])
            tasks[f"caustics, 2x, batch {batch}, in a loop"] = 1, one_by_one
    return interleaved(tasks, repeats)


def pdes(repeats: int) -> dict[str, Any]:
    """Return milliseconds of A(x), and of A(x) with its gradient, of one item."""
    tasks: dict[str, tuple[int, Once]] = {}
    for name, operator in PDES.items():
        x = torch.randn(1, *operator.x_shape, generator=torch.Generator().manual_seed(0))
        if len(operator.x_shape) == 2:  # as smooth as what priors draw
            x = smooth(x)
        tasks[f"{name}, forward"] = 1, forward_of(operator, x)
        tasks[f"{name}, forward and gradient"] = 1, gradient_of(operator, x)
    return interleaved(tasks, repeats)


def interleaved(tasks: dict[str, tuple[int, Once]], repeats: int) -> dict[str, Any]:
    """Return median, quartiles and least of CPU milliseconds per item of each task."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _, once in tasks.values():
        once()  # compiles, builds tables
    for _ in range(repeats):
        for name, (batch, once) in tasks.items():
            calls, begun = 0, time.process_time()
            while calls == 0 or time.process_time() - begun < 0.02:  # far above the clock's step
                once()
                calls += 1
            times[name].append(1e3 * (time.process_time() - begun) / (calls * batch))
    quartiles = {name: np.percentile(t, (50, 25, 75, 0)) for name, t in times.items()}
    return {
        name: {key: float(v) for key, v in zip(("median", "q1", "q3", "least"), q, strict=True)}
        for name, q in quartiles.items()
    }


def forward_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Once:
    """Return a call that evaluates a function at x."""
    return lambda: function(x)


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Once:
    """Return a call that evaluates a function at x and the gradient of a sum over its values."""
    weights = torch.rand(function(x).shape, generator=torch.Generator().manual_seed(1))

    def once() -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf, weights)
        return gradient

    return once


def arithmetic(operator: Lensing, batch: int) -> Once:
    """Return the bare products of one evaluation and its gradient: the floor.

    Twice a sparse product (A and A^T) and twice an FFT convolution of the padded image, on arrays
    that lie there already, into arrays that are there: no autograd, checks, padding or copies.
    """
    rays: SparseMatrix = operator._rays
    x, y = torch.rand(batch, rays.shape[1]), torch.rand(batch, *operator._fft_shape)
    image = torch.rand(batch, rays.shape[0])
    spectrum = operator._table("_spectrum", x)

    def once() -> None:
        rays.times(x)
        for kernel in (spectrum, spectrum.conj()):
            torch.fft.irfft2(torch.fft.rfft2(y) * kernel, s=operator._fft_shape)
        rays.transpose.times(image)

    return once


def instrument(psf: np.ndarray[Any, Any], supersampling: int) -> Lensing:
    """Return a lens over an image of 6.4 arcsec."""
    return Lensing(
        (SIE_, SHEAR), (IMAGE, IMAGE), 0.05, (SOURCE, SOURCE), 0.03, psf, supersampling
    )  # fmt: skip


def caustics_simulator(psf: np.ndarray[Any, Any]) -> Callable[[Tensor], Tensor] | None:
    """Return the same instrument of caustics with 2 x 2 rays a pixel, or None."""
    try:
        import caustics
    except ImportError:
        return None
    cosmology = caustics.FlatLambdaCDM(name="cosmo")
    z: dict[str, Any] = {"cosmology": cosmology, "z_l": 0.5, "z_s": 1.0}
    where = {"x0": SIE_.x0, "y0": SIE_.y0}
    sie = caustics.SIE(**z, **where, q=SIE_.q, phi=SIE_.phi, Rein=SIE_.theta_E, name="sie")
    shear = caustics.ExternalShear(
        **z, x0=0.0, y0=0.0, gamma_1=SHEAR.gamma1, gamma_2=SHEAR.gamma2, name="shear"
    )
    lens = caustics.SinglePlane(**z, lenses=[sie, shear], name="lens")
    source = caustics.Pixelated(
        x0=0.0, y0=0.0, pixelscale=0.03, shape=(SOURCE, SOURCE), name="source"
    )
    simulator = caustics.LensSource(
        lens, source, pixelscale=0.05, pixels_x=IMAGE, quad_level=2,
        psf=torch.from_numpy(psf).float(),
    )  # fmt: skip
    # what a user of caustics can do for fixed lenses is what is done: one call per source
    many = torch.func.vmap(simulator)
    return lambda x: simulator(x.flatten())[None] if len(x) == 1 else many(x.flatten(1))


def lopsided_psf() -> np.ndarray[Any, Any]:
    """Return a PSF that is neither symmetric nor separable; its sum is 1."""
    y, x = np.mgrid[:PSF, :PSF] - PSF // 2
    psf = np.exp(-(x**2 + y**2 + 0.6 * x * y) / 12) * (1.5 + np.sin(0.7 * x + 0.3 * y * y))
    return np.asarray(psf / psf.sum())


def smooth(x: Tensor) -> Tensor:
    """Return white noise (1, H, W) with a spectrum that falls from 3 waves on, of unit variance."""
    ky, kx = (torch.fft.fftfreq(n, 1 / n) for n in x.shape[-2:])
    gain = (1 + (ky[:, None] ** 2 + kx**2) / 9) ** -2
    field = torch.fft.ifft2(torch.fft.fft2(x) * gain).real
    return field / field.std()


if __name__ == "__main__":
    main()
