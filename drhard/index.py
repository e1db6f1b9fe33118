"""The index protocol: the methods of every index of document embeddings, and the checks before a search.

:class:`drhard.exact.ExactIndex` and :class:`drhard.faiss_index.FaissIndex` follow it. :mod:`drhard.backends` has a
backend for each.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from drhard.errors import InputError
from drhard.vectors import check_finite, name_source

import numpy as np

NO_ROWS = np.empty(0, dtype=np.int64)  # rows to leave out: none
RESULTS_AT_ONCE = 1 << 22  # results of one pass, for an index without a memory limit of its own: 50 MB


class Index(Protocol):
    """Documents that can be searched by inner product, but for those that it leaves out, such as empty texts.

    A query gets its k greatest inner products, greatest first. Among equal scores, the smaller row comes first. In an
    exact index this also decides which of the documents that tie for the last place are returned. A compressed index
    keeps the order among the documents that it finds.
    """

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all queries at once.

        Args:
            queries: (Q, dim) float32, finite.
            k: 1 to the number of documents that are not left out.

        Returns:
            Scores (Q, k) float32, greatest first, and rows (Q, k) int64. If a compressed index finds fewer than k
            documents, the last rows are -1.

        Raises:
            InputError: the dimensions differ, there are fewer than k documents, or a number is not finite.
        """

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what :meth:`search` returns, part by part. A part has as many queries as memory allows, in order.

        The caller stores each part. Memory use therefore does not grow with the number of queries.
        """


def restore_rows(rows: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Return the rows among all documents of ``rows`` that were counted without those left out.

    Args:
        rows: int64; -1 stays.
        left_out: (n,) int64, ascending.
    """
    before = np.searchsorted(left_out - np.arange(len(left_out)), rows, side="right")
    restored: np.ndarray = np.where(rows < 0, -1, rows + before)
    return restored


def part_of(left_out: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return which of ``count`` documents from row ``first`` on are left out, counted from ``first``."""
    start, end = np.searchsorted(left_out, (first, first + count))
    part: np.ndarray = left_out[start:end] - first
    return part


def check_topk(k: int, count: int) -> None:
    """Raise InputError unless ``k`` is between 1 and ``count``, the number of documents."""
    if not 1 <= k <= count:
        raise InputError(f"cannot return the {k} best of {count} documents; choose 1 to {count}")


def check_queries(queries: np.ndarray, dim: int) -> None:
    """Raise InputError unless ``queries`` (Q, dim) have the dimensions of the documents, and finite numbers."""
    if queries.shape[1] != dim:
        raise InputError(
            f"the queries have {queries.shape[1]} dimensions, the documents {dim}; use embeddings of one model"
        )
    check_finite(queries, name=name_source(queries, "the queries"))


def join_passes(parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Join the parts of :meth:`Index.passes`. Return scores (count, k) float32 and rows (count, k) int64."""
    scores = np.empty((count, k), dtype=np.float32)
    rows = np.empty((count, k), dtype=np.int64)
    first = 0
    for some_scores, some_rows in parts:
        part = slice(first, first + len(some_rows))
        scores[part], rows[part] = some_scores, some_rows
        first += len(some_rows)
    return scores, rows
