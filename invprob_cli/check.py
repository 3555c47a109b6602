"""`invprob check`: does an operator keep the contract that inference relies on?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from invprob_cli import console, options
from invprob_cli.diagnose import FAILED, mark
from invprob_cli.simulate import build, load_prior

ITEMS = 3  # draws of the prior that the operator is tried on


def check(
    operator: Annotated[
        str | None,
        typer.Option(help="Name of an operator, or file.py:Class (which runs that file)."),
    ] = None,
    obs: Annotated[
        Path | None, typer.Option(help="Observation whose instrument and likelihood to check.")
    ] = None,
    prior: options.PriorName = None,
    size: options.Size = None,
    settings: options.Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when a check fails.")] = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Check an operator: shapes, adjoint, gradients, speed; with data, their likelihood."""
    if operator is None and obs is None:
        raise typer.BadParameter("name --operator, or give the --obs of one")
    if obs is not None and (settings or size):
        raise typer.BadParameter("--obs has its instrument's settings and size: leave those out")

    from invprob import registry
    from invprob.contract import check_operator
    from invprob.observation import Observation
    from invprob.posterior import resolve_prior

    options.use_threads(threads)
    observation = None
    if obs is not None:
        observation = Observation.read(obs, operator, prior)
        instrument = observation.operator
        name, loaded = resolve_prior(observation, prior)
    else:
        cls = registry.operator_class(operator or "")
        name = prior or cls.default_prior
        loaded = load_prior(name, size)
        instrument = build(cls, loaded.x_shape, settings)
    x = loaded.decode(loaded.draw(ITEMS, seed))
    found = check_operator(instrument, x, observation, seed)
    failed = [c for c in found if not c.passed]
    shown = registry.name_of(type(instrument))
    if as_json:
        facts = {"operator": shown, "prior": name, "checks": [asdict(c) for c in found]}
        console.document({**facts, "passed": not failed})
    else:
        rows = [
            (
                escape(c.name), f"{c.statistic:.1e}", console.cell(c.threshold),
                mark(c.passed, c.threshold), escape(c.verdict), escape(c.remedy or ""),
            )
            for c in found
        ]  # fmt: skip
        title = f"{shown} on {ITEMS} draws of {name}, {console.cell(instrument.x_shape)}"
        console.table(("check", "statistic", "at most", "", "verdict", "remedy"), rows, title)
        verdict = f"{len(failed)} of {len(found)} checks fail: {', '.join(c.name for c in failed)}"
        following = ("train", "--obs", obs) if obs else ("simulate", "--operator", operator)
        headline = verdict if failed else f"{shown} keeps the contract"
        own_code = options.own_code(operator if obs else None, prior)
        console.ending([], headline, "invprob", *following, *own_code)
    if strict and failed:
        raise typer.Exit(FAILED)
