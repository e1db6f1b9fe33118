"""Keeping the best: equal to sorting everything, with a bounded number of entries that wait."""

from drhard.topk import TopK

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW_MACHINE = settings(deadline=None, max_examples=60)


@SLOW_MACHINE
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.lists(st.integers(1, 30), min_size=1), st.booleans())
def test_top_k_of_blocks_equals_sorting_everything(seed: int, k: int, widths: list[int], ascending: bool) -> None:
    everything = np.random.default_rng(seed).integers(-9, 10, (3, sum(widths))).astype(np.float32)
    if ascending:
        everything[0].sort()  # every document is better than all before, for one query
    best = TopK(np.empty((3, k), dtype=np.float32), np.empty((3, k), dtype=np.int64))
    for first, width in zip(np.cumsum([0, *widths]), widths, strict=False):
        best.add(np.ascontiguousarray(everything[:, first : first + width].T), int(first))
        assert best._counts.max() < 2 * k  # what waits is bounded
    best.merge()
    for query, scores in enumerate(everything):
        order = np.lexsort((np.arange(len(scores)), -scores))[:k]
        missing = k - len(order)
        assert best.rows[query].tolist() == [*order, *[-1] * missing]
        assert best.scores[query].tolist() == [*scores[order], *[-np.inf] * missing]
