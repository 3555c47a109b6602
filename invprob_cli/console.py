"""What the user sees: results on stdout, progress and log on stderr, user text never as markup."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from invprob.settings import leaves

if TYPE_CHECKING:
    from invprob.trajectory import Progress

PLAIN_EVERY = 5.0  # seconds between lines of progress where stderr is not a terminal
FEW = 4  # numbers of a list that are shown
ABOUT = 3  # blanks about a column
WORD_WIDTH = 14  # of words in a cell: longer ones are broken
NUMBER_WIDTH = 26  # up to which a cell is kept whole, if its column holds numbers
PLAIN_WIDTH = 150  # columns of a table where stdout is not a terminal

ON_TERMINAL = sys.stdout is not None and sys.stdout.isatty()  # None: closed by the shell
out = Console(highlight=False, soft_wrap=True, width=None if ON_TERMINAL else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line of a result."""
    out.print(text, markup=False)


def note(text: str) -> None:
    """Print one line to stderr."""
    err.print(text, markup=False)


def document(facts: Any) -> None:
    """Print one JSON document; NaN and infinity become null."""
    print(json.dumps(jsonable(facts), indent=1, allow_nan=False))


def jsonable(value: Any) -> Any:
    """Return `value` with numbers, text, lists and dicts only."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table; cells are rich markup, so escape what users wrote (see `cell`).

    Numbers are never broken: where they do not fit side by side, tables with the same first column
    follow one another.
    """
    from rich import box
    from rich.table import Table

    rows = list(rows)
    plain = [[Text.from_markup(row[i]).plain for row in rows] for i in range(len(columns))]
    whole = [_numbers(column) for column in plain]
    heads = [
        head.replace(" ", "\n") if own and len(head) > max(map(len, column)) else head
        for head, own, column in zip(columns, whole, plain, strict=True)
    ]
    least = [
        _least_width([*head.splitlines(), *column], own)
        for head, own, column in zip(heads, whole, plain, strict=True)
    ]
    for shown in _side_by_side(least):
        grid = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
        grid.show_header = any(columns)
        for i in shown:
            grid.add_column(heads[i], overflow="fold", no_wrap=whole[i])
        for row in rows:
            grid.add_row(*(row[i] for i in shown))
        out.print(grid, soft_wrap=False)
        title = ""


def _numbers(column: Sequence[str]) -> bool:
    """Return whether cells are numbers, or short words instead of one."""
    numeric = any(re.match(r"[-+\[]?\d", text) for text in column)
    return numeric and max(map(len, column)) <= NUMBER_WIDTH


def _least_width(column: Sequence[str], whole: bool) -> int:
    """Return the least width of a column with what is about it: of text, that of a word."""
    if whole:
        return ABOUT + max(map(len, column))
    return ABOUT + min(
        WORD_WIDTH, max((len(w) for text in column for w in text.split()), default=0)
    )


def _side_by_side(widths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the columns of each table that fits the width, the first column in all of them."""
    shown, room = [0], out.width - 1 - widths[0]
    for i, width in enumerate(widths[1:], 1):
        if width > room and len(shown) > 1:
            yield shown
            shown, room = [0], out.width - 1 - widths[0]
        shown.append(i)
        room -= width
    yield shown


def facts_table(facts: Mapping[str, Any], title: str = "") -> None:
    """Print a mapping as a table of two columns, nested ones by dotted keys."""
    table(("", ""), ((escape(key), cell(value)) for key, value in leaves(facts)), title)


def cell(value: Any) -> str:
    """Return a value as the safe text of a table's cell."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, list | tuple) and all(isinstance(n, int) for n in value):
        return " x ".join(map(str, value))
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return escape(" ".join(value))
    if isinstance(value, list | tuple) and all(isinstance(n, int | float) for n in value):
        many = len(value) > FEW
        return f"{len(value)} numbers" if many else ", ".join(cell(float(n)) for n in value)
    if isinstance(value, list | tuple) and all(isinstance(n, list | tuple) for n in value):
        return f"{len(value)} x {cell(value[0])}"
    return escape(str(value))


def measured(value: float, error: float | None) -> str:
    """Return "12.30 ± 0.42", to two digits of the error where there is one."""
    if error is None or not 0 < error < math.inf:
        return cell(value)
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def line(*words: object) -> str:
    """Return words as a shell reads them: those with a space or the like are quoted."""
    return shlex.join(map(str, words))


def ending(wrote: Sequence[Path], figure: str, *following: object) -> None:
    """Print how every command ends: what was written, the one figure, the next command's words."""
    for path in wrote:
        say(f"wrote {path}")
    if figure:
        say(figure)
    if following:
        say(f"next: {line(*following)}")


@contextmanager
def progress() -> Iterator[Progress]:
    """Give a callback that shows progress: a bar on a terminal, else a line now and then."""
    if not err.is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[figures]}", markup=False),
    )  # fmt: skip
    with Bars(*columns, console=err, transient=True) as bars:
        yield _Bar(bars)


class _Lines:
    """Progress as plain lines, at most one every `PLAIN_EVERY` seconds."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if time.monotonic() - self.last >= PLAIN_EVERY:
            self.last = time.monotonic()
            note(f"{stage} {done}/{total} {_brief(figures)}".rstrip())


class _Bar:
    """Progress as one bar that is renewed when a stage counts from its start again."""

    def __init__(self, bars: Any) -> None:
        self.bars, self.task, self.place = bars, None, (0, 0)

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if self.task is None or total != self.place[1] or done < self.place[0]:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task(stage, total=total, figures="")
        self.place = (done, total)
        self.bars.update(self.task, completed=done, description=stage, figures=_brief(figures))


class LogLines(logging.Handler):
    """Log records as single lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        note(level + record.getMessage())


def _brief(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {cell(value)}" for key, value in figures.items() if key != "rate")
