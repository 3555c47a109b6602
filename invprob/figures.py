"""Figures of data, posteriors, trainings, comparisons, calibration and evidence.

They are made of `invprob.panels`. Residuals are (data - A(mean)) / sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from invprob.panels import Array, Plane, deviation, grid, histogram, norm, save, sigmas, value

if TYPE_CHECKING:
    from invprob.calibration import Calibration
    from invprob.comparison import Result
    from invprob.evidence import Evidence
    from invprob.observation import Observation
    from invprob.posterior import Draws

__all__ = [
    "calibration_figure",
    "compare_figure",
    "evidence_figure",
    "observation_figure",
    "posterior_figure",
    "samples_figure",
    "save",
    "training_figure",
]


def observation_figure(observation: Observation) -> Figure:
    """Return the data and, where it is known, the truth."""
    data, x_plane, y_plane = _data(observation), *_planes(observation)
    truth = _truth(observation)
    figure, axes = grid(1, 1 if truth is None else 2)
    value(axes[0, -1], data, "data y", y_plane, norm(data))
    if truth is not None:
        value(axes[0, 0], truth, "truth x", x_plane, norm(truth))
    return figure


def posterior_figure(observation: Observation, draws: Draws) -> Figure:
    """Return how the posterior mean fits the data, and mean, spread and error of x."""
    data, truth = _data(observation), _truth(observation)
    x_plane, y_plane = _planes(observation)
    mean, std = draws.x.mean(0), draws.x.std(0)
    model, residual = _fit(observation, mean)
    figure, axes = grid(2, 3 if truth is None else 4)
    shared = norm(data)
    value(axes[0, 0], data, "data y", y_plane, shared)
    value(axes[0, 1], model, "model A(mean)", y_plane, shared, behind=data)
    sigmas(axes[0, 2], residual, "(data − model) / σ", y_plane)
    scale = norm(mean if truth is None else truth)
    below = axes[1, 0 if truth is None else 1 :]
    value(below[0], mean, "posterior mean", x_plane, scale, band=draws.x, behind=truth)
    value(below[1], std, "posterior std", x_plane, Normalize(0, float(std.max())), "cividis")
    if truth is None:
        value(below[2], draws.x[0], "one sample", x_plane, scale)
        return figure
    value(axes[1, 0], truth, "truth x", x_plane, scale)
    sigmas(
        below[2], (truth - mean) / np.where(std > 0, std, np.nan), "(truth − mean) / std", x_plane
    )
    histogram(axes[0, 3], residual)
    return figure


def samples_figure(observation: Observation, draws: Draws, most: int = 16) -> Figure:
    """Return up to `most` samples on one scale."""
    shown = draws.x[:most]
    columns = min(len(shown), 4)
    figure, axes = grid(-(-len(shown) // columns), columns, side=2.9)
    plane, scale = _planes(observation)[0], norm(draws.x.mean(0))
    for i, ax in enumerate(axes.flat):
        if i >= len(shown):
            ax.set_axis_off()
            continue
        last = i % columns == columns - 1
        value(ax, shown[i], f"sample {i + 1}", plane, scale, band=draws.x, bar=last)
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
    """Return mean, std, residual and two samples of each method: a row each, on shared scales."""
    x_plane, y_plane = _planes(observation)
    truth = _truth(observation)
    means = [result.draws.x.mean(0) for result in results]
    stds = [result.draws.x.std(0) for result in results]
    scale = norm(means[0] if truth is None else truth)
    spread = Normalize(0, float(max(std.max() for std in stds)) or 1.0)
    figure, axes = grid(len(results), 5, side=3.0)
    for row, result, mean, std in zip(axes, results, means, stds, strict=True):
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
    return figure


def calibration_figure(calibration: Calibration) -> Figure:
    """Return ranks of truths against uniform ones, expected coverage, and coverage by level.

    Grey bands hold an exact sampler (that of coverage level by level); a failed check is red.
    """
    from invprob.ranks import band, ecdf

    failed = {check.name for check in calibration.checks if not check.passed}
    count, samples = len(next(iter(calibration.ranks.values()))), calibration.samples
    x = np.arange(samples + 2) / (samples + 1)
    low, high = (
        np.hstack([0, edge, count]) / count for edge in band(count, samples, calibration.rate)
    )
    curves = {
        name: np.hstack([0, ecdf(ranks, samples), count]) / count
        for name, ranks in calibration.ranks.items()
    }
    tarp, covered = curves.pop("tarp"), calibration.coverage
    top = 1.05 * max(float(np.abs(curve - x).max()) for curve in (low, high, *curves.values()))
    columns = min(4, len(curves) + 2)
    figure, axes = grid(-(-(len(curves) + 2) // columns), columns, side=3.4)
    one, two, *panels = axes.flat
    deviation(one, x, tarp, (low, high), "expected coverage (tarp)", "tarp" in failed, True)
    one.set(xlabel="credibility", ylabel="share of truths")
    edges = (covered.low, covered.high)
    bad = "coverage" in failed
    deviation(two, covered.levels, covered.found, edges, "coverage of all values", bad)
    two.set(xlabel="level of intervals", ylabel="found − level")
    for ax, (name, curve) in zip(panels, curves.items(), strict=False):
        deviation(ax, x, curve, (low, high), name, name in failed)
        ax.set(xlabel="rank of truth / L", ylabel="ECDF − uniform", ylim=(-top, top))
    for ax in panels[len(curves) :]:
        ax.set_axis_off()
    figure.suptitle(
        f"{count} simulated observations, {samples} samples of each; a curve leaves the grey band "
        f"in 1 of {round(1 / calibration.rate)} exact samplers",
        fontsize=10,
    )
    return figure


def evidence_figure(found: Sequence[Evidence]) -> Figure:
    """Return the interval of every model's log Z, relative to the best one's level.

    Dots are estimates, empty bars bounds. The shades hold models that the best one is better than
    by the grades of Kass & Raftery, if its own log Z were exact.
    """
    from invprob.evidence import GRADES, best

    top = best(found)
    figure, axes = grid(1, 1, side=8.0)
    ax, rows = axes[0, 0], range(len(found))
    figure.set_size_inches(8.0, 1.4 + 0.42 * len(found))
    for i, model in enumerate(found):
        low, high = (edge - top.level for edge in (model.low, model.high))
        if model.log_z is None:
            ax.barh(i, high - low, 0.3, low, color="none", edgecolor="C1", lw=1.2)
        else:
            ax.plot([low, high], [i, i], "C0-", lw=1.6)
            ax.plot(model.log_z - top.level, i, "C0o", ms=5)
    ax.set_xscale("symlog", linthresh=GRADES[0][0], linscale=1.5)
    left, right = ax.get_xlim()
    left, right = 1.2 * left, max(right, 1.0)
    edges = [left, *(-least for least, _ in GRADES if -least > left)]
    for i, (a, b) in enumerate(pairwise(edges)):
        ax.axvspan(a, b, color=f"{0.82 + 0.05 * i:.2f}", lw=0, zorder=0)
    ax.axvline(0, color="0.5", lw=0.8)
    names = [m.name if len(m.name) < 40 else f"{m.name[:38]}…" for m in found]
    ax.set(yticks=rows, yticklabels=names, xlim=(left, right), ylim=(len(found) - 0.5, -0.5))
    small = [least for least, _ in GRADES]
    ticks = np.array([*small, *(10.0**p for p in range(1, 9))])
    ax.xaxis.set_major_locator(FixedLocator((np.unique([*-ticks, *ticks]) + 0.0).tolist()))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    shades = ", ".join(f"{-least:g} {grade}" for least, grade in GRADES[-2::-1])
    ax.set_xlabel(f"log Z − that of the best, nats; shades begin at {shades}", fontsize=8)
    ax.set_title("dots: estimates with 99.7% intervals; boxes: bounds alone", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _data(observation: Observation) -> Array:
    """Return the (first) data (*y_shape), NaN where masked."""
    data = observation.data.reshape(-1, *observation.operator.y_shape)[0].astype(float)
    mask = observation.noise.mask
    return data if mask is None else np.where(mask.numpy(), np.nan, data)


def _truth(observation: Observation) -> Array | None:
    """Return the (first) truth (*x_shape), or None."""
    if observation.truth is None:
        return None
    truth: Array = observation.truth.reshape(-1, *observation.operator.x_shape)[0]
    return truth


def _fit(observation: Observation, mean: Array) -> tuple[Array, Array]:
    """Return the model A(mean) and the residual in sigma, NaN where masked, both (*y_shape)."""
    import torch

    with torch.no_grad():
        model = observation.operator(torch.from_numpy(mean.astype(float))[None])[0].numpy()
    residual = (_data(observation) - model) / np.asarray(observation.noise_sigma)
    return model, residual


def _planes(observation: Observation) -> tuple[Plane, Plane]:
    """Return the planes of x and of y."""
    scales = (
        getattr(observation.operator, name, None) for name in ("source_pixel_scale", "pixel_scale")
    )
    x, y = (Plane(scale, observation.unit) for scale in scales)
    return x, y
