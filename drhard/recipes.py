"""Tables of results: their rows, the commands that make each row, and the values to expect."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import existing

import yaml

CHECKPOINT, SCRATCH = "checkpoint", "scratch"  # where a row's models come from: published, or trained here


@dataclass(frozen=True)
class Step:
    """A command, and the file that it writes last."""

    makes: Path
    command: str


def each_once(steps: Iterable[Step]) -> list[Step]:
    """The steps in their order, but only the first of those that make the same file."""
    first: dict[Path, Step] = {}
    for step in steps:
        first.setdefault(step.makes, step)
    return list(first.values())


@dataclass(frozen=True)
class Measure:
    """What a column of a table shows."""

    name: str
    mode: str  # whose queries
    measure: str  # in ir_measures


@dataclass(frozen=True)
class Question:
    """A claim of the paper, put to a table."""

    question: str
    row: str
    than: str
    equal: bool  # whether the rows are hoped to be the same


@dataclass(frozen=True)
class Trial:
    """One training of a row, with its seed: the checkpoint and the runs that it ends in."""

    seed: int | None
    steps: tuple[Step, ...]
    model: Path | None  # None for a row without a model
    runs: dict[str, Path]  # of each mode
    log_dir: Path | None  # TensorBoard's folder of its training


@dataclass(frozen=True)
class Row:
    """A row of a table, ``table:name``."""

    table: str
    name: str
    expected: dict[str, float]
    note: str
    trials: dict[str, tuple[Trial, ...]]  # by origin, CHECKPOINT or SCRATCH

    @property
    def id(self) -> str:
        """What reproduce.py calls the row."""
        return f"{self.table}:{self.name}"

    def steps(self, origin: str) -> list[Step]:
        """Everything that makes the row, in order, each file once."""
        return each_once(step for trial in self.trials[origin] for step in trial.steps)


@dataclass(frozen=True)
class Table:
    """Rows that are measured alike."""

    name: str
    title: str
    source: str
    measures: dict[str, Measure]
    ok: float  # a difference from the expected value up to here is OK
    close: float
    qrels: dict[str, Path]
    rows: dict[str, Row]
    questions: tuple[Question, ...]
    gains: tuple[str, str] | None  # the two rows whose queries are compared one by one


def read_tables(path: Path, data_root: Path | None = None, faiss_gpus: Sequence[int] = ()) -> dict[str, Table]:
    """Read the file of tables.

    Args:
        data_root: in place of the tables' own, for those that are made from downloads.
        faiss_gpus: GPUs that the commands search on; none for the CPU.

    Raises:
        InputError: the file is missing or is no such file.
    """
    try:
        content = yaml.safe_load(existing(path).read_text(encoding="utf-8"))
        given = {"faiss_gpus": "", "faiss_gpu_index": ""}
        if faiss_gpus:
            given = {name: f"--{name} {' '.join(map(str, faiss_gpus))}" for name in given}
        return {
            name: _table(name, table, content["steps"][table["steps"]], data_root, given)
            for name, table in content["tables"].items()
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: not a file of tables ({type(error).__name__}: {error})") from None


def _table(
    name: str, content: dict[str, Any], steps: dict[str, dict[str, str]], data_root: Path | None, given: dict[str, str]
) -> Table:
    downloaded = CHECKPOINT in content["origins"]
    values = content["values"] | given | {"root": str(data_root if data_root and downloaded else content["root"])}
    measures = {key: Measure(**measure) for key, measure in content["measures"].items()}
    modes = list(dict.fromkeys(measure.mode for measure in measures.values()))
    rows = {}
    for row_name, row in content["rows"].items():
        seeds = row.get("seeds", content.get("seeds", [])) or [None]
        trials = {}
        for origin, origin_values in content["origins"].items():
            known = values | row["values"] | origin_values
            trials[origin] = tuple(_trial(row, row[origin], steps, known | {"seed": seed}, modes) for seed in seeds)
        rows[row_name] = Row(name, row_name, row.get("expected", {}), row.get("note", ""), trials)
    return Table(
        name=name,
        title=content["title"],
        source=content["source"],
        measures=measures,
        ok=content["tolerance"]["ok"],
        close=content["tolerance"]["close"],
        qrels={mode: Path(_fill(content["qrels"], values | {"mode": mode})) for mode in modes},
        rows=rows,
        questions=tuple(
            Question(asked["question"], asked["row"], asked["than"], asked.get("equal", False))
            for asked in content.get("questions", ())
        ),
        gains=(content["gains"]["row"], content["gains"]["than"]) if "gains" in content else None,
    )


def _trial(
    row: dict[str, Any], mentions: list[str], steps: dict[str, dict[str, str]], values: dict[str, Any], modes: list[str]
) -> Trial:
    made, log_dir = [], None
    for mention in mentions:
        step, *arguments = shlex.split(mention)
        known = values | dict(argument.split("=", 1) for argument in arguments)
        quoted = known | {"root": shlex.quote(known["root"])}
        made.append(Step(Path(_fill(steps[step]["makes"], known)), _fill(steps[step]["command"], quoted)))
        words = shlex.split(made[-1].command)
        for flag in {"--logging_dir", "--log_dir"} & set(words):
            log_dir = Path(words[words.index(flag) + 1])  # the last training of a row is its own
    return Trial(
        seed=values["seed"],
        steps=tuple(made),
        model=Path(_fill(row["model"], values)) if "model" in row else None,
        runs={mode: Path(_fill(row["run"], values | {"mode": mode})) for mode in modes},
        log_dir=log_dir,
    )


def _fill(text: str, values: dict[str, Any]) -> str:
    """``text`` with every {name} filled in; values may hold names themselves, but the root is taken as it is."""
    root = "\0"
    for _ in range(5):
        if "{" in text:
            text = text.format_map(values | {"root": root})
    if "{" in text:
        raise ValueError(f"values that name each other in a circle: {text}")
    return " ".join(text.split()).replace(root, values["root"])


def find_rows(tables: dict[str, Table], wanted: str) -> list[Row]:
    """The row of an id such as ``sample:STAR``, or all rows of a table named alone.

    Raises InputError, naming what there is, if there is no such row.
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
