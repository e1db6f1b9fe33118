"""Measure the rows of tables: values, intervals, tests, and digests of runs and weights."""

import logging
import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drhard.embeddings import are_made_by
from drhard.errors import InputError, shorten
from drhard.files import digest_file
from drhard.hub import CONFIG_FILE
from drhard.metrics import measure_run, parse_measures
from drhard.model_folder import load_encoder
from drhard.pretrained import find_weights_files
from drhard.qrels import read_grades
from drhard.recipes import Row, Table, Trial
from drhard.significance import compare, holm, mean_interval

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

log = logging.getLogger(__name__)

OK, CLOSE, FAIL, NOT_RUN = "OK", "close", "FAIL", "—"
SIGNIFICANT = 0.05
CURVE_TAGS = ("train/loss", "train/mrr_10")  # TensorBoard's
LIBRARIES = ("torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy", "ir_measures")

Grades = dict[str, dict[str, int]]  # query -> document -> grade


@dataclass(frozen=True)
class MeasuredTrial:
    """The values of one training.

    Attributes:
        model: path and SHA-256 of its weights; None for a row without a model.
        runs: path and SHA-256 of its run, by mode.
        queries: (Q,) values of the judged queries, by the keys of the table's measures.
        curves: [step, value] pairs of its training by TensorBoard's tags. Empty without TensorBoard's files.
    """

    seed: int | None
    model: dict[str, str] | None
    runs: dict[str, dict[str, str]]
    queries: dict[str, np.ndarray]
    curves: dict[str, list[list[float]]]

    def mean(self, key: str) -> float:
        return float(self.queries[key].mean())


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
    return {key: _finite(value) for key, value in report.items()}


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
    judged = {mode: read_grades(path) for mode, path in table.qrels.items() if path.exists()}
    rows = []
    for row in table.rows.values():
        measured = []
        for origin, trials in row.trials.items():
            found = [
                _measure(table, trial, judged)
                for trial in trials
                if all(path.exists() for path in trial.runs.values()) and _made_by_its_model(trial)
            ]
            if found:
                measured.append(MeasuredRow(row, origin, found))
        rows += measured or [MeasuredRow(row, next(iter(row.trials)))]
    return rows


def _measure(table: Table, trial: Trial, judged: dict[str, Grades]) -> MeasuredTrial:
    queries: dict[str, np.ndarray] = {}
    for mode, path in trial.runs.items():
        if mode not in judged:
            raise InputError(f"{table.qrels[mode]}: no such file, but {path} exists; run preprocess.py")
        keys = {key: measure for key, measure in table.measures.items() if measure.mode == mode}
        measures = parse_measures([measure.measure for measure in keys.values()])
        values, coverage = measure_run(measures, path, table.qrels[mode], judged[mode])
        if coverage.missing:
            log.warning("%s", coverage)
        queries |= {key: values[str(measure)] for key, measure in zip(keys, measures, strict=True)}
    return MeasuredTrial(
        seed=trial.seed,
        model=_identify(find_weights_files(trial.model)[0]) if trial.model else None,
        runs={mode: _identify(path) for mode, path in trial.runs.items()},
        queries=queries,
        curves=_read_curves(trial.log_dir) if trial.log_dir and trial.log_dir.is_dir() else {},
    )


def _made_by_its_model(trial: Trial) -> bool:
    """Return whether the present weights of a trial's model made its runs. Log a warning if not."""
    if trial.model is None:
        return True
    if not (trial.model / CONFIG_FILE).exists():
        log.warning("%s: no such model, although its runs exist; they are skipped", trial.model)
        return False
    digest = load_encoder(trial.model).fingerprint()
    for mode, run in trial.runs.items():
        for name in (f"{mode}-query.memmap", f"{mode}.qembed.memmap"):
            if not are_made_by(run.with_name(name), digest):
                log.warning("%s: was not made by the weights in %s; it is skipped", run, trial.model)
                return False
    return True


def _identify(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": digest_file(path)}


def _read_curves(log_dir: Path) -> dict[str, list[list[float]]]:
    """Read the :data:`CURVE_TAGS` that a training logged: [step, value] pairs by tag."""
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception as error:  # the type depends on the damage
        log.warning("%s: TensorBoard cannot read its curves (%s)", log_dir, shorten(error))
        return {}
    logged = [tag for tag in CURVE_TAGS if tag in events.Tags()["scalars"]]
    curves = {}
    for tag in logged:
        by_step = {
            event.step: event.value for event in events.Scalars(tag)
        }  # a step repeated after resuming counts once
        curves[tag] = [[step, round(value, 5)] for step, value in sorted(by_step.items())]
    return curves


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


def _finite(content: Any) -> Any:
    """Return ``content`` with None for each number that is not finite. JSON has no such numbers."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
