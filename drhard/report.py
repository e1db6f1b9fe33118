"""What the rows of a table measure here: values, intervals, tests, and digests of what was measured."""

import logging
import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drhard.embeddings import are_made_by
from drhard.encoder import digest_weights, load_encoder
from drhard.errors import InputError, shorten
from drhard.files import digest_file
from drhard.metrics import Coverage, measure_queries, parse_measures
from drhard.pretrained import find_weights_files
from drhard.qrels import read_grades
from drhard.recipes import Row, Table, Trial
from drhard.runs import read_rankings
from drhard.significance import compare, holm, mean_interval

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

log = logging.getLogger(__name__)

OK, CLOSE, FAIL, NOT_RUN = "OK", "close", "FAIL", "—"
SIGNIFICANT = 0.05
CURVES = ("train/loss", "train/mrr_10")  # TensorBoard's tags
LIBRARIES = ("torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy", "ir_measures")


@dataclass(frozen=True)
class MeasuredTrial:
    """The values of one training."""

    seed: int | None
    model: dict[str, str] | None  # path and sha256 of its weights
    runs: dict[str, dict[str, str]]  # mode -> path and sha256 of its run
    queries: dict[str, np.ndarray]  # key of the measure -> (Q,) values of the judged queries
    curves: dict[str, list[list[float]]]  # of its training, where TensorBoard's files are there


@dataclass(frozen=True)
class MeasuredRow:
    """The values of a row, from checkpoints or from scratch; nothing measured where there are no trials."""

    row: Row
    origin: str
    trials: list[MeasuredTrial] = field(default_factory=list)

    def mean(self, key: str) -> tuple[float, float]:
        """The mean over the seeds and the half width of its 95 % interval (NaN for a single one)."""
        return mean_interval([float(trial.queries[key].mean()) for trial in self.trials])

    @property
    def name(self) -> str:
        """The row's, with the origin where it has two."""
        return f"{self.row.name}, {self.origin}" if len(self.row.trials) > 1 and self.trials else self.row.name

    @property
    def whole(self) -> bool:
        """Whether all seeds are there."""
        return len(self.trials) == len(self.row.trials[self.origin])

    def queries(self, key: str) -> np.ndarray:
        """(Q,) values of each query, the means over the seeds."""
        return np.mean([trial.queries[key] for trial in self.trials], axis=0)


def measure_table(table: Table) -> list[MeasuredRow]:
    """Measure every run of a table that is there; a row comes once for each origin that has runs, else once.

    A run that other weights have made than those that are there is left out, with a warning.

    Raises InputError if a run or a qrels file that is there is bad.
    """
    judged = {mode: read_grades(path) for mode, path in table.qrels.items() if path.exists()}
    rows = []
    for row in table.rows.values():
        found = []
        for origin, trials in row.trials.items():
            there = [
                _measure(table, trial, judged)
                for trial in trials
                if all(path.exists() for path in trial.runs.values()) and _made_by_its_model(trial)
            ]
            if there:
                found.append(MeasuredRow(row, origin, there))
        rows += found or [MeasuredRow(row, next(iter(row.trials)))]
    return rows


def _measure(table: Table, trial: Trial, judged: dict[str, dict[str, dict[str, int]]]) -> MeasuredTrial:
    queries = {}
    for mode, path in trial.runs.items():
        if mode not in judged:
            raise InputError(f"{table.qrels[mode]}: no such file, though {path} is there; run preprocess.py")
        keys = {key: measure for key, measure in table.measures.items() if measure.mode == mode}
        measures = parse_measures([measure.measure for measure in keys.values()])
        coverage = Coverage(path, table.qrels[mode], judged[mode])
        values = measure_queries(measures, coverage.count(read_rankings(path)), judged[mode])
        coverage.check()
        if coverage.missing:
            log.warning("%s", coverage)
        queries |= {key: values[str(measure)] for key, measure in zip(keys, measures, strict=True)}
    return MeasuredTrial(
        seed=trial.seed,
        model=_digest(find_weights_files(trial.model)[0]) if trial.model else None,
        runs={mode: _digest(path) for mode, path in trial.runs.items()},
        queries=queries,
        curves=_curves(trial.log_dir) if trial.log_dir and trial.log_dir.is_dir() else {},
    )


def _made_by_its_model(trial: Trial) -> bool:
    """Whether the stamps of the query embeddings beside a trial's runs name its weights; log a warning if not."""
    if trial.model is None:
        return True
    if not (trial.model / "config.json").exists():
        log.warning("%s: no such model, though its runs are there; they are left out", trial.model)
        return False
    digest = digest_weights(load_encoder(trial.model))
    for mode, run in trial.runs.items():
        for name in (f"{mode}-query.memmap", f"{mode}.qembed.memmap"):
            if not are_made_by(run.with_name(name), digest):
                log.warning("%s: was made by other weights than those in %s; it is left out", run, trial.model)
                return False
    return True


