"""Exact search by codes: a first pass finds what may be among the best, and this is scored again in float32.

The same code runs on CPUs and GPUs.
"""

import math
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from itertools import islice, pairwise
from typing import Protocol

from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.codes import GROUP, CodedBlock, Codes
from drhard.cores import on_all_cores
from drhard.index import NO_ROWS
from drhard.rounded import RoundedQueries
from drhard.sieve import SIEVED, Sieve, least_score, order_by_score
from drhard.vectors import find_in_file, gather_rows

import numpy as np
import torch

SECOND_PART = 3  # the queries are coded in two parts once this many times k documents are kept for each
TOO_MANY = 12  # and the search is given up once this many are, or twice as many between two rounds
EXPECTED = 0.25  # of all documents looked through; those kept then will mostly be scored again
ROUND = 4  # times as many tiles belong to a round as to the one before
# The second part is multiplied only with the documents that the first part leaves, once a search has seen so many times
# k documents for each query of a group. Before that, too many are left. A GPU multiplies faster than it picks them out.
SIFTED = 64
AGAIN = 1 << 14  # documents of a memmap to score again at a time
TASKS = 8  # of each core that scores again
SUMMED = 4096  # numbers that einsum sums at a time; its buffer holds twice as many
PAIRS = 512  # of a query and a document that a core scores at a time; they stay in its cache
# A disk reads up to so many rows as fast as one, if they follow each other. So where one in so many is wanted, the file
# is read from end to end.
BETWEEN = 8
AGAIN_ON_GPU = 1 << 18
FEWEST_SUMS = 32  # rows that a GPU always sums together: it sums fewer in another order


def bytes_kept(k: int) -> int:
    """Return how much memory the documents kept for a query may take, in the mean.

    Twice too many may be kept before a round ends, and as many may wait.
    """
    return 4 * TOO_MANY * k * SIEVED


class Vectors(Protocol):
    """The documents in float32."""

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return the scores (n,) float32 of pairs of a query and a document.

        Each pair is summed in the same way, wherever it stands, so equal documents get equal scores.

        Args:
            queries: (Q, dim) float32.
            query, row: both (n,) int64, ascending by query, then by row, on the device of ``queries``.
        """

    def expect(self, rows: Iterable[torch.Tensor]) -> None:
        """Prepare for documents that will probably be scored, while the caller goes on: each (n,) int64."""


class HostVectors:
    """Documents in memory or in a file.

    Args:
        documents: (N, dim) float32.
    """

    def __init__(self, documents: np.ndarray):
        self._documents = documents

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """See :meth:`Vectors.score`."""
        numbers = queries.cpu().numpy(), query.cpu().numpy(), row.cpu().numpy()
        in_file = find_in_file(self._documents) is not None
        scores = self._score_from_file(*numbers) if in_file else _score_by_query(self._documents, *numbers)
        return torch.from_numpy(scores).to(queries.device)

    def expect(self, rows: Iterable[torch.Tensor]) -> None:
        """See :meth:`Vectors.expect`. The system reads them into its cache."""
        place = find_in_file(self._documents)
        if place is None or not hasattr(os, "posix_fadvise"):
            return
        wanted = np.unique(torch.cat(list(rows)).cpu().numpy())
        if len(wanted) * BETWEEN > len(self._documents):
            return  # the file will be read from end to end
        path, start = place
        size = self._documents.shape[1] * self._documents.itemsize

        def read_ahead() -> None:
            with suppress(OSError), open(path, "rb") as file:
                for first in (start + wanted * size).tolist():
                    os.posix_fadvise(file.fileno(), first, size, os.POSIX_FADV_WILLNEED)

        threading.Thread(target=read_ahead, name="read ahead", daemon=True).start()

    def _score_from_file(self, queries: np.ndarray, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Score in the order of the file, a part of its rows at a time."""
        scores = np.empty(len(rows), dtype=np.float32)
        by_row = np.argsort(rows, kind="stable")
        for first in range(0, len(rows), AGAIN):
            some = by_row[first : first + AGAIN]
            distinct, place = np.unique(rows[some], return_inverse=True)
            scores[some] = _score_pairs(self._read(distinct), place, queries, query[some])
        return scores

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return the documents of ``rows``, ascending: what lies between them is read too if it is little."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first > BETWEEN * len(rows):
            return gather_rows(self._documents, rows)
        found, done = np.empty((len(rows), self._documents.shape[1]), dtype=np.float32), 0
        for start, block in read_blocks(self._documents[first:last], BLOCK_ROWS):
            end = int(np.searchsorted(rows, first + start + len(block)))
            np.take(block, rows[done:end] - (first + start), axis=0, out=found[done:end], mode="clip")
            done = end
        return found


