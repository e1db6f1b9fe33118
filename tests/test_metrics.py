"""Measures of runs, compared with ir_measures and with sums by hand."""

import math

from drhard.metrics import mean_reciprocal_rank, measure_queries, parse_measures

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PIDS = st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(PIDS, PIDS), min_size=1, max_size=5), st.integers(1, 25))
def test_mrr_is_rr_of_ir_measures(queries: list[tuple[list[int], list[int]]], cut: int) -> None:
    run = {qid: pids for qid, (pids, _) in enumerate(queries)}
    relevant = {qid: pids for qid, (_, pids) in enumerate(queries)}
    reference = ir_measures.calc_aggregate(
        [ir_measures.RR @ cut],
        {str(qid): {str(pid): 1 for pid in pids} for qid, pids in relevant.items()},
        {str(qid): {str(pid): 100.0 - rank for rank, pid in enumerate(pids)} for qid, pids in run.items()},
    )[ir_measures.RR @ cut]
    assert mean_reciprocal_rank(run, relevant, cut) == pytest.approx(reference)


def test_mrr_divides_by_the_queries_of_the_reference() -> None:
    relevant = {1: [10], 2: [20, 21], 3: [30], 4: [40]}
    run = {1: [11, 10], 2: [21, 20], 9: [10, 20]}  # 3 and 4 were not searched, 9 is not judged
    assert mean_reciprocal_rank(run, relevant, 10) == (1 / 2 + 1) / 4
    assert mean_reciprocal_rank(run, relevant, 1) == 1 / 4


def test_mrr_looks_no_further_than_the_cut() -> None:
    run = {1: list(range(100, 110)) + [7]}
    assert mean_reciprocal_rank(run, {1: [7]}, 10) == 0
    assert mean_reciprocal_rank(run, {1: [7]}, 11) == 1 / 11


def test_measures_by_name() -> None:
    run = {"1": {"5": 4.0, "6": 3.0, "7": 2.0, "8": 1.0}, "2": {"9": 2.0, "5": 1.0}}
    judged = {"1": {"6": 1, "8": 3, "5": 0}, "2": {"9": 2, "4": 1}, "3": {"1": 1}}  # 3 was not searched: 0
    ideal = [3 + 1 / math.log2(3), 2 + 1 / math.log2(3)]
    assert measure_queries(parse_measures(["nDCG@10", "R@100", "R@3"]), run, judged) == {
        "nDCG@10": pytest.approx({"1": (1 / math.log2(3) + 3 / math.log2(5)) / ideal[0], "2": 2 / ideal[1], "3": 0}),
        "R@100": pytest.approx({"1": 1, "2": 1 / 2, "3": 0}),
        "R@3": pytest.approx({"1": 1 / 2, "2": 1 / 2, "3": 0}),
    }
