"""Paired tests against scipy and against all signs written out; Holm's correction against its definition."""

import itertools
import math
import tracemalloc
from collections.abc import Sequence

import drhard.significance
from drhard.significance import compare, holm, mean_interval

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


def pair(count: int, seed: int, shift: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    b = random.random(count)
    return np.clip(b + random.normal(shift, 0.3, count), 0, 1), b


def all_signs(difference: np.ndarray) -> float:
    """The share of all signs under which the sum is as far from 0 as it is, or farther."""
    sums = [np.dot(signs, difference) for signs in itertools.product((1, -1), repeat=len(difference))]
    return float(np.mean(np.abs(sums) >= abs(difference.sum()) - 1e-9))


def test_memory_is_bounded_for_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.significance, "RESAMPLES", 160)
    a, b = pair(50_000, seed=1)
    tracemalloc.start()
    compare(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5e9


@pytest.mark.parametrize("seed", range(4))
def test_t_test_is_scipys_of_pairs(seed: int) -> None:
    a, b = pair(43, seed)
    found, reference = compare(a, b), stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert found.t_test == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.low < found.difference < found.high


@pytest.mark.parametrize("count", [2, 3, 6, 10, 13])
def test_randomization_of_few_queries_goes_through_all_signs(count: int) -> None:
    a, b = pair(count, seed=count)
    assert compare(a, b).randomization == pytest.approx(all_signs(a - b), abs=1e-12)


def test_randomization_with_ties_and_queries_that_did_not_change() -> None:
    """Differences of 0 stay 0 whatever their sign; equal sums count as equally far."""
    difference = np.array([0, 0.5, 0.5, -0.5, 0, 1, 0.5, 0])
    b = np.full(8, 0.25)
    assert compare(b + difference, b).randomization == pytest.approx(all_signs(difference), abs=1e-12)


def test_randomization_of_many_queries_of_which_few_changed_goes_through_all_signs() -> None:
    a, b = pair(9, seed=1)
    unchanged = np.full(50, 0.5)
    found = compare(np.concatenate((a, unchanged)), np.concatenate((b, unchanged)))
    assert found.randomization == pytest.approx(all_signs(a - b), abs=1e-12)


def test_randomization_of_many_queries_is_drawn() -> None:
    """Near the t-test's p where differences are normal, the same each time, and not further off than draws are."""
    a, b = pair(200, seed=5, shift=0.04)
    found = compare(a, b)
    assert 0.001 < found.t_test < 0.5
    deviation = math.sqrt(found.t_test * (1 - found.t_test) / drhard.significance.RESAMPLES)
    assert found.randomization == pytest.approx(found.t_test, abs=5 * deviation + 0.1 * found.t_test)
    assert compare(a, b) == found


def test_the_other_way_round_only_the_sign_changes() -> None:
    a, b = pair(12, seed=3)
    one, other = compare(a, b), compare(b, a)
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert (other.t_test, other.randomization) == pytest.approx((one.t_test, one.randomization))


def test_equal_values_do_not_differ() -> None:
    a, _ = pair(9, seed=0)
    assert compare(a, a) == (0, 0, 0, 1, 1, 0)


def test_the_same_difference_everywhere() -> None:
    found = compare(np.array([1.0, 0.75, 0.5]), np.array([0.5, 0.25, 0.0]))
    assert found == (0.5, 0.5, 0.5, 0, 2 / 8, 0)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_one_query_that_changed_tells_nothing(count: int) -> None:
    """Its sign may be either, so that each sum is as far from 0 as the other."""
    a, b = np.full(count, 0.5), np.full(count, 0.5)
    a[0] = 0.75
    assert compare(a, b).randomization == 1
    if count < 10:
        assert all_signs(a - b) == 1


def test_one_query_tells_nothing() -> None:
    found = compare(np.array([1.0]), np.array([0.5]))
    assert (found.difference, found.t_test, found.randomization) == (0.5, 1, 1)
    assert math.isnan(found.low) and math.isnan(found.high)


def plain_holm(p_values: Sequence[float]) -> list[float]:
    """Of each p the largest (m - j + 1) p_j among those that are not greater than it, j its place from 1."""
    order = sorted(p_values)
    m = len(order)
    return [
        min(1.0, max((m - j + 1) * p for j, p in enumerate(order, start=1) if p <= p_value)) for p_value in p_values
    ]


def test_holm_by_hand() -> None:
    # The example of R's help on p.adjust and of many a textbook: 4 x 0.005, 3 x 0.01, 2 x 0.03, 0.04 raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1, 1, 0.003])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12, unique=True))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert corrected == pytest.approx(plain_holm(p_values))
    assert all(1 >= after >= before for before, after in zip(p_values, corrected, strict=True))


def test_holm_gives_equal_ps_the_same() -> None:
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])


def test_mean_interval() -> None:
    values = [0.31, 0.35, 0.33, 0.30, 0.34]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)
    assert mean_interval([1, 3]) == pytest.approx((2, 12.7062047))  # t of one degree of freedom, s / sqrt(2) = 1
    mean, half = mean_interval([0.25])
    assert mean == 0.25 and math.isnan(half)
