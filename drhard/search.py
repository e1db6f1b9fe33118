"""Search: the documents with the greatest inner products, exact, in blocks."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from drhard.devices import require_gpu, why_no_gpu
from drhard.errors import InputError
from drhard.numbers import SEARCH_GB
from drhard.onednn import as_filters, products
from drhard.prefetch import prefetch
from drhard.vectors import check_finite

import numpy as np
import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

SEARCH_MEMORY_GB = 2.0  # on the CPU
RESULT_BYTES = 4 + 8  # a score and a row
RESULTS_AT_ONCE = 1 << 22  # faiss searches so many queries at a time that they have so many results: 50 MB
BLOCK_ROWS = 8192  # documents read at a time: 25 MB at 768 dimensions
BUFFERS = 3  # blocks in memory: one in use, one waiting, one being read
TILE_SCORES = 1 << 20  # a block is scored in tiles, whose 4 MB of scores stay in the cache while they are sifted
GPU_SCRATCH = 2_500_000_000  # bytes that faiss and CUDA take on a GPU beside the documents
GPU_TOPK = 2048  # the most that faiss returns from a GPU
QUERY_ROWS = 512  # queries past a tile at a time, at most
ADDED = np.dtype([("query", np.uint16), ("score", np.float32), ("row", np.int64)], align=True)  # 16 bits sort fast
ADDED_TIMES = 3  # as many as are asked for can wait to be merged: just under 2 times from before, and once of a tile
FOLDS = 16  # scores of which the greatest is looked at first


class Index(Protocol):
    """Documents that can be searched."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (Q, k) float32, greatest first, and rows (Q, k) int64 for queries (Q, dim) float32.

        k is at most the number of documents; rows are -1, at the end, where an inexact index finds fewer.
        """

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what :meth:`search` returns for as many queries at a time as the memory allows, in their order.

        The caller puts each part away, so the results of any number of queries need no memory.
        """


