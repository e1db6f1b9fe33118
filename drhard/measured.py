"""Measure one training of a row: the values of each query, and digests of its runs and weights."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from drhard.embeddings import are_made_by
from drhard.errors import InputError, shorten
from drhard.files import check_fields, digest_file, read_lines, read_object, write_json
from drhard.hub import CONFIG_FILE
from drhard.metrics import Coverage, measure_queries, parse_measures
from drhard.model_folder import load_encoder
from drhard.msmarco import find_source_file
from drhard.pretrained import find_weights_files
from drhard.qrels import read_grades
from drhard.recipes import Table, Trial
from drhard.runs import Ranking, read_rankings

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

log = logging.getLogger(__name__)

CURVE_TAGS = ("train/loss", "train/mrr_10")  # TensorBoard's
DIGITS = 6  # of a query's value in a record
TOP = 3  # documents of each query that a record keeps
RECORD = {"runs": dict, "queries": dict, "curves": dict}
DETAILS = {"ranks": list, "tops": dict}  # which older records lack
AGAIN = "delete it, and run the row again"

Judged = dict[Path, dict[str, dict[str, int]]]  # file of judgements -> query -> document -> grade


@dataclass(frozen=True)
class MeasuredTrial:
    """The values of one training.

    Attributes:
        model: path and SHA-256 of its weights; None for a row without a model.
        runs: path and SHA-256 of its run, by mode.
        queries: (Q,) values of the judged queries, by the keys of the table's measures.
        curves: [step, value] pairs of its training by TensorBoard's tags. Empty without TensorBoard's files.
        ranks: (Q,) int64, the rank of the first relevant document of each query, 0 if the run has none, in the run
            that the table's first measure measures; None if no one kept them.
        tops: ids of the first :data:`TOP` documents of each query of that run, in the order of ``ranks``. A record has
            them for the first seed of a row only; else None.
    """

    seed: int | None
    model: dict[str, str] | None
    runs: dict[str, dict[str, str]]
    queries: dict[str, np.ndarray]
    curves: dict[str, list[list[float]]]
    ranks: np.ndarray | None = None
    tops: dict[str, list[str]] | None = None

    def mean(self, key: str) -> float:
        return float(self.queries[key].mean())


def read_judged(table: Table) -> Judged:
    """Return the judgements by which the runs of a table are measured, of each file that exists, gzipped or not."""
    trials = [trial for row in table.rows.values() for of in row.trials.values() for trial in of]
    theirs = [trial.qrels for trial in trials if trial.qrels and trial.has_runs]
    paths = {path for qrels in (table.qrels, *theirs) for path in qrels.values()}
    found = {path: find_source_file(path.parent, path.name) for path in sorted(paths)}
    return {path: read_grades(file) for path, file in found.items() if file is not None}


def find_measured(table: Table, trial: Trial, judged: Judged) -> MeasuredTrial | None:
    """Return what was recorded of a trial, or else measure its runs, or else take the table's committed record.

    Runs of a model that now has other weights are skipped, with a warning.

    Returns:
        None if there is no record and no run.

    Raises:
        InputError: the record, a run or a qrels file is damaged, or a run has no qrels file.
    """
    if trial.record is not None and trial.record.exists():
        return read_record(table, trial.record)
    if (found := _measure_runs(table, trial, judged)) is not None:
        return found
    if trial.record is None or table.records is None:
        return None
    committed = read_committed(table.records).get(str(trial.record))
    return None if committed is None else _check_record(table, f"{table.records}, {trial.record}", committed)


def write_record(table: Table, trial: Trial) -> None:
    """Measure a trial, and keep what was found in its file.

    Raises:
        InputError: the trial keeps no record, or as :func:`find_measured`; there are no runs of the present weights.
    """
    if trial.record is None:
        raise InputError(f"{table.name} keeps no records; 'reproduce.py report {table.name}' measures its runs")
    measured = _measure_runs(table, trial, read_judged(table))
    if measured is None:
        raise InputError(f"{', '.join(map(str, trial.runs.values()))}: are not there; run the row first")
    content: dict[str, Any] = {
        "seed": measured.seed,
        "model": measured.model,
        "runs": measured.runs,
        "queries": {key: [round(float(value), DIGITS) for value in of] for key, of in measured.queries.items()},
        "curves": measured.curves,
    }
    if measured.ranks is not None:
        content["ranks"] = measured.ranks.tolist()
    if measured.tops is not None and table.questions and _is_first(table, trial):
        content["tops"] = measured.tops
    write_json(trial.record, finite(content))


def _is_first(table: Table, trial: Trial) -> bool:
    """Return whether a trial has the first seed of a row."""
    return any(trials[0] == trial for row in table.rows.values() for trials in row.trials.values())


def read_record(table: Table, path: Path) -> MeasuredTrial:
    """Read what :func:`write_record` wrote. Raises InputError if it is damaged, or lacks a measure of the table."""
    return _check_record(table, str(path), read_object(path, RECORD, AGAIN))


@cache  # a report asks for each trial
def read_committed(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of records, one a line, gzipped or not.

    Returns:
        The records by their field ``record``: the file that :func:`write_record` wrote.

    Raises:
        InputError: a line is not one JSON object with this field.
    """
    records = {}
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({shorten(error)})") from None
        if not isinstance(record, dict) or not isinstance(record.get("record"), str):
            raise InputError(f"{path}, line {number}: expected an object with the field 'record'")
        records[record["record"]] = record
    return records


