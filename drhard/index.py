"""The index protocol: what every search of documents by their vectors offers, and the checks before one.

:class:`drhard.exact.ExactIndex` and :class:`drhard.faiss_index.FaissIndex` are such indexes;
:mod:`drhard.backends` chooses between them.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from drhard.errors import InputError
from drhard.vectors import check_finite, name_source

import numpy as np

RESULTS_AT_ONCE = 1 << 22  # the results of one pass of an index that needs no memory of its own: 50 MB


class Index(Protocol):
    """Documents that can be searched by inner product.

    The contract of all indexes: a query gets its k greatest inner products, greatest first, and equal scores are
    ordered by their rows, the smaller first. An exact index keeps this to the letter, for the documents at the end of
    the list too: of those that tie for the last place, the ones with the smaller rows are in. A compressed index
    keeps it among the documents that it finds.
    """

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all queries at once.

        Args:
            queries: (Q, dim) float32, finite.
            k: 1 to the number of documents.

        Returns:
            Scores (Q, k) float32, greatest first, and rows (Q, k) int64. Where a compressed index finds fewer than k
            documents, the last rows are -1.

        Raises:
            InputError: the dimensions differ, there are fewer than k documents, or a number is not finite.
        """

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what :meth:`search` returns for as many queries at a time as the memory allows, in their order.

        The caller puts each part away, so the results of any number of queries need no memory.
        """


def check_topk(k: int, count: int) -> None:
    """Raise InputError if ``count`` documents have no ``k`` best."""
    if not 1 <= k <= count:
        raise InputError(f"cannot return the {k} best of {count} documents; choose 1 to {count}")


def check_queries(queries: np.ndarray, dim: int) -> None:
    """Raise InputError unless ``queries`` (Q, dim) have the dimensions of the documents, and finite numbers."""
    if queries.shape[1] != dim:
        raise InputError(f"the queries have {queries.shape[1]} dimensions, the documents {dim}: other models?")
    check_finite(queries, name=name_source(queries, "the queries"))


def join_passes(parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of :meth:`Index.passes` as one: scores (count, k) float32 and rows (count, k) int64."""
    scores = np.empty((count, k), dtype=np.float32)
    rows = np.empty((count, k), dtype=np.int64)
    first = 0
    for some_scores, some_rows in parts:
        part = slice(first, first + len(some_rows))
        scores[part], rows[part] = some_scores, some_rows
        first += len(some_rows)
    return scores, rows
