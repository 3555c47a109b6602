"""Figures of what is known about errors: calibration, exact problems, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from invprob.panels import deviation, grid

if TYPE_CHECKING:
    from invprob.benchmark import Benchmark
    from invprob.calibration import Calibration
    from invprob.evidence import Evidence

SHOWN = 1000  # samples of each method in a scatter
FEW = 300  # under so many, their points are drawn larger, to stand out among the exact ones


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
        f"in 1 of {round(1 / calibration.rate)} exact samplers\n(coverage of all values: at any "
        "one level)",
        fontsize=10,
    )
    return figure


def benchmark_figure(found: Benchmark) -> Figure:
    """Return the first two dimensions of exact draws and of every method, on shared axes.

    Of one dimension alone, the distribution function.

    The exact reference is grey behind each; samples off the axes are counted, not shown.
    """
    exact = found.reference[:: max(1, len(found.reference) // SHOWN)]
    shown = ((r.name, r.draws.x[:SHOWN].astype(float)) for r in found.results)
    panels = [("exact", exact), *shown]
    rows = -(-len(panels) // 4)
    figure, axes = grid(rows, -(-len(panels) // rows), side=3.4)
    if exact.shape[1] == 1:  # a number alone: against its rank, as exact draws are sorted
        panels = [(name, np.c_[np.sort(x, 0), np.linspace(0, 1, len(x))]) for name, x in panels]
        exact = panels[0][1]
    low, high = exact[:, :2].min(0), exact[:, :2].max(0)
    pad = 0.25 * np.maximum(high - low, 1e-9)
    for i, ax in enumerate(axes.flat):
        if i >= len(panels):
            ax.set_axis_off()
            continue
        name, x = panels[i]
        ax.plot(*exact[:, :2].T, ".", color="0.8", ms=4, mew=0, zorder=1)
        size, alpha = (3, 0.5) if len(x) >= FEW else (6, 1)
        ax.plot(*x[:, :2].T, ".", color="0.4" if i == 0 else "C0", ms=size, mew=0, alpha=alpha)
        ax.set_xlim(low[0] - pad[0], high[0] + pad[0])
        ax.set_ylim(low[1] - pad[1], high[1] + pad[1])
        off = np.any((x[:, :2] < low - pad) | (x[:, :2] > high + pad), axis=1).mean()
        title = name if len(name) < 26 else f"{name[:24]}…"
        score = found.floor["floor"] if i == 0 else found.rows[i - 1]["sliced_wasserstein"]
        said = "floor" if i == 0 else "sliced W"
        ax.set_title(f"{title}: {said} {'-' if score is None else f'{score:.2g}'}", fontsize=10)
        if off >= 0.005:
            ax.text(0.03, 0.95, f"{off:.0%} off the axes", fontsize=8, transform=ax.transAxes)
        ax.tick_params(labelsize=8)
        ax.set(xlabel="x₁", ylabel="x₂" if found.reference.shape[1] > 1 else "share below")
        ax.label_outer()
        ax.spines[["top", "right"]].set_visible(False)
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