def _score_by_query(documents: np.ndarray, queries: np.ndarray, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the scores (n,) of pairs that ascend by query: each query is multiplied with all its documents."""
    scores = np.empty(len(rows), dtype=np.float32)

    def score(parts: list[tuple[int, int, int]]) -> None:
        for number, start, end in parts:
            _sum_products("nd,d->n", documents.take(rows[start:end], axis=0), queries[number], scores[start:end])

    count = torch.get_num_threads()
    most = max(1, AGAIN // count)  # documents of a query that a thread copies
    parts = [
        (number, first, min(first + most, end))
        for number, (start, end) in enumerate(pairwise(np.searchsorted(query, np.arange(len(queries) + 1)).tolist()))
        for first in range(start, end, most)
    ]
    together = math.ceil(len(parts) / count / TASKS)
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(score, (parts[first : first + together] for first in range(0, len(parts), together))))
    return scores


def _score_pairs(vectors: np.ndarray, place: np.ndarray, queries: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the scores (n,) of vectors[place] and queries[query], the same bits as :func:`_score_by_query`."""
    scores = np.empty(len(place), dtype=np.float32)

    def score(first: int) -> None:
        part = slice(first, first + PAIRS)
        _sum_products("nd,nd->n", vectors.take(place[part], axis=0), queries.take(query[part], axis=0), scores[part])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(score, range(0, len(place), PAIRS)))
    return scores


def _sum_products(form: str, vectors: np.ndarray, queries: np.ndarray, scores: np.ndarray) -> None:
    """Fill ``scores`` (n,) with sums of products, each summed in the same way, whatever n is.

    einsum splits longer sums than :data:`SUMMED`, at places that depend on those before.
    """
    np.einsum(form, vectors[:, :SUMMED], queries[..., :SUMMED], out=scores)
    for first in range(SUMMED, vectors.shape[1], SUMMED):
        part = slice(first, first + SUMMED)
        scores += np.einsum(form, vectors[:, part], queries[..., part])


class DeviceVectors:
    """Documents on a GPU.

    Args:
        documents: (N, dim) float32.
    """

    def __init__(self, documents: torch.Tensor):
        self._documents = documents

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """See :meth:`Vectors.score`."""
        scores = torch.empty(len(row), device=row.device)
        for first in range(0, len(row), AGAIN_ON_GPU):
            part = slice(first, first + AGAIN_ON_GPU)
            rows, asked = (torch.cat((places[part], places[:1].expand(FEWEST_SUMS))) for places in (row, query))
            scores[part] = self._documents[rows].mul_(queries[asked]).sum(dim=1)[:-FEWEST_SUMS]
        return scores

    def expect(self, rows: Iterable[torch.Tensor]) -> None:
        """See :meth:`Vectors.expect`. There is nothing to do."""


