"""`invprob evidence`: operators, priors or noise models compared by the evidence of one dataset."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from invprob_cli import console, options

if TYPE_CHECKING:
    from invprob.config import TrainConfig
    from invprob.evidence import Evidence
    from invprob.observation import Observation
    from invprob.posterior import Posterior

STORED = "stored"  # name of the observation's own model
OTHERS = ("operator", "prior", "noise")  # keys that are no parameter of operator or noise


@dataclass(frozen=True, eq=False)
class Model:
    """One way to explain the data; `operator` names its class, where a user's file must be run."""

    name: str
    observation: Observation
    prior: str
    operator: str | None

    def key(self, config: TrainConfig) -> str:
        """Return the name of its run: the same for the same model, data and training alone."""
        facts = [self.observation.sha256(), self.prior, asdict(config)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")[:60]
        return f"{words or 'model'}-{digest}"


def evidence(
    obs: Annotated[Path, typer.Argument(help="Observation (obs.h5).")],
    alternatives: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE[,KEY=VALUE]",
            help="One more model: changes of the operator's parameters (lens.0.model=EPL), "
            "operator=, prior=, noise.sigma= or noise.scale=, or another noise "
            "(noise=student_t,noise.dof=3,noise.scale=0.1).",
        ),
    ] = None,
    stored: Annotated[
        bool, typer.Option(help="Whether the observation as it is stored is a model too.")
    ] = True,
    operator: Annotated[
        str | None, typer.Option(help="Operator that the data must come from, or file.py:Class.")
    ] = None,
    prior: options.PriorName = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of several observations in the file.")
    ] = 0,
    training: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="KEY=VALUE", help="Change one setting of the trainings."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train briefly, as a first look.")] = False,
    n: Annotated[int, typer.Option(min=32, help="Samples of each model.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default: beside the observation.")
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare operators, priors or noise models by log Z."""
    from invprob.observation import Observation

    observation = Observation.read(obs, operator, prior).one(index)
    from invprob import figures, trust_figures
    from invprob.config import TrainConfig
    from invprob.evidence import evidence as weigh
    from invprob.evidence import refuse_other_data, verdict

    base = TrainConfig(seed=seed).of_quality("draft" if quick else "default")
    config = options.configured(base, training, "--train")
    models = distinct(
        [
            *([change(observation, prior, operator, "")] if stored else []),
            *(change(observation, prior, operator, text) for text in alternatives or ()),
        ]
    )
    if len(models) < 2:
        raise typer.BadParameter("nothing to compare: give --set KEY=VALUE for every other model")
    refuse_other_data({model.name: model.observation for model in models})
    folder = out or obs.parent / f"{obs.stem}-evidence"
    file = options.writable(folder / "evidence.json")
    options.check_memory(n, observation.operator.x_shape)
    options.use_threads(threads)
    posteriors = {model.name: trained_once(model, config, folder / "runs") for model in models}
    with console.progress() as progress:
        found = weigh(posteriors, n, seed, progress)
    facts = document(obs, models, config, found)
    file.write_text(json.dumps(console.jsonable(facts), indent=1, allow_nan=False) + "\n")
    drawn = figures.save(trust_figures.evidence_figure(found), folder / "figures" / "evidence.png")
    if as_json:
        console.document(facts)
        return
    show(facts)
    best = next(model for model in models if model.name == facts["best"])
    console.ending(
        [file, drawn],
        verdict(found),
        *("invprob", "sample", "--n", 256, "--run", folder / "runs" / best.key(config)),
        *options.own_code(best.operator, best.prior),
    )


def change(observation: Observation, prior: str | None, operator: str | None, text: str) -> Model:
    """Return the model that the settings `key=value,key=value` make of the stored one.

    Raises UnknownName on a key that does not exist, and what operator, noise and prior raise.
    """
    from invprob import registry
    from invprob.posterior import resolve_prior
    from invprob.settings import with_settings
    from operators.errors import UnknownName

    settings = split(text)
    given = dict(options.assignments(settings))
    if len(given) < len(settings):
        raise UnknownName(f"--set {text!r} gives a value twice: one --set is one model")
    values = {key: value for key, value in given.items() if key not in OTHERS}
    instrument = observation.operator
    if "operator" in given:
        operator = str(given["operator"])
        instrument = registry.operator_class(operator).default(instrument.x_shape)
    try:
        noise = None if "noise" not in given else str(given["noise"])
        changed = with_settings(observation, values, instrument, noise)
    except UnknownName as error:
        raise UnknownName(f"--set {error}, {', '.join(OTHERS)}") from None
    name, _ = resolve_prior(changed, str(given["prior"]) if "prior" in given else prior)
    return Model(text or STORED, changed, name, operator)


def split(text: str) -> list[str]:
    """Return the assignments of one --set: commas separate where a new key follows."""
    return re.split(r",(?=\s*[A-Za-z_][\w.]*=)", text) if text else []


def distinct(models: Sequence[Model]) -> list[Model]:
    """Return the models without those that another one before them equals, which are named."""
    kept: dict[tuple[str, str], Model] = {}
    for model in models:
        first = kept.setdefault((model.observation.sha256(), model.prior), model)
        if first is not model:
            console.note(f"{model.name} is the same model as {first.name}: counted once")
    return list(kept.values())


def trained_once(model: Model, config: TrainConfig, folder: Path) -> Posterior:
    """Return the posterior of the model's run: trained, resumed, or as it was finished before."""
    from invprob.posterior import Posterior
    from invprob.run import Run
    from invprob_cli.train import trained

    name = model.key(config)
    run = Run.open(name, folder) if (folder / name).is_dir() else None
    if run and (run.path / "posterior.json").exists():
        console.note(f"{model.name}: trained before, in {run.path}")
        return Posterior.from_pretrained(run.path, model.operator, model.prior)
    console.note(f"{model.name}:")
    again = console.line("invprob", *sys.argv[1:])
    return trained(model.observation, model.prior, config, folder, name, run, again)[0]


def document(
    obs: Path, models: Sequence[Model], config: TrainConfig, found: Sequence[Evidence]
) -> dict[str, Any]:
    """Return what `--json` prints; a Bayes factor is that of the best model over the row's."""
    from invprob.evidence import bayes_factor, best, verdict

    top, rows = best(found), []
    for model, one in zip(models, found, strict=True):
        factor = None if one is top else bayes_factor(top, one)
        against = {
            "ln_bayes_factor": factor and factor.log_b,
            "ln_bayes_factor_se": factor and factor.log_b_se,
            "ln_bayes_factor_low": factor and factor.low,
            "ln_bayes_factor_high": factor and factor.high,
            "verdict": factor and factor.verdict,
        }
        where = {
            "operator": model.observation.name, "prior": model.prior, "run": model.key(config),
        }  # fmt: skip
        rows.append({**asdict(one), **against, **where})
    decided = all(row["verdict"] is None or row["ln_bayes_factor_low"] > 0 for row in rows)
    return {
        "observation": obs, "models": rows, "best": top.name, "decided": decided,
        "verdict": verdict(found),
    }  # fmt: skip


def show(facts: dict[str, Any]) -> None:
    """Print the table, best model first."""
    rows = sorted(facts["models"], key=lambda row: row["name"] != facts["best"])
    cells = [
        (
            escape(row["name"]),
            interval(row["log_z"], row["log_z_se"], row["low"], row["high"]),
            row["method"],
            f"{row['chi2_per_pixel']:.2f}" + ("" if row["fitted"] else ", not fitted"),
            "" if row["verdict"] is None else interval(
                *(row[f"ln_bayes_factor{end}"] for end in ("", "_se", "_low", "_high"))
            ),
            row["verdict"] or "the best, or its equal",
        )
        for row in rows
    ]  # fmt: skip
    title = (
        "nats; ± is one standard error, [ ] holds bounds; ln B is of the best model over the row's"
    )
    console.table(("model", "log Z", "by", "chi2 per pixel", "ln B", "for the best"), cells, title)


def interval(value: float | None, error: float | None, low: float, high: float) -> str:
    """Return "12.3 ± 0.4", or "[10.1, 14.2]" (no markup) where there are bounds alone."""
    if value is None:
        return escape(f"[{low:.1f}, {high:.1f}]")
    return f"{value:.2f} ± {error:.2f}"
