"""Hard negatives: documents that a retriever ranks high but nobody judged relevant."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

log = logging.getLogger(__name__)

COMPARED_AT_ONCE = 1 << 21  # document rows: 16 MB as int64


class HardNegatives(Mapping[int, np.ndarray]):
    """Query row -> its hard negatives (n,) int32, best first. One flat array holds them all, at 4 bytes a negative.

    Args:
        queries: (Q,) int64 unique query rows, in the order of the file.
        ends: (Q,) int64, where the negatives of each query end in ``rows``.
        rows: (total,) int32 document rows.
    """

    def __init__(self, queries: np.ndarray, ends: np.ndarray, rows: np.ndarray):
        self._queries, self._ends, self._rows = queries, ends, rows
        self._starts = np.concatenate(([0], ends[:-1]))
        self._order = np.argsort(queries, kind="stable")
        self._sorted = queries[self._order]

    def __getitem__(self, query: int) -> np.ndarray:
        place = int(np.searchsorted(self._sorted, query))
        if place == len(self._sorted) or self._sorted[place] != query:
            raise KeyError(query)
        place = self._order[place]
        return self._rows[self._starts[place] : self._ends[place]]

    def find_empty(self) -> np.ndarray:
        """Return the query rows with an empty list."""
        empty: np.ndarray = self._queries[self._starts == self._ends]
        return empty

    def __iter__(self) -> Iterator[int]:
        return iter(self._queries.tolist())

    def __len__(self) -> int:
        return len(self._queries)


def exclude_relevant(rows: np.ndarray, relevant: Mapping[int, Sequence[int]], topk: int) -> HardNegatives:
    """Return the ``topk`` best documents of each query that are not judged relevant to it (section 4.1 of the paper).

    Args:
        rows: (Q, depth) document rows of query rows 0 to Q - 1, best first; -1 at the end of a shorter list.
        relevant: query row -> relevant document rows.
    """
    queries, depth = rows.shape
    judged = np.fromiter((query << 32 | row for query, of in relevant.items() for row in of), dtype=np.int64)
    judged.sort()
    negatives = np.empty(queries * topk, dtype=np.int32)
    counts = np.empty(queries, dtype=np.int64)
    end, at_once = 0, max(1, COMPARED_AT_ONCE // depth)
    for first in range(0, queries, at_once):
        some = rows[first : first + at_once].astype(np.int64)
        pairs = (np.arange(first, first + len(some)) << 32)[:, None] | np.maximum(some, 0)
        kept = (some >= 0) & ~_among(pairs, judged)
        kept &= np.cumsum(kept, axis=1, dtype=np.int32) <= topk
        counts[first : first + len(some)] = kept.sum(axis=1)
        found = some[kept]
        negatives[end : end + len(found)] = found
        end += len(found)
    return HardNegatives(np.arange(queries), np.cumsum(counts), negatives[:end])


def keep_queries_with_negatives(relevant: Mapping[int, Sequence[int]], hard: HardNegatives) -> dict[int, Sequence[int]]:
    """Return ``relevant`` without the queries that have no hard negative. Log a warning with their number."""
    lacking = set(hard.find_empty().tolist())
    kept = {query: rows for query, rows in relevant.items() if query not in lacking}
    if len(kept) < len(relevant):
        log.warning("the training leaves out %d queries without a hard negative", len(relevant) - len(kept))
    return kept


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Return a mask of the ``values`` that are in ``ascending``."""
    ascending = ascending[slice(*np.searchsorted(ascending, (values.min(), values.max() + 1)))]
    if not len(ascending):
        return np.zeros(values.shape, dtype=bool)
    places = np.searchsorted(ascending, values)
    found: np.ndarray = ascending[np.minimum(places, len(ascending) - 1)] == values
    return found
