"""Search: the documents with the greatest inner products, exact, in blocks."""

import logging
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from drhard.errors import InputError

import numpy as np
import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

SEARCH_MEMORY_GB = 2.0  # on the CPU
BLOCK_ROWS = 8192  # documents read at a time: 25 MB at 768 dimensions
TILE_ROWS = 2048  # documents scored at a time, at least; then 8 MB of scores stay in the cache while they are sifted
TILE_SCORES = 1 << 20  # for few queries more documents, up to so many scores
MANY_HITS = 16  # of a block for a query on average: from here on it pays to look for the block's own best first
GPU_SCRATCH = 2_500_000_000  # bytes that faiss and CUDA take on a GPU beside the documents
GPU_TOPK = 2048  # the most that faiss returns from a GPU
QUERY_ROWS = 1024  # queries past a tile at a time


class Index(Protocol):
    """Documents that can be searched."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (Q, k) float32, greatest first, and rows (Q, k) int64 for queries (Q, dim) float32.

        k is at most the number of documents; rows are -1, at the end, where an inexact index finds fewer.
        """


class ExactIndex:
    """Exact search on the CPU that streams the documents past all queries, block by block.

    Ties go to the smaller row.

    Args:
        documents: (N, dim) float32, usually a memmap, which is read from its file and not mapped.
        progress: show a bar over the documents.
        memory_gb: what a search may take beside the documents and queries that it is given, its results included,
            whatever the size of the collection; more queries than fit go past the documents in several passes.
    """

    def __init__(self, documents: np.ndarray, progress: bool = False, memory_gb: float = SEARCH_MEMORY_GB):
        self.documents = documents
        self.progress = progress
        self.memory_gb = memory_gb

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Index.search`. Raises InputError if the dimensions differ or k exceeds the documents."""
        count, dim = self.documents.shape
        _check_queries(queries, dim)
        check_search(k, count)
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        together = self._queries_together(len(queries), k)
        passes = range(0, len(queries), together)
        with torch.inference_mode(), tqdm(total=count * len(passes), unit="doc", unit_scale=True, desc="searching",
                                          disable=not self.progress) as bar:  # fmt: skip
            for first in passes:
                part = slice(first, first + together)
                scores[part], rows[part] = self._search_pass(queries[part], k, bar)
        return scores, rows

    def _queries_together(self, queries: int, k: int) -> int:
        """How many queries go past the documents at once, so that the memory is kept."""
        entry = 4 + 8  # a score and a row
        blocks = 3 * BLOCK_ROWS * self.documents.shape[1] * 4  # one in use, one waiting, one being read
        tile = QUERY_ROWS * (TILE_ROWS * 8 + 4 * k * entry)  # scores, which are better, and what is merged
        room = self.memory_gb * 1e9 - queries * k * entry - blocks - tile
        return max(QUERY_ROWS, int(room / (self.documents.shape[1] * 4 + 2 * k * entry)))

    def _search_pass(self, queries: np.ndarray, k: int, bar: tqdm) -> tuple[torch.Tensor, torch.Tensor]:
        groups = torch.from_numpy(np.array(queries, dtype=np.float32)).split(QUERY_ROWS)
        best = [
            (torch.full((len(group), k), -torch.inf), torch.full((len(group), k), -1, dtype=torch.int64))
            for group in groups
        ]
        tile_rows = max(TILE_ROWS, min(BLOCK_ROWS, TILE_SCORES // len(groups[0])))
        room = torch.empty(len(groups[0]) * tile_rows)  # for the scores of a tile
        for first_row, block in _read_ahead(_blocks(self.documents)):
            for start in range(0, len(block), tile_rows):
                tile = block[start : start + tile_rows]
                for number, group in enumerate(groups):
                    scores = room[: len(group) * len(tile)].view(len(group), len(tile))
                    torch.mm(group, tile.T, out=scores)
                    best[number] = merge_block(*best[number], scores, first_row + start)
            bar.update(len(block))
        best_scores, best_rows = zip(*best, strict=True)
        return torch.cat(best_scores), torch.cat(best_rows)


def merge_block(
    best_scores: torch.Tensor, best_rows: torch.Tensor, scores: torch.Tensor, first_row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the scores of a block of documents into the best of all earlier blocks.

    Args:
        best_scores: (Q, k), greatest first; -inf where there is none yet.
        best_rows: (Q, k), ascending among equal scores.
        scores: (Q, B), of the documents ``first_row ... first_row + B - 1``, all after those in ``best_rows``.

    Returns:
        The new best scores and rows, both (Q, k).
    """
    k = best_scores.shape[1]
    better = scores > best_scores[:, -1:]  # a tie goes to the earlier row, which is there already
    hits = better.nonzero()  # (query, column), ascending in query, then in column
    if len(hits) > MANY_HITS * len(scores) and scores.shape[1] > k:
        # The first blocks: only the k best of this one can matter, and what ties with them.
        better &= scores >= torch.topk(scores, k, sorted=False).values.amin(1, keepdim=True)
        hits = better.nonzero()
    if len(hits) == 0:
        return best_scores, best_rows
    query, column = hits.unbind(1)
    counts = torch.bincount(query, minlength=len(scores))
    width = int(counts.max())
    place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
    new_scores = scores.new_full((len(scores), width), -torch.inf)
    new_rows = best_rows.new_full((len(scores), width), -1)
    new_scores[query, place] = scores[query, column]
    new_rows[query, place] = column + first_row
    # Rows ascend from best to new and within both, so a stable sort leaves ties in ascending rows.
    merged, order = torch.cat((best_scores, new_scores), 1).sort(dim=1, descending=True, stable=True)
    return merged[:, :k].contiguous(), torch.cat((best_rows, new_rows), 1).gather(1, order[:, :k])


def _blocks(documents: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, (B, dim) tensor), read from the file where ``documents`` is a whole memmap."""
    count, dim = documents.shape
    if isinstance(documents, np.memmap) and documents.nbytes >= os.path.getsize(documents.filename):  # no part of one
        with open(documents.filename, "rb") as file:
            for first in range(0, count, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, count - first)
                block = np.fromfile(file, dtype=documents.dtype, count=rows * dim)
                if len(block) < rows * dim:
                    raise InputError(f"{documents.filename}: has become shorter while it was read")
                yield first, torch.from_numpy(block.reshape(rows, dim))
    else:
        for first in range(0, count, BLOCK_ROWS):
            yield first, torch.from_numpy(np.require(documents[first : first + BLOCK_ROWS], requirements="CW"))


def _read_ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """Yield what ``blocks`` yields, fetched one ahead by a thread, so that the disk works while the CPU does."""
    waiting: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None

    def fetch() -> None:
        try:
            for block in blocks:
                put((block, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # raised again where the blocks are used
            put((end, error))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            block, error = waiting.get()
            if error is not None:
                raise error
            if block is end:
                return
            yield block
    finally:
        stop.set()
        thread.join()


class ShardedIndex:
    """faiss indexes over successive parts of the documents, searched side by side, their results merged.

    Args:
        shards: faiss indexes (inner product), in the order of the rows that they hold.
    """

    def __init__(self, shards: Sequence[Any]):
        self.shards = shards
        self._first_rows = np.cumsum([0, *(shard.ntotal for shard in shards)])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Index.search`."""
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


def gpu_index(documents: np.ndarray, gpus: Sequence[int]) -> ShardedIndex:
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
        shard.add(documents[first:last])  # at once: faiss makes room for what is added and copies what is there
        shards.append(shard)
    return ShardedIndex(shards)


def gpus_with_room(size: int) -> list[int]:
    """All GPUs if they can hold documents of ``size`` bytes between them and faiss can use them; none if not."""
    import faiss

    if not (hasattr(faiss, "GpuIndexFlatIP") and torch.cuda.is_available()):
        return []
    torch.cuda.empty_cache()
    gpus = list(range(faiss.get_num_gpus()))
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in gpus]
    if not gpus or min(free) < size / len(gpus) + GPU_SCRATCH:
        log.warning("the GPUs cannot hold %.1f GB of embeddings between them; searching on the CPU", size / 1e9)
        return []
    return gpus


def open_index(
    documents: np.ndarray, gpus: Sequence[int], progress: bool = False, memory_gb: float = SEARCH_MEMORY_GB
) -> Index:
    """The index of ``documents``: on the GPUs that are named, on the CPU, within ``memory_gb``, if none is."""
    return gpu_index(documents, gpus) if gpus else ExactIndex(documents, progress, memory_gb)


def check_search(k: int, count: int, gpus: Sequence[int] = (), memory_gb: float = SEARCH_MEMORY_GB) -> None:
    """Raise InputError if the ``k`` best of ``count`` documents cannot be found on ``gpus``, or in ``memory_gb``."""
    if not 0 < memory_gb < float("inf"):
        raise InputError(f"--search_memory_gb {memory_gb}: expected more than 0; {SEARCH_MEMORY_GB:g} is plenty")
    if not 1 <= k <= count:
        raise InputError(f"cannot return the {k} best of {count} documents; choose 1 to {count}")
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
    for gpu in gpus:
        if not 0 <= gpu < faiss.get_num_gpus():
            raise InputError(f"there is no GPU {gpu} for the search; faiss sees {faiss.get_num_gpus()}")


def _check_queries(queries: np.ndarray, dim: int) -> None:
    if queries.shape[1] != dim:
        raise InputError(f"the queries have {queries.shape[1]} dimensions, the documents {dim}: other models?")
