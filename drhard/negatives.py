"""Hard negatives: documents that a retriever ranks high but nobody judged relevant."""

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drhard.numbers import Ranks
from drhard.results import Results

import numpy as np

log = logging.getLogger(__name__)

MINED = 200  # published: hard negatives for each query
COMPARED_AT_ONCE = 1 << 21  # document rows: 16 MB as int64


@dataclass(frozen=True)
class Selection:
    """Which of the passages found for a query become its hard negatives.

    Each attribute alone does what sentence-transformers' ``mine_hard_negatives`` does with ``range_min`` (counted from
    0), ``range_max`` and ``relative_margin``. Together they differ: there, ``range_min`` skips passages that the margin
    leaves; here, ranks are counted before the margin removes anything.

    Attributes:
        ranks: the ranks to keep, counted among the passages that are not judged relevant.
        margin: keep a passage only if its score s is at most p - |p| margin, where p is the lowest score of the query's
            relevant passages. None: keep all.
    """

    ranks: Ranks
    margin: float | None = None

    @classmethod
    def from_flags(cls, flags: Namespace, topk: int) -> "Selection":
        """Make a selection from the flags :data:`drhard.flags.SELECTION`. Without them: the ``topk`` best."""
        return cls(flags.negative_ranks or Ranks(1, topk), flags.relative_margin)

    @property
    def most(self) -> int:
        """The most hard negatives that a query can get."""
        return self.ranks.last - self.ranks.first + 1

    @property
    def plain(self) -> bool:
        """Whether a query gets the best passages that are not relevant, as published."""
        return self.ranks.first == 1 and self.margin is None

    def outcome(self) -> str:
        """Return the settings that decide which passages are kept."""
        return f"ranks {self.ranks}" + ("" if self.margin is None else f", margin {self.margin}")

    def __str__(self) -> str:
        return f"{self.most} hard negatives" + ("" if self.plain else f" ({self.outcome()})")


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

    @property
    def total(self) -> int:
        """The number of hard negatives of all queries."""
        return len(self._rows)

    def find_empty(self) -> np.ndarray:
        """Return the query rows with an empty list."""
        empty: np.ndarray = self._queries[self._starts == self._ends]
        return empty

    def __iter__(self) -> Iterator[int]:
        return iter(self._queries.tolist())

    def __len__(self) -> int:
        return len(self._queries)


def choose_negatives(
    found: Results, relevant: Mapping[int, Sequence[int]], selection: Selection
) -> tuple[HardNegatives, int]:
    """Choose the hard negatives of each query among the passages that a search found for it.

    They are the best that are not judged relevant to it (section 4.1 of the paper), as far as ``selection`` keeps them.
    The margin needs no scores but those of the search. If a relevant passage of a query was not found, each passage
    that was found scores at least as high, so the query keeps none. A compressed index may also miss a relevant passage
    with a high score; that query keeps none either. A query without any relevant passage keeps all.

    Args:
        found: the passages of query rows 0 to Q - 1.
        relevant: query row -> relevant document rows.

    Returns:
        The hard negatives of all Q queries, and how many more there would be without the margin.
    """
    queries, depth = found.rows.shape
    ranks = selection.ranks
    judged = np.unique(np.fromiter((query << 32 | row for query, of in relevant.items() for row in of), dtype=np.int64))
    negatives = np.empty(queries * selection.most, dtype=np.int32)
    counts = np.empty(queries, dtype=np.int64)
    end, removed, at_once = 0, 0, max(1, COMPARED_AT_ONCE // depth)
    for first in range(0, queries, at_once):
        part = slice(first, min(first + at_once, queries))
        rows = found.rows[part].astype(np.int64)
        pairs = (np.arange(part.start, part.stop) << 32)[:, None] | np.maximum(rows, 0)
        are_relevant = (rows >= 0) & _among(pairs, judged)
        kept = (rows >= 0) & ~are_relevant
        rank = np.cumsum(kept, axis=1, dtype=np.int32)
        kept &= (rank >= ranks.first) & (rank <= ranks.last)
        if selection.margin is not None:
            bounds = np.searchsorted(judged, np.arange(part.start, part.stop + 1) << 32)
            limits = _limits(found.scores[part], are_relevant, np.diff(bounds), selection.margin)
            above = kept & (found.scores[part] > limits[:, None])
            removed += int(above.sum())
            kept &= ~above
        counts[part] = kept.sum(axis=1)
        chosen = rows[kept]
        negatives[end : end + len(chosen)] = chosen
        end += len(chosen)
    return HardNegatives(np.arange(queries), np.cumsum(counts), negatives[:end]), removed


def _limits(scores: np.ndarray, are_relevant: np.ndarray, judged: np.ndarray, margin: float) -> np.ndarray:
    """Return the highest score that a hard negative of each query may have, (Q,) float64.

    Args:
        scores, are_relevant: (Q, depth), of the passages that were found.
        judged: (Q,) the number of relevant passages, found or not.
    """
    count = are_relevant.sum(axis=1)
    limits: np.ndarray = np.min(scores, axis=1, where=are_relevant, initial=np.inf).astype(np.float64)
    some = count > 0
    limits[some] -= np.abs(limits[some]) * margin  # not for the others: inf - inf is nan
    limits[count < judged] = -np.inf
    return limits


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