class ExactIndex:
    """Exact search on the CPU that streams the documents past all queries, block by block.

    Ties go to the smaller row.

    Args:
        documents: (N, dim) float32, usually a memmap, which is read from its file and not mapped.
        progress: show a bar over the documents.
        memory_gb: what a pass may take beside the documents and queries that it is given, its results included,
            whatever the size of the collection; more queries than fit go past the documents in several passes.
        block_rows: documents read at a time.
        query_rows: queries past a tile at a time, at most.
    """

    def __init__(
        self,
        documents: np.ndarray,
        progress: bool = False,
        memory_gb: float = SEARCH_MEMORY_GB,
        block_rows: int = BLOCK_ROWS,
        query_rows: int = QUERY_ROWS,
    ):
        self.documents = documents
        self.progress = progress
        self.memory_gb = memory_gb
        self.block_rows, self.query_rows = block_rows, query_rows
        self._finite = False  # whether all documents have been seen to be

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Index.search`.

        Raises:
            InputError: the dimensions differ, k exceeds the documents, or embeddings are not finite.
        """
        check_search(k, len(self.documents))
        return _together(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`Index.passes`. Raises InputError as :meth:`search`."""
        count, dim = self.documents.shape
        _check_queries(queries, dim)
        check_search(k, count)
        together = self.queries_together(k)
        starts = range(0, len(queries), together)
        with tqdm(
            total=count * len(starts), unit="doc", unit_scale=True, desc="searching", disable=not self.progress
        ) as bar:
            for first in starts:
                part = queries[first : first + together]
                scores = np.empty((len(part), k), dtype=np.float32)
                rows = np.empty((len(part), k), dtype=np.int64)
                self._search_pass(part, scores, rows, bar)
                yield scores, rows

    def queries_together(self, k: int) -> int:
        """How many queries go past the documents at once, so that the memory is kept."""
        dim = self.documents.shape[1]
        blocks = BUFFERS * self.block_rows * dim * 4
        tile = TILE_SCORES * (4 + 1 + 2 * 8)  # scores, which are better, and where, all of them at worst
        waiting = ADDED_TIMES * k * ADDED.itemsize  # of a query
        merging = waiting * 4  # of a query: sorted, laid out by query, and the orders of both
        query = dim * 4 + 2 * k * RESULT_BYTES + waiting  # the results of the pass before are still held
        room = self.memory_gb * 1e9 - blocks - tile - self.query_rows * merging
        if room >= self.query_rows * query:
            return int(room / query)
        few = int(self.memory_gb * 1e9 / 2 / (query + merging))  # of very large results; or the blocks are large
        return max(1, min(self.query_rows, few))

    @torch.no_grad()
    def _search_pass(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, bar: tqdm) -> None:
        """Fill ``scores`` and ``rows``, (Q, k) both."""
        size = math.ceil(len(queries) / math.ceil(len(queries) / self.query_rows))  # groups as equal as can be
        groups = [
            (as_filters(torch.from_numpy(np.array(queries[part], np.float32))), TopK(scores[part], rows[part]))
            for part in (slice(first, first + size) for first in range(0, len(queries), size))
        ]
        tile_rows = math.ceil(self.block_rows / math.ceil(self.block_rows * size / TILE_SCORES))
        for first_row, block in prefetch(_blocks(self.documents, self.block_rows)):
            for start in range(0, len(block), tile_rows):
                tile = torch.from_numpy(block[start : start + tile_rows])
                for filters, best in groups:
                    best.add(products(tile, filters).numpy(), first_row + start)
            if not self._finite:
                check_finite(block, first_row, str(getattr(self.documents, "filename", "the documents")))
            bar.update(len(block))
        self._finite = True
        for _, best in groups:
            best.merge()


class TopK:
    """The k best documents of each query among those added so far, once they are merged.

    Of what is added, only scores above a query's k-th best at the last merge are kept. They are merged when a query
    has 2 k of them, which on average takes twice as many documents as all before; first when every query has k.

    Args:
        scores: (Q, k) float32, which is written: greatest first, -inf where there is none yet.
        rows: (Q, k) int64, which is written: ascending among equal scores, -1 where there is none yet.
    """

    def __init__(self, scores: np.ndarray, rows: np.ndarray):
        self.scores, self.rows = scores, rows
        scores.fill(-np.inf)
        rows.fill(-1)
        # Added and not merged yet, in an array that stays: many small ones between the tiles would tear the memory up.
        self._added = np.empty(ADDED_TIMES * scores.size, dtype=ADDED)
        self._counts = np.zeros(len(scores), dtype=np.int64)  # of each query in what was added

    def add(self, scores: np.ndarray, first_row: int) -> None:
        """Add the ``scores`` (B, Q) of documents ``first_row ... first_row + B - 1``, all after those added before."""
        k = self.scores.shape[1]
        hits = self._hits(scores)
        for start in range(0, len(hits), self.scores.size):  # once, unless very many tie
            some = hits[start : start + self.scores.size]
            row, query = np.divmod(some, scores.shape[1])
            added = self._added[self._counts.sum() :][: len(some)]
            added["query"], added["score"], added["row"] = query, scores.reshape(-1)[some], row + first_row
            self._counts += np.bincount(query, minlength=len(self._counts))
            if self._counts.max() >= 2 * k:
                self.merge()
        if self._counts.min() >= k and np.isneginf(self.scores[:, -1]).any():
            self.merge()  # at once, for a first bound

    def _hits(self, scores: np.ndarray) -> np.ndarray:
        """Where in ``scores`` (B, Q), flattened, are those that can be among the best; ascending."""
        k = self.scores.shape[1]
        least = self.scores[:, -1]  # a tie with it goes to the earlier row, which is there already
        if not np.isneginf(least).any():
            hits = _above(scores, least)
            if len(hits) <= self.scores.size:
                return hits
        # The first tile, or documents that get better and better: its own k best can matter, and what ties with them.
        if len(scores) > k:
            own = np.partition(np.ascontiguousarray(scores.T), -k, axis=1)[:, -k]
            least = np.fmax(least, np.nextafter(own, -np.float32(np.inf)))
        return np.flatnonzero(scores > least)

    def merge(self) -> None:
        """Bring what was added into ``scores`` and ``rows``."""
        k = self.scores.shape[1]
        queries = np.flatnonzero(self._counts)  # (T,) those that have anything new
        if len(queries) == 0:
            return
        added = self._added[: self._counts.sum()]
        added = added[np.argsort(added["query"], kind="stable")]  # by query, and rows ascend in each
        counts = self._counts[queries]
        line = np.repeat(np.arange(len(queries)), counts)
        place = k + np.arange(len(added)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores = np.full((len(queries), k + counts.max()), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        scores[:, :k], rows[:, :k] = self.scores[queries], self.rows[queries]
        scores[line, place], rows[line, place] = added["score"], added["row"]
        # Rows ascend from the best to the added and within both, so a stable sort leaves ties in ascending rows.
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        self.scores[queries] = np.take_along_axis(scores, kept, 1)
        self.rows[queries] = np.take_along_axis(rows, kept, 1)
        self._counts[:] = 0


def _above(scores: np.ndarray, least: np.ndarray) -> np.ndarray:
    """``np.flatnonzero(scores > least)`` for scores (B, Q) and least (Q,), faster where few are.

    The greatest of ``FOLDS`` scores that lie far apart is found first, then those above among the few it speaks for.
    """
    fold, width = len(scores) // FOLDS, scores.shape[1]
    folded = scores[: FOLDS * fold].reshape(FOLDS, fold, width)
    places = np.flatnonzero(np.fmax.reduce(folded, axis=0) > least)  # fmax: not a number hides no number
    row, query = np.divmod(places, width)
    which, number = np.nonzero(folded[:, row, query] > least[query])  # by row, as the folds follow each other
    rest = np.flatnonzero(scores[FOLDS * fold :] > least)
    return np.concatenate((which * (fold * width) + places[number], FOLDS * fold * width + rest))


def _blocks(documents: np.ndarray, block_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, (B, dim) float32), read from the file where ``documents`` is a whole memmap.

    What is read lies in ``BUFFERS`` arrays in turn: a block is overwritten when that many more have been asked for.
    """
    count, dim = documents.shape
    if isinstance(documents, np.memmap) and documents.nbytes >= os.path.getsize(documents.filename):  # no part of one
        buffers = [np.empty((min(block_rows, count), dim), dtype=documents.dtype) for _ in range(BUFFERS)]
        with open(documents.filename, "rb", buffering=0) as file:
            for number, first in enumerate(range(0, count, block_rows)):
                block = buffers[number % BUFFERS][: count - first]
                left = memoryview(block).cast("B")
                while left:
                    read = file.readinto(left)
                    if not read:
                        raise InputError(f"{documents.filename}: has become shorter while it was read")
                    left = left[read:]
                yield first, block
    else:
        for first in range(0, count, block_rows):
            yield first, np.require(documents[first : first + block_rows], np.float32, "CW")  # torch wants it so


def _together(parts: Iterable[tuple[np.ndarray, np.ndarray]], count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts of :meth:`Index.passes` as one: scores and rows (count, k)."""
    scores = np.empty((count, k), dtype=np.float32)
    rows = np.empty((count, k), dtype=np.int64)
    first = 0
    for some_scores, some_rows in parts:
        part = slice(first, first + len(some_rows))
        scores[part], rows[part] = some_scores, some_rows
        first += len(some_rows)
    return scores, rows


class ShardedIndex:
    """faiss indexes over successive parts of the documents, searched side by side, their results merged.

    Where a query gets fewer documents than asked for, as from an inverted file of which few lists are probed, a
    warning says how many queries do: :meth:`search` the first time, :meth:`passes` once for all of its queries.

    Args:
        shards: faiss indexes (inner product), in the order of the rows that they hold.
        progress: show a bar over the queries of :meth:`passes`.
    """

    def __init__(self, shards: Sequence[Any], progress: bool = False):
        self.shards = shards
        self.progress = progress
        self._first_rows = np.cumsum([0, *(shard.ntotal for shard in shards)])
        self._warned = False

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Index.search`."""
        scores, rows = self._search(queries, k)
        if not self._warned:
            self._warn(int((rows[:, -1] < 0).sum()), len(queries), k)
        return scores, rows

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`Index.passes`."""
        together = max(1, RESULTS_AT_ONCE // k)
        fewer = 0
        with tqdm(total=len(queries), unit="query", desc="searching", disable=not self.progress) as bar:
            for first in range(0, len(queries), together):
                scores, rows = self._search(queries[first : first + together], k)
                fewer += int((rows[:, -1] < 0).sum())
                bar.update(len(rows))
                yield scores, rows
        self._warn(fewer, len(queries), k)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        _check_queries(queries, self.shards[0].d)
        check_search(k, int(self._first_rows[-1]))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with ThreadPoolExecutor(len(self.shards)) as threads:
            parts = list(threads.map(lambda shard: shard.search(queries, min(k, shard.ntotal)), self.shards))
        scores = np.concatenate([scores for scores, _ in parts], axis=1)
        rows = np.concatenate(  # -1 stays: a compressed index may find fewer than k
            [np.where(rows < 0, -1, rows + first) for (_, rows), first in zip(parts, self._first_rows, strict=False)],
            axis=1,
        )
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _warn(self, fewer: int, queries: int, k: int) -> None:
        if fewer:
            self._warned = True
            log.warning(
                "the index finds fewer than the %d documents asked for, for %d of %d queries; a greater --nprobe "
                "finds more",
                k,
                fewer,
                queries,
            )


def gpu_index(documents: np.ndarray, gpus: Sequence[int], progress: bool = False) -> ShardedIndex:
    """Put the documents on GPUs, an equal part on each, as exact faiss indexes.

    Raises InputError if there is no such GPU or faiss cannot use it.
    """
    import faiss

    _check_gpus(gpus)
    torch.cuda.empty_cache()  # what encoding has left
    count, dim = documents.shape
    gpus = gpus[:count]
    bounds = np.linspace(0, count, len(gpus) + 1).astype(np.int64)
    shards = []
    for gpu, first, last in zip(gpus, bounds[:-1], bounds[1:], strict=True):
        config = faiss.GpuIndexFlatConfig()
        config.device = gpu
        resources = faiss.StandardGpuResources()
        shard = faiss.GpuIndexFlatIP(resources, dim, config)
        shard.resources = resources  # lives as long as the index
        check_finite(documents[first:last], int(first), str(getattr(documents, "filename", "the documents")))
        try:
            shard.add(documents[first:last])  # at once: faiss makes room for what is added and copies what is there
        except RuntimeError:
            size_gb = (last - first) * dim * 4 / 1e9
            raise InputError(
                f"GPU {gpu} cannot hold its {size_gb:.1f} GB of embeddings; name more GPUs, or search on the CPU"
            ) from None
        shards.append(shard)
    return ShardedIndex(shards, progress)


def gpus_with_room(size: int) -> list[int]:
    """All GPUs if they can hold documents of ``size`` bytes between them and faiss can use them; none if not."""
    import faiss

    if not (hasattr(faiss, "GpuIndexFlatIP") and torch.cuda.is_available()) or why_no_gpu():
        return []
    torch.cuda.empty_cache()
    gpus = list(range(faiss.get_num_gpus()))
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in gpus]
    if not gpus or min(free) < size / len(gpus) + GPU_SCRATCH:
        log.warning("the GPUs cannot hold %.1f GB of embeddings between them; searching on the CPU", size / 1e9)
        return []
    return gpus


