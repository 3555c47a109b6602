"""`invprob import`: an observation from a telescope's FITS images."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invprob.settings import leaves
from invprob_cli import console, options
from invprob_cli.simulate import build, split_noise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invprob.observation import Observation
    from invprob.telescope import Stamp
    from operators.base import ForwardOperator
    from operators.noise import NoiseModel

AUTO = "auto"
OFF_ZERO = 0.3  # sigma that the frame may lie off zero without a warning
OFF_NOISE = 1.2  # factor by which its scatter may differ from the noise given


def import_(
    image: Annotated[
        Path, typer.Argument(help="FITS image; a.fits[2] is HDU 2, a.fits[2,7] its plane 7.")
    ],
    operator: Annotated[
        str, typer.Option(help="Name of an operator, or file.py:Class (which runs that file).")
    ],
    noise: Annotated[
        str,
        typer.Option(
            metavar="FILE|SIGMA|NAME",
            help="Standard deviation of Gaussian noise in the image's unit, a map or a number; or "
            "another noise, whose parameters are --set noise.KEY=VALUE.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("obs.h5"),
    psf: Annotated[
        Path | None,
        typer.Option(help="Point spread function on the image's pixels, cut to fit; sum kept."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of 0 and 1, where 1 is EXCLUDED.")
    ] = None,
    mask_circle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,R",
            help="Exclude a circle, read off the figure's axes: arcsec about the middle, pixels "
            "where the operator has no pixel scale. Repeat for more.",
        ),
    ] = None,
    centre: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Middle of the cut-out, in the file's pixels from 0."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|NYxNX", help="Size of the cut-out; default: all.")
    ] = None,
    background: Annotated[
        str, typer.Option(metavar="LEVEL|auto", help="Subtract it; auto: the frame's median.")
    ] = "0",
    flux_scale: Annotated[
        str,
        typer.Option(
            metavar="FACTOR|auto",
            help="Multiply data and noise, to bring them to the prior's unit; auto: so that they "
            "peak where the prior's median draw does.",
        ),
    ] = "1",
    prior: options.PriorName = None,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Make an observation of a telescope's image."""
    middle = options.numbers(centre, 2, "--centre") if centre else None
    sides = options.sides(size) if size else None
    holes = [options.numbers(text, 3, "--mask-circle") for text in mask_circle or ()]
    level, factor = _number(background, "--background"), _number(flux_scale, "--flux-scale")
    if sides and len(sides) > 2:
        raise typer.BadParameter(f"--size {size}: an image has two sides")
    options.observation_file(out, image, noise, psf, mask)

    from invprob import figures, registry, telescope
    from invprob.flux_scale import scale_ratio, scale_warning
    from invprob.posterior import resolve_prior
    from operators.errors import ObservationError

    stamp = telescope.Stamp.read(image, middle, sides)
    of_noise, of_operator = split_noise(settings)
    cls = registry.operator_class(operator)
    instrument = _instrument(cls, stamp, prior, of_operator, psf)
    noisy = _noise(noise, of_noise, stamp)
    step = getattr(instrument, "pixel_scale", None)
    kept_out = telescope.circles(stamp.data.shape, step, holes)
    if mask:
        kept_out |= stamp.mask(mask)
    kept_out = telescope.excluded(stamp, noisy, kept_out)
    if level is None:
        level = telescope.sky(stamp.data, kept_out)[0]
        if math.isnan(level):
            raise ObservationError("no pixel is left in the image's frame: give --background LEVEL")
    made = telescope.observed(
        stamp, instrument, noisy, kept_out, level, 1.0 if factor is None else factor
    )
    name, loaded = resolve_prior(made, prior)
    if factor is None:
        factor = 1 / scale_ratio(made, loaded)
    observation = telescope.observed(stamp, instrument, noisy, kept_out, level, factor, name)
    observation.write(out)
    figure = figures.save(figures.observation_figure(observation), out.with_suffix(".png"))
    measured, warnings = _measured(observation)
    facts = {
        "file": out, "figure": figure, "operator": observation.name, "prior": name,
        "x_shape": instrument.x_shape, "y_shape": instrument.y_shape, "pixel_scale": step,
        "noise": observation.noise_name, "masked": int(kept_out.sum()), "background": level,
        "flux_scale": factor, "unit": observation.unit,
        "peak_over_prior": scale_ratio(observation, loaded), **measured,
    }  # fmt: skip
    if factor != 1:
        console.note(f"flux: data and noise times {factor:.4g}; one unit is {observation.unit}")
    assumed = _assumed(instrument, of_operator)
    for warning in (scale_warning(observation, loaded), *warnings, assumed):
        if warning:
            console.note(f"warning: {warning}")
    if as_json:
        console.document(facts)
        return
    shapes = [" x ".join(map(str, shape)) for shape in (instrument.x_shape, instrument.y_shape)]
    snr = measured["peak_snr"]
    peak = f"{facts['peak_over_prior']:.2g} times the prior's"
    console.ending(
        [out, figure],
        f"{observation.name}: x {shapes[0]} to y {shapes[1]}, "
        f"{facts['masked']} masked, peak {peak if snr is None else f'{snr:.3g} sigma, {peak}'}",
        *("invprob", "train", "--operator", operator, "--obs", out),
        *options.own_code(None, prior),
    )


