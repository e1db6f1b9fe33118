"""Search by faiss, with the protocol of :mod:`drhard.index`: one index, or one on each of several GPUs.

faiss is imported inside the functions that need it, here and in :mod:`drhard.compressed`. Importing it takes a part of
a second, and the exact search on the CPU does not need it.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from drhard.devices import explain_no_gpu, require_gpu
from drhard.errors import InputError
from drhard.index import NO_ROWS, RESULTS_AT_ONCE, check_queries, check_topk, part_of, restore_rows
from drhard.vectors import check_finite, name_source

import numpy as np
import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

GPU_SCRATCH = 2_500_000_000  # bytes that faiss and CUDA need on a GPU beside the documents
GPU_TOPK = 2048  # the most that faiss returns from a GPU


class FaissIndex:
    """A search by one faiss index, or by several in parallel, each with a part of the documents.

    An inverted file of which few lists are probed may find fewer than k documents for a query. A warning then says
    how many queries are affected. :meth:`search` warns the first time, :meth:`passes` once for all of its queries.

    Args:
        shards: faiss indexes (inner product), in the order of their rows; a single one on the CPU.
        progress: show a bar over the queries of :meth:`passes`.
        results_at_once: the most results that :meth:`passes` yields together, for any k.
        left_out: (n,) int64 rows that the shards lack, ascending.
    """

    def __init__(
        self,
        shards: Sequence[Any],
        progress: bool = False,
        results_at_once: int = RESULTS_AT_ONCE,
        left_out: np.ndarray = NO_ROWS,
    ):
        self.shards = shards
        self.left_out = left_out
        self.progress = progress
        self.results_at_once = results_at_once
        self._first_rows = np.cumsum([0, *(shard.ntotal for shard in shards)])
        self._warned = False

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`."""
        scores, rows = self._search(queries, k)
        if not self._warned:
            self._warn(int((rows[:, -1] < 0).sum()), len(queries), k)
        return scores, rows

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`."""
        together = max(1, self.results_at_once // k)
        fewer = 0
        with tqdm(total=len(queries), unit="query", desc="searching", disable=not self.progress) as bar:
            for first in range(0, len(queries), together):
                scores, rows = self._search(queries[first : first + together], k)
                fewer += int((rows[:, -1] < 0).sum())
                bar.update(len(rows))
                yield scores, rows
        self._warn(fewer, len(queries), k)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        check_queries(queries, self.shards[0].d)
        check_topk(k, int(self._first_rows[-1]))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with ThreadPoolExecutor(len(self.shards)) as threads:
            parts = list(threads.map(lambda shard: shard.search(queries, min(k, shard.ntotal)), self.shards))
        scores = np.concatenate([scores for scores, _ in parts], axis=1)
        rows = np.concatenate(  # keeps -1: a compressed index may find fewer than k
            [np.where(rows < 0, -1, rows + first) for (_, rows), first in zip(parts, self._first_rows, strict=False)],
            axis=1,
        )
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), restore_rows(np.take_along_axis(rows, order, 1), self.left_out)

    def _warn(self, fewer: int, queries: int, k: int) -> None:
        if fewer:
            self._warned = True
            log.warning(
                "the index finds fewer than %d documents for %d of %d queries; a greater --nprobe finds more",
                k,
                fewer,
                queries,
            )


def open_on_gpus(
    documents: np.ndarray, gpus: Sequence[int], progress: bool = False, left_out: np.ndarray = NO_ROWS
) -> FaissIndex:
    """Split the documents into an exact faiss index on each GPU. Those in rows ``left_out`` are not found.

    Raises InputError if a GPU does not exist, lacks memory, or faiss cannot use it.
    """
    check_gpus(gpus)
    import faiss

    torch.cuda.empty_cache()  # what encoding has left
    count, dim = documents.shape
    gpus = gpus[:count]
    bounds = np.linspace(0, count, len(gpus) + 1).astype(np.int64)
    shards = []
    for gpu, first, last in zip(gpus, bounds[:-1], bounds[1:], strict=True):
        config = faiss.GpuIndexFlatConfig()
        config.device = gpu
        resources = faiss.StandardGpuResources()
        shard: Any = faiss.GpuIndexFlatIP(resources, dim, config)
        shard.resources = resources  # keeps them alive as long as the index
        check_finite(documents[first:last], int(first), name_source(documents, "the documents"))
        absent = part_of(left_out, int(first), int(last - first))
        try:
            part = np.delete(documents[first:last], absent, axis=0) if len(absent) else documents[first:last]
            shard.add(part)  # in one call: faiss copies what it has whenever it makes room
        except RuntimeError:
            size_gb = (last - first) * dim * 4 / 1e9
            raise InputError(
                f"GPU {gpu} cannot hold its {size_gb:.1f} GB of embeddings; name more GPUs, or search on the CPU"
            ) from None
        shards.append(shard)
    return FaissIndex(shards, progress, left_out=left_out)


def find_gpus_with_room(size: int) -> list[int]:
    """Return all GPUs if faiss can use them and together they can hold ``size`` bytes of documents, else none."""
    if find_spec("faiss") is None:
        return []
    import faiss

    if not (hasattr(faiss, "GpuIndexFlatIP") and torch.cuda.is_available()) or explain_no_gpu():
        return []
    torch.cuda.empty_cache()
    gpus = list(range(faiss.get_num_gpus()))
    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in gpus]
    if not gpus or min(free) < size / len(gpus) + GPU_SCRATCH:
        log.warning("the GPUs together cannot hold %.1f GB of embeddings; searching on the CPU", size / 1e9)
        return []
    return gpus


def require_faiss() -> None:
    """Raise InputError if faiss is not installed. An exact search on the CPU does not need it."""
    if find_spec("faiss") is None:
        raise InputError("faiss is not installed; install faiss-cpu, or faiss-gpu to search on GPUs")


def check_gpus(gpus: Sequence[int], k: int = 1) -> None:
    """Raise InputError if faiss cannot search the ``k`` best on ``gpus``."""
    require_faiss()
    import faiss

    if k > GPU_TOPK:
        raise InputError(f"faiss finds at most the {GPU_TOPK} best on a GPU, not {k}; search on the CPU")
    if not hasattr(faiss, "GpuIndexFlatIP"):
        raise InputError(
            "the installed faiss has no GPU support; install requirements.txt on a machine with a GPU, "
            "or omit the flag to search on the CPU"
        )
    require_gpu()  # without a GPU, faiss would abort the process
    for gpu in gpus:
        if not 0 <= gpu < faiss.get_num_gpus():
            raise InputError(f"GPU {gpu} does not exist; faiss sees {faiss.get_num_gpus()}")
