"""Compare the rows of tables: values, intervals, tests, and digests of runs and weights."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from drhard.measured import MeasuredTrial, find_measured, finite, read_judged
from drhard.recipes import Row, Table
from drhard.significance import compare, holm, mean_interval

import numpy as np

OK, CLOSE, FAIL, NOT_RUN = "OK", "close", "FAIL", "—"
SIGNIFICANT = 0.05
LIBRARIES = ("torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy", "ir_measures")


@dataclass(frozen=True)
class MeasuredRow:
    """The values of a row with models of one origin. Without trials, nothing was measured."""

    row: Row
    origin: str
    trials: list[MeasuredTrial] = field(default_factory=list)

    def mean(self, key: str) -> tuple[float, float]:
        """Return the mean over the seeds and the half width of its 95 % interval; NaN for one seed."""
        return mean_interval([trial.mean(key) for trial in self.trials])

    @property
    def name(self) -> str:
        """The row's name, followed by the origin if the row has two."""
        return f"{self.row.name}, {self.origin}" if len(self.row.trials) > 1 and self.trials else self.row.name

    @property
    def whole(self) -> bool:
        """Whether every seed was measured."""
        return len(self.trials) == len(self.row.trials[self.origin])

    def queries(self, key: str) -> np.ndarray:
        """Return (Q,) values, each the mean of a query over the seeds."""
        means: np.ndarray = np.mean([trial.queries[key] for trial in self.trials], axis=0)
        return means


def make_report(tables: list[Table]) -> dict[str, Any]:
    """Measure all runs of ``tables`` that exist.

    Returns:
        The content of a report, in JSON's types, with None for a number that is not finite.

    Raises:
        InputError: a run or a qrels file is damaged, or a run has no qrels file.
    """
    report = {"machine": _describe_machine(), "tables": [_report_table(table) for table in tables]}
    return {key: finite(value) for key, value in report.items()}


def _report_table(table: Table) -> dict[str, Any]:
    rows = measure_table(table)
    return {
        "name": table.name,
        "title": table.title,
        "source": table.source,
        "tolerance": {"ok": table.ok, "close": table.close},
        "measures": {key: measure.name for key, measure in table.measures.items()},
        "rows": [_report_row(table, row) for row in rows],
        "questions": answer_questions(table, rows),
        "gains": _report_gains(table, rows),
    }


def measure_table(table: Table) -> list[MeasuredRow]:
    """Measure every run of a table that exists.

    A row with runs of two origins is returned twice, a row without runs once. A run is skipped, with a warning, if its
    model now has other weights.

    Raises:
        InputError: as :func:`make_report`.
    """
    judged = read_judged(table)
    rows = []
    for row in table.rows.values():
        measured = []
        for origin, trials in row.trials.items():
            found = [one for trial in trials if (one := find_measured(table, trial, judged)) is not None]
            if found:
                measured.append(MeasuredRow(row, origin, found))
        rows += measured or [MeasuredRow(row, next(iter(row.trials)))]
    return rows


def _report_row(table: Table, measured: MeasuredRow) -> dict[str, Any]:
    return {
        "id": measured.row.id,
        "name": measured.name,
        "note": _note(measured),
        "origin": measured.origin,
        "values": {key: _report_value(table, measured, key) for key in table.measures},
        "trials": [
            {
                "seed": trial.seed,
                "values": {key: trial.mean(key) for key in table.measures},
                "model": trial.model,
                "runs": trial.runs,
                "curves": trial.curves,
            }
            for trial in measured.trials
        ],
    }


def _report_value(table: Table, measured: MeasuredRow, key: str) -> dict[str, Any]:
    """Compare a measured value with the expected one. There is no verdict until every seed is measured."""
    expected = measured.row.expected.get(key)
    value: dict[str, Any] = {
        "expected": expected,
        "measured": None,
        "half_width": None,
        "difference": None,
        "status": NOT_RUN,
    }
    if measured.trials:
        mean, half_width = measured.mean(key)
        value |= {"measured": mean, "half_width": half_width, "status": ""}
        if expected is not None and measured.whole:
            value |= {"difference": mean - expected, "status": _judge(mean - expected, table)}
    return value