def _check_record(table: Table, name: str, record: dict[str, Any]) -> MeasuredTrial:
    check_fields(name, record, RECORD, f"; {AGAIN}", DETAILS)
    if record["queries"].keys() != table.measures.keys():
        raise InputError(f"{name}: has other measures than {', '.join(table.measures)}; {AGAIN}")
    queries = {key: np.array(values, dtype=np.float64) for key, values in record["queries"].items()}
    count = len(queries[next(iter(table.measures))])
    for field in DETAILS:
        if len(record.get(field, range(count))) != count:
            raise InputError(f"{name}: {field!r} does not have an entry for each query; {AGAIN}")
    ranks = np.array(record["ranks"], dtype=np.int64) if "ranks" in record else None
    return MeasuredTrial(
        record.get("seed"), record.get("model"), record["runs"], queries, record["curves"], ranks, record.get("tops")
    )


def _measure_runs(table: Table, trial: Trial, judged: Judged) -> MeasuredTrial | None:
    """Measure the runs of a trial; return None if one is missing, or if its model has other weights now."""
    if not trial.has_runs or not _made_by_its_model(trial):
        return None
    return _measure(table, trial, judged)


def _measure(table: Table, trial: Trial, judged: Judged) -> MeasuredTrial:
    queries: dict[str, np.ndarray] = {}
    found: dict[str, tuple[int, list[str]]] = {}
    qrels_of = trial.qrels or table.qrels
    first = next(iter(table.measures.values())).mode
    for mode, path in trial.runs.items():
        qrels = qrels_of[mode]
        if qrels not in judged:
            way_out = f"run {'preprocess.py' if trial.qrels is None else trial.steps[-1].command}"
            raise InputError(f"{qrels}: no such file, but {path} exists; {way_out}")
        keys = {key: measure for key, measure in table.measures.items() if measure.mode == mode}
        measures = parse_measures([measure.measure for measure in keys.values()])
        coverage = Coverage(path, qrels, judged[qrels])
        rankings = coverage.count(read_rankings(path))
        if mode == first:
            rankings = _note(rankings, judged[qrels], found)
        values = measure_queries(measures, rankings, judged[qrels])
        coverage.check()
        if coverage.missing:
            log.warning("%s", coverage)
        queries |= {key: values[str(measure)] for key, measure in zip(keys, measures, strict=True)}
    return MeasuredTrial(
        seed=trial.seed,
        model=_identify(find_weights_files(trial.model)[0]) if trial.model else None,
        runs={mode: _identify(path) for mode, path in trial.runs.items()},
        queries=queries,
        curves=_read_curves(trial.log_dir) if trial.log_dir and trial.log_dir.is_dir() else {},
        ranks=np.array([found[qid][0] if qid in found else 0 for qid in judged[qrels_of[first]]], dtype=np.int64),
        tops={qid: found[qid][1] if qid in found else [] for qid in judged[qrels_of[first]]},
    )


def _note(
    rankings: Iterator[Ranking[str]], judged: Mapping[str, Mapping[str, int]], found: dict[str, tuple[int, list[str]]]
) -> Iterator[Ranking[str]]:
    """Yield the rankings. Note the rank of the first relevant document of each judged query, and the first documents.

    Args:
        found: where they are noted, by query; the rank is 0 if no document is relevant.
    """
    for ranking in rankings:
        grades = judged.get(ranking.qid)
        if grades is not None:
            ranks = (rank for rank, docid in enumerate(ranking.docids, start=1) if grades.get(docid, 0) > 0)
            found[ranking.qid] = next(ranks, 0), ranking.docids[:TOP]
        yield ranking


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


def finite(content: Any) -> Any:
    """Return ``content`` with None for each number that is not finite. JSON has no such numbers."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
