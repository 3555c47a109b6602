"""Figures: every panel is there, for images and vectors, with and without truth and mask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import AsinhNorm

from invprob import figures, panels, trust_figures
from invprob.observation import Observation
from operators.inpainting import Inpainting
from operators.lensing import Lensing
from operators.linear import Linear


def lens() -> Observation:
    """Return a lensed bright source on 16 x 16 pixels, with its truth."""
    y, x = np.mgrid[:16, :16] - 7.5
    truth = 20 * np.exp(-np.hypot(x, y) / 2)
    operator = Lensing.default((16, 16))
    data = np.random.default_rng(0).normal(size=operator.y_shape)
    data[20:30, 20:30] += 40
    return Observation(operator, data, 1.0, truth=truth, unit="e-/s")


def vector() -> Observation:
    """Return two numbers seen of four."""
    return Observation(Linear.default((4,)), np.array([1.0, 2.0]), 0.1, truth=np.arange(4.0))


def draws(observation: Observation, n: int = 9) -> Any:
    shape = (n, *observation.operator.x_shape)
    return SimpleNamespace(x=np.random.default_rng(1).normal(size=shape).astype("f4"))


def titles(figure: Any) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


@pytest.mark.parametrize("make", [lens, vector])
def test_a_posterior_is_shown_with_fit_spread_and_error(make: Any, tmp_path: Path) -> None:
    observation = make()
    figure = figures.posterior_figure(observation, draws(observation).x)
    shown = " ".join(titles(figure))
    wanted = ("data", "model", "(data − model) / σ", "truth x", "mean", "std", "(truth − mean)")
    assert all(word in shown for word in wanted)
    assert figure.get_size_inches()[0] * panels.DPI <= 1600
    path = figures.save(figure, tmp_path / "new" / "posterior.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_page_shows_every_operator_in_its_own_row() -> None:
    shown = [(made, draws(made).x) for made in (lens(), vector())]
    figure = figures.gallery_figure(shown)
    rows = [title.split(",")[0] for title in titles(figure)]
    assert rows == ["lensing", "data", "posterior mean", "one sample", "linear", *rows[1:4]]
    unknown = dataclasses.replace(vector(), truth=None)
    assert len(titles(figures.gallery_figure([(unknown, draws(unknown).x)]))) == 3


def test_residuals_are_in_sigma_and_masked_pixels_are_bad() -> None:
    operator = Inpainting((8, 8))
    x = np.random.default_rng(0).normal(size=(8, 8))
    observation = Observation(operator, x + 0.5, 0.25)
    residual = figures._fit(observation, x)[1]
    dropped = operator.data_mask.numpy()
    assert np.isnan(residual[dropped]).all()
    assert np.allclose(residual[~dropped], 2.0)


def test_axes_are_in_arcsec_about_the_centre() -> None:
    x, y = figures._planes(lens())
    assert x.extent(np.zeros((16, 16))) == pytest.approx((-0.96, 0.96, -0.96, 0.96))
    assert y.axis == "arcsec"
    assert figures._planes(vector())[0].axis == "px"


def test_a_source_is_stretched_and_a_field_is_not() -> None:
    assert isinstance(panels.norm(lens().truth), AsinhNorm)
    assert not isinstance(panels.norm(np.linspace(-1, 1, 9)), AsinhNorm)
    flat = panels.norm(np.zeros(4))
    assert flat.vmin < flat.vmax


@pytest.mark.parametrize("make", [lens, vector])
def test_samples_and_comparisons_have_a_panel_each(make: Any) -> None:
    observation = make()
    assert len(titles(figures.samples_figure(observation, draws(observation, 5).x))) == 5
    results: Any = [
        SimpleNamespace(name=n, draws=draws(observation, k)) for n, k in (("a", 3), ("b", 1))
    ]
    figure = figures.compare_figure(observation, results)
    shown = titles(figure)
    assert len(shown) == 2 + 5  # truth, data, and those of the first method
    assert [t.split(",")[0] for t in shown[:2]] == ["truth x", "data y"]
    filled = [a for a in figure.axes if a.get_visible() and a.axison and (a.images or a.lines)]
    assert len(filled) == 2 + 5 + 4  # the second has one sample


def test_a_method_that_has_diverged_leaves_the_others_their_scale() -> None:
    observation = lens()
    known, wild = draws(observation, 3), draws(observation, 3)
    wild.x = 1e9 * wild.x
    results: Any = [SimpleNamespace(name="one", draws=some) for some in (known, known, wild)]
    figure = figures.compare_figure(observation, results)
    (std,) = (a for a in figure.axes if a.get_title() == "std")
    assert std.images[0].norm.vmax <= 3 * known.x.std(0).max()


def test_vectors_are_compared_on_one_scale_beside_a_truth_that_is_named() -> None:
    observation = vector()
    known, wide = draws(observation, 3), draws(observation, 3)
    wide.x = 2 * wide.x
    results: Any = [SimpleNamespace(name="one", draws=some) for some in (known, wide)]
    figure = figures.compare_figure(observation, results)
    rows = np.reshape(figure.axes, (3, 5))
    assert len({ax.get_ylim() for ax in rows[1:, [0, 3, 4]].flat}) == 1
    assert len({ax.get_ylim() for ax in rows[1:, 1]}) == 1
    assert [text.get_text() for text in rows[1, 0].get_legend().get_texts()] == ["truth"]


def test_a_few_samples_stand_out_among_exact_ones() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 2))
    results = [SimpleNamespace(name=str(n), draws=SimpleNamespace(x=x[:n])) for n in (100, 500)]
    rows = [{"sliced_wasserstein": 1.0}] * 2
    found: Any = SimpleNamespace(reference=x, results=results, rows=rows, floor={"floor": 0.1})
    few, many = (ax.lines[-1] for ax in trust_figures.benchmark_figure(found).axes[1:3])
    assert few.get_markersize() > many.get_markersize() and few.get_alpha() == 1


def test_data_without_a_truth_are_shown_in_units_of_the_noise() -> None:
    observation = dataclasses.replace(lens(), truth=None)
    assert titles(figures.observation_figure(observation))[-1].startswith("data / σ")


def test_training_figure_takes_any_metrics() -> None:
    rows = [
        {"step": 1, "stage": "warm start", "loss": 2.0},
        {"step": 2, "stage": "RTB", "loss": None},
    ]
    rows.append({"step": 3, "stage": "RTB", "loss": 1.0, "elbo": -4.0, "std_log_w": 2.0})
    assert len(titles(figures.training_figure(rows))) == 2
    assert len(titles(figures.training_figure([]))) == 2


def test_the_truth_of_the_first_of_several_is_shown() -> None:
    observation = vector()
    several = dataclasses.replace(observation, data=np.stack([observation.data, [5.0, 6.0]]))
    assert figures._data(several).tolist() == [1.0, 2.0]
