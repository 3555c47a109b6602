"""The README of a prior's folder: what it draws, how it was made, how good it is."""

from __future__ import annotations

import textwrap

from invprob.prior_quality import Quality
from invprob.prior_recipe import Recipe, command
from priors.pixel import Pixel


def card(prior: Pixel, recipe: Recipe, name: str, quality: Quality) -> str:
    """Return the README of the prior's folder."""
    config = recipe.training
    unit = f", {recipe.unit}" if recipe.unit else ""
    said = (
        f"{recipe.summary or 'Images'}: {prior.x_shape[0]}x{prior.x_shape[1]} px{unit}. "
        f"{config.steps} steps of batch {config.batch}, seed {config.seed}; the sheet is "
        "`samples.png`. Made by"
    )
    lines = [
        f"# {name}\n",
        textwrap.fill(said[0].upper() + said[1:], 100) + "\n",
        f"    {command(recipe, name)}\n",
        *report(quality),
    ]
    return "\n".join(lines) + "\n"


def report(quality: Quality) -> list[str]:
    """Return the lines of a card that say how good the prior is."""
    lines = [
        "## Quality (`invprob prior check`)\n",
        "| check | statistic | at most | | |",
        "|---|---|---|---|---|",
        *(
            f"| {c.name} | {c.statistic:.3g} | {c.threshold:g} | {'pass' if c.passed else 'FAIL'} "
            f"| {c.verdict} |"
            for c in quality.checks
        ),
    ]
    if quality.denoising_error:
        lines += ["\n| noise ratio | held-out error E\\|z_0 - zhat_0\\|^2 / d |", "|---|---|"]
    rows = quality.denoising_error.items()
    return lines + [f"| {rho} | {error:.2e} |" for rho, error in rows]