def _digest(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": digest_file(path)}


def status(difference: float, table: Table) -> str:
    """OK for a measured value as good as the expected one or better, else close or FAIL."""
    if difference >= -table.ok:
        return OK
    return CLOSE if difference >= -table.close else FAIL


def answer_questions(table: Table, rows: list[MeasuredRow]) -> list[dict[str, Any]]:
    """Answer the table's questions by paired tests over queries, of each query's means over the seeds.

    p-values are corrected after Holm over the questions, for each measure by itself; the answer is that of the
    first measure.
    """
    measured = _whole_rows(rows)
    asked = [question for question in table.questions if question.row in measured and question.than in measured]
    answers: list[dict[str, Any]] = [
        {"question": question.question, "row": question.row, "than": question.than, "measures": {}}
        for question in asked
    ]
    for key in table.measures:
        results = [
            compare(measured[question.row].queries(key), measured[question.than].queries(key)) for question in asked
        ]
        t_tests = holm([result.t_test for result in results])
        randomizations = holm([result.randomization for result in results])
        for question, answer, result, t_test, randomization in zip(
            asked, answers, results, t_tests, randomizations, strict=True
        ):
            answer["measures"][key] = {
                "difference": result.difference,
                "low": result.low,
                "high": result.high,
                "t_test": t_test,
                "randomization": randomization,
                "seeds_better": _seeds_better(measured[question.row], measured[question.than], key),
            }
    for question, answer in zip(asked, answers, strict=True):
        answer["answer"] = _answer(question.equal, answer["measures"][next(iter(table.measures))])
    return answers


def _whole_rows(rows: list[MeasuredRow]) -> dict[str, MeasuredRow]:
    """The rows that can be compared: all seeds there, and all of the first origin that has any."""
    whole = [row for row in rows if row.trials and row.whole]
    return {row.row.name: row for row in whole if row.origin == whole[0].origin}


def _seeds_better(row: MeasuredRow, than: MeasuredRow, key: str) -> list[int]:
    """How many of the seeds that both have are better, and how many there are."""
    other = {trial.seed: trial.queries[key].mean() for trial in than.trials}
    pairs = [(trial.queries[key].mean(), other[trial.seed]) for trial in row.trials if trial.seed in other]
    return [sum(bool(a > b) for a, b in pairs), len(pairs)]


def _answer(equal: bool, result: dict[str, Any]) -> str:
    significant = max(result["t_test"], result["randomization"]) < SIGNIFICANT
    if equal:
        if significant:
            return "no, it is worse" if result["difference"] < 0 else "it is even better"
        return "no difference shown"
    if significant:
        return "yes" if result["difference"] > 0 else "no, it is worse"
    return "not shown"


def make_report(tables: list[Table]) -> dict[str, Any]:
    """Everything that the report shows, in JSON's types: null for a number that is not finite."""
    report: dict[str, Any] = {"machine": _machine(), "tables": []}
    for table in tables:
        rows = measure_table(table)
        report["tables"].append(
            {
                "name": table.name,
                "title": table.title,
                "source": table.source,
                "tolerance": {"ok": table.ok, "close": table.close},
                "measures": {key: measure.name for key, measure in table.measures.items()},
                "rows": [_row_report(table, row) for row in rows],
                "questions": answer_questions(table, rows),
                "gains": _gains(table, rows),
            }
        )
    return _finite(report)


def _finite(content: Any) -> Any:
    """``content`` with None for numbers that are not finite, which JSON does not know."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _row_report(table: Table, measured: MeasuredRow) -> dict[str, Any]:
    values = {}
    for key in table.measures:
        expected = measured.row.expected.get(key)
        values[key] = {"expected": expected, "measured": None, "half_width": None, "difference": None}
        values[key]["status"] = NOT_RUN
        if measured.trials:
            mean, half = measured.mean(key)
            values[key] |= {"measured": mean, "half_width": half, "status": ""}
            if expected is not None and measured.whole:
                values[key] |= {"difference": mean - expected, "status": status(mean - expected, table)}
    return {
        "id": measured.row.id,
        "name": measured.name,
        "note": _note(measured),
        "origin": measured.origin,
        "values": values,
        "trials": [
            {
                "seed": trial.seed,
                "values": {key: float(trial.queries[key].mean()) for key in table.measures},
                "model": trial.model,
                "runs": trial.runs,
                "curves": trial.curves,
            }
            for trial in measured.trials
        ],
    }


def _note(measured: MeasuredRow) -> str:
    seeds = (
        ""
        if measured.whole or not measured.trials
        else (f"{len(measured.trials)} of {len(measured.row.trials[measured.origin])} seeds")
    )
    return "; ".join(filter(None, (seeds, measured.row.note)))


def _gains(table: Table, rows: list[MeasuredRow]) -> dict[str, Any] | None:
    """What each query gains or loses from one row to another, sorted, by the table's first measure."""
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


def _curves(log_dir: Path) -> dict[str, list[list[float]]]:
    """TensorBoard's scalars of a training, those of CURVES that are there: tag -> [step, value] pairs."""
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except Exception as error:  # of a damaged file, of many kinds
        log.warning("%s: has no curves that TensorBoard can read (%s)", log_dir, shorten(error))
        return {}
    there = [tag for tag in CURVES if tag in events.Tags()["scalars"]]
    curves = {}
    for tag in there:
        by_step = {event.step: event.value for event in events.Scalars(tag)}  # redone steps after a resume count once
        curves[tag] = [[step, round(value, 5)] for step, value in sorted(by_step.items())]
    return curves


def _machine() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except ModuleNotFoundError:
            continue
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"} | found