class QueryGroup:
    """Queries that are multiplied together, and the documents that may be among their best.

    Args:
        queries: (Q, dim) float32.
        k: how many documents are searched for each.
        mean: (dim,) float32, that of the codes.
        parts: 1 or 2: with how many parts the queries are coded, where int8 is fast.
        lock: see :class:`drhard.sieve.Sieve`.
    """

    def __init__(self, queries: torch.Tensor, k: int, mean: torch.Tensor, parts: int, lock: threading.Lock):
        self.queries, self.sieve = queries, Sieve(len(queries), k, queries.device, lock)
        self._mean = mean
        self._coarse = self._fine = RoundedQueries(queries, mean, parts=1)
        on_cpu = queries.device.type == "cpu"
        self._sift_from = SIFTED * k * len(queries) if on_cpu else math.inf
        if parts == 2:
            self.add_second_part()

    def add_second_part(self) -> None:
        """Code the queries in two parts from now on, if they are coded."""
        self._fine = RoundedQueries(self.queries, self._mean, parts=2)

    def look_through(self, rows: torch.Tensor, block: CodedBlock, absent: torch.Tensor | None, seen: int) -> None:
        """Keep the documents of a tile that may be among the best.

        Args:
            rows: (B,) int64.
            absent: places in the tile that are left out.
            seen: the number of documents before.
        """
        coarse, fine = self._coarse, self._fine  # another thread may add the second part
        sifted = fine.parts > coarse.parts and seen >= self._sift_from
        products = (coarse if sifted else fine).multiply(block.values)
        if absent is not None:
            products[absent] = least_score(products.dtype)
        if not sifted:
            self.sieve.add(products, rows, fine.bounds(block))
            return
        places = self.sieve.sift(products, coarse.bounds(block))
        if len(places):
            values, products, rows = (of.index_select(0, places) for of in (block.values, products, rows))
            self.sieve.add(fine.multiply(values, products), rows, fine.bounds(block), places // GROUP)


class CodedSearch:
    """Search by codes.

    Args:
        codes: the documents as codes; their device is where the first pass runs.
        vectors: the same documents in float32.
        query_rows: most queries multiplied with a tile at a time.
        tile_scores: scores that a tile of documents gives. A CPU has a tile for each core at a time.
        left_out: (n,) int64 rows that are not found.
    """

    def __init__(
        self, codes: Codes, vectors: Vectors, query_rows: int, tile_scores: int, left_out: np.ndarray = NO_ROWS
    ):
        self._codes, self._vectors = codes, vectors
        self._query_rows, self._tile_scores = query_rows, tile_scores
        self._left_out = torch.from_numpy(left_out).to(codes.mean.device)
        self._parts = 1  # of the codes of queries; a search that needs two is followed by others

    @torch.no_grad()
    def search(
        self, queries: torch.Tensor, k: int, progress: Callable[[int], object] = lambda done: None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return scores (Q, k) float32 and rows (Q, k) int64; None if the bounds are too wide to pay, or queries huge.

        Args:
            queries: (Q, dim) float32, on the device of the codes.
            k: at most the number of documents that are not left out.
            progress: is called with the number of documents, tile by tile.
        """
        if float(queries.abs().max()) * 127 * queries.shape[1] > torch.finfo(torch.float32).max:
            return None  # products with codes could overflow where the scores do not
        size = math.ceil(len(queries) / math.ceil(len(queries) / self._query_rows))  # nearly equal groups
        lock = threading.Lock()
        groups = [QueryGroup(group, k, self._codes.mean, self._parts, lock) for group in queries.split(size)]
        most = k * len(queries)
        with closing(self._look_through(groups)) as looked:
            for done, merged in looked:
                kept = sum(group.sieve.kept for group in groups)
                if kept > TOO_MANY * most * (1 if merged else 2):
                    self._parts = 2  # in later searches from the start
                    return None
                if merged and kept > SECOND_PART * most and self._parts == 1:
                    self._parts = 2
                    for group in groups:
                        group.add_second_part()
                progress(done)
        return self._score_again(queries, groups, k)

    def _look_through(self, groups: list[QueryGroup]) -> Generator[tuple[int, bool]]:
        """Let each group look through all tiles.

        The first tile comes alone: its floors spare work in all others. Then each core has tiles of its own.

        Yields:
            How many documents were looked through since the last time, and whether those of all tiles up to one are
            merged. What is kept then does not depend on which core was faster. That is so each time that
            :data:`ROUND` times as many tiles have been looked through.
        """

        @torch.no_grad()
        def look(tile: tuple[int, torch.Tensor, CodedBlock]) -> int:
            seen, rows, block = tile
            absent = torch.isin(rows, self._left_out).nonzero()[:, 0] if len(self._left_out) else None
            for group in groups:
                group.look_through(rows, block, absent, seen)
            return len(rows)

        count = len(self._codes.values)
        rows = max(1, self._tile_scores // max(len(group.queries) for group in groups))  # of a tile
        tiles = self._codes.tiles(rows)
        on_cpu = self._codes.mean.device.type == "cpu"
        seen, of_round = 0, 1
        with on_all_cores() if on_cpu and count > rows else nullcontext(map) as spread:
            while seen < count:
                for done in (spread if seen else map)(look, islice(tiles, of_round)):
                    seen += done
                    yield done, False
                for group in groups:
                    group.sieve.merge()
                yield 0, True
                if EXPECTED <= seen / count < 1:
                    self._vectors.expect(group.sieve.rows() for group in groups)
                of_round *= ROUND

    def _score_again(
        self, queries: torch.Tensor, groups: list[QueryGroup], k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and rows, both (Q, k), of the best documents kept. Empties ``groups`` to free their memory."""
        found, before = [], 0
        while groups:
            group = groups.pop(0)
            query, row = group.sieve.found()
            found.append((query + before, row))
            before += len(group.queries)
            del group  # for its memory
        query, row = (torch.cat(parts) for parts in zip(*found, strict=True))
        found.clear()
        score = self._vectors.score(queries, query, row)
        order = order_by_score(query, score)
        first = torch.searchsorted(query, torch.arange(len(queries), device=query.device))
        best = order[first[:, None] + torch.arange(k, device=query.device)]
        return score[best], row[best]
