"""Measures of runs, compared with ir_measures and with sums by hand."""

import math

from drhard.errors import InputError
from drhard.metrics import BATCH, Coverage, mean_reciprocal_rank, measure_queries, parse_measures
from drhard.runs import Ranking

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
    assert mean_reciprocal_rank(run.items(), relevant, cut) == pytest.approx(reference)


def test_mrr_divides_by_the_queries_of_the_reference() -> None:
    relevant = {1: [10], 2: [20, 21], 3: [30], 4: [40]}
    run = {1: [11, 10], 2: [21, 20], 9: [10, 20]}  # 3 and 4 were not searched, 9 is not judged
    assert mean_reciprocal_rank(run.items(), relevant, 10) == (1 / 2 + 1) / 4
    assert mean_reciprocal_rank(run.items(), relevant, 1) == 1 / 4


def test_mrr_looks_no_further_than_the_cut() -> None:
    run = {1: list(range(100, 110)) + [7]}
    assert mean_reciprocal_rank(run.items(), {1: [7]}, 10) == 0
    assert mean_reciprocal_rank(run.items(), {1: [7]}, 11) == 1 / 11


def ranking(qid: str, docids: list[str], scores: list[float] | None = None) -> Ranking[str]:
    scores = scores or [-float(rank) for rank in range(1, len(docids) + 1)]
    return Ranking(qid, docids, scores, list(range(1, len(docids) + 1)))


def test_measures_by_name() -> None:
    run = [ranking("1", ["5", "6", "7", "8"]), ranking("2", ["9", "5"]), ranking("77", ["9"])]  # 77 is not judged
    judged = {"1": {"6": 1, "8": 3, "5": 0}, "2": {"9": 2, "4": 1}, "3": {"1": 1}}  # 3 was not searched: 0
    ideal = [3 + 1 / math.log2(3), 2 + 1 / math.log2(3)]
    values = measure_queries(parse_measures(["nDCG@10", "R@100", "R@3"]), run, judged)
    assert list(values) == ["nDCG@10", "R@100", "R@3"]
    assert values["nDCG@10"] == pytest.approx([(1 / math.log2(3) + 3 / math.log2(5)) / ideal[0], 2 / ideal[1], 0])
    assert values["R@100"] == pytest.approx([1, 1 / 2, 0])
    assert values["R@3"] == pytest.approx([1 / 2, 1 / 2, 0])


@pytest.mark.parametrize("queries", [1, BATCH - 1, BATCH, 2 * BATCH + 1])
def test_queries_are_measured_in_batches(queries: int) -> None:
    """Each at its place in the judgements, whatever the order of the run."""
    judged = {str(query): {"7": 1} for query in range(queries)}
    run = (ranking(str(query), [*map(str, range(100, 100 + query % 12)), "7"]) for query in reversed(range(queries)))
    values = measure_queries(parse_measures(["RR", "RR@10"]), run, judged)
    assert values["RR"] == pytest.approx([1 / (query % 12 + 1) for query in range(queries)])
    assert values["RR@10"] == pytest.approx([1 / (query % 12 + 1) * (query % 12 < 10) for query in range(queries)])


@pytest.mark.parametrize("place", range(1, 14))
def test_rr_with_a_cut_keeps_every_rank_up_to_it(place: int) -> None:
    run = [ranking("1", [*map(str, range(100, 99 + place)), "7"])]
    names = [f"RR@{cut}" for cut in range(1, 14)]
    values = measure_queries(parse_measures(names), run, {"1": {"7": 1}})
    assert [values[name][0] for name in names] == [1 / place if cut >= place else 0 for cut in range(1, 14)]


def covered(run: list[Ranking[str]], judged: dict, cuts: dict[str, int] | None = None) -> Coverage:
    coverage = Coverage("run", "qrels", judged, cuts)
    assert list(coverage.count(run)) == run
    return coverage


def test_coverage_counts_what_is_missing_and_what_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    judged = {"1": {"5": 1}, "2": {"5": 1}, "3": {"5": 0}}
    coverage = covered([ranking("1", ["5"]), ranking("8", ["5"]), ranking("9", ["5"]), ranking("3", ["6"])], judged)
    coverage.check()
    assert caplog.messages == []
    assert str(coverage) == (
        "run: lacks 1 of 3 judged queries, each counts as 0; 2 of its 4 queries are not judged and do not count"
    )


def test_no_query_in_common_is_refused() -> None:
    with pytest.raises(InputError, match="^run: none of its queries is judged in qrels; rows and official ids"):
        covered([ranking("8", ["5"])], {"1": {"5": 1}}).check()


def test_no_judged_document_is_said(caplog: pytest.LogCaptureFixture) -> None:
    covered([ranking("1", ["D5"])], {"1": {"5": 1}}).check()
    assert caplog.messages == ["run: none of its documents is judged in qrels; do both have the same ids?"]


def test_a_run_less_deep_than_a_measure_is_said(caplog: pytest.LogCaptureFixture) -> None:
    judged = {"1": {"5": 1}, "2": {"5": 1}}
    run = [ranking("1", ["5", "6", "7"]), ranking("2", ["5", "6"]), ranking("9", ["5"])]
    covered(run, judged, {"R@2": 2, "R@3": 3, "R@4": 4}).check()
    assert caplog.messages == [
        "run: 1 of 2 judged queries have too few documents for R@3; the longest list has 3",
        "run: 2 of 2 judged queries have too few documents for R@4; the longest list has 3",
    ]


def test_ties_that_matter_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Those between documents of different grades; a document that is not judged is as one of grade 0."""
    judged = {"1": {"5": 1, "6": 1}, "2": {"5": 1, "6": 0}, "3": {"5": 1}, "4": {"5": 0}, "5": {"5": 1}}
    run = [
        ranking("1", ["6", "5"], [2, 2]),
        ranking("2", ["6", "5"], [2, 2]),
        ranking("3", ["8", "7", "5"], [2, 2, 2]),
        ranking("4", ["8", "5"], [2, 2]),
        ranking("5", ["8", "7", "5"], [2, 2, 1]),
    ]
    covered(run, judged).check()
    [message] = caplog.messages
    assert message.startswith("run: 2 of 5 judged queries have documents with equal scores and different grades")
