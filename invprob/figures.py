"""Figures of data, posteriors, trainings and comparisons.

They are made of `invprob.panels`. Residuals are whitened by the noise model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from invprob.panels import Array, Plane, grid, histogram, norm, save, sigmas, value

if TYPE_CHECKING:
    from invprob.observation import Observation
    from invprob.results import Result

__all__ = [
    "compare_figure",
    "gallery_figure",
    "observation_figure",
    "posterior_figure",
    "samples_figure",
    "save",
    "training_figure",
]


def observation_figure(observation: Observation) -> Figure:
    """Return the data beside the truth where it is known, else in units of Gaussian noise."""
    data, x_plane, y_plane = _data(observation), *_planes(observation)
    truth, sigma = _truth(observation), observation.noise_sigma
    figure, axes = grid(1, 1 if truth is None and sigma is None else 2)
    if truth is not None:
        value(axes[0, 0], truth, "truth x", x_plane, norm(truth))
        value(axes[0, 1], data, "data y", y_plane, norm(data))
        return figure
    value(axes[0, 0], data, "data y", y_plane, norm(data))
    if sigma is not None:
        ratio = data / observation.operator.picture(
            np.broadcast_to(sigma, observation.operator.y_shape)
        )
        value(axes[0, 1], ratio, "data / σ", replace(y_plane, unit="σ"), norm(ratio))
    return figure


def posterior_figure(
    observation: Observation, x: Array, mean: Array | None = None, std: Array | None = None
) -> Figure:
    """Return how the posterior mean fits the data, and mean, spread and error of x.

    x: samples (n, *x_shape). mean, std: of more samples than these, where they are known.
    """
    data, truth = _data(observation), _truth(observation)
    x_plane, y_plane = _planes(observation)
    mean = x.mean(0) if mean is None else mean
    std = x.std(0) if std is None else std
    model, residual = _fit(observation, mean)
    figure, axes = grid(2, 3 if truth is None else 4)
    shared = norm(data)
    value(axes[0, 0], data, "data y", y_plane, shared)
    value(axes[0, 1], model, "model A(mean)", y_plane, shared, behind=data)
    sigmas(axes[0, 2], residual, "(data − model) / σ", y_plane)
    scale = norm(mean if truth is None else truth)
    below = axes[1, 0 if truth is None else 1 :]
    value(below[0], mean, "posterior mean", x_plane, scale, band=x, behind=truth)
    value(below[1], std, "posterior std", x_plane, Normalize(0, float(std.max())), "cividis")
    if truth is None:
        value(below[2], x[0], "one sample", x_plane, scale)
        return figure
    value(axes[1, 0], truth, "truth x", x_plane, scale)
    sigmas(
        below[2], (truth - mean) / np.where(std > 0, std, np.nan), "(truth − mean) / std", x_plane
    )
    histogram(axes[0, 3], residual)
    return figure


def samples_figure(observation: Observation, x: Array, most: int = 16) -> Figure:
    """Return up to `most` of the samples x (n, *x_shape) on one scale."""
    shown = x[:most]
    columns = min(len(shown), 4)
    figure, axes = grid(-(-len(shown) // columns), columns, side=2.9)
    plane, scale = _planes(observation)[0], norm(x.mean(0))
    for i, ax in enumerate(axes.flat):
        if i >= len(shown):
            ax.set_axis_off()
            continue
        last = i % columns == columns - 1
        value(ax, shown[i], f"sample {i + 1}", plane, scale, band=x, bar=last)
        if shown.ndim == 2:  # vectors: one range, as images have one colour scale
            pad = 0.05 * float(np.ptp(shown))
            ax.set_ylim(shown.min() - pad, shown.max() + pad)
        ax.label_outer()
    return figure


def training_figure(metrics: Sequence[dict[str, Any]]) -> Figure:
    """Return the loss of every step and the ELBO of the RTB steps, from rows of metrics.jsonl."""
    figure, axes = grid(1, 2, side=4.2)
    for i, stage in enumerate(dict.fromkeys(row["stage"] for row in metrics)):
        rows = [row for row in metrics if row["stage"] == stage and row.get("loss") is not None]
        x = [row["step"] for row in rows]
        marker = "o" if len(x) < 30 else ""
        axes[0, 0].plot(x, [row["loss"] for row in rows], f"C{i}{marker}-", ms=3, lw=1, label=stage)
    rows = [row for row in metrics if row.get("elbo") is not None]
    x, elbo = [row["step"] for row in rows], np.array([row["elbo"] for row in rows])
    spread = np.array([row.get("std_log_w") or 0.0 for row in rows])
    axes[0, 1].fill_between(x, elbo - spread, elbo + spread, color="C1", alpha=0.25, lw=0)
    axes[0, 1].plot(x, elbo, "C1o-", ms=3, lw=1)
    axes[0, 0].set(yscale="log", ylabel="loss", title="loss (each stage has its own)")
    axes[0, 1].set(ylabel="nats", title="ELBO ± std of log w over the paths")
    if metrics:
        axes[0, 0].legend(frameon=False)
    if not rows:
        axes[0, 1].text(0.5, 0.5, "no RTB step yet", ha="center", transform=axes[0, 1].transAxes)
    for ax in axes.flat:
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def compare_figure(observation: Observation, results: Sequence[Result]) -> Figure:
    """Return mean, std, residual and two samples of each method: a row each, on shared scales.

    Above them are the truth, where it is known, and the data.
    """
    x_plane, y_plane = _planes(observation)
    data, truth = _data(observation), _truth(observation)
    means = [result.draws.x.mean(0) for result in results]
    stds = [result.draws.x.std(0) for result in results]
    scale = norm(means[0] if truth is None else truth)
    tops = [float(std.max()) for std in stds]
    # a method that has diverged would leave all others dark
    spread = Normalize(0, min(max(tops), 3 * float(np.median(tops))) or 1.0)
    figure, axes = grid(1 + len(results), 5, side=3.0)
    axes[0, 1].set_axis_off()
    if x_plane.unit and means[0].ndim > 1:  # once, or it would take the images' room
        axes[0, 1].text(0.5, 0.5, f"x in {x_plane.unit}", ha="center", wrap=True)
        x_plane, y_plane = replace(x_plane, unit=""), replace(y_plane, unit="")
    value(axes[0, 2], data, "data y", y_plane, norm(data))
    if truth is not None:
        value(axes[0, 0], truth, "truth x", x_plane, scale)
    for i, ax in enumerate(axes[0]):
        ax.set_visible(i in (1, 2) or (i == 0 and truth is not None))
    for row, result, mean, std in zip(axes[1:], results, means, stds, strict=True):
        x = result.draws.x
        value(row[0], mean, "mean", x_plane, scale, band=x, behind=truth)
        name = result.name if len(result.name) < 26 else f"{result.name[:24]}…"
        row[0].set_ylabel(name, fontsize=11, fontweight="bold")
        value(row[1], std, "std", x_plane, spread, "cividis")
        sigmas(row[2], _fit(observation, mean)[1], "(data − model) / σ", y_plane)
        for i, ax in enumerate(row[3:]):
            if i < len(x):
                value(ax, x[i], f"sample {i + 1}", x_plane, scale)
            else:
                ax.set_axis_off()
    if x_plane.axes == ("", "") and means[0].ndim == 1:
        _share_range(axes[1:, [0, 3, 4]], truth)
        _share_range(axes[1:, [1]])
        if truth is not None:
            axes[1, 0].plot([], [], ".", color="0.5", label="truth")
            axes[1, 0].legend(frameon=False, fontsize=8)
    for ax in axes[2:].flat:  # as in the first row of methods
        ax.set_title("")
    for ax in axes[1:-1].flat:
        ax.set_xlabel("")
    return figure


def _share_range(axes: Any, truth: Array | None = None) -> None:
    """Give panels of lines one range of values: that of the truth and of most of them."""
    lines = [ax.lines[-1].get_ydata() for ax in axes.flat if ax.lines]
    # as with images, a method that has diverged would leave all others flat
    reach = 3 * float(np.median([np.abs(line).max() for line in lines]))
    if truth is not None:
        lines.append(truth)
        reach = max(reach, float(np.abs(truth).max()))
    shown = np.clip(np.concatenate(lines), -reach, reach)
    pad = 0.05 * float(np.ptp(shown)) or 1.0
    for ax in axes.flat:
        ax.set_ylim(shown.min() - pad, shown.max() + pad)


def gallery_figure(shown: Sequence[tuple[Observation, Array]]) -> Figure:
    """Return truth, data, posterior mean and a sample of each (observation, x): a row each."""
    figure, axes = grid(len(shown), 4, side=2.6)
    for row, (observation, x) in zip(axes, shown, strict=True):
        data, truth = _data(observation), _truth(observation)
        x_plane, y_plane = _planes(observation)
        mean = x.mean(0)
        scale = norm(mean if truth is None else truth)
        if truth is None:
            row[0].set_axis_off()
        else:
            value(row[0], truth, observation.name, x_plane, scale)
        value(row[1], data, "data", y_plane, norm(data))
        value(row[2], mean, "posterior mean", x_plane, scale, band=x, behind=truth)
        value(row[3], x[0], "one sample", x_plane, scale, behind=truth)
    return figure


def _data(observation: Observation) -> Array:
    """Return the picture of the (first) data, NaN where masked."""
    data = observation.data.reshape(-1, *observation.operator.y_shape)[0].astype(float)
    mask = observation.noise.mask
    return observation.operator.picture(
        data if mask is None else np.where(mask.numpy(), np.nan, data)
    )


def _truth(observation: Observation) -> Array | None:
    """Return the (first) truth (*x_shape), or None."""
    if observation.truth is None:
        return None
    truth: Array = observation.truth.reshape(-1, *observation.operator.x_shape)[0]
    return truth


def _fit(observation: Observation, mean: Array) -> tuple[Array, Array]:
    """Return pictures of the data expected of x = mean and of the whitened residual.

    That is NaN where masked.
    """
    import torch

    noise, shape = observation.noise, observation.operator.y_shape
    with torch.no_grad():
        image = observation.operator(torch.from_numpy(mean.astype(float))[None])
        residual = noise.whitened(observation.y[0], image)[0].numpy()
    model: Array = noise.expected(image)[0].numpy()
    picture = observation.operator.picture
    return picture(model), picture(np.where(noise.kept(shape).numpy(), residual, np.nan))


def _planes(observation: Observation) -> tuple[Plane, Plane]:
    """Return the planes of x and of y."""
    operator = observation.operator
    x = Plane(getattr(operator, "source_pixel_scale", None), observation.unit)
    counts = observation.noise_name in ("poisson", "transmission")
    own = "counts" if counts else operator.data_unit
    unit = observation.unit if own is None else own
    y = Plane(getattr(operator, "pixel_scale", None), unit, operator.axes)
    return x, y
