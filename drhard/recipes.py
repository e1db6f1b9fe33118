"""Tables of results: their rows, the commands that make each row, and the values to expect."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import check_fields, require_file
from drhard.msmarco import MODES

import yaml

CHECKPOINT, SCRATCH = "checkpoint", "scratch"  # where a row's models come from: published, or trained here

TABLE_FIELDS = {
    "title": str,
    "source": str,
    "steps": str,
    "root": str,
    "origins": dict,
    "values": dict,
    "measures": dict,
    "tolerance": dict,
    "qrels": str,
    "rows": dict,
}
TABLE_OPTIONAL = {"seeds": list, "questions": list, "gains": dict}
ROW_FIELDS = {"values": dict, "run": str}
ROW_OPTIONAL = {"expected": dict, "note": str, "model": str, "seeds": list}
QUESTION_FIELDS = {"question": str, "row": str, "than": str}
LARGEST = 100_000  # nodes of the file, each counted as often as it is named
LONGEST = 20_000  # characters of a command
CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")  # but tabs and line feeds


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
        content = _load(require_file(path).read_text(encoding="utf-8"))
        _check(str(path), content)
        given = {"faiss_gpus": "", "faiss_gpu_index": ""}
        if faiss_gpus:
            given = {name: f"--{name} {' '.join(map(str, faiss_gpus))}" for name in given}
        return {
            name: _table(name, table, content["steps"][table["steps"]], data_root, given)
            for name, table in content["tables"].items()
        }
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not a file of tables ({reason})") from None


def _load(text: str) -> Any:
    """What a YAML file says. Raises YAMLError, ValueError or RecursionError for one that is none or too large."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ValueError("it is empty")
        if _size(node, {}) > LARGEST:
            raise ValueError("it is too large with its aliases written out")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes there are from ``node`` on with aliases written out; infinitely many in a circle."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = math.inf  # until it is known
    children = node.value
    if isinstance(node, yaml.ScalarNode):
        if CONTROL.search(node.value):
            raise ValueError(f"{node.value[:40]!r} has a control character")
        children = []
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
        children = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _check(path: str, content: Any) -> None:
    """Raise InputError or ValueError if ``content`` is not what tables are made of."""
    _all(path, {"content": content}, dict)
    check_fields(path, content, {"steps": dict, "tables": dict})
    for name, steps in _all(f"{path}, steps", content["steps"], dict).items():
        for step, parts in _all(f"{path}, steps {name}", steps, dict).items():
            check_fields(f"{path}, step {step}", parts, {"makes": str, "command": str})
    for name, table in _all(f"{path}, tables", content["tables"], dict).items():
        _check_table(f"{path}, table {name}", table)


def _check_table(where: str, table: dict[str, Any]) -> None:
    check_fields(where, table, TABLE_FIELDS, optional=TABLE_OPTIONAL)
    for origin, values in _all(f"{where}, origins", table["origins"], dict).items():
        if origin not in (CHECKPOINT, SCRATCH):
            raise ValueError(f"there is no origin {origin!r}, but {CHECKPOINT} and {SCRATCH}")
        _all(f"{where}, origin {origin}", values, (str, int, float), least=0)
    _all(f"{where}, values", table["values"], (str, int, float), least=0)
    for key, measure in _all(f"{where}, measures", table["measures"], dict).items():
        check_fields(f"{where}, measure {key}", measure, {"name": str, "mode": str, "measure": str})
        if measure["mode"] not in MODES:
            raise ValueError(f"there is no mode {measure['mode']!r}, but {', '.join(MODES)}")
    check_fields(f"{where}, tolerance", table["tolerance"], {"ok": float, "close": float})
    _each(f"{where}, seeds", table.get("seeds", []), int)
    for name, row in _all(f"{where}, rows", table["rows"], dict).items():
        _check_row(f"{where}, row {name}", row, table)
    _each(f"{where}, questions", table.get("questions", []), dict)
    for asked in table.get("questions", []):
        check_fields(f"{where}, questions", asked, QUESTION_FIELDS, optional={"equal": bool})
        _check_pair(asked, table)
    if "gains" in table:
        check_fields(f"{where}, gains", table["gains"], {"row": str, "than": str})
        _check_pair(table["gains"], table)


def _check_pair(pair: dict[str, Any], table: dict[str, Any]) -> None:
    for name in (pair["row"], pair["than"]):
        if name not in table["rows"]:
            raise ValueError(f"there is no row {name!r} to compare")


def _check_row(where: str, row: dict[str, Any], table: dict[str, Any]) -> None:
    check_fields(where, row, ROW_FIELDS | dict.fromkeys(table["origins"], list), optional=ROW_OPTIONAL)
    _all(f"{where}, values", row["values"], (str, int, float), least=0)
    expected = _all(f"{where}, expected", row.get("expected", {}), float, least=0)
    if not set(expected) <= set(table["measures"]) or not all(map(math.isfinite, expected.values())):
        raise ValueError(f"{where}: expects {expected}")
    _each(f"{where}, seeds", row.get("seeds", []), int)
    for origin in table["origins"]:
        _each(f"{where}, {origin}", row[origin], str)


def _each(where: str, values: list[Any], kind: type) -> None:
    """Raise InputError if one of ``values`` is not of ``kind``."""
    named = {str(place): value for place, value in enumerate(values, start=1)}
    check_fields(where, named, dict.fromkeys(named, kind))


def _all(where: str, content: Any, kinds: type | tuple[type, ...], least: int = 1) -> dict[str, Any]:
    """``content`` if it maps at least ``least`` names to values of ``kinds``; else raise InputError or ValueError."""
    if not isinstance(content, dict) or len(content) < least or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{where}: has no names with values")
    check_fields(where, content, dict.fromkeys(content, kinds))
    return content


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


def _fill(text: str, values: Mapping[str, Any]) -> str:
    """``text`` with every {name} filled in; values may hold names themselves, but the root is taken as it is."""
    root = "\0"
    known = {**values, "root": root}
    for _ in range(5):
        text = re.sub(r"\{(\w+)\}", lambda name: str(known[name[1]])[:LONGEST], text)
        if len(text) > LONGEST:
            raise ValueError(f"{text[:40]!r}… is too long")
    if "{" in text or "}" in text:
        raise ValueError(f"there are names that cannot be filled in: {text[:80]}")
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
