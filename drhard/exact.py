"""Exact search: the documents stream past all queries, block by block.

There are two ways to the same result. In float32, each block is multiplied with the queries. With int8 codes, a first
pass multiplies the codes, which are a quarter of the size. It finds the few documents that can be among the best, and
these are then multiplied in float32. docs/exact-search.md has the proof that no document is missed.
"""

import math
from collections.abc import Iterator
from typing import Any

from drhard.blocks import BLOCK_ROWS, BUFFERS, read_blocks
from drhard.coded import CROWDED, CodedSearch, bytes_kept
from drhard.codes import Codes
from drhard.flags import SEARCH_MEMORY_GB
from drhard.index import NO_ROWS, check_queries, check_topk, join_passes, part_of
from drhard.pairs import AGAIN, HostVectors
from drhard.prefetch import prefetch
from drhard.products import as_filters, products
from drhard.rounded import CONVERTED
from drhard.sieve import ADDING, AT_A_TIME, FOUND
from drhard.topk import ADDED, ADDED_TIMES, TopK
from drhard.vectors import check_finite, name_source

import numpy as np
import torch
from tqdm import tqdm

RESULT_BYTES = 4 + 8  # a score and a row
TILE_SCORES = 1 << 20  # a block is scored in tiles; the 4 MB of scores stay in the cache while the best are picked
CORE_SCORES, CORES_SCORES, LEAST_SCORES = 1 << 20, 1 << 23, 1 << 17  # most of a tile of codes, of all cores; at least
QUERY_ROWS = 512  # most queries multiplied with a tile at a time


def scores_of_core() -> int:
    """Return how many scores a tile of codes may give. Each core has a tile of its own."""
    return max(LEAST_SCORES, min(CORE_SCORES, CORES_SCORES // torch.get_num_threads()))


class ExactIndex:
    """Exact search. The documents stream past all queries, block by block.

    Args:
        documents: (N, dim) float32, usually a memmap or a part of one. It is read from its file and not mapped.
        progress: show a bar over the documents.
        memory_gb: the memory of a pass, its results included, beside the documents, queries, codes, and a sample of
            these. It does not depend on the size of the collection. Queries that do not fit are searched in further
            passes.
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
        self._coded = codes and CodedSearch(codes, HostVectors(documents), query_rows, scores_of_core(), left_out)
        self._finite = codes is not None  # whether a pass has checked all documents

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`. Also raises InputError if a document is not finite."""
        check_topk(k, self.found)
        return join_passes(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`. Raises InputError as :meth:`search`."""
        check_topk(k, self.found)
        yield from self.find(queries, k)

    @property
    def found(self) -> int:
        """The number of documents that a search can find."""
        return len(self.documents) - len(self.left_out)

    def find(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.parts.Part.find`. Raises InputError as :meth:`search`."""
        count, dim = self.documents.shape
        check_queries(queries, dim)
        together, k = self.count_together(k), min(k, self.found)
        starts = range(0, len(queries), together)
        with tqdm(
            total=count * len(starts), unit="doc", unit_scale=True, desc="searching", disable=not self.progress
        ) as bar:
            for first in starts:
                part = np.array(queries[first : first + together], np.float32)
                scores = np.empty((len(part), k), dtype=np.float32)
                rows = np.empty((len(part), k), dtype=np.int64)
                before = bar.n
                found = self._coded and k and self._coded.search(torch.from_numpy(part), k, bar.update)
                if found:
                    scores[:], rows[:] = (of_codes.numpy() for of_codes in found)
                elif k:
                    bar.update(before - bar.n)
                    self._search_pass(part, scores, rows, bar)
                yield scores, rows

    def count_together(self, k: int) -> int:
        """Return how many queries fit into one pass within ``memory_gb``."""
        dim = self.documents.shape[1]
        blocks = BUFFERS * self.block_rows * dim * 4
        tile = TILE_SCORES * (4 + 1 + 2 * 8)  # scores, a mask of the better ones, and their places, at worst all
        waiting = ADDED_TIMES * k * ADDED.itemsize  # for a query
        merging = waiting * 4  # for a query: sorted, laid out by query, and the orders of both
        codes = 0  # of a query
        if self._coded is not None:
            waiting = max(waiting, bytes_kept(k))
            scores = scores_of_core()  # of many queries; a pass of few has room for larger tiles
            rows = min(CONVERTED, scores // self.query_rows)
            # Products, the best of each two, a mask, codes in float32, what is found; then vectors to score again.
            of_core = scores * (4 + 2 + 1) + rows * dim * 4 + scores // CROWDED * FOUND
            tile = torch.get_num_threads() * (of_core + AT_A_TIME * ADDING) + AGAIN * dim * 4 * 2
            codes = dim
        # The caller still holds the results of the pass before.
        query = dim * 4 + codes + 2 * k * RESULT_BYTES + waiting
        room = self.memory_gb * 1e9 - blocks - tile - self.query_rows * merging
        if room >= self.query_rows * query:
            return int(room / query)
        few = int(self.memory_gb * 1e9 / 2 / (query + merging))  # results or blocks are very large
        return max(1, min(self.query_rows, few))

    @torch.no_grad()
    def _search_pass(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, bar: "tqdm[Any]") -> None:
        """Fill ``scores`` and ``rows``, both (Q, k), in float32."""
        size = math.ceil(len(queries) / math.ceil(len(queries) / self.query_rows))  # nearly equal groups
        groups = [
            (as_filters(torch.from_numpy(queries[part])), TopK(scores[part], rows[part]))
            for part in (slice(first, first + size) for first in range(0, len(queries), size))
        ]
        tile_rows = math.ceil(self.block_rows / math.ceil(self.block_rows * size / TILE_SCORES))
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
