"""Compare the rows of tables: values, intervals, tests, curves, and digests of runs and weights."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from drhard.changes import find_changes, read_texts
from drhard.measured import Judged, MeasuredTrial, find_measured, finite, read_judged
from drhard.recipes import RUN, Point, Question, Row, Table
from drhard.significance import POWER, compare, holm, least_found, mean_interval

import numpy as np

OK, CLOSE, FAIL, NOT_RUN = "OK", "close", "FAIL", "—"
YES, NO, NOT_SHOWN = "yes", "no", "not shown"
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


def make_report(tables: Sequence[Table], with_texts: bool = False) -> dict[str, Any]:
    """Measure all runs of ``tables`` that exist.

    Args:
        with_texts: whether to read the texts of the queries that gain and lose most, where they are there.

    Returns:
        The content of a report, in JSON's types, with None for a number that is not finite.

    Raises:
        InputError: a run or a qrels file is damaged, or a run has no qrels file.
    """
    judged = [read_judged(table) for table in tables]
    measured = [measure_table(*one) for one in zip(tables, judged, strict=True)]
    report = {
        "machine": _describe_machine(),
        "tables": [_report_table(*one, with_texts) for one in zip(tables, judged, measured, strict=True)],
        "trends": find_trends(tables, measured),
    }
    return {key: finite(value) for key, value in report.items()}


def _report_table(table: Table, judged: Judged, rows: list[MeasuredRow], with_texts: bool) -> dict[str, Any]:
    questions = answer_questions(table, judged, rows)
    changes = [asked["changes"] for asked in questions]
    if any(row.origin == RUN for row in _whole_rows(rows).values()):
        with_texts = False  # published runs have official ids, not rows
    return {
        "name": table.name,
        "title": table.title,
        "source": table.source,
        "tolerance": {"ok": table.ok, "close": table.close},
        "measures": {key: measure.name for key, measure in table.measures.items()},
        "rows": [_report_row(table, row) for row in rows],
        "power": {"power": POWER, "level": SIGNIFICANT / len(questions)} if questions else None,
        "questions": questions,
        "texts": read_texts(table, changes) if with_texts and changes else {},
    }


def measure_table(table: Table, judged: Judged) -> list[MeasuredRow]:
    """Measure every run of a table that exists.

    A row with runs of two origins is returned twice, a row without runs once. A run is skipped, with a warning, if its
    model now has other weights.

    Raises:
        InputError: as :func:`make_report`.
    """
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


def answer_questions(table: Table, judged: Judged, rows: list[MeasuredRow]) -> list[dict[str, Any]]:
    """Answer the table's questions by paired tests over queries. A query's value is its mean over the seeds.

    For each measure, Holm's method corrects the p-values over the questions. The first measure gives the answer.
    Questions about rows that were not measured are skipped. ``least_found`` is the smallest true difference that the
    t-test finds with the probability :data:`POWER` at the strictest level that Holm's method applies, 0.05 divided by
    the number of questions.
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
            "margin": question.margin,
            "measures": {key: results[number] for key, results in evidence.items()},
            "answer": _answer(question, evidence[first][number]),
            "changes": find_changes(table, [measured[name].trials for name in (question.row, question.than)], judged),
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
            "least_found": least_found(result.error, len(row.queries(key)), SIGNIFICANT / len(pairs)),
            "seeds_better": _seeds_better(row, than, key),
        }
        for (row, than), result, t_test, randomization in zip(pairs, results, t_tests, randomizations, strict=True)
    ]


def _whole_rows(rows: list[MeasuredRow]) -> dict[str, MeasuredRow]:
    """Return the rows that can be compared: those with every seed measured, and of the same origin as the first."""
    whole = [row for row in rows if row.trials and row.whole]
    return {row.row.name: row for row in whole if row.origin == whole[0].origin}


def _seeds_better(row: MeasuredRow, than: MeasuredRow, key: str) -> list[int]:
    """Return for how many seeds ``row`` is better, and how many seeds were compared."""
    differences = _differences(row, than, key)
    return [sum(difference > 0 for difference in differences), len(differences)]


def _differences(row: MeasuredRow, than: MeasuredRow, key: str) -> list[float]:
    """Return the difference for each seed of ``row`` that can be compared.

    Each seed is compared with the same seed of ``than``, or with its only value if it does not depend on a seed.
    """
    other = {trial.seed: trial.mean(key) for trial in than.trials}
    values = [(trial.mean(key), other.get(trial.seed, other.get(None))) for trial in row.trials]
    return [a - b for a, b in values if b is not None]


def _answer(question: Question, result: dict[str, Any]) -> str:
    """Answer a question in one word. A row is as good if the whole 95 % interval is above the loss of the margin."""
    if question.margin is not None and result["low"] > -question.margin:
        return YES
    if max(result["t_test"], result["randomization"]) >= SIGNIFICANT:
        return NOT_SHOWN
    if result["difference"] < 0:
        return NO
    return YES if question.margin is None else NOT_SHOWN


def find_trends(tables: Sequence[Table], measured: Sequence[list[MeasuredRow]]) -> list[dict[str, Any]]:
    """Return the curves of the questions that have a point, by its axis.

    Args:
        measured: the rows of each table.

    Returns:
        For each axis, the values of both rows and their differences in the first measure. Each is a list of [point,
        mean over the seeds, half width of its 95 % interval]. A difference is that of one seed. The names of the rows
        count up to their first comma. An axis with a single point makes no curve.
    """
    trends: dict[str, dict[str, Any]] = {}
    for table, rows in zip(tables, measured, strict=True):
        whole, (key, measure) = _whole_rows(rows), next(iter(table.measures.items()))
        for question in table.questions:
            if question.point is not None and {question.row, question.than} <= whole.keys():
                row, than = whole[question.row], whole[question.than]
                trend = trends.setdefault(question.point.axis, {"measure": measure.name, "rows": {}, "difference": []})
                _add_point(trend, question.point, row, than, key)
    return [{"axis": axis} | trend for axis, trend in trends.items() if len(trend["difference"]) > 1]


def _add_point(trend: dict[str, Any], point: Point, row: MeasuredRow, than: MeasuredRow, key: str) -> None:
    for one in (row, than):
        trend["rows"].setdefault(one.row.name.partition(",")[0], []).append([point.at, *one.mean(key)])
    trend["difference"].append([point.at, *mean_interval(_differences(row, than, key))])


def _describe_machine() -> dict[str, str]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except ModuleNotFoundError:
            continue
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"} | versions
