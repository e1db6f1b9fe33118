"""Recipes: the parts of a table of results, of its rows, and of the commands behind a row.

The tables themselves are in :mod:`drhard.tables`.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drhard.errors import InputError

# The origin of a row: published models, models trained here, or published runs.
CHECKPOINT, SCRATCH, RUN = "checkpoint", "scratch", "run"


@dataclass(frozen=True)
class Step:
    """A command, and a file or folder that appears only when the command's results are whole.

    The step is done once that exists.
    """

    makes: Path
    command: str


def make_step(makes: str, *command: str) -> Step:
    """Return a step.

    Args:
        makes: the file or folder that shows that the results are whole, as one word of the shell.
        command: the parts of the command, joined by blanks. Empty parts are dropped.
    """
    return Step(unquote(makes), " ".join(filter(None, command)))


def unquote(word: str) -> Path:
    """Return the path that a word of the shell means: ``'two words'/data`` is ``two words/data``."""
    [path] = shlex.split(word)
    return Path(path)


def each_once(steps: Iterable[Step]) -> list[Step]:
    """Return the steps in order, without those that make the same as an earlier one."""
    first: dict[Path, Step] = {}
    for step in steps:
        first.setdefault(step.makes, step)
    return list(first.values())


@dataclass(frozen=True)
class Measure:
    """A column of a table."""

    name: str
    mode: str  # whose queries are measured
    measure: str  # its name in ir_measures


def expect(measures: Iterable[str], values: tuple[float, ...] | None) -> dict[str, float]:
    """Return the expected values of a row by the keys of its measures; none for None, if nothing was measured yet."""
    return {} if values is None else dict(zip(measures, values, strict=True))


@dataclass(frozen=True)
class Point:
    """A place on a curve. The questions with the same axis make one, of the values of their rows."""

    axis: str  # what grows along it
    at: int


@dataclass(frozen=True)
class Question:
    """A claim of the paper, as a question about two rows: is the first one better?

    Attributes:
        margin: for the question whether it is as good: the loss, in the table's first measure, that does not count.
        point: where the question is on a curve.
    """

    question: str
    row: str
    than: str
    margin: float | None = None
    point: Point | None = None


@dataclass(frozen=True)
class Trial:
    """One training of a row: its steps, and the model and runs that they make."""

    seed: int | None  # None if the row does not depend on one
    steps: tuple[Step, ...]
    model: Path | None  # None for a row without a model
    runs: Mapping[str, Path]  # by mode
    log_dir: Path | None  # TensorBoard's folder of the last training; None if nothing is trained
    record: Path | None = None  # the file that keeps what was measured; None to measure the runs for each report
    qrels: Mapping[str, Path] | None = None  # by mode, for runs with other ids than the table's; None: the table's

    @property
    def has_runs(self) -> bool:
        """Whether all its runs exist."""
        return all(path.exists() for path in self.runs.values())


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    table: str
    name: str
    expected: Mapping[str, float]  # by the keys of the table's measures; none if they were not measured yet
    trials: Mapping[str, tuple[Trial, ...]]  # by origin; the first is the default
    note: str = ""

    @property
    def id(self) -> str:
        """What reproduce.py calls the row, such as ``sample:STAR``."""
        return f"{self.table}:{self.name}"

    def steps(self, origin: str) -> list[Step]:
        """Return the steps of all trainings of the row, in order, without repetition."""
        return each_once(step for trial in self.trials[origin] for step in trial.steps)


@dataclass(frozen=True)
class Made:
    """A file or folder, and the commands that make it."""

    path: Path
    by: str


@dataclass(frozen=True)
class Table:
    """Rows with the same measures."""

    name: str
    title: str
    source: str  # where the expected values come from
    measures: Mapping[str, Measure]  # the first one answers the questions
    ok: float  # how far below the expected value a measured one may be to count as OK
    close: float  # the same for close; anything lower fails
    qrels: Mapping[str, Path]  # by mode
    rows: Mapping[str, Row]
    questions: tuple[Question, ...] = ()
    records: Path | None = None  # committed records of trials, for the report of whoever has not run them
    needs: Made | None = None  # what no step makes, because it takes too long


def find_rows(tables: Mapping[str, Table], wanted: str) -> list[Row]:
    """Return the row with an id such as ``sample:STAR``, or all rows of the table ``sample``.

    Raises:
        InputError: the table or row does not exist. The message names those that exist.
    """
    name, colon, row = wanted.partition(":")
    table = tables.get(name)
    if table is None:
        raise InputError(f"there is no table {name!r}; there are {', '.join(tables)} (reproduce.py list)")
    if not colon:
        return list(table.rows.values())
    if row not in table.rows:
        raise InputError(f"there is no row {wanted!r}; {name} has {', '.join(table.rows)}")
    return [table.rows[row]]
