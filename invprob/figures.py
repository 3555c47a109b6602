"""Figures of observations, posteriors, trainings and comparisons; matplotlib without pyplot.

Images are [y, x], origin lower, in arcsec about the centre where the operator has pixel scales,
else in pixels. Residuals are (data - A(mean)) / sigma. Masked pixels are grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from invprob.comparison import Result
    from invprob.observation import Observation
    from invprob.posterior import Draws

Array = NDArray[Any]

DPI = 100
SIGMAS = 4.0  # residuals are shown within plus and minus this
SOFTENING = 0.1  # the asinh stretch is linear below this fraction of the peak
INTERVAL = (5, 95)  # percentiles of the bands around vectors
MASKED = "0.8"  # grey


@dataclass(frozen=True)
class Plane:
    """Where panels lie: the side of a pixel in arcsec, None for pixels; the unit of values."""

    pixel: float | None
    unit: str

    @property
    def axis(self) -> str:
        """Label of an axis."""
        return "px" if self.pixel is None else "arcsec"

    def extent(self, image: Array) -> tuple[float, float, float, float] | None:
        """Return left, right, bottom, top of an image centred on 0, None for pixels."""
        if self.pixel is None:
            return None
        height, width = (n * self.pixel / 2 for n in image.shape)
        return -width, width, -height, height


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, making its folder; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def observation_figure(observation: Observation) -> Figure:
    """Return the data and, where it is known, the truth."""
    data, x_plane, y_plane = _data(observation), *_planes(observation)
    truth = _truth(observation)
    figure, axes = _grid(1, 1 if truth is None else 2)
    _value(axes[0, -1], data, "data y", y_plane, _norm(data))
    if truth is not None:
        _value(axes[0, 0], truth, "truth x", x_plane, _norm(truth))
    return figure


def posterior_figure(observation: Observation, draws: Draws) -> Figure:
    """Return how the posterior mean fits the data, and mean, spread and error of x."""
    data, truth = _data(observation), _truth(observation)
    x_plane, y_plane = _planes(observation)
    mean, std = draws.x.mean(0), draws.x.std(0)
    model, residual = _fit(observation, mean)
    figure, axes = _grid(2, 3 if truth is None else 4)
    shared = _norm(data)
    _value(axes[0, 0], data, "data y", y_plane, shared)
    _value(axes[0, 1], model, "model A(mean)", y_plane, shared, behind=data)
    _sigmas(axes[0, 2], residual, "(data − model) / σ", y_plane)
    scale = _norm(mean if truth is None else truth)
    below = axes[1, 0 if truth is None else 1 :]
    _value(below[0], mean, "posterior mean", x_plane, scale, band=draws.x, behind=truth)
    _value(below[1], std, "posterior std", x_plane, Normalize(0, float(std.max())), "cividis")
    if truth is None:
        _value(below[2], draws.x[0], "one sample", x_plane, scale)
        return figure
    _value(axes[1, 0], truth, "truth x", x_plane, scale)
    _sigmas(
        below[2], (truth - mean) / np.where(std > 0, std, np.nan), "(truth − mean) / std", x_plane
    )
    _histogram(axes[0, 3], residual)
    return figure


def samples_figure(observation: Observation, draws: Draws, most: int = 16) -> Figure:
    """Return up to `most` samples on one scale."""
    shown = draws.x[:most]
    columns = min(len(shown), 4)
    figure, axes = _grid(-(-len(shown) // columns), columns, side=2.9)
    plane, scale = _planes(observation)[0], _norm(draws.x.mean(0))
    for i, ax in enumerate(axes.flat):
        if i >= len(shown):
            ax.set_axis_off()
            continue
        last = i % columns == columns - 1
        _value(ax, shown[i], f"sample {i + 1}", plane, scale, band=draws.x, bar=last)
        if shown.ndim == 2:  # vectors: one range, as images have one colour scale
            pad = 0.05 * float(np.ptp(shown))
            ax.set_ylim(shown.min() - pad, shown.max() + pad)
        ax.label_outer()
    return figure


def training_figure(metrics: Sequence[dict[str, Any]]) -> Figure:
    """Return the loss of every step and the ELBO of the RTB steps, from rows of metrics.jsonl."""
    figure, axes = _grid(1, 2, side=4.2)
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
    scale = _norm(means[0] if truth is None else truth)
    spread = Normalize(0, float(max(std.max() for std in stds)) or 1.0)
    figure, axes = _grid(len(results), 5, side=3.0)
    for row, result, mean, std in zip(axes, results, means, stds, strict=True):
        x = result.draws.x
        _value(row[0], mean, "mean", x_plane, scale, band=x, behind=truth)
        name = result.name if len(result.name) < 26 else f"{result.name[:24]}…"
        row[0].set_ylabel(name, fontsize=11, fontweight="bold")
        _value(row[1], std, "std", x_plane, spread, "cividis")
        _sigmas(row[2], _fit(observation, mean)[1], "(data − model) / σ", y_plane)
        for i, ax in enumerate(row[3:]):
            if i < len(x):
                _value(ax, x[i], f"sample {i + 1}", x_plane, scale)
            else:
                ax.set_axis_off()
    return figure


def _grid(rows: int, columns: int, side: float = 3.7) -> tuple[Figure, Any]:
    """Return a figure of panels `side` inches wide, at most 16 inches in all, and its axes."""
    side = min(side, 15.9 / columns)
    figure = Figure(figsize=(side * columns, 0.88 * side * rows))
    figure.set_layout_engine("constrained", w_pad=0.1)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _value(
    ax: Axes,
    a: Array,
    title: str,
    plane: Plane,
    norm: Normalize,
    colours: str = "inferno",
    band: Array | None = None,
    behind: Array | None = None,
    bar: bool = True,
) -> None:
    """Draw a quantity: an image in colours, or a line with the interval of `band` (n, d).

    A line is drawn over `behind`, what it should match, in grey.
    """
    if a.ndim == 1:
        i = np.arange(len(a))
        if behind is not None:
            ax.plot(i, behind, ".", color="0.5", ms=5, zorder=1)
        if band is not None:
            low, high = np.percentile(band, INTERVAL, axis=0)
            ax.fill_between(i, low, high, alpha=0.3, lw=0)
        ax.plot(i, a, "-" if len(a) > 16 else "o-", ms=3, lw=1)
        _label_line(ax, title, plane.unit)
        return
    stretch = ", asinh stretch" if isinstance(norm, AsinhNorm) else ""
    drawn = _image(ax, a, title + stretch, plane, norm, colours)
    if bar:
        _colour_bar(ax, drawn, plane.unit)


def _sigmas(ax: Axes, a: Array, title: str, plane: Plane) -> None:
    """Draw a quantity in standard deviations, within `SIGMAS`."""
    if a.ndim > 1:
        norm = Normalize(-SIGMAS, SIGMAS)
        _colour_bar(ax, _image(ax, a, title, plane, norm, "RdBu_r"), "")
        return
    ax.axhspan(-1, 1, color="0.9", lw=0)
    ax.stem(np.arange(len(a)), a, linefmt="C0-", markerfmt="C0.", basefmt="0.5")
    ax.set_ylim(-SIGMAS, SIGMAS)
    _label_line(ax, title, "σ")


def _image(
    ax: Axes, a: Array, title: str, plane: Plane, norm: Normalize, colours: str
) -> AxesImage:
    image = a.reshape(-1, *a.shape[-2:])[0]  # of more than two dimensions, the first image
    palette = matplotlib.colormaps[colours].with_extremes(bad=MASKED)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(plane.axis, fontsize=8)
    ax.tick_params(labelsize=8)
    return ax.imshow(
        np.ma.masked_invalid(image), origin="lower", cmap=palette, norm=norm,
        extent=plane.extent(image), interpolation="nearest",
    )  # fmt: skip


def _colour_bar(ax: Axes, drawn: AxesImage, unit: str) -> None:
    """Draw a colour bar as high as the image."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    bar = figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.05, 1)))
    bar.ax.tick_params(labelsize=8)
    if isinstance(drawn.norm, AsinhNorm):
        bar.ax.yaxis.set_major_locator(_asinh_ticks(drawn.norm))
        bar.ax.yaxis.set_major_formatter("{x:.2g}")
        bar.ax.minorticks_off()
    if unit:
        bar.set_label(unit, fontsize=8)


