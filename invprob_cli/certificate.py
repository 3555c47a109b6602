"""The certificate as a table and as the document that `--json` promises."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from invprob_cli import console

if TYPE_CHECKING:
    from invprob.certificate import Certificate

PROMISED = (
    "elbo", "elbo_se", "eubo", "log_z", "log_z_se", "std_log_w", "ess", "pareto_k",
    "chi2_per_pixel", "chi2_expected", "verdict", "corrected",
)  # fmt: skip


def posterior_document(
    run: str, file: Path, n: int, certificate: Certificate, seconds: float
) -> dict[str, Any]:
    """Return what `sample` and `train` print under `--json`."""
    facts = {key: getattr(certificate, key) for key in PROMISED}
    return {"run": run, "file": file, "n": n, "certificate": facts, "seconds": seconds}


def certificate_table(certificate: Certificate) -> None:
    """Print the certificate, each figure with what it should be."""
    console.table(("", "", ""), certificate_rows(certificate), "Certificate")


def certificate_rows(certificate: Certificate) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of every figure."""
    c = certificate
    by = "log p(y) by importance weights, nats"
    eubo_se, bound = None, "upper bound of log p(y) by reliable weights, nats"
    if c.corrected == "smc":
        by, bound = "log p(y) by particles, nats", "that of the policy's single paths, nats"
        by += "" if c.even else ": their islands do not give its error"
    elif not c.even:
        by += f": too {'few' if c.few else 'uneven'} to give its error"
        eubo_se, bound = c.gap_se, "ELBO + gap of twins, a mean over simulated data, no bound, nats"
    return [
        ("ELBO", _with_error(c.elbo, c.elbo_se), "lower bound of log p(y), nats"),
        ("log Z", _with_error(c.log_z, c.log_z_se if c.even else None), by),
        ("EUBO", _with_error(c.eubo, eubo_se), bound),
        ("gap of twins", _with_error(c.gap, c.gap_se), _before(c.gap_start)),
        ("std of log w", _with_error(c.std_log_w), "0 when exact"),
        ("ESS", _with_error(c.ess), f"out of {c.n} draws"),
        ("Pareto k", _with_error(c.pareto_k), "weights are reliable below 0.7"),
        (
            "chi2 per pixel",
            _with_error(c.chi2_per_pixel),
            f"{c.chi2_expected:.2f} expected",
        ),
    ]


def _with_error(value: float | None, error: float | None = None) -> str:
    return "not defined" if value is None else console.measured(value, error)


def _before(gap_start: float | None) -> str:
    before = "" if gap_start is None else f" (before training {gap_start:.0f})"
    return f"EUBO - ELBO on simulated data, 0 when exact{before}"