def _instrument(
    cls: type[ForwardOperator],
    stamp: Stamp,
    prior: str | None,
    settings: list[str],
    psf: Path | None,
) -> ForwardOperator:
    """Return the instrument of a stamp: of its shape and pixel scale, as far as it has them."""
    from invprob import registry
    from invprob.telescope import pixel_scale
    from operators.errors import ObservationError

    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known: dict[str, Any] = {}
    if apart := "image_shape" in fields:
        known["image_shape"] = list(stamp.data.shape)
    if "pixel_scale" in fields and not any(s.startswith("pixel_scale=") for s in settings):
        known["pixel_scale"] = pixel_scale(stamp.header)
        if known["pixel_scale"] is None:
            raise ObservationError(
                "the image has no celestial WCS, so the size of its pixels is unknown: give it in "
                "arcsec, --set pixel_scale=0.05"
            )
    if "psf" in fields and "fwhm" not in fields and psf is None:
        known["psf"] = None
        console.note("warning: no --psf, so the instrument is taken to be perfectly sharp")
    x_shape = registry.load_prior(
        prior or cls.default_prior, None if apart else stamp.data.shape
    ).x_shape
    instrument = build(cls, x_shape, _oriented(settings, stamp), psf, known)
    if len(instrument.y_shape) != 2:
        raise ObservationError(
            f"the operator gives data of shape {instrument.y_shape}, which no image holds: make "
            "the observation with invprob.Observation(...).write"
        )
    if instrument.y_shape != stamp.data.shape:
        needed, found = ("x".join(map(str, s)) for s in (instrument.y_shape, stamp.data.shape))
        raise ObservationError(
            f"the image has {found} pixels, but the operator gives {needed} of what this prior "
            f"draws: cut it out with --size {needed}, or choose another --prior"
        )
    return instrument


def _oriented(settings: list[str], stamp: Stamp) -> list[str]:
    """Return settings where lenses with a position angle and no CD matrix have the stamp's."""
    import numpy as np

    from invprob.telescope import orientation

    given = list(options.assignments(settings))
    if not any(_needs_cd(value) for _, value in given):
        return settings
    cd = orientation(stamp)
    if cd is None:
        console.note(
            "warning: the image has no celestial WCS, so position angles are read with north up "
            "and east left"
        )
        return settings
    x, y = np.linalg.solve(cd, [[0, 1], [1, 0]])
    north, east = np.degrees(np.arctan2(-x, y))
    console.note(
        f"position angles are by the image's WCS: north is {north:.1f} deg, east {east:.1f} deg "
        "counter-clockwise from up"
    )
    return [f"{key}={json.dumps(_with_cd(value, cd.tolist()))}" for key, value in given]


def _needs_cd(value: Any) -> bool:
    """Return whether a setting, or one in its list, has a position angle and no CD matrix."""
    if isinstance(value, list):
        return any(_needs_cd(item) for item in value)
    return isinstance(value, dict) and "position_angle" in value and "cd" not in value


def _with_cd(value: Any, cd: list[list[float]]) -> Any:
    """Return a setting where lenses with a position angle and no CD matrix have this one."""
    if isinstance(value, list):
        return [_with_cd(item, cd) for item in value]
    return value | {"cd": cd} if _needs_cd(value) else value


def _noise(
    noise: str, settings: dict[str, Any], stamp: Stamp
) -> float | NDArray[np.float64] | NoiseModel:
    """Return what --noise gives: a number, the map in a file, or a noise model by its name."""
    from invprob import registry
    from invprob.observation import GAUSSIAN
    from operators.errors import UnknownName

    try:
        found: float | NDArray[np.float64] = float(noise)
    except ValueError:
        file = Path(noise.partition("[")[0])  # a.fits[2] is HDU 2 of a.fits
        if not (file.suffix or file.exists()):
            model = registry.noise_class(noise).from_config(settings)
            sigma = model.config().get("sigma")
            return sigma if noise == GAUSSIAN and isinstance(sigma, float) else model
        found = stamp.same(noise)
    if settings:
        raise UnknownName(f"--set noise.{next(iter(settings))}: belongs to --noise NAME")
    return found


def _measured(observation: Observation) -> tuple[dict[str, float | None], list[str]]:
    """Return peak, level and scatter of the frame in units of the noise, and what is odd there."""
    from invprob.telescope import in_sigma

    if observation.noise_sigma is None:
        return dict.fromkeys(("peak_snr", "sky_level", "sky_scatter")), []
    peak, level, scatter = in_sigma(observation)
    warnings = []
    if abs(level) > OFF_ZERO:
        warnings.append(
            f"the frame lies {level:.2g} sigma off zero, where priors put no light: "
            "--background auto subtracts its level"
        )
    if scatter >= OFF_NOISE or scatter <= 1 / OFF_NOISE:  # NaN where all of the frame is masked
        warnings.append(
            f"the frame scatters by {scatter:.2f} of the noise given: where that is sky, a perfect "
            f"model leaves a chi-square of {scatter**2:.2f} per pixel, not 1"
        )
    return {"peak_snr": peak, "sky_level": level, "sky_scatter": scatter}, warnings


def _assumed(instrument: ForwardOperator, settings: list[str]) -> str:
    """Return a warning that names the parameters which nobody gave, else an empty string."""
    given = tuple(text.partition("=")[0].strip() for text in settings)
    guessed = [
        f"{key}={value:.4g}"
        for key, value in leaves(instrument.config())
        if isinstance(value, float) and key != "pixel_scale" and not key.startswith(given or ("=",))
    ]
    if not guessed:
        return ""
    return f"parameters that are not this image's but the operator's defaults: {' '.join(guessed)}"


def _number(text: str, option: str) -> float | None:
    """Return the number that an option gives, None where it is auto."""
    return None if text == AUTO else options.numbers(text, 1, option)[0]