def _histogram(ax: Axes, residual: Array) -> None:
    """Draw the residuals' distribution beside the standard normal they should follow."""
    edges = np.linspace(-SIGMAS, SIGMAS, 41)
    kept = residual[np.isfinite(residual)]
    if len(kept) < len(edges):  # too few to show a distribution
        ax.set_axis_off()
        return
    ax.hist(np.clip(kept, edges[0], edges[-1]), edges.tolist(), density=True, color="0.75")
    ax.plot(edges, np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi), "C3-", lw=1.2)
    ax.set_title(f"residuals, rms {np.sqrt(np.square(kept).mean()):.2f} σ; N(0, 1)", fontsize=10)
    ax.set_xlabel("(data − model) / σ", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)


def _label_line(ax: Axes, title: str, unit: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("index", fontsize=8)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def _norm(a: Array) -> Normalize:
    """Return the scale of an image: asinh for sources on a dark ground, linear otherwise."""
    low, high = float(np.nanmin(a)), float(np.nanmax(a))
    if high <= low:
        return Normalize(low, low + 1)
    bright = np.nanpercentile(a, 75) < 0.3 * high and low > -0.3 * high
    if bright:
        return AsinhNorm(SOFTENING * high, vmin=low, vmax=high)
    return Normalize(low, high)


def _asinh_ticks(norm: AsinhNorm) -> FixedLocator:
    """Return ticks at 0 and at 1, 2, 5 times powers of ten on an asinh colour bar."""
    assert norm.vmax is not None  # `_norm` always sets it
    top = np.floor(np.log10(norm.vmax))
    steps = [digit * 10.0**power for power in (top - 1, top) for digit in (1, 2, 5)]
    return FixedLocator([0.0, *(v for v in steps if SOFTENING / 2 < v / norm.vmax <= 1)])


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
