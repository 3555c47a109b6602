"""Panels that figures are made of: images, lines, residuals; matplotlib without pyplot.

Images are [y, x], origin lower, in arcsec about the centre where the operator has pixel scales,
else in pixels. Masked pixels are grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

Array = NDArray[Any]

DPI = 100
SIGMAS = 4.0  # residuals are shown within plus and minus this
SOFTENING = 0.1  # the asinh stretch is linear below this fraction of the peak
INTERVAL = (5, 95)  # percentiles of the bands around vectors
MASKED = "0.8"  # grey


@dataclass(frozen=True)
class Plane:
    """Where panels lie: the side of a pixel in arcsec, None for pixels; the unit of values.

    axes: what is across and up where that is no image of the sky or a scene; "" otherwise.
    """

    pixel: float | None
    unit: str
    axes: tuple[str, str] = ("", "")

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


def grid(rows: int, columns: int, side: float = 3.7) -> tuple[Figure, Any]:
    """Return a figure of panels `side` inches wide, at most 16 inches in all, and its axes."""
    side = min(side, 15.9 / columns)
    figure = Figure(figsize=(side * columns, 0.88 * side * rows))
    figure.set_layout_engine("constrained", w_pad=0.1)
    return figure, figure.subplots(rows, columns, squeeze=False)


def value(
    ax: Axes,
    a: Array,
    title: str,
    plane: Plane,
    norm: Normalize,
    colours: str | None = None,
    band: Array | None = None,
    behind: Array | None = None,
    bar: bool = True,
) -> None:
    """Draw a quantity: an image in colours, or a line with the interval of `band` (n, d).

    Colours diverge from white at zero where the scale is the same on both sides of it. A line is
    drawn over `behind`, what it should match, in grey.
    """
    if a.ndim == 1:
        i = np.arange(len(a))
        if behind is not None:
            ax.plot(i, behind, ".", color="0.5", ms=5, zorder=1)
        if band is not None:
            low, high = np.percentile(band, INTERVAL, axis=0)
            ax.fill_between(i, low, high, alpha=0.3, lw=0)
        # a line of values with a name of their own, such as closures, has no order: points
        style = "." if plane.axes[0] else "-" if len(a) > 16 else "o-"
        ax.plot(i, a, style, ms=3, lw=1)
        _label_line(ax, title, plane.unit, plane.axes[0])
        return
    stretch = ", asinh stretch" if isinstance(norm, AsinhNorm) else ""
    usual = "RdBu_r" if norm.vmax == -(norm.vmin or 0) else "inferno"
    drawn = _image(ax, a, title + stretch, plane, norm, colours or usual)
    if bar:
        _colour_bar(ax, drawn, plane.unit)


def sigmas(ax: Axes, a: Array, title: str, plane: Plane) -> None:
    """Draw a quantity in standard deviations, within `SIGMAS`."""
    if a.ndim > 1:
        norm = Normalize(-SIGMAS, SIGMAS)
        _colour_bar(ax, _image(ax, a, title, plane, norm, "RdBu_r"), "")
        return
    ax.axhspan(-1, 1, color="0.9", lw=0)
    ax.stem(np.arange(len(a)), a, linefmt="C0-", markerfmt="C0.", basefmt="0.5")
    ax.set_ylim(-SIGMAS, SIGMAS)
    _label_line(ax, title, "σ", plane.axes[0])


def _image(
    ax: Axes, a: Array, title: str, plane: Plane, norm: Normalize, colours: str
) -> AxesImage:
    image = a.reshape(-1, *a.shape[-2:])[0]  # of more than two dimensions, the first image
    palette = matplotlib.colormaps[colours].with_extremes(bad=MASKED)
    across, up = plane.axes
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(across or plane.axis, fontsize=8)
    if up:
        ax.set_ylabel(up, fontsize=8)
    ax.tick_params(labelsize=8)
    if plane.pixel is None:  # indices
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax.imshow(
        np.ma.masked_invalid(image), origin="lower", cmap=palette, norm=norm,
        extent=plane.extent(image), interpolation="nearest", aspect="auto" if across else "equal",
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


def histogram(ax: Axes, residual: Array) -> None:
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


def deviation(
    ax: Axes,
    x: Array,
    found: Array,
    band: tuple[Array, Array],
    title: str,
    bad: bool,
    diagonal: bool = False,
) -> None:
    """Draw what was found at probabilities x within its band, red where it is `bad`.

    As the difference to x, or with `diagonal` against x.
    """
    base = 0 * x if diagonal else x
    ax.fill_between(x, band[0] - base, band[1] - base, color="0.87", lw=0)
    ax.plot(x, x - base, color="0.55", lw=0.8)
    ax.plot(x, found - base, "C3" if bad else "C0", lw=1.4)
    ax.set_title(title, fontsize=10, color="C3" if bad else "k")
    ax.xaxis.label.set_fontsize(8)
    ax.yaxis.label.set_fontsize(8)
    ax.tick_params(labelsize=8)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right"]].set_visible(False)


def _label_line(ax: Axes, title: str, unit: str, axis: str = "") -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(axis or "index", fontsize=8)
    ax.set_ylabel(unit, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def norm(a: Array) -> Normalize:
    """Return the scale of an image: asinh for sources on a dark ground and the like, else linear.

    It is symmetric about zero where values of both signs are large.
    """
    low, high = float(np.nanmin(a)), float(np.nanmax(a))
    if high <= low:
        return Normalize(low, low + 1)
    if min(-low, high) > 0.3 * max(-low, high):
        peak = max(-low, high)
        faint = np.nanpercentile(np.abs(a), 75) < SOFTENING * peak
        return AsinhNorm(SOFTENING * peak, -peak, peak) if faint else Normalize(-peak, peak)
    bright = np.nanpercentile(a, 75) < 0.3 * high and low > -0.3 * high
    if bright:
        return AsinhNorm(SOFTENING * high, vmin=low, vmax=high)
    return Normalize(low, high)


def _asinh_ticks(norm: AsinhNorm) -> FixedLocator:
    """Return ticks at 0 and at 1, 2, 5 times powers of ten, of either sign, on an asinh bar."""
    assert norm.vmax is not None and norm.vmin is not None  # `norm` always sets them
    top = np.floor(np.log10(norm.vmax))
    steps = [digit * 10.0**power for power in (top - 1, top) for digit in (1, 2, 5)]
    shown = [v for v in steps if SOFTENING / 2 < v / norm.vmax <= 1]
    return FixedLocator([*(-v for v in shown if -v >= norm.vmin), 0.0, *shown])
