"""Effectiveness of runs."""

from collections.abc import Mapping, Sequence

from drhard.errors import InputError

import ir_measures
from ir_measures.measures import Measure


def mean_reciprocal_rank(run: Mapping[int, Sequence[int]], relevant: Mapping[int, Sequence[int]], cut: int) -> float:
    """MRR@cut as MS MARCO's official script computes it.

    Args:
        run: qid -> pids, best first. Queries that are not in ``relevant`` do not count.
        relevant: qid -> relevant pids.

    Returns:
        The sum of 1/rank of the first relevant document over the queries of the run, divided by the number of
        queries in ``relevant``.
    """
    total = 0.0
    for qid, pids in run.items():
        wanted = set(relevant.get(qid, ()))
        total += next((1 / rank for rank, pid in enumerate(pids[:cut], start=1) if pid in wanted), 0.0)
    return total / len(relevant)


def parse_measures(names: Sequence[str], level: int = 1) -> list[Measure]:
    """Measures by their names in ir_measures (``nDCG@10``, ``R@100``, ``AP(rel=2)``).

    Args:
        level: the lowest grade that is relevant to binary measures that do not say it themselves.

    Raises:
        InputError: there is no such measure, or it cannot have such a parameter.
    """
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()
            valid = min(measure.params.get("cutoff", 1), measure.params.get("rel", 1)) >= 1  # 0 ends trec_eval's code
        except Exception:  # it raises NameError, ValueError, SyntaxError, AssertionError, …
            valid = False
        if not valid:
            raise InputError(f"{name}: no measure of ir_measures; nDCG@10, R@1000, AP, RR@10, P(rel=2)@5 are")
        if level != 1 and "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=level)
        measures.append(measure)
    return measures


def measure_queries(
    measures: Sequence[Measure], run: Mapping[str, Mapping[str, float]], judged: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """The value of each measure for each judged query; one that the run lacks gets what an empty list would get.

    Args:
        run: qid -> docid -> score; ties are broken as trec_eval breaks them, by the greater docid, but for RR with
            a cut, where ir_measures takes MS MARCO's script and the smaller docid.
        judged: qid -> docid -> grade.

    Returns:
        name of the measure -> qid -> value, in the order of the measures and of ``judged``.

    Raises:
        InputError: a measure needs a package that is not installed.
    """
    values: dict[str, dict[str, float]] = {str(measure): dict.fromkeys(judged, 0.0) for measure in measures}
    try:
        for metric in ir_measures.iter_calc(measures, judged, run):
            values[str(metric.measure)][metric.query_id] = float(metric.value)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"ir_measures cannot compute {', '.join(map(str, measures))}: {reason}") from None
    return values
