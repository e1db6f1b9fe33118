"""Hard negatives are the best that are not relevant."""

from drhard.negatives import HardNegatives, exclude_relevant

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def as_lists(hard: HardNegatives) -> dict[int, list[int]]:
    return {query: rows.tolist() for query, rows in hard.items()}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 9))
def test_they_are_the_best_that_are_not_relevant(seed: int, topk: int, depth: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(12)[:depth] for _ in range(6)]).astype(np.int32)
    for query in range(6):
        rows[query, random.integers(0, depth + 1) :] = -1
    relevant = {query: random.integers(0, 12, random.integers(1, 4)).tolist() for query in (0, 2, 3, 40)}
    hard = exclude_relevant(rows, relevant, topk)
    assert as_lists(hard) == {
        query: [row for row in rows[query].tolist() if row >= 0 and row not in relevant.get(query, [])][:topk]
        for query in range(6)
    }
    assert hard[0].dtype == np.int32


def test_they_are_a_mapping() -> None:
    hard = HardNegatives(np.array([5, 1, 9]), np.array([2, 2, 3]), np.array([7, 8, 6], dtype=np.int32))
    assert as_lists(hard) == {5: [7, 8], 1: [], 9: [6]}
    assert list(hard) == [5, 1, 9] and len(hard) == 3
    assert 1 in hard and 2 not in hard and 10 not in hard
    assert hard.find_empty().tolist() == [1]
    with pytest.raises(KeyError):
        hard[4]
