"""Search documents that several processes hold in parts: each searches its own, and what they find is merged.

A part consists of whole blocks. Each score is then computed in the tile in which one process alone would compute it, so
the results are the same to the last bit.
"""

from collections.abc import Iterator
from typing import Protocol

from drhard import processes
from drhard.blocks import BLOCK_ROWS
from drhard.devices import to_device
from drhard.index import RESULTS_AT_ONCE, Index, check_topk, join_passes
from drhard.shards import read_vectors

import numpy as np
import torch


def bounds_of_parts(count: int) -> list[int]:
    """Return the first row of each process's part of ``count`` documents, and ``count`` at the end."""
    blocks, parts = -(-count // BLOCK_ROWS), processes.count()
    return [min(blocks * part // parts * BLOCK_ROWS, count) for part in range(parts)] + [count]


def own_rows(count: int) -> slice:
    """Return which of ``count`` documents this process holds."""
    bounds = bounds_of_parts(count)
    return slice(bounds[processes.rank()], bounds[processes.rank() + 1])


class Part(Protocol):
    """The documents of this process."""

    @property
    def found(self) -> int:
        """The number of documents that a search can find."""

    def find(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what :meth:`drhard.index.Index.passes` does, but only as many columns as there are documents.

        The number of queries in a pass depends on ``k``, and not on the documents.
        """


class SharedIndex:
    """Documents in parts. All processes must search together, for the same queries, and get the same results.

    Args:
        part: searches the documents of this process.
        documents: (n, dim) float32, those that :func:`own_rows` gives.
        count: the number of all documents.
    """

    def __init__(self, part: Part, documents: np.ndarray, count: int):
        self._part, self._documents = part, documents
        self._bounds = bounds_of_parts(count)
        self._found = sum(processes.gather_numbers(part.found))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`."""
        return join_passes(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`."""
        check_topk(k, self._found)
        first_row = self._bounds[processes.rank()]
        for scores, rows in self._part.find(queries, k):
            yield _merge(scores, rows + first_row, k)

    def fetch(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Return the vectors of the documents of this process's queries. The processes that hold them send them.

        Args:
            rows: (Q, C) int64, of the queries of all processes, shared as :func:`drhard.processes.split` says.
            device: where the vectors are returned.

        Returns:
            (q, C, dim) float32
        """
        ends = np.cumsum(processes.split(len(rows)))[:-1]
        wanted = [np.unique(some) for some in np.split(rows, ends)]  # by each process
        first, last = self._bounds[processes.rank()], self._bounds[processes.rank() + 1]
        asked = [some[(some >= first) & (some < last)] for some in wanted]  # of this one
        vectors = read_vectors(self._part, self._documents, np.concatenate(asked) - first, device)
        mine = wanted[processes.rank()]
        received = np.diff(np.searchsorted(mine, self._bounds)).tolist()
        found = processes.exchange(vectors, list(map(len, asked)), received)  # in the order of ``mine``
        place = np.searchsorted(mine, rows[processes.own_part(len(rows))])
        return found[to_device(place, device)]


def _merge(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the rows, both (Q, k), of the best documents that all processes found, in each of them.

    Each process merges what was found for some of the queries, and sends the result to the others.

    Args:
        scores, rows: (Q, K) of this process's best documents; K is at most ``k``.
    """
    count, lacking = len(scores), k - scores.shape[1]
    scores = np.pad(scores, ((0, 0), (0, lacking)), constant_values=-np.inf)
    rows = np.pad(rows, ((0, 0), (0, lacking)), constant_values=-1)
    best_scores, best_rows = np.empty((count, k), dtype=np.float32), np.empty((count, k), dtype=np.int64)
    at_once = max(1, RESULTS_AT_ONCE // k)
    for first in range(0, count, at_once):
        some = slice(first, first + at_once)
        sizes = processes.split(len(scores[some]))
        of_all, rows_of_all = (_exchange(found[some], sizes) for found in (scores, rows))
        order = np.lexsort((rows_of_all, -of_all), axis=1)[:, :k]
        for best, found in ((best_scores, of_all), (best_rows, rows_of_all)):
            own = torch.from_numpy(np.take_along_axis(found, order, 1))
            best[some] = processes.gather(own, sizes).numpy()
    return best_scores, best_rows


def _exchange(found: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Return what all processes found for the queries of this one, (q, P k).

    Args:
        found: (Q, k) what this process found, for all queries.
        sizes: how many queries each process gets.
    """
    received = [sizes[processes.rank()]] * processes.count()
    gathered = processes.exchange(torch.from_numpy(found), sizes, received).numpy()
    joined: np.ndarray = np.concatenate(np.split(gathered, processes.count()), axis=1)
    return joined


class FirstsIndex:
    """An index that the first process holds, and searches for all. All processes must search together.

    Args:
        index: in the first process; None in the others.
    """

    def __init__(self, index: Index | None):
        self._index = index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`."""
        return join_passes(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`."""
        found = iter(()) if self._index is None else self._index.passes(queries, k)
        first = 0
        while first < len(queries):
            scores, rows = next(found, (np.empty((0, k), np.float32), np.empty((0, k), np.int64)))
            [count, *_] = sizes = processes.gather_numbers(len(rows))
            both = (processes.gather(torch.from_numpy(part), sizes).numpy() for part in (scores, rows))
            yield next(both), next(both)
            first += count
