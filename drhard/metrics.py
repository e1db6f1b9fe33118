"""Measure the effectiveness of runs. Check whether a run and judgements fit each other."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drhard.errors import InputError
from drhard.numbers import COUNT
from drhard.runs import Id, Ranking, read_rankings

import numpy as np

if TYPE_CHECKING:
    from ir_measures.measures import Measure

log = logging.getLogger(__name__)

BATCH = 1000  # queries measured at once


def mean_reciprocal_rank(run: Iterable[Ranking[Id]], relevant: Mapping[Id, Sequence[Id]], cut: int) -> float:
    """Return MRR@cut as MS MARCO's official script computes it.

    Args:
        run: queries that are not in ``relevant`` are ignored.
        relevant: qid -> relevant pids.

    Returns:
        The sum of 1/rank of each query's first relevant document, divided by the number of queries in ``relevant``.
    """
    total = 0.0
    for qid, pids, *_ in run:
        wanted = relevant.get(qid, ())
        total += next((1 / rank for rank, pid in enumerate(pids[:cut], start=1) if pid in wanted), 0.0)
    return total / len(relevant)


def parse_measures(names: Sequence[str], level: int = 1) -> list["Measure"]:
    """Parse the names of measures in ir_measures (``nDCG@10``, ``R@100``, ``AP(rel=2)``).

    Args:
        level: the lowest relevant grade, for binary measures whose name does not give one.

    Raises:
        InputError: a measure does not exist, or does not take one of its parameters.
    """
    import ir_measures  # imported here: a training that measures nothing does without

    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()  # type: ignore[no-untyped-call]
            for parameter in ("cutoff", "rel"):  # 0 would abort trec_eval's code
                COUNT.check(parameter, measure.params.get(parameter, 1))
        except Exception:  # ir_measures raises NameError, ValueError, SyntaxError, AssertionError, …
            raise InputError(
                f"{name[:40]}: not a measure of ir_measures; give one such as nDCG@10, R@1000, AP, RR@10, P(rel=2)@5"
            ) from None
        if level != 1 and "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=level)
        measures.append(measure)
    return measures


def measure_queries(
    measures: Sequence["Measure"], run: Iterable[Ranking[str]], judged: Mapping[str, Mapping[str, int]]
) -> dict[str, np.ndarray]:
    """Return the value of each measure for each judged query. A query that the run lacks gets 0.

    All measures use the order of the documents in the run, not their scores.

    Args:
        run: queries that are not in ``judged`` are ignored.
        judged: qid -> docid -> grade.

    Returns:
        name of the measure -> (Q,) float64, in the order of the measures and of ``judged``.

    Raises:
        InputError: a measure needs a package that is not installed.
    """
    places = {qid: place for place, qid in enumerate(judged)}
    values = {str(measure): np.zeros(len(judged)) for measure in measures}
    batch: dict[str, dict[str, float]] = {}

    def measure_batch() -> None:
        grades = {qid: judged[qid] for qid in batch}
        for name, qid, value in _calculate(measures, batch, grades):
            values[name][places[qid]] = value
        batch.clear()

    for qid, docids, *_ in run:
        if qid in places:
            batch[qid] = dict(zip(docids, map(float, range(len(docids), 0, -1)), strict=True))
            if len(batch) == BATCH:
                measure_batch()
    measure_batch()
    return values


def _calculate(
    measures: Sequence["Measure"], run: Mapping[str, Mapping[str, float]], judged: Mapping[str, Mapping[str, int]]
) -> Iterator[tuple[str, str, float]]:
    """Yield (name of the measure, qid, value).

    RR with a cut is computed from trec_eval's RR. This takes a third of the time that ir_measures needs.
    """
    import ir_measures

    cuts: dict[Measure, list[tuple[str, float]]] = {}  # computed measure -> names and least values of wanted measures
    for measure in measures:
        computed, least = measure, -np.inf
        if measure.NAME == "RR" and "cutoff" in measure.params:
            computed = type(measure)(**{key: value for key, value in measure.params.items() if key != "cutoff"})
            least = 1 / measure.params["cutoff"]
        cuts.setdefault(computed, []).append((str(measure), least))
    try:
        for metric in ir_measures.iter_calc(list(cuts), judged, run):
            for name, least in cuts[metric.measure]:
                yield name, metric.query_id, float(metric.value) if metric.value >= least else 0.0
    except (RuntimeError, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"ir_measures cannot compute {', '.join(map(str, measures))}: {reason}") from None


def measure_run(
    measures: Sequence["Measure"],
    run_path: str | Path,
    qrels_path: str | Path,
    judged: Mapping[str, Mapping[str, int]],
    cuts: Mapping[str, int] | None = None,
) -> tuple[dict[str, np.ndarray], "Coverage"]:
    """Measure a file. Return the values of :func:`measure_queries`, and how well run and judgements fit.

    Args:
        cuts: see :class:`Coverage`.

    Raises:
        InputError: as :func:`drhard.runs.read_rankings`, :func:`measure_queries` and :meth:`Coverage.check`.
    """
    coverage = Coverage(run_path, qrels_path, judged, cuts)
    values = measure_queries(measures, coverage.count(read_rankings(run_path)), judged)
    coverage.check()
    return values, coverage


class Coverage:
    """Counts, while a run is read, how well the run and judgements fit each other.

    Args:
        run_path, qrels_path: the files that messages name.
        judged: qid -> docids, or qid -> docid -> grade.
        cuts: measures and the number of documents that they look at, ``{"R@1000": 1000}``.
    """

    def __init__(
        self,
        run_path: str | Path,
        qrels_path: str | Path,
        judged: Mapping[Id, Collection[Id]],
        cuts: Mapping[str, int] | None = None,
    ):
        self.run_path, self.qrels_path = run_path, qrels_path
        self.queries = 0  # queries in the run
        self.covered = 0  # judged queries in the run
        self._judged: Mapping[Any, Collection[Any]] = judged
        self._cuts = cuts or {}
        self._shallow = dict.fromkeys(self._cuts, 0)  # queries with fewer documents than the cut
        self._depth = 0
        self._found = 0  # queries with a judged document
        self._tied = 0  # queries whose value depends on the order of equal scores

    def count(self, run: Iterable[Ranking[Id]]) -> Iterator[Ranking[Id]]:
        """Yield the queries of ``run`` and count them."""
        for ranking in run:
            self.queries += 1
            if ranking.qid in self._judged:
                self._add(ranking, self._judged[ranking.qid])
            yield ranking

    def _add(self, ranking: Ranking[Id], judged: Collection[Id]) -> None:
        depth = len(ranking.docids)
        self.covered += 1
        self._found += not set(judged).isdisjoint(ranking.docids)
        self._depth = max(self._depth, depth)
        for measure, cut in self._cuts.items():
            self._shallow[measure] += depth < cut
        if isinstance(judged, Mapping) and len(set(ranking.scores)) < depth:
            grades = [max(0, judged.get(docid, 0)) for docid in ranking.docids]
            scored = zip(ranking.scores, grades, strict=True)
            self._tied += any(score == other and grade != below for (score, grade), (other, below) in pairwise(scored))

    @property
    def missing(self) -> int:
        """The number of judged queries that the run lacks."""
        return len(self._judged) - self.covered

    def __str__(self) -> str:
        return (
            f"{self.run_path}: lacks {self.missing} of {len(self._judged)} judged queries, each counts as 0; "
            f"{self.queries - self.covered} of its {self.queries} queries are not judged and do not count"
        )

    def check(self) -> None:
        """Warn of what makes values doubtful. Raises InputError if no query of the run is judged."""
        if not self.covered:
            raise InputError(
                f"{self.run_path}: none of its queries is judged in {self.qrels_path}; rows and official ids do not mix"
            )
        if not self._found:
            log.warning(
                "%s: none of its documents is judged in %s; do both have the same ids?", self.run_path, self.qrels_path
            )
        for measure, count in self._shallow.items():
            if count:
                log.warning(
                    "%s: %d of %d judged queries have too few documents for %s; the longest list has %d",
                    self.run_path,
                    count,
                    self.covered,
                    measure,
                    self._depth,
                )
        if self._tied:
            log.warning(
                "%s: %d of %d judged queries have documents with equal scores and different grades; as in trec_eval, "
                "the greater id comes first",
                self.run_path,
                self._tied,
                self.covered,
            )
