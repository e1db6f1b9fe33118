"""Effectiveness of runs."""

from collections.abc import Mapping, Sequence

import ir_measures


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


def measure(name: str, run: Mapping[int, Sequence[int]], judged: Mapping[int, Mapping[int, int]]) -> float:
    """A measure by its name in ir_measures (``nDCG@10``, ``R@100``), the mean over all judged queries.

    Args:
        run: qid -> pids, best first.
        judged: qid -> pid -> grade.
    """
    scores = {str(qid): {str(pid): -float(rank) for rank, pid in enumerate(pids)} for qid, pids in run.items()}
    qrels = {str(qid): {str(pid): grade for pid, grade in grades.items()} for qid, grades in judged.items()}
    return ir_measures.calc_aggregate([ir_measures.parse_measure(name)], qrels, scores).popitem()[1]