def check_search(k: int, count: int, gpus: Sequence[int] = (), memory_gb: float = SEARCH_MEMORY_GB) -> None:
    """Raise InputError if the ``k`` best of ``count`` documents cannot be found on ``gpus``, or in ``memory_gb``."""
    if not 1 <= k <= count:
        raise InputError(f"cannot return the {k} best of {count} documents; choose 1 to {count}")
    SEARCH_GB.check("--search_memory_gb", memory_gb)
    if gpus:
        if k > GPU_TOPK:
            raise InputError(f"faiss finds at most the {GPU_TOPK} best on a GPU, not {k}; search on the CPU")
        _check_gpus(gpus)


def _check_gpus(gpus: Sequence[int]) -> None:
    import faiss

    if not hasattr(faiss, "GpuIndexFlatIP"):
        raise InputError(
            "the faiss that is installed has no GPU support: install requirements.txt on a machine with a GPU, "
            "or leave the flag out to search on the CPU"
        )
    require_gpu()  # faiss would end the process
    for gpu in gpus:
        if not 0 <= gpu < faiss.get_num_gpus():
            raise InputError(f"there is no GPU {gpu} for the search; faiss sees {faiss.get_num_gpus()}")


def _check_queries(queries: np.ndarray, dim: int) -> None:
    if queries.shape[1] != dim:
        raise InputError(f"the queries have {queries.shape[1]} dimensions, the documents {dim}: other models?")
    check_finite(queries, name=str(getattr(queries, "filename", "the queries")))
