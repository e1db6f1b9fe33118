"""Exact search: the documents stream past all queries, block by block.

There are two ways to the same result. In float32, each block is multiplied with the queries. With int8 codes, a first
pass multiplies the codes, which are a quarter of the size. It finds the few documents that can be among the best, and
these are then multiplied in float32. docs/exact-search.md has the proof that no document is missed.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from drhard.blocks import BLOCK_ROWS, BUFFERS, read_blocks
from drhard.codes import GROUP, CodedBlock, Codes
from drhard.flags import SEARCH_MEMORY_GB
from drhard.index import NO_ROWS, check_queries, check_topk, join_passes, part_of
from drhard.prefetch import prefetch
from drhard.products import as_filters, products
from drhard.rounded import RoundedQueries
from drhard.sieve import SIEVED, Sieve, least_score
from drhard.topk import ADDED, ADDED_TIMES, TopK
from drhard.vectors import check_finite, gather_rows, name_source, whole_file

import numpy as np
import torch
from tqdm import tqdm

RESULT_BYTES = 4 + 8  # a score and a row
TILE_SCORES = 1 << 20  # a block is scored in tiles; the 4 MB of scores stay in the cache while the best are picked
QUERY_ROWS = 512  # most queries multiplied with a tile at a time
SECOND_PART = 3  # the queries are coded in two parts once this many times k documents are kept for each
TOO_MANY = 12  # and the search is made in float32 once this many are
AGAIN = 1 << 14  # documents of a memmap to score again at a time


class ExactIndex:
    """Exact search. The documents stream past all queries, block by block.

    Args:
        documents: (N, dim) float32, usually a memmap. A memmap is read from its file and not mapped.
        progress: show a bar over the documents.
        memory_gb: the memory of a pass, its results included, beside the documents and queries. It does not depend on
            the size of the collection. Queries that do not fit are searched in further passes.
        block_rows: documents read at a time.
        query_rows: most queries multiplied with a tile at a time.
        left_out: (n,) int64 rows that no search finds, ascending.
        codes: of the documents. They decide how fast the search is, and not what it finds.
    """

    def __init__(
        self,
        documents: np.ndarray,
        progress: bool = False,
        memory_gb: float = SEARCH_MEMORY_GB,
        block_rows: int = BLOCK_ROWS,
        query_rows: int = QUERY_ROWS,
        left_out: np.ndarray = NO_ROWS,
        codes: Codes | None = None,
    ):
        self.documents = documents
        self.progress = progress
        self.memory_gb = memory_gb
        self.block_rows, self.query_rows = block_rows, query_rows
        self.left_out = left_out
        self._codes = codes
        self._parts = 1  # of the codes of queries
        self._finite = codes is not None  # whether a pass has checked all documents

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`. Also raises InputError if a document is not finite."""
        check_topk(k, len(self.documents) - len(self.left_out))
        return join_passes(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`. Raises InputError as :meth:`search`."""
        count, dim = self.documents.shape
        check_queries(queries, dim)
        check_topk(k, count - len(self.left_out))
        together = self.count_together(k)
        starts = range(0, len(queries), together)
        with tqdm(
            total=count * len(starts), unit="doc", unit_scale=True, desc="searching", disable=not self.progress
        ) as bar:
            for first in starts:
                part = np.array(queries[first : first + together], np.float32)
                scores = np.empty((len(part), k), dtype=np.float32)
                rows = np.empty((len(part), k), dtype=np.int64)
                done = bar.n
                if self._codes is None or not self._search_codes(self._codes, part, scores, rows, bar):
                    bar.update(done - bar.n)
                    self._search_pass(part, scores, rows, bar)
                yield scores, rows

    def count_together(self, k: int) -> int:
        """Return how many queries fit into one pass within ``memory_gb``."""
        dim = self.documents.shape[1]
        blocks = BUFFERS * self.block_rows * dim * 4
        tile = TILE_SCORES * (4 + 1 + 2 * 8)  # scores, a mask of the better ones, and their places, at worst all
        waiting = ADDED_TIMES * k * ADDED.itemsize  # for a query
        if self._codes is not None:
            waiting = max(waiting, 2 * TOO_MANY * k * SIEVED)  # as many as are kept may wait
            tile += TILE_SCORES * SIEVED + AGAIN * dim * 4 * 2
        merging = waiting * 4  # for a query: sorted, laid out by query, and the orders of both
        query = dim * 4 + 2 * k * RESULT_BYTES + waiting  # the caller still holds the results of the pass before
        room = self.memory_gb * 1e9 - blocks - tile - self.query_rows * merging
        if room >= self.query_rows * query:
            return int(room / query)
        few = int(self.memory_gb * 1e9 / 2 / (query + merging))  # results or blocks are very large
        return max(1, min(self.query_rows, few))

    def _groups(self, queries: int) -> tuple[list[slice], int]:
        """Return nearly equal parts of ``queries``, and how many rows of documents a tile has."""
        size = math.ceil(queries / math.ceil(queries / self.query_rows))
        tile_rows = math.ceil(self.block_rows / math.ceil(self.block_rows * size / TILE_SCORES))
        return [slice(first, first + size) for first in range(0, queries, size)], tile_rows

    @torch.no_grad()
    def _search_pass(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, bar: "tqdm[Any]") -> None:
        """Fill ``scores`` and ``rows``, both (Q, k), in float32."""
        parts, tile_rows = self._groups(len(queries))
        groups = [(as_filters(torch.from_numpy(queries[part])), TopK(scores[part], rows[part])) for part in parts]
        for first_row, block in prefetch(read_blocks(self.documents, self.block_rows)):
            for start in range(0, len(block), tile_rows):
                tile = torch.from_numpy(block[start : start + tile_rows])
                absent = part_of(self.left_out, first_row + start, len(tile))
                for filters, best in groups:
                    of_tile = products(tile, filters).numpy()
                    if len(absent):
                        of_tile[absent] = -np.inf
                    best.add(of_tile, first_row + start)
            if not self._finite:
                check_finite(block, first_row, name_source(self.documents, "the documents"))
            bar.update(len(block))
        self._finite = True
        for _, best in groups:
            best.merge()

    @torch.no_grad()
    def _search_codes(
        self, codes: Codes, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, bar: "tqdm[Any]"
    ) -> bool:
        """Fill ``scores`` and ``rows``, both (Q, k), by codes first. Return whether the bounds were narrow enough."""
        k, device = scores.shape[1], codes.mean.device
        parts, tile_rows = self._groups(len(queries))
        of_parts = [torch.from_numpy(queries[part]).to(device) for part in parts]
        groups = [RoundedQueries(of_part, codes.mean, self._parts) for of_part in of_parts]
        sieves = [Sieve(len(of_part), k, device) for of_part in of_parts]
        for first_row, block in codes:
            for group, sieve in zip(groups, sieves, strict=True):
                self._sift(block, first_row, -(-tile_rows // GROUP), group, sieve)
            kept = sum(sieve.kept for sieve in sieves)
            if kept > TOO_MANY * k * len(queries):
                return False
            if kept > SECOND_PART * k * len(queries) and self._parts == 1:
                self._parts = 2
                groups = [RoundedQueries(of_part, codes.mean, self._parts) for of_part in of_parts]
            bar.update(len(block.values))
        for part, sieve in zip(parts, sieves, strict=True):
            query, row = (found.cpu().numpy() for found in sieve.found())
            score_again(self.documents, queries[part], query, row, scores[part], rows[part])
        return True

    def _sift(self, block: CodedBlock, first_row: int, groups: int, queries: RoundedQueries, sieve: Sieve) -> None:
        """Add the documents of ``block`` to ``sieve``, so many ``groups`` of them at a time."""
        slope, width = queries.slope(block), queries.width(block)
        rows = block.places.to(torch.int64) + first_row
        absent = torch.from_numpy(part_of(self.left_out, first_row, len(rows)) + first_row).to(rows.device)
        for first in range(0, len(slope), groups):
            of_tile = slice(first, first + groups)
            tile = slice(first * GROUP, (first + groups) * GROUP)
            found = queries.multiply(block.values[tile])
            if len(absent):
                found[torch.isin(rows[tile], absent)] = least_score(found.dtype)
            sieve.add(found, rows[tile], slope[of_tile], queries.offset, width[of_tile])


def score_again(
    documents: np.ndarray, queries: np.ndarray, query: np.ndarray, row: np.ndarray, scores: np.ndarray, rows: np.ndarray
) -> None:
    """Fill ``scores`` and ``rows``, both (Q, k), with the best of some documents, scored in float32.

    Args:
        documents: (N, dim) float32.
        queries: (Q, dim) float32.
        query, row: both (n,) int64, ascending by query, then by row; at least k of each query.
    """
    bounds = np.searchsorted(query, np.arange(len(queries) + 1))
    if whole_file(documents) is not None:
        of_pairs = np.empty(len(row), dtype=np.float32)
        by_row = np.argsort(row, kind="stable")
        for first in range(0, len(row), AGAIN):  # in the order of the file, and each row once
            some = np.sort(by_row[first : first + AGAIN])
            distinct, place = np.unique(row[some], return_inverse=True)
            within = np.searchsorted(some, bounds)
            of_pairs[some] = _score_pairs(gather_rows(documents, distinct), queries, place, within)
    else:
        of_pairs = _score_pairs(documents, queries, row, bounds)
    k = scores.shape[1]
    for number, (start, end) in enumerate(pairwise(bounds.tolist())):
        best = np.argsort(-of_pairs[start:end], kind="stable")[:k]
        scores[number], rows[number] = of_pairs[start:end][best], row[start:end][best]


def _score_pairs(vectors: np.ndarray, queries: np.ndarray, place: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the scores (n,) float32 of pairs of a query and a vector.

    Each pair is summed in the same way, wherever it stands, so equal documents get equal scores.

    Args:
        vectors: (M, dim) float32.
        place: (n,) int64 rows of ``vectors``; those from bounds[q] to bounds[q + 1] belong to query q.
    """
    scores = np.empty(len(place), dtype=np.float32)

    def score(number: int) -> None:
        of_query = slice(bounds[number], bounds[number + 1])
        np.einsum("nd,d->n", vectors.take(place[of_query], axis=0), queries[number], out=scores[of_query])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(score, np.flatnonzero(np.diff(bounds)).tolist()))
    return scores
