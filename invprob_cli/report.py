"""`invprob report`: everything a run knows of its posterior, in one HTML file to share."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer

from invprob_cli import console, options
from invprob_cli.certificate import certificate_rows
from invprob_cli.inspect import facts_of, read_json

CAPTIONS = {  # of the figures of a run, in the order of the report
    "posterior": "Data, model and residuals; mean, spread and, where it is known, the truth",
    "samples": "Samples of the posterior",
    "diagnose": "Calibration: ranks of truths among samples, with the bands of exact samplers",
    "compare": "The same data by other methods",
    "training": "Training",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem }
.verdict { font-size: 1.25rem; border-left: 4px solid #1f6fb2; padding-left: .75rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
tr + tr { border-top: 1px solid #ddd } th { font-weight: 600 }
img { max-width: 100% } figure { margin: 1.5rem 0 } figcaption { color: #555 }
"""


def report(
    run: options.RunName = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: report.html in the run.")
    ] = None,
    runs: options.RunsFolder = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """Write one self-contained HTML file about a run."""
    from invprob.run import Run

    opened = Run.open(run, runs)
    console.note(f"run {opened.path}{'' if run else ' (the latest)'}")
    file = options.writable(out or opened.path / "report.html")
    text, facts = page(opened.path)
    file.write_text(text, encoding="utf-8")
    found = {"file": file, "run": opened.name, **facts}
    if as_json:
        console.document(found)
        return
    shown = ("python", "-m", "webbrowser", file.resolve().as_uri())
    console.ending([file], f"{opened.name}: {facts['verdict']}", *shown)


def page(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the HTML about a run, and its verdict, figures and what was not there to show.

    The certificate is that of the samples in posterior.h5, else that of the training.
    """
    from invprob.certificate import Certificate

    facts = facts_of(folder)
    stored = facts["certificate"]
    if (folder / "posterior.h5").is_file():
        stored = facts_of(folder / "posterior.h5")["certificate"]
    verdict = stored["verdict"] if stored else "not finished: there is no certificate yet"
    parts = [
        f"<h1>{escape(facts['name'])}</h1>",
        f"<p>{escape(facts['operator'])} with the prior {escape(str(facts['config']['prior']))}, "
        f"{escape(facts['created'])}</p>",
        f'<p class="verdict">{escape(verdict)}</p>',
    ]
    if stored:
        rows = certificate_rows(Certificate(**stored))
        parts += ["<h2>Certificate</h2>", table(("", "", "what it is"), rows)]
    parts += ["<h2>Instrument and data</h2>", table(("", ""), instrument(folder / "obs.h5"))]
    files = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    shown = [name for name in CAPTIONS if name in files]
    shown += [name for name in files if name not in CAPTIONS]
    parts += [picture(files[name], caption(name)) for name in shown]
    missing = []
    for name, heading, rows_of in (
        ("diagnose", "Calibration", checks),
        ("compare", "Other methods", scores),
    ):
        path = folder / f"{name}.json"
        if path.is_file():
            parts += [f"<h2>{heading}</h2>", table(*rows_of(read_json(path)))]
        else:
            missing.append(name)
    kept = {key: facts[key] for key in ("seed", "command", "versions", "observation_sha256")}
    parts += ["<h2>How it was made</h2>", table(("", ""), flat({**kept, **facts["config"]}))]
    title = escape(facts["name"])
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    text = "\n".join([f'<!doctype html><html lang="en"><head>{head}</head><body>', *parts])
    return f"{text}\n</body></html>\n", {"verdict": verdict, "figures": shown, "missing": missing}


def instrument(path: Path) -> list[tuple[str, str]]:
    """Return the rows on operator, noise and data of an observation."""
    from invprob import obs_file

    facts = obs_file.facts(path)
    keys = (
        "operator", "parameters", "noise", "noise_parameters", "noise_sigma_range", "data_shape",
        "data_range", "masked", "unit", "flux_scale",
    )  # fmt: skip
    return flat({key: facts[key] for key in keys if facts[key] not in (None, "", {})})


def caption(name: str) -> str:
    """Return the caption of a figure by its name, which begins with that of other data."""
    data, _, kind = name.rpartition("-")
    if kind not in CAPTIONS:
        return name
    return f"{CAPTIONS[kind]}{f': observation {data}' if data else ''}"


def checks(found: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Return columns and rows of the checks of `diagnose`."""
    words = {True: "pass", False: "fail"}
    rows = [
        (
            check["name"], console.cell(check["statistic"]), console.cell(check["threshold"]),
            "" if check["threshold"] is None else words[check["passed"]], check["verdict"],
            check["remedy"] or "",
        )
        for check in found["checks"]
    ]  # fmt: skip
    return ("check", "statistic", "at most", "", "verdict", "remedy"), rows


def scores(found: Mapping[str, Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Return columns and rows of the scores of `compare`: a method in each column."""
    methods = found["methods"]
    keys = [key for key in methods[0] if key not in ("name", "se")]
    rows = [
        (key, *(console.measured(one[key], one["se"].get(key)) for one in methods)) for key in keys
    ]
    count = found.get("observations", 1)
    each = f"{found['n']} samples of each, {count} observation{'s' if count > 1 else ''}"
    return (each, *(method["name"] for method in methods)), rows


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted keys and values of nested settings."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, list) else [value]
            words = (f"{item:.6g}" if isinstance(item, float) else str(item) for item in items)
            rows.append((f"{prefix}{key}", " ".join(words)))
    return rows


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; every cell is escaped here."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in columns) if any(columns) else ""
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>" if head else f"<table>{body}</table>"


def picture(path: Path, caption: str) -> str:
    """Return a figure whose PNG is part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
