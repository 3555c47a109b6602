"""The application: its commands, and how every error becomes one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from invprob import __version__
from invprob_cli import console
from invprob_cli.benchmark import benchmark
from invprob_cli.check import check
from invprob_cli.compare import compare
from invprob_cli.demo import demo
from invprob_cli.diagnose import diagnose
from invprob_cli.doctor import doctor
from invprob_cli.evidence import evidence
from invprob_cli.import_ import import_
from invprob_cli.inspect import inspect
from invprob_cli.lists import baselines, operators, priors, runs
from invprob_cli.prior import app as prior
from invprob_cli.report import report
from invprob_cli.sample import sample
from invprob_cli.simulate import simulate
from invprob_cli.train import train
from operators.errors import InvprobError, PeerLost

# typer may keep a click of its own under a private name, so the class is found from a public one
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


# what a command that was stopped has kept, and how to go on; the others keep nothing
STOPPED = {
    "train": "what was saved is kept: `invprob train --resume RUN` goes on",
    "sample": "what was drawn is kept: the same command goes on",
    "compare": "methods that have finished are kept: the same command goes on",
    "evidence": "models that were trained are kept: the same command goes on",
    "prior": "images and the last checkpoint are kept: the same command goes on",
}


class Commands(TyperGroup):
    """The group of commands; what goes wrong in one ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with the code that design and errors give."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
            return result
        except (typer.Exit, typer.Abort, USAGE_ERROR):
            raise
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(0) from None
        except SystemExit as stop:  # SIGTERM; of several processes the first one speaks
            if stop.code == 128 + signal.SIGTERM and os.environ.get("RANK", "0") == "0":
                console.note(f"error: {stopped(ctx.invoked_subcommand)}")
            raise
        except (KeyboardInterrupt, Exception) as error:
            if ctx.params.get("debug"):
                raise
            if isinstance(error, KeyboardInterrupt):
                console.note(f"error: {stopped(ctx.invoked_subcommand)}")
                raise typer.Exit(128 + signal.SIGINT) from None
            if isinstance(error, PeerLost):  # the launcher's signal would only interrupt the end
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            message, code = explain(error)
            console.note(f"error: {message}")
            raise typer.Exit(code) from None


def stopped(command: str | None) -> str:
    """Return the line that tells what a command that was stopped has kept, and how to go on."""
    kept = STOPPED.get(command or "", "nothing is kept: the same command begins anew")
    return f"interrupted; {kept}"


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line that tells the user what went wrong, and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, InvprobError):
        return text, error.exit_code
    if isinstance(error, MemoryError) or ("memory" in text and "alloc" in text.lower()):
        return "out of memory: try a smaller batch (train: --paths 8; sample, compare: --n)", 1
    if isinstance(error, OSError):
        full = "; free some disk space" if error.errno == errno.ENOSPC else ""
        return f"{error.strerror or text}: {error.filename or 'while writing'}{full}", 1
    return f"{type(error).__name__}: {text} (`invprob --debug ...` shows where)", 1


app = typer.Typer(
    cls=Commands,
    name="invprob",
    help="Which x are plausible given data y = A(x) + noise and a learned prior, "
    "and how far can the answer be trusted?",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help costs half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        console.say(f"invprob {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Show the library's log on stderr."""
    for name in ("invprob", "py.warnings"):
        log = logging.getLogger(name)
        log.handlers[:] = [console.LogLines()]
        log.setLevel(logging.DEBUG if debug else logging.INFO)


for command in (
    demo, simulate, import_, check, inspect, train, sample, compare, diagnose, report, benchmark,
    evidence, operators, priors, baselines, runs, doctor,
):  # fmt: skip
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(prior, name="prior")


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if callable(signal.getsignal(signal.SIGINT)):  # else ignored, as in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.captureWarnings(True)
    app()


def _silence_stdout() -> None:
    """Send what is still buffered to nowhere: whoever read it has gone."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
