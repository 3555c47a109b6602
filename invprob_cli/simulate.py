"""`invprob simulate`: an observation whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invprob_cli import console, options

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from operators.base import ForwardOperator
    from priors.base import Prior

NOISE = "noise."  # begins the settings of the noise
PSF = ("psf", "kernel")  # parameters that --psf sets


def simulate(
    operator: Annotated[
        str,
        typer.Option(
            help="Name of an operator, several as blur+inpainting, or file.py:Class (which runs "
            "that file)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("obs.h5"),
    prior: options.PriorName = None,
    truth: Annotated[
        Path | None, typer.Option(help="Image to use as truth (FITS or .npy), fitted to the prior.")
    ] = None,
    truth_draw: Annotated[
        bool, typer.Option("--truth-draw", help="Draw the truth from the prior (the default).")
    ] = False,
    psf: Annotated[
        Path | None, typer.Option(help="Point spread function (FITS or .npy), cut to fit.")
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION|NAME",
            help="Standard deviation of Gaussian noise as a fraction of the peak datum (default: "
            "the operator's own), or correlated, poisson, transmission, poisson_gaussian or "
            "student_t, whose parameters are --set noise.KEY=VALUE.",
        ),
    ] = None,
    size: options.Size = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Make an observation whose truth is known."""
    if truth and truth_draw:
        raise typer.BadParameter("give --truth or --truth-draw, not both")
    options.observation_file(out, truth, psf)

    from invprob import figures, obs_file, registry
    from invprob.simulate import draw_truth
    from invprob.simulate import simulate as observe

    cls = registry.operator_class(operator)
    name = prior or cls.default_prior
    loaded = load_prior(name, size)
    of_noise, of_operator = split_noise(settings)
    instrument = build(cls, loaded.x_shape, of_operator, psf)
    x, own = _fitted(truth, loaded) if truth else (draw_truth(loaded, seed), 0.0)
    wanted = None if noise is None else fraction_or_name(noise)
    observation = observe(instrument, x, wanted, seed, name, loaded.unit, own, of_noise)
    observation.write(out)
    figure = figures.save(figures.observation_figure(observation), out.with_suffix(".png"))
    sigma = observation.noise_sigma
    facts = {
        "file": out, "figure": figure, "operator": observation.name, "prior": name,
        "x_shape": instrument.x_shape, "y_shape": instrument.y_shape,
        "noise": observation.noise_name, "noise_sigma": sigma if isinstance(sigma, float) else None,
        "noise_parameters": obs_file.facts(out)["noise_parameters"], "seed": seed,
    }  # fmt: skip
    if as_json:
        console.document(facts)
        return
    described = ", ".join(f"{k} {_span(v)}" for k, v in observation.noise.config().items())
    shapes = (" x ".join(map(str, shape)) for shape in (instrument.x_shape, instrument.y_shape))
    console.ending(
        [out, figure],
        f"{observation.name}: x {next(shapes)} to y {next(shapes)}, "
        f"{observation.noise_name} noise, {described}",
        *("invprob", "train", "--operator", operator, "--obs", out),
        *options.own_code(None, prior),
    )


def _span(value: float | NDArray[np.float64]) -> str:
    """Return a parameter of the noise as text: of a map, its least and largest value."""
    if isinstance(value, float):
        return console.cell(value)
    return f"{console.cell(float(value.min()))} to {console.cell(float(value.max()))}"


def fraction_or_name(noise: str) -> float | str:
    """Return what --noise gives: a number where it is one, else the name of a noise model."""
    try:
        return float(noise)
    except ValueError:
        return noise


def split_noise(settings: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Return the values of `noise.KEY=VALUE`, by key, and the other settings."""
    own = [text for text in settings or () if text.startswith(NOISE)]
    values = {key.removeprefix(NOISE): value for key, value in options.assignments(own)}
    return values, [text for text in settings or () if not text.startswith(NOISE)]


def build(
    cls: type[ForwardOperator],
    x_shape: tuple[int, ...],
    settings: list[str] | None = None,
    psf: Path | None = None,
    known: Mapping[str, Any] | None = None,
) -> ForwardOperator:
    """Return the default instrument for `x_shape`, changed as asked, with the PSF of a file.

    known: parameters that the data tell, which settings may still change.
    """
    from invprob.fits import read_psf
    from operators.errors import ObservationError, UnknownName

    default = cls.default(x_shape)
    config = options.override({**default.config(), **(known or {})}, settings, cls.remodelled)
    if psf:
        field = next((key for key in PSF if key in config), None)
        if field is None:
            raise UnknownName(f"{cls.__name__} has no point spread function: leave --psf out")
        config[field] = read_psf(psf, min(config.get("image_shape", default.y_shape)))
    instrument = cls.from_config(config)
    if instrument.x_shape != tuple(x_shape):
        raise ObservationError(
            f"with these settings the operator takes x of shape {instrument.x_shape}, the prior "
            f"draws {tuple(x_shape)}: use --size, or another prior"
        )
    return instrument


def load_prior(name: str, size: str | None) -> Prior:
    """Return the prior, in the size asked for: N is a vector or a square, by the prior's kind."""
    from invprob import registry
    from operators.errors import UnknownName

    loaded = registry.load_prior(name)
    if size is None:
        return loaded
    sides = options.sides(size)
    shape = sides if len(sides) > 1 else sides * len(loaded.x_shape)
    resized = registry.load_prior(name, shape)
    if resized.x_shape != shape:
        raise UnknownName(
            f"prior {name!r} draws x of shape {resized.x_shape}, not {shape}: leave --size out"
        )
    return resized


def _fitted(path: Path, prior: Prior) -> tuple[NDArray[Any], float]:
    """Return the file's image fitted to an image prior with its noise, or a vector as it is."""
    from invprob.fits import read_image
    from invprob.simulate import fit_truth
    from operators.errors import ObservationError

    image = read_image(path)[0]
    if image.ndim == len(prior.x_shape) == 2:
        return fit_truth(image, prior)
    if image.shape != prior.x_shape:
        raise ObservationError(f"{path} has shape {image.shape}; the prior needs {prior.x_shape}")
    return image, 0.0
