"""Simulated observations: a truth from the prior or a file, through an operator, with noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from invprob import registry
from invprob.observation import GAUSSIAN, Observation, check_finite
from invprob.telescope import sky
from invprob.trajectory import prior_paths
from operators.base import ForwardOperator
from operators.errors import ObservationError
from operators.noise import Gaussian, NoiseModel
from priors.base import Prior
from priors.process import generators

log = logging.getLogger("invprob")


def simulate(
    operator: ForwardOperator,
    truth: NDArray[np.float64],
    noise: float | str | None = None,
    seed: int = 0,
    prior: str = "",
    unit: str = "",
    truth_sigma: float = 0.0,
    noise_settings: Mapping[str, Any] | None = None,
) -> Observation:
    """Return the observation of `truth` (*x_shape) with noise.

    `noise` is the standard deviation of Gaussian noise as a fraction of the largest noise-free
    datum (None: the operator's own), or the name of a noise model, whose default for data of that
    size `noise_settings` change. `prior` is recorded as the suggestion for whoever analyses the
    data, `truth_sigma` as the noise that the truth has of its own.
    """
    check_finite("truth", truth, "replace them")
    noise = operator.noise_fraction if noise is None else noise
    x = torch.from_numpy(np.asarray(truth, float))[None]
    with torch.no_grad():
        mean = operator(x)
    peak = float(mean.abs().max())
    if peak == 0 or (not isinstance(noise, str) and noise <= 0):
        raise ObservationError(
            f"need noise > 0 and data that are not all zero, found noise {noise}, peak {peak:g}"
        )
    settings = dict(noise_settings or {})
    if not isinstance(noise, str):
        settings = {"sigma": operator.simulated_sigma(x, mean, noise)} | settings
        noise = GAUSSIAN
    model = noise_model(noise, peak, settings)
    y = model.sample(mean, torch.Generator().manual_seed(seed))[0].numpy()
    given: dict[str, Any] = {"noise_model": model}
    if isinstance(model, Gaussian):
        given = {"noise_sigma": model.config()["sigma"]}
    return Observation(
        operator, y, truth=truth, truth_sigma=truth_sigma, prior=prior, unit=unit, **given
    )


def noise_model(name: str, peak: float, settings: Mapping[str, Any]) -> NoiseModel:
    """Return the noise of that name, its default for data of that peak with settings changed.

    Raises UnknownName on a name, and ObservationError on a setting or value, that does not exist.
    """
    cls = registry.noise_class(name)
    return cls.from_config({**cls.default(peak).config(), **settings})


def draw_truth(prior: Prior, seed: int) -> NDArray[np.float64]:
    """Return one draw x (*x_shape) of the prior's chain, new for every seed."""
    _, cleans = prior_paths(prior, generators(seed, range(1)), prior.schedule.grid(prior.steps))
    return prior.decode(cleans[-1])[0].double().numpy()


def fit_truth(image: NDArray[np.float64], prior: Prior) -> tuple[NDArray[np.float64], float]:
    """Return a user's image fitted to the prior, and its own noise.

    It is binned by the largest whole factor that leaves enough pixels, cut or padded to x_shape
    and scaled so that its smoothed peak is that of the prior's median draw. The noise, which the
    truth keeps, is measured on the binned image's frame, where a source should have ended. Raises
    `ObservationError` on an image that is not finite, or has no peak, there.
    """
    height, width = prior.x_shape
    factor = max(1, min(image.shape[0] // height, image.shape[1] // width))
    coarse = binned(image, factor)
    small = centred(coarse, (height, width))
    check_finite("truth image, binned and cut,", small, "replace them, or give another image")
    draws = prior.decode(prior.draw(64, seed=0)).numpy()
    typical = float(np.median([gaussian_filter(x, 1.0).max() for x in draws]))
    peak = float(gaussian_filter(small, 1.0).max())
    if peak <= 0:
        raise ObservationError("the truth image has no positive peak to scale to the prior's flux")
    scale = typical / peak
    noise = scale * sky(coarse)[1]
    log.info(
        "truth: %s px binned by %d, cut to %s, times %.4g (smoothed peak %.3g to %.3g, own noise "
        "%.2g)", "x".join(map(str, image.shape)), factor, "x".join(map(str, small.shape)),
        scale, peak, typical, noise,
    )  # fmt: skip
    return small * scale, noise


def binned(image: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Return the mean over factor x factor pixels; incomplete blocks are left out."""
    rows, columns = (n // factor for n in image.shape)
    cut = image[: rows * factor, : columns * factor]
    means: NDArray[np.float64] = cut.reshape(rows, factor, columns, factor).mean((1, 3))
    return means


def centred(image: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the image cut or zero-padded about its centre."""
    for axis, wanted in enumerate(shape):
        spare = image.shape[axis] - wanted
        if spare > 0:
            image = np.take(image, range(spare // 2, spare // 2 + wanted), axis)
        elif spare < 0:
            pad = [(0, 0), (0, 0)]
            pad[axis] = (-spare // 2, -spare - (-spare // 2))
            image = np.pad(image, pad)
    return image