def _judge(difference: float, table: Table) -> str:
    """Return OK if the measured value is at least as good as the expected one, else close or FAIL."""
    if difference >= -table.ok:
        return OK
    return CLOSE if difference >= -table.close else FAIL


def _note(measured: MeasuredRow) -> str:
    found, total = len(measured.trials), len(measured.row.trials[measured.origin])
    seeds = f"{found} of {total} seeds" if 0 < found < total else ""
    return "; ".join(filter(None, (seeds, measured.row.note)))


def answer_questions(table: Table, rows: list[MeasuredRow]) -> list[dict[str, Any]]:
    """Answer the table's questions by paired tests over queries. A query's value is its mean over the seeds.

    For each measure, Holm's method corrects the p-values over the questions. The first measure gives the answer.
    Questions about rows that were not measured are skipped.
    """
    measured = _whole_rows(rows)
    questions = [question for question in table.questions if {question.row, question.than} <= measured.keys()]
    evidence = {
        key: _compare_pairs([(measured[question.row], measured[question.than]) for question in questions], key)
        for key in table.measures
    }
    first = next(iter(table.measures))
    return [
        {
            "question": question.question,
            "row": question.row,
            "than": question.than,
            "measures": {key: results[number] for key, results in evidence.items()},
            "answer": _answer(question.equal, evidence[first][number]),
        }
        for number, question in enumerate(questions)
    ]


def _compare_pairs(pairs: list[tuple[MeasuredRow, MeasuredRow]], key: str) -> list[dict[str, Any]]:
    """Compare the rows of each pair by one measure, with p-values corrected over the pairs."""
    results = [compare(row.queries(key), than.queries(key)) for row, than in pairs]
    t_tests = holm([result.t_test for result in results])
    randomizations = holm([result.randomization for result in results])
    return [
        {
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
            "t_test": t_test,
            "randomization": randomization,
            "seeds_better": _seeds_better(row, than, key),
        }
        for (row, than), result, t_test, randomization in zip(pairs, results, t_tests, randomizations, strict=True)
    ]


def _whole_rows(rows: list[MeasuredRow]) -> dict[str, MeasuredRow]:
    """Return the rows that can be compared: those with every seed measured, and of the same origin as the first."""
    whole = [row for row in rows if row.trials and row.whole]
    return {row.row.name: row for row in whole if row.origin == whole[0].origin}


def _seeds_better(row: MeasuredRow, than: MeasuredRow, key: str) -> list[int]:
    """Return for how many seeds ``row`` is better, and how many seeds were compared.

    Each seed is compared with the same seed of ``than``, or with its only value if it does not depend on a seed.
    """
    other = {trial.seed: trial.mean(key) for trial in than.trials}
    values = [(trial.mean(key), other.get(trial.seed, other.get(None))) for trial in row.trials]
    pairs = [(a, b) for a, b in values if b is not None]
    return [sum(a > b for a, b in pairs), len(pairs)]


def _answer(equal: bool, result: dict[str, Any]) -> str:
    significant = max(result["t_test"], result["randomization"]) < SIGNIFICANT
    if equal:
        if significant:
            return "no, it is worse" if result["difference"] < 0 else "it is even better"
        return "no difference shown"
    if significant:
        return "yes" if result["difference"] > 0 else "no, it is worse"
    return "not shown"


def _report_gains(table: Table, rows: list[MeasuredRow]) -> dict[str, Any] | None:
    """Return each query's difference between two rows in the table's first measure, best first."""
    measured = _whole_rows(rows)
    if table.gains is None or not set(table.gains) <= measured.keys():
        return None
    row, than = table.gains
    key = next(iter(table.measures))
    gains = measured[row].queries(key) - measured[than].queries(key)
    return {
        "row": row,
        "than": than,
        "measure": table.measures[key].name,
        "values": [round(float(gain), 4) for gain in np.sort(gains)[::-1]],
    }


def _describe_machine() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except ModuleNotFoundError:
            continue
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"} | versions
